package memnet

import (
	"context"
	"io"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// The news that the other side has closed a connection takes as long as its bytes. A
// writer does not learn it earlier than the reader, or a caller that has seen a write
// fail and waits for the reader to notice would use the connection again and again.
func TestAWriterLearnsOfACloseNoEarlierThanTheReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		n.SetDelay(time.Second, time.Second)
		a, b := n.Host("a").Start(), n.Host("b").Start()
		l, err := b.Listen(context.Background(), ":1")
		require.NoError(t, err)
		c, err := a.Dial(context.Background(), "b:1")
		require.NoError(t, err)
		other, err := l.Accept()
		require.NoError(t, err)
		require.NoError(t, other.Close())
		_, err = c.Write([]byte("x"))
		require.NoError(t, err)
		began := time.Now()
		_, err = c.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
		require.GreaterOrEqual(t, time.Since(began), time.Second-time.Millisecond)
		_, err = c.Write([]byte("x"))
		require.ErrorIs(t, err, syscall.EPIPE)
	})
}
