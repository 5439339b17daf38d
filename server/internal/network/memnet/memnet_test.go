package memnet_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/nettest"

	"github.com/stemedb/stemedb/server/internal/network"
	"github.com/stemedb/stemedb/server/internal/network/memnet"
)

var _ network.Network = (*memnet.Proc)(nil)

// pair returns two hosts' processes and a connection from a to b.
func pair(t *testing.T, n *memnet.Net) (a, b *memnet.Proc, near, far net.Conn) {
	t.Helper()
	a, b = n.Host("a").Start(), n.Host("b").Start()
	l, err := b.Listen(t.Context(), ":80")
	require.NoError(t, err)
	near, err = a.Dial(t.Context(), "b:80")
	require.NoError(t, err)
	far, err = l.Accept()
	require.NoError(t, err)
	return a, b, near, far
}

// The standard conformance test of net.Conn: deadlines, concurrency, closing.
func TestConnConforms(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		n := memnet.New(1)
		a, b, near, far := pair(t, n)
		return near, far, func() { a.Kill(); b.Kill() }, nil
	})
}

func TestDelayIsVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New(1)
		n.SetDelay(time.Minute, time.Minute)
		start := time.Now()
		_, _, near, far := pair(t, n)
		require.Equal(t, 2*time.Minute, time.Since(start), "a dial is one round trip")
		_, err := near.Write([]byte("hello"))
		require.NoError(t, err)
		buf := make([]byte, 9)
		k, err := far.Read(buf)
		require.NoError(t, err)
		require.Equal(t, "hello", string(buf[:k]))
		require.Equal(t, 3*time.Minute, time.Since(start))
	})
}

func TestCutHoldsBytesUntilHealed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New(1)
		_, _, near, far := pair(t, n)
		n.CutOneWay("a", "b")
		_, err := near.Write([]byte("late"))
		require.NoError(t, err)
		buf := make([]byte, 9)
		require.NoError(t, far.SetReadDeadline(time.Now().Add(10*time.Second)))
		_, err = far.Read(buf)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		// The other direction still works.
		_, err = far.Write([]byte("back"))
		require.NoError(t, err)
		k, err := near.Read(buf)
		require.NoError(t, err)
		require.Equal(t, "back", string(buf[:k]))

		require.NoError(t, far.SetReadDeadline(time.Time{}))
		time.AfterFunc(10*time.Second, func() { n.Heal("a", "b") })
		k, err = far.Read(buf)
		require.NoError(t, err)
		require.Equal(t, "late", string(buf[:k]))
	})
}

func TestLongCutBreaksBothEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New(1)
		_, _, near, far := pair(t, n)
		n.CutOneWay("b", "a")
		start := time.Now()
		_, err := near.Read(make([]byte, 1)) // without a deadline
		require.ErrorIs(t, err, syscall.ETIMEDOUT)
		require.Equal(t, 45*time.Second, time.Since(start))
		n.HealAll()
		_, err = far.Write([]byte("x"))
		require.Error(t, err, "broken although no call was made during the cut")
	})
}

func TestKillResetsAndPowerOffHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New(1)
		a, b, near, _ := pair(t, n)
		b.Kill()
		_, err := near.Read(make([]byte, 1))
		require.ErrorIs(t, err, syscall.ECONNRESET)
		_, err = b.Dial(t.Context(), "a:80")
		require.ErrorIs(t, err, net.ErrClosed, "a dead process can do nothing")
		_, err = a.Dial(t.Context(), "b:80")
		require.ErrorIs(t, err, syscall.ECONNREFUSED)

		_, b, near, _ = pair(t, n)
		b.PowerOff()
		start := time.Now()
		_, err = near.Read(make([]byte, 1))
		require.ErrorIs(t, err, syscall.ETIMEDOUT)
		require.Equal(t, 45*time.Second, time.Since(start))

		_, b, near, _ = pair(t, n)
		b.PowerOff()
		time.AfterFunc(time.Second, func() { n.Host("b").Start() })
		start = time.Now()
		_, err = near.Read(make([]byte, 1))
		require.ErrorIs(t, err, syscall.ECONNRESET)
		require.Equal(t, time.Second, time.Since(start))
	})
}

func TestDialIntoNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New(1)
		a, _, _, _ := pair(t, n)
		n.Cut("a", "b")
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		_, err := a.Dial(ctx, "b:80")
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.Equal(t, 3*time.Second, time.Since(start))

		var nerr net.Error
		_, err = a.Dial(context.Background(), "10.9.9.9:80")
		require.True(t, errors.As(err, &nerr) && nerr.Timeout())
		require.Equal(t, 133*time.Second, time.Since(start))

		_, err = a.Dial(t.Context(), "nowhere:80")
		var dns *net.DNSError
		require.ErrorAs(t, err, &dns)
	})
}

func TestFullWindowHonoursDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New(1)
		_, _, near, far := pair(t, n)
		require.NoError(t, near.SetWriteDeadline(time.Now().Add(time.Second)))
		sent, err := near.Write(make([]byte, 1<<20))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.Equal(t, 256<<10, sent)
		require.NoError(t, near.SetWriteDeadline(time.Time{}))
		go func() {
			near.Write(make([]byte, 1<<20))
			near.Close()
		}()
		all, err := io.ReadAll(far)
		require.NoError(t, err)
		require.Len(t, all, 1<<20+256<<10)
	})
}

func TestNamesFollowHosts(t *testing.T) {
	n := memnet.New(1)
	a := n.Host("a").Start()
	n.Host("b")
	_, err := a.LookupHost(t.Context(), "b")
	require.Error(t, err, "a pod that never started has no record")
	n.Host("b").Start()
	n.Alias("all", "a", "b")
	first, err := a.LookupHost(t.Context(), "b")
	require.NoError(t, err)
	n.Host("b").Move()
	second, err := a.LookupHost(t.Context(), "b")
	require.NoError(t, err)
	require.NotEqual(t, first, second)
	ips, err := a.LookupHost(t.Context(), "all")
	require.NoError(t, err)
	require.Len(t, ips, 2)
}

func TestPackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New(7)
		a, b := n.Host("a").Start(), n.Host("b").Start()
		from, err := a.ListenPacket(t.Context(), ":9")
		require.NoError(t, err)
		to, err := b.ListenPacket(t.Context(), ":9")
		require.NoError(t, err)
		receive := func() int {
			count := 0
			buf := make([]byte, 100)
			for {
				to.SetReadDeadline(time.Now().Add(time.Second))
				k, sender, err := to.ReadFrom(buf)
				if err != nil {
					require.ErrorIs(t, err, os.ErrDeadlineExceeded)
					return count
				}
				require.Equal(t, "ping", string(buf[:k]))
				require.Equal(t, from.LocalAddr().String(), sender.String())
				count++
			}
		}
		send := func() {
			for range 1000 {
				_, err := from.WriteTo([]byte("ping"), to.LocalAddr())
				require.NoError(t, err)
			}
		}
		send()
		require.Equal(t, 1000, receive())
		n.SetLoss(0.3)
		send()
		got := receive()
		require.Greater(t, got, 600)
		require.Less(t, got, 800)
		n.Cut("a", "b")
		send()
		require.Zero(t, receive())
		b.Kill()
		send() // to no listener: never waits, never fails
		_, _, err = to.ReadFrom(make([]byte, 1))
		require.True(t, strings.Contains(err.Error(), "closed"))
	})
}
