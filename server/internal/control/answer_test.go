package control

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// future implements raft.Future.
type future chan error

func (f future) Error() error { return <-f }

func TestAQuestionThatRaftNeverAnswersIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		never := make(future)
		defer close(never)
		began := time.Now()
		require.ErrorContains(t, answerOf(never, 3*time.Second), "did not answer")
		require.Equal(t, 3*time.Second, time.Since(began))
		refused := make(future, 1)
		refused <- errors.New("not the leader")
		require.ErrorContains(t, answerOf(refused, 3*time.Second), "not the leader")
	})
}
