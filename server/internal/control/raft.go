package control

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/stemedb/stemedb/server/internal/peertls"
)

// Raft's address of a server is "id|host:port": a connection names the server
// that it is for, and another incarnation that answers at the address refuses
// it. Otherwise a node that lost its volumes would be taken for its old self,
// and a vote or an entry would be counted that nobody holds any more.
func raftAddress(id, addr string) raft.ServerAddress { return raft.ServerAddress(id + "|" + addr) }

func splitRaftAddress(a raft.ServerAddress) (id, addr string) {
	id, addr, ok := strings.Cut(string(a), "|")
	if !ok {
		return "", string(a)
	}
	return id, addr
}

// newRaft starts Raft. A node without state stays quiet until it is bootstrapped
// or a leader speaks to it.
func (c *Control) newRaft() error {
	t := c.cfg.Timings
	conf := raft.DefaultConfig()
	conf.LocalID = raft.ServerID(c.id)
	conf.HeartbeatTimeout = t.Heartbeat
	conf.ElectionTimeout = t.Heartbeat
	conf.LeaderLeaseTimeout = t.Heartbeat / 2
	conf.SnapshotInterval = t.SnapshotEvery
	conf.SnapshotThreshold = t.SnapshotAfter
	conf.TrailingLogs = t.SnapshotAfter
	conf.Logger = c.hclog()
	conf.NotifyCh = c.leaderCh
	c.layer = newStreamLayer(c.cfg.Peers, c.cfg.RaftListener, c.id, c.cfg.PeerAddr, &c.addresses)
	c.transport = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: c.layer, MaxPool: 3, Timeout: t.CallTimeout, Logger: conf.Logger, MsgpackUseNewTimeFormat: true,
	})
	started := make(chan struct{})
	defer close(started)
	storage := &guard{RaftStorage: c.cfg.Storage, failed: func(err error) {
		c.table.fail(err)
		c.log.Error("the control table's storage has failed", "error", err)
		c.workers.Go(func() {
			<-started
			c.raft.Shutdown()
		})
	}}
	if err := c.forgetBrokenFounding(); err != nil {
		return errors.Join(err, c.transport.Close(), c.layer.Close())
	}
	r, err := raft.NewRaft(conf, c.table, storage.Logs(), storage.Stable(), storage.Snapshots(), c.transport)
	if err != nil {
		return errors.Join(fmt.Errorf("start the control table: %w", err), c.transport.Close(), c.layer.Close())
	}
	c.raft = r
	c.observe()
	c.hurryAlone()
	return nil
}

// hurryAlone makes a lone voter stand for election at once: there is nobody
// whose heartbeat it could wait for, and its start is an outage. A follower
// looks at its timer again when the time-out becomes shorter, which is how Raft
// can be told.
func (c *Control) hurryAlone() {
	conf := c.raft.GetConfiguration()
	if conf.Error() != nil {
		return
	}
	if servers := conf.Configuration().Servers; len(servers) != 1 || servers[0].ID != raft.ServerID(c.id) {
		return
	}
	reload := c.raft.ReloadableConfig()
	reload.HeartbeatTimeout -= time.Millisecond
	if err := c.raft.ReloadConfig(reload); err != nil {
		c.log.Warn("a lone voter waits for nobody's heartbeat", "error", err)
	}
}

// forgetBrokenFounding undoes the half of a founding: Raft writes term 1 and then
// the first configuration, and would refuse to found for ever when the node
// died in between. A node that has no entry and gave no vote has promised
// nothing in term 1.
func (c *Control) forgetBrokenFounding() error {
	if has, err := c.hasState(); has || err != nil {
		return err
	}
	stable := c.cfg.Storage.Stable()
	if storedNumber(stable, "CurrentTerm") != 1 || storedNumber(stable, "LastVoteTerm") != 0 {
		return nil
	}
	if err := stable.SetUint64([]byte("CurrentTerm"), 0); err != nil {
		return fmt.Errorf("undo a founding that was cut short: %w", err)
	}
	return nil
}

// storedNumber is 0 when there is none, which stores call an error. One that
// cannot be read at all stops Raft's own start right after.
func storedNumber(stable raft.StableStore, key string) uint64 {
	n, err := stable.GetUint64([]byte(key))
	if err != nil {
		return 0
	}
	return n
}

// observe wakes those who watch when another leader is known.
func (c *Control) observe() {
	seen := make(chan raft.Observation, 8)
	observer := raft.NewObserver(seen, false, func(o *raft.Observation) bool {
		_, is := o.Data.(raft.LeaderObservation)
		return is
	})
	c.raft.RegisterObserver(observer)
	c.workers.Go(func() {
		defer c.raft.DeregisterObserver(observer)
		for {
			select {
			case <-seen:
				c.changed.broadcast()
			case <-c.ctx.Done():
				return
			}
		}
	})
}

// hasState tells whether Raft's log or snapshots hold anything. A vote alone is
// no state: nothing that could have been committed depends on it.
func (c *Control) hasState() (bool, error) {
	last, err := c.cfg.Storage.Logs().LastIndex()
	if err != nil {
		return false, fmt.Errorf("read the control table's log: %w", err)
	}
	snapshots, err := c.cfg.Storage.Snapshots().List()
	if err != nil {
		return false, fmt.Errorf("list the control table's snapshots: %w", err)
	}
	return last > 0 || len(snapshots) > 0, nil
}

// streamLayer carries Raft over the peer port. The dialer sends, before Raft
// speaks, whom it means and who it is.
type streamLayer struct {
	peers   *peertls.Transport
	moved   *addresses
	ln      net.Listener
	id      string
	addr    string
	queue   chan net.Conn
	ctx     context.Context // ends with Close
	stop    context.CancelFunc
	workers sync.WaitGroup
	once    sync.Once

	mu    sync.Mutex // guards conns
	conns map[net.Conn]struct{}
}

const (
	helloMagic   = "stemedb raft 1\n"
	helloTimeout = 5 * time.Second
	maxID        = 1024
)

func newStreamLayer(peers *peertls.Transport, ln net.Listener, id, addr string, moved *addresses) *streamLayer {
	l := &streamLayer{peers: peers, moved: moved, ln: ln, id: id, addr: addr, queue: make(chan net.Conn), conns: map[net.Conn]struct{}{}}
	l.ctx, l.stop = context.WithCancel(context.Background())
	l.workers.Go(l.accept)
	return l
}

// Dial implements raft.StreamLayer.
func (l *streamLayer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	id, addr := splitRaftAddress(address)
	addr = l.moved.of(id, addr)
	ctx, cancel := context.WithTimeout(l.ctx, timeout)
	defer cancel()
	conn, err := l.peers.Dial(ctx, addr, peertls.ProtoRaft)
	if err != nil {
		return nil, err
	}
	hello := appendText(appendText([]byte(helloMagic), id), l.id)
	if err = conn.SetWriteDeadline(time.Now().Add(timeout)); err == nil {
		_, err = conn.Write(hello)
	}
	if err == nil {
		err = conn.SetWriteDeadline(time.Time{})
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("greet %s at %s: %w", id, addr, err)
	}
	return conn, nil
}

func appendText(b []byte, text string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(text))), text...)
}

func readText(r io.Reader) (string, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return "", err
	}
	n := binary.BigEndian.Uint16(size[:])
	if n > maxID {
		return "", fmt.Errorf("an id of %d bytes", n)
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return string(b), err
}

func (l *streamLayer) accept() {
	for {
		conn, err := l.ln.Accept()
		if err != nil {
			return // the peer port closes its listeners only for good
		}
		if !l.keep(conn) {
			return
		}
		l.workers.Go(func() { l.greet(conn) })
	}
}

// keep notes a connection, so that Close can close it; Raft itself leaves those
// that it accepted to the other side.
func (l *streamLayer) keep(conn net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx.Err() != nil {
		conn.Close()
		return false
	}
	l.conns[conn] = struct{}{}
	return true
}

func (l *streamLayer) forget(conn net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, conn)
}

func (l *streamLayer) greet(conn net.Conn) {
	if err := l.readHello(conn); err != nil {
		conn.Close()
		l.forget(conn)
		return
	}
	select {
	case l.queue <- &accepted{Conn: conn, layer: l}:
	case <-l.ctx.Done():
		conn.Close()
	}
}

func (l *streamLayer) readHello(conn net.Conn) error {
	if err := conn.SetReadDeadline(time.Now().Add(helloTimeout)); err != nil {
		return err
	}
	magic := make([]byte, len(helloMagic))
	if _, err := io.ReadFull(conn, magic); err != nil {
		return err
	}
	if string(magic) != helloMagic {
		return errors.New("not a Raft connection of this version")
	}
	to, err := readText(conn)
	if err != nil {
		return err
	}
	if to != l.id {
		return fmt.Errorf("meant for %s", to)
	}
	if _, err := readText(conn); err != nil {
		return err
	}
	return conn.SetReadDeadline(time.Time{})
}

// Accept implements net.Listener.
func (l *streamLayer) Accept() (net.Conn, error) {
	select {
	case conn := <-l.queue:
		return conn, nil
	case <-l.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close closes the listener and every connection that was accepted. Raft calls
// it too.
func (l *streamLayer) Close() (err error) {
	l.once.Do(func() { err = l.close() })
	return err
}

func (l *streamLayer) close() error {
	l.mu.Lock()
	l.stop()
	open := slices.Collect(maps.Keys(l.conns))
	l.mu.Unlock()
	for _, conn := range open {
		conn.Close() // may wait for its peer a little: not under the lock
	}
	err := l.ln.Close()
	l.workers.Wait()
	return err
}

// Addr is how this node calls itself in Raft's messages.
func (l *streamLayer) Addr() net.Addr { return layerAddr(raftAddress(l.id, l.addr)) }

type layerAddr string

func (layerAddr) Network() string  { return "stemedb-raft" }
func (a layerAddr) String() string { return string(a) }

type accepted struct {
	net.Conn
	layer *streamLayer
}

func (a *accepted) Close() error {
	a.layer.forget(a.Conn)
	return a.Conn.Close()
}

// hclog gives Raft a logger that writes to ours. Raft calls errors what is a
// peer's absence; here that is a warning.
func (c *Control) hclog() hclog.Logger {
	logger := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "raft", Level: hclog.Debug, Output: io.Discard})
	logger.RegisterSink(sink{c.log.With("part", "raft")})
	return logger
}

type sink struct{ log *slog.Logger }

func (s sink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	at := slog.LevelDebug
	switch {
	case level >= hclog.Warn:
		at = slog.LevelWarn
	case level == hclog.Info:
		at = slog.LevelInfo
	}
	s.log.Log(context.Background(), at, msg, plain(args)...)
}
