package control_test

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/stemedb/stemedb/server/internal/clock"
	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/control/raftmem"
	"github.com/stemedb/stemedb/server/internal/network/memnet"
	"github.com/stemedb/stemedb/server/internal/peertls"
)

const (
	secretA = "0123456789abcdef0123456789abcdef"
	secretB = "fedcba9876543210fedcba9876543210"
)

// world is a cluster on a network in memory.
type world struct {
	t    *testing.T
	net  *memnet.Net
	join []string
	node map[string]*node
	// mu guards node.control for goroutines other than the test's.
	mu sync.Mutex
}

// node is one machine with its volumes and, while it runs, its process.
type node struct {
	w    *world
	name string
	join []string

	secrets     []string
	incarnation string
	clusterID   string
	shared      bool
	disk        *raftmem.Disk
	data        *data
	timings     control.Timings
	clock       clock.Shifted        // the machine's: it survives the process
	logs        func(message string) // called, if set, before the node continues

	proc     *memnet.Proc
	peers    *peertls.Transport
	listener *peertls.Listener
	server   *grpc.Server
	serving  sync.WaitGroup
	control  *control.Control
	reg      *prometheus.Registry
}

// data simulates the records of a node: a log end and cursors for other logs.
type data struct {
	mu sync.Mutex
	// lives are like those of wal.Log; rolledBack is the reason passed to
	// NoteRollback.
	lives      []string
	rolledBack string
	end        uint64
	cursors    map[string]uint64
	empty      bool
	asked      func() // called, if set, before the log's end is read
}

func (d *data) LogEnd() uint64 {
	d.mu.Lock()
	asked := d.asked
	d.mu.Unlock()
	if asked != nil {
		asked()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.end
}

func (d *data) whenAsked(do func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked = do
}

func (d *data) Cursors() map[string]uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.cursors)
}

func (d *data) Read() map[string]uint64 { return nil }

func (d *data) Empty() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.empty
}

func (d *data) Lives() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.lives)
}

func (d *data) RolledBack() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rolledBack != ""
}

func (d *data) SetLife(life string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lives, d.rolledBack = []string{life}, ""
	return nil
}

func (d *data) NoteRollback(why string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rolledBack = why
}

// begin generates a life, like each Open of the log.
func (d *data) begin() {
	var b [4]byte
	rand.Read(b[:])
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lives = append(d.lives, hex.EncodeToString(b[:]))
}

func (d *data) write(n uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.end += n
	d.empty = false
}

func (d *data) pull(incarnation string, end uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cursors[incarnation] = end
	d.empty = d.empty && end == 0
}

func (d *data) reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cursors = map[string]uint64{}
}

func peerAddr(name string) string { return name + ".stemedb.test:18182" }
func host(name string) string     { return name + ".stemedb.test" }

func newWorld(t *testing.T, names ...string) *world {
	t.Helper()
	w := &world{t: t, net: memnet.New(1), node: map[string]*node{}}
	w.net.SetDelay(time.Millisecond, 5*time.Millisecond)
	for _, name := range names {
		w.join = append(w.join, peerAddr(name))
	}
	for _, name := range names {
		w.add(name)
	}
	return w
}

func (w *world) add(name string) *node {
	n := &node{w: w, name: name, join: w.join, secrets: []string{secretA}}
	n.wipe()
	w.node[name] = n
	return n
}

// wipe gives the node empty volumes and so a new incarnation.
func (n *node) wipe() {
	var b [4]byte
	rand.Read(b[:])
	n.incarnation = hex.EncodeToString(b[:])
	n.disk = raftmem.New()
	n.clusterID = ""
	n.data = &data{cursors: map[string]uint64{}, empty: true}
}

func (n *node) id() string { return n.name + "/" + n.incarnation }

// start starts the node's process.
func (n *node) start() {
	require.NoError(n.w.t, n.tryStart())
}

func (n *node) tryStart() error {
	n.proc = n.w.net.Host(host(n.name)).Start()
	out := io.Discard
	if os.Getenv("CONTROL_TEST_LOG") != "" {
		out = os.Stderr
	}
	logger := slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: n.logsMessage})).With("at", n.name)
	n.data.begin()
	var err error
	if n.peers, err = peertls.New(peertls.Config{Network: n.proc, Name: n.name, Secrets: n.secrets, Logger: logger}); err != nil {
		return err
	}
	if n.listener, err = n.peers.Listen(context.Background(), ":18182"); err != nil {
		return err
	}
	n.reg = prometheus.NewRegistry()
	open := n.disk.Process()
	c, err := control.New(control.Config{
		Name: n.name, Incarnation: n.incarnation, ClusterID: n.clusterID, Shared: n.shared,
		PeerAddr: peerAddr(n.name), APIAddr: host(n.name) + ":18180", Join: n.join,
		Storage: func() (control.RaftStorage, error) { return open() }, Peers: n.peers, RaftListener: n.listener.Raft(), Data: n.data,
		Clock: &n.clock, Logger: logger, Registerer: n.reg, Timings: n.timings,
	})
	if err != nil {
		n.listener.Close()
		n.peers.Close()
		return err
	}
	n.server = grpc.NewServer(append(n.peers.ServerOptions(),
		grpc.UnaryInterceptor(c.UnaryServer()), grpc.StreamInterceptor(c.StreamServer()))...)
	c.Register(n.server)
	n.serving.Go(func() { n.server.Serve(n.listener.GRPC()) })
	n.set(c)
	return c.Start(context.Background())
}

func (n *node) logsMessage(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.MessageKey && n.logs != nil {
		n.logs(a.Value.String())
	}
	return a
}

func (n *node) set(c *control.Control) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	n.control = c
}

// live returns the running control table of a node, for other goroutines.
func (w *world) live(name string) *control.Control {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.node[name].control
}

// kill ends the process at once; stop shuts it down gracefully. Both return when
// all of it has stopped.
func (n *node) kill() {
	if n.control == nil {
		return
	}
	n.proc.Kill()
	n.disk.Process() // later writes of the old process are refused
	n.shut()
}

func (n *node) stop() {
	if n.control == nil {
		return
	}
	n.shut()
	n.proc.Kill()
}

func (n *node) shut() {
	if id := n.control.State().ClusterID; id != "" {
		n.clusterID = id
	}
	n.control.Close(context.Background())
	n.server.Stop()
	n.listener.Close()
	n.peers.Close()
	n.serving.Wait()
	n.set(nil)
}

func (w *world) start() {
	for _, n := range w.node {
		n.start()
	}
}

func (w *world) close() {
	for _, n := range w.node {
		n.stop()
	}
}

// eventually checks every 50 ms of virtual time until the condition holds.
func (w *world) eventually(within time.Duration, condition func() bool, what string, args ...any) {
	w.t.Helper()
	for deadline := time.Now().Add(within); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if condition() {
			return
		}
	}
	for name, n := range w.node {
		if n.control != nil {
			s := n.control.State()
			w.t.Logf("%s: phase %q, err %v, generation %d, members %v, change %+v, waits for %v",
				name, n.control.Phase(), n.control.Err(), s.Generation, s.Members, s.Change, n.control.ChangeWaitsFor())
		}
	}
	w.t.Fatalf("not within %v: %s", within, fmt.Sprintf(what, args...))
}

// sync makes every running node pull every log, like catch-up.
func (w *world) sync() {
	for _, n := range w.node {
		if n.control == nil {
			continue
		}
		for _, other := range w.node {
			if other != n && other.control != nil {
				n.data.pull(other.incarnation, other.data.LogEnd())
			}
		}
	}
}

// settleLimit allows for the longest pause before a failed part restarts.
const settleLimit = 2 * time.Minute

// settled waits until the running nodes agree on want whole members and no
// change is open.
func (w *world) settled(want int) {
	w.t.Helper()
	w.eventually(settleLimit, func() bool {
		w.sync()
		id := ""
		for _, n := range w.node {
			if n.control == nil {
				continue
			}
			s := n.control.State()
			whole, _ := s.ReadSet()
			me, member := s.MemberByID(n.id())
			confirmed, _ := n.control.Confirmed()
			if !s.Formed() || s.Change != nil || len(s.Members) != want || len(whole) != want || !member ||
				!me.Whole || me.APIAddr == "" || !confirmed || n.control.Phase() != "" {
				return false
			}
			if id == "" {
				id = s.ClusterID
			}
			if s.ClusterID != id {
				return false
			}
		}
		return true
	}, "%d whole members of one cluster", want)
}

func (w *world) leader() *node {
	for _, n := range w.node {
		if n.control != nil && n.control.IsLeader() {
			return n
		}
	}
	return nil
}

func (w *world) running() *node {
	for _, n := range w.node {
		if n.control != nil {
			return n
		}
	}
	return nil
}

// bubble runs a test of a world in virtual time.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}
