package node_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/config"
	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/network"
	"github.com/stemedb/stemedb/server/internal/node"
)

// exhausted is a network whose listeners fail while the process has no file
// descriptors left.
type exhausted struct {
	network.Network
	now atomic.Bool
}

func (e *exhausted) Listen(ctx context.Context, addr string) (net.Listener, error) {
	l, err := e.Network.Listen(ctx, addr)
	return &exhaustedListener{l, e}, err
}

type exhaustedListener struct {
	net.Listener
	e *exhausted
}

func (l *exhaustedListener) Accept() (net.Conn, error) {
	if l.e.now.Load() {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: syscall.EMFILE}
	}
	return l.Listener.Accept()
}

// lines is a log that may be read while it is written.
type lines struct {
	mu  sync.Mutex
	out bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.Write(b)
}

func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.out.String(), text)
}

// A node that runs out of file descriptors logs it at a limited rate, counts it
// for each listener, and serves again when descriptors are free.
func TestOutOfFileDescriptors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAlone(t)
		net := &exhausted{Network: a.net.Host("alone").Start()}
		var log lines
		n, err := node.Start(t.Context(), &config.Config{
			BindAddr: ":18180", GatewayAddr: ":18181", ReplicationAddr: ":18182", GossipAddr: ":18183",
			WALDir: "/wal", DBDir: "/db", NodeName: "alone", AdvertiseAddr: "alone",
		}, node.Environment{
			FS: a.disk, Network: net, Tuning: node.Tuning{SegmentSize: 256 << 10},
			RaftStorage: func(string, string) (control.RaftStorage, error) { return a.raft.Open(), nil },
			Logger:      slog.New(slog.NewJSONHandler(&log, nil)),
		})
		require.NoError(t, err)
		defer func() {
			n.Kill()
			time.Sleep(time.Minute)
		}()
		ready := func() bool { return n.Ready() == nil }
		for range 100 {
			if ready() {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		require.True(t, ready())
		status, _ := a.call("GET", "/v1/health/live", "", nil)
		require.Equal(t, 200, status)

		net.now.Store(true)
		// Each listener accepts one more connection: its Accept is already waiting.
		for _, addr := range []string{"alone:18180", "alone:18181", "alone:18182", "alone:18183"} {
			conn, err := net.Dial(t.Context(), addr)
			require.NoError(t, err)
			require.NoError(t, conn.Close())
		}
		time.Sleep(time.Minute)
		require.Positive(t, log.count("out of file descriptors"))
		require.LessOrEqual(t, log.count("out of file descriptors"), 4*7, "one line for each listener in ten seconds")
		require.LessOrEqual(t, log.count("too many open files"), 4*7, "no other line is repeated")
		require.Positive(t, log.count("left_out"))

		net.now.Store(false)
		time.Sleep(2 * time.Second)
		status, text := a.call("GET", "/metrics", "", nil)
		require.Equal(t, 200, status)
		for _, listener := range []string{"api", "gateway", "peers", "gossip"} {
			require.NotContains(t, string(text), `stemedb_accept_errors_total{listener="`+listener+`"} 0`+"\n")
			require.Contains(t, string(text), `stemedb_accept_errors_total{listener="`+listener+`"} `)
		}
	})
}
