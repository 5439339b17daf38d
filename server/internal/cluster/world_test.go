package cluster

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/clock"
	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/control/controlpb"
	"github.com/stemedb/stemedb/server/internal/network/memnet"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// world is a cluster in one process: real stores on simulated disks, the real
// peer protocol on a simulated network, and a control table that the test
// writes by hand.
type world struct {
	t     testing.TB
	net   *memnet.Net
	nodes map[string]*node
	tune  func(*Config)
	opts  func(*store.Options)

	mu    sync.Mutex
	state *control.State // the newest
}

type node struct {
	w       *world
	name    string
	disk    *memfs.Disk
	host    *memnet.Host
	control *table
	store   *store.Store
	cluster *Cluster
	metrics *prometheus.Registry

	unconfirmed atomic.Bool // its table may not decide

	proc   *memnet.Proc
	server *grpc.Server
	stop   context.CancelFunc
	done   chan struct{}
	err    error // of Run, set before done is closed
}

func newWorld(t testing.TB, names ...string) *world {
	t.Helper()
	w := &world{t: t, net: memnet.New(1), nodes: map[string]*node{}, state: &control.State{ClusterID: "test", DigestKey: [32]byte{7}}}
	w.net.SetDelay(time.Millisecond, 3*time.Millisecond)
	for i, name := range names {
		w.nodes[name] = &node{w: w, name: name, disk: memfs.New(uint64(i + 1)), host: w.net.Host(name)}
	}
	t.Cleanup(func() {
		for _, n := range w.nodes {
			n.shutdown()
		}
		time.Sleep(2 * time.Second) // goleveldb's last goroutine takes a second
	})
	return w
}

// threeNodes is a cluster of a, b and c, all whole and connected.
func threeNodes(t testing.TB, tune ...func(*world)) *world {
	t.Helper()
	w := newWorld(t, "a", "b", "c")
	for _, f := range tune {
		f(w)
	}
	w.startAll()
	w.setMembers("a", "b", "c")
	w.awaitConnected()
	return w
}

func (w *world) startAll() {
	for _, n := range w.nodes {
		n.start()
	}
}

// member is the current incarnation of a node.
func (w *world) member(name string) control.Member {
	n := w.nodes[name]
	return control.Member{Name: name, Incarnation: n.store.Identity().Incarnation, PeerAddr: name + ":18182", Whole: true}
}

func (w *world) members(names ...string) []control.Member {
	var ms []control.Member
	for _, name := range names {
		ms = append(ms, w.member(name))
	}
	return ms
}

// setMembers sets the members, all whole, with no change open.
func (w *world) setMembers(names ...string) {
	ms := w.members(names...)
	w.change(func(s *control.State) {
		for i := range ms {
			held, _ := s.MemberByID(ms[i].ID())
			ms[i].LostAt = held.LostAt
		}
		s.Members, s.Change = ms, nil
	})
}

// change commits a new state and shows it to every node at once.
func (w *world) change(edit func(*control.State)) {
	w.commit(edit)
	for _, n := range w.nodes {
		if n.control != nil {
			n.control.follow()
		}
	}
}

// commit creates a new state that no node has seen.
func (w *world) commit(edit func(*control.State)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	next := *w.state
	next.Members = append([]control.Member(nil), next.Members...)
	edit(&next)
	next.Generation++
	w.state = &next
}

func (w *world) newest() *control.State {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state
}

func (w *world) awaitConnected() {
	w.await("streams between all members", func() bool {
		for _, n := range w.nodes {
			if n.cluster == nil {
				continue
			}
			peers := n.cluster.currentPeers()
			if _, member := w.newest().MemberByID(n.control.id); member && len(peers) != len(w.newest().Everyone())-1 {
				return false
			}
			for _, p := range peers {
				if w.nodes[p.member.Name].cluster != nil && (!p.isConnected() || !n.hears(p.id)) {
					return false
				}
			}
		}
		return true
	})
}

// hears reports whether the node pulls from a member.
func (n *node) hears(id string) bool {
	l, ok := n.cluster.linkTo(id)
	if !ok {
		return false
	}
	l.puller.mu.Lock()
	defer l.puller.mu.Unlock()
	return l.puller.connected
}

// await waits, in the test's time, until a condition holds.
func (w *world) await(what string, holds func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); !holds(); {
		require.True(w.t, time.Now().Before(deadline), "waited in vain for %s", what)
		time.Sleep(5 * time.Millisecond)
	}
}

func (n *node) start() {
	t := n.w.t
	n.proc = n.host.Start()
	opts := store.Options{
		FS: n.disk, WALDir: "wal", DBDir: "db", NodeName: n.name,
		SegmentSize: 4 << 20, Reserve: 1, ReserveHigh: 2, WriteBuffer: 256 << 10, CacheBytes: 1 << 20, ScrubRate: -1,
	}
	if n.w.opts != nil {
		n.w.opts(&opts)
	}
	s, err := store.Open(context.Background(), opts)
	require.NoError(t, err)
	n.store = s
	n.metrics = prometheus.NewRegistry()
	n.control = newTable(n)
	cfg := Config{Store: s, Control: n.control, Progress: NewProgress(s), Registerer: n.metrics}
	if n.w.tune != nil {
		n.w.tune(&cfg)
	}
	n.cluster, err = New(cfg)
	require.NoError(t, err)

	n.server = grpc.NewServer(grpc.UnaryInterceptor(n.control.unary), grpc.StreamInterceptor(n.control.stream))
	n.cluster.Register(n.server)
	listener, err := n.proc.Listen(context.Background(), ":18182")
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.Background())
	n.stop, n.done = stop, make(chan struct{})
	go func() {
		defer close(n.done)
		var work sync.WaitGroup
		work.Go(func() { _ = n.server.Serve(listener) })
		n.err = n.cluster.Run(ctx)
		n.server.Stop()
		work.Wait()
	}()
}

// shutdown stops the node gracefully.
func (n *node) shutdown() {
	if n.cluster == nil {
		return
	}
	n.stop()
	<-n.done
	n.control.close()
	n.proc.Kill()
	_ = n.store.Close()
	n.cluster, n.store, n.control = nil, nil, nil
}

// crash cuts the node's power; data that was not synced is lost.
func (n *node) crash(mode memfs.Mode) {
	n.disk.CutPowerAfter(0)
	n.shutdown()
	n.disk.Crash(mode)
}

// lose deletes everything that the node has stored.
func (n *node) lose() {
	n.crash(memfs.LoseAll)
	n.disk.Wipe("")
}

// table is one node's copy of the control table.
type table struct {
	n  *node
	id string

	mu       sync.Mutex
	state    *control.State
	changed  chan struct{}
	conns    map[string]*grpc.ClientConn
	lagging  bool // does not follow the table
	reported int
	clock    clock.Shifted
	unsure   atomic.Bool
	failure  atomic.Pointer[error]
}

func newTable(n *node) *table {
	i := n.store.Identity()
	return &table{
		n: n, id: control.MemberID(i.Node, i.Incarnation), state: n.w.newest(),
		changed: make(chan struct{}), conns: map[string]*grpc.ClientConn{},
	}
}

func (c *table) State() *control.State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

func (c *table) Watch() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

func (c *table) Leader() (string, bool)   { return "a", true }
func (c *table) ChangeWaitsFor() []string { return nil }

// Now is the cluster's time as set by the test; unsure means that it is only the
// node's clock.
func (c *table) Now() (time.Time, bool) { return c.clock.Now(), !c.unsure.Load() }

func (c *table) ClockSkew(string) (time.Duration, bool) { return -90 * time.Second, !c.unsure.Load() }

func (c *table) follow() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lagging {
		return
	}
	c.state = c.n.w.newest()
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *table) lag(lagging bool) {
	c.mu.Lock()
	c.lagging = lagging
	c.mu.Unlock()
	c.follow()
}

func (c *table) ReportNotWhole(context.Context) error {
	c.mu.Lock()
	c.reported++
	c.mu.Unlock()
	c.n.w.change(func(s *control.State) {
		for i := range s.Members {
			if s.Members[i].ID() == c.id {
				s.Members[i].Whole, s.Members[i].LostAt = false, s.Generation+1
			}
		}
	})
	return nil
}

func (c *table) WaitGeneration(ctx context.Context, generation uint64) error {
	for c.State().Generation < generation {
		select {
		case <-c.Watch():
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (c *table) CheckGeneration(caller uint64) error {
	if err := c.MayDecide(); err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	own := c.State().Generation
	if caller >= own {
		return nil
	}
	st, err := status.New(codes.FailedPrecondition, "old generation").WithDetails(&controlpb.StaleGeneration{Generation: own})
	if err != nil {
		return err
	}
	return st.Err()
}

func (c *table) Conn(m control.Member) (grpc.ClientConnInterface, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	conn := c.conns[m.PeerAddr]
	if conn == nil {
		proc := c.n.proc
		var err error
		conn, err = grpc.NewClient("passthrough:///"+m.PeerAddr,
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return proc.Dial(ctx, addr) }),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, MaxDelay: 2 * time.Second},
				MinConnectTimeout: time.Second,
			}),
		)
		if err != nil {
			return nil, err
		}
		c.conns[m.PeerAddr] = conn
	}
	return &memberConn{c, conn, m.ID()}, nil
}

func (c *table) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		_ = conn.Close()
	}
}

// memberConn adds the target to each call.
type memberConn struct {
	c    *table
	conn *grpc.ClientConn
	to   string
}

func (m *memberConn) outgoing(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "to", m.to, "generation", strconv.FormatUint(m.c.State().Generation, 10))
}

func (m *memberConn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	return m.conn.Invoke(m.outgoing(ctx), method, args, reply, opts...)
}

func (m *memberConn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return m.conn.NewStream(m.outgoing(ctx), desc, method, opts...)
}

func (c *table) check(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if to := md.Get("to"); len(to) != 1 || to[0] != c.id {
		return status.Errorf(codes.FailedPrecondition, "this is %s, not %v", c.id, to)
	}
	return c.CheckCaller(ctx)
}

func (c *table) Phase() string { return "" }

func (c *table) MayDecide() error {
	if c.n != nil && c.n.unconfirmed.Load() {
		return control.ErrNotConfirmedYet
	}
	return nil
}

func (c *table) CheckCaller(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	generation, err := strconv.ParseUint(md.Get("generation")[0], 10, 64)
	if err != nil {
		return err
	}
	return c.CheckGeneration(generation)
}

func (c *table) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := c.check(ctx); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func (c *table) stream(srv any, s grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := c.check(s.Context()); err != nil {
		return err
	}
	return next(srv, s)
}

// agent is a signer for tests.
var agent = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))

func claim(subject string, n int) *record.Assertion {
	a := &record.Assertion{Content: record.Content{
		Subject: subject, Predicate: "is", Object: record.Text(fmt.Sprintf("value %d", n)),
		Confidence: 0.5, SourceClass: record.Expert, Lifecycle: record.Proposed, Timestamp: uint64(n),
	}}
	a.Sign(agent)
	return a
}

func claims(subject string, from, count int) []*record.Assertion {
	as := make([]*record.Assertion, count)
	for i := range as {
		as[i] = claim(subject, from+i)
	}
	return as
}

// write asserts through a node and returns the ids; every record must be
// accepted.
func (n *node) write(as ...*record.Assertion) []record.Hash {
	n.w.t.Helper()
	ids := make([]record.Hash, len(as))
	for i, r := range n.cluster.Assert(context.Background(), "p", as) {
		require.NoError(n.w.t, r.Err)
		ids[i] = r.ID
	}
	return ids
}

// holds reports whether this node itself holds an assertion with its signature.
func (n *node) holds(ids ...record.Hash) bool {
	for _, id := range ids {
		s, err := n.cluster.Get(context.Background(), "p", id, Local)
		if errors.Is(err, store.ErrNotFound) {
			return false
		}
		require.NoError(n.w.t, err)
		if len(s.Signatures) != 1 {
			return false
		}
	}
	return true
}

func (n *node) metric(name string) float64 {
	families, err := n.metrics.Gather()
	require.NoError(n.w.t, err)
	sum := 0.0
	for _, f := range families {
		if f.GetName() == "stemedb_"+name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}
