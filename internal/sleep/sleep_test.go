package sleep

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestForWaitsUntilTheTimeOrTheEndOfItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		require.True(t, For(t.Context(), time.Minute))
		require.Equal(t, time.Minute, time.Since(began))

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began = time.Now()
		require.False(t, For(ctx, time.Minute))
		require.Equal(t, time.Second, time.Since(began))
		for range 100 { // a time that is over does not win against an ended context
			require.False(t, For(ctx, 0))
		}
	})
}

func TestWakeLeavesOneTokenAndNeverWaits(t *testing.T) {
	c := make(chan struct{}, 1)
	Wake(c)
	Wake(c)
	require.Len(t, c, 1)
	<-c
	Wake(c)
	require.Len(t, c, 1)
}
