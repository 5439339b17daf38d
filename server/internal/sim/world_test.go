package sim

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stemedb/stemedb/server/internal/clock"
	"github.com/stemedb/stemedb/server/internal/cluster"
	"github.com/stemedb/stemedb/server/internal/config"
	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/control/raftmem"
	"github.com/stemedb/stemedb/server/internal/network/memnet"
	"github.com/stemedb/stemedb/server/internal/node"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

const (
	walDir   = "/wal"
	dbDir    = "/db"
	packDir  = dbDir + "/packs"
	indexDir = dbDir + "/index"
	// settleLimit is the time limit, in virtual time, until every node of a cluster
	// without faults serves.
	settleLimit = 5 * time.Minute
	leastDelay  = 100 * time.Microsecond // of the network
	mostDelay   = 3 * time.Millisecond
	rootKey     = "steme_test_0123456789abcdef0123456789abcdef0123456789abcdef"
)

// world is one simulated cluster. Everything happens in one synctest bubble.
type world struct {
	t        *testing.T
	rng      *rand.Rand // of the schedule; used by one goroutine
	net      *memnet.Net
	machines []*machine
	began    time.Time
	mu       sync.Mutex // guards machine.node and machine.proc against the clients
	// control replaces the intervals of the control table; zero values mean its defaults.
	control control.Timings
	// scrub is the interval of comparisons; negative: none.
	scrub time.Duration
	seed  uint64
	keys  map[string]string // raw, by project; set before the clients start
	// faults counts the faults by name. supervised: processes that end by themselves
	// are restarted.
	faults     map[string]int
	supervised bool
	instant    bool // disks take no time
	history    *history
}

// machine is one host with its disk. Its process comes and goes.
type machine struct {
	w      *world
	name   string
	host   *memnet.Host
	disk   *memfs.Disk
	temper *temper
	// turn is held by the fault that starts and ends the process.
	turn chan struct{}
	// paused: the process is stopped and does not answer; w.mu guards it.
	paused bool
	// mayLose: a fault affected the volumes since the machine was last whole, so it
	// may report a loss.
	mayLose bool
	// listed is the node's join list; nil means all machines.
	listed []string
	// advertised is the host name that the node announces; empty means name.
	advertised string

	raftMu sync.Mutex               // guards raft
	raft   map[string]*raftmem.Disk // by incarnation: it is on the WAL volume
	clock  clock.Shifted            // its setting survives the process

	proc *memnet.Proc
	node *node.Node // nil while it is down
}

func newWorld(t *testing.T, seed uint64, nodes int) *world {
	t.Helper()
	w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 1)), net: memnet.New(seed), began: time.Now(), scrub: 20 * time.Second, seed: seed, faults: map[string]int{}}
	w.net.SetDelay(leastDelay, mostDelay)
	for range nodes {
		w.addMachine(seed)
	}
	return w
}

// addMachine adds a machine that is down. The caller holds w.mu if clients run.
func (w *world) addMachine(seed uint64) *machine {
	i := len(w.machines)
	name := fmt.Sprintf("n%d", i)
	m := &machine{
		w: w, name: name, host: w.net.Host(name),
		disk: memfs.New(seed<<8 | uint64(i)), raft: map[string]*raftmem.Disk{},
		temper: newTemper(seed<<8 | uint64(i)), turn: make(chan struct{}, 1),
	}
	m.disk.SetLatency(m.temper.operation)
	if w.instant {
		m.temper.setFactor(0)
	}
	w.machines = append(w.machines, m)
	return m
}

// logf writes one line with the virtual time since the beginning.
func (w *world) logf(format string, args ...any) {
	w.t.Logf("%9.3fs "+format, append([]any{time.Since(w.began).Seconds()}, args...)...)
}

// address is the host name under which the other nodes reach the machine.
func (m *machine) address() string { return cmp.Or(m.advertised, m.name) }

// start starts the machine's process on its disk's content.
func (m *machine) start() {
	m.proc = m.host.Start()
	join := m.listed
	if join == nil {
		for _, other := range m.w.machines {
			join = append(join, other.address())
		}
	}
	open := m.openRaft()
	cfg := &config.Config{
		BindAddr: ":18180", GatewayAddr: ":18181", ReplicationAddr: ":18182", GossipAddr: ":18183",
		WALDir: walDir, DBDir: dbDir, NodeName: m.name, AdvertiseAddr: m.address(),
		ClusterJoin: join, ClusterSecrets: []config.Secret{"a secret that all simulated nodes share"},
		AuthEnabled: true, RootAPIKey: rootKey,
		ShutdownGrace: time.Second,
	}
	n, err := node.Start(context.Background(), cfg, node.Environment{
		FS: m.disk.Process(), Network: m.proc, Clock: &m.clock, RaftStorage: open, Logger: m.w.logger(),
		Tuning: node.Tuning{
			// Small segments, so that they are sealed and recycled; a single put has to
			// fit into one, as it does at the real sizes.
			SegmentSize: 128 << 10, MarkerInterval: 5 * time.Second, IndexBuffer: 256 << 10,
			Control: m.w.control,
			Limits:  cluster.Limits{PullBytes: 32 << 10, MessageBytes: 32 << 10},
			Cluster: cluster.Timings{ScrubEvery: m.w.scrub, VerifyEvery: 45 * time.Second, ScrubSettle: 5 * time.Second, StartWait: 5 * time.Second},
		},
	})
	if err != nil {
		m.w.t.Fatalf("%s does not start: %v", m.name, err)
	}
	m.node = n
}

// startMachine, crash and stopMachine change the state that the clients read.
func (w *world) startMachine(m *machine) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if m.node == nil {
		m.start()
	}
}

func (w *world) crash(m *machine, mode memfs.Mode, powerOff bool) {
	end := m.takeDown()
	if end == nil {
		return
	}
	if powerOff {
		m.proc.PowerOff()
	} else {
		m.proc.Kill()
	}
	m.disk.Crash(mode)
	m.cutRaft(mode)
	m.temper.powerOn()
	m.temper.resume()
	end.Kill()
}

// cutRaft ends the old process's writes to Raft's storage. Writes in flight are
// stored or lost, as on any disk.
func (m *machine) cutRaft(mode memfs.Mode) {
	m.raftMu.Lock()
	defer m.raftMu.Unlock()
	for _, disk := range m.raft {
		disk.CutPower(func() raftmem.Outcome {
			if mode == memfs.LoseAll || mode == memfs.KillProcess || m.temper.flip() {
				return raftmem.Lost
			}
			return raftmem.Stored
		})
	}
}

func (w *world) stopMachine(m *machine) {
	end := m.takeDown()
	if end == nil {
		return
	}
	ended := end.Err() // by itself, because of a fault
	if err := end.Shutdown(context.Background()); err != nil && ended == nil {
		w.t.Errorf("%s does not stop cleanly: %v", m.name, err)
	}
	m.proc.Kill()
	m.disk.Crash(memfs.KillProcess)
}

// takeDown hides the machine's node from the clients and returns it.
func (m *machine) takeDown() *node.Node {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	n := m.node
	m.node = nil
	return n
}

// openRaft begins a process and returns the function that opens Raft's storage of
// an incarnation: its content survives a crash, because bbolt syncs each write,
// but not the loss of the volume.
func (m *machine) openRaft() func(_, incarnation string) (control.RaftStorage, error) {
	m.raftMu.Lock()
	defer m.raftMu.Unlock()
	openers := map[string]func() (*raftmem.Storage, error){}
	for incarnation, disk := range m.raft {
		openers[incarnation] = disk.Process()
	}
	return func(_, incarnation string) (control.RaftStorage, error) {
		m.raftMu.Lock()
		defer m.raftMu.Unlock()
		if openers[incarnation] == nil {
			m.raft[incarnation] = m.temper.raftDisk()
			openers[incarnation] = m.raft[incarnation].Process()
		}
		return openers[incarnation]()
	}
}

// wipe deletes a volume; the machine is down.
func (m *machine) wipe(volume string) {
	m.disk.Wipe(volume)
	if volume != walDir {
		return
	}
	m.raftMu.Lock()
	defer m.raftMu.Unlock()
	m.raft = map[string]*raftmem.Disk{}
}

func (m *machine) wipeBoth() {
	m.wipe(walDir)
	m.wipe(dbDir)
}

func (m *machine) reserve() { m.turn <- struct{}{} }
func (m *machine) release() { <-m.turn }

func (m *machine) tryReserve() bool {
	select {
	case m.turn <- struct{}{}:
		return true
	default:
		return false
	}
}

// failRaft makes every write to the machine's Raft storage fail; nil ends that.
func (m *machine) failRaft(err error) {
	m.raftMu.Lock()
	defer m.raftMu.Unlock()
	for _, d := range m.raft {
		d.Fail(err)
	}
}

// tear ends the writes to Raft's storage that are in flight and damages the last
// entry of each.
func (m *machine) tear() {
	m.raftMu.Lock()
	defer m.raftMu.Unlock()
	for _, d := range m.raft {
		d.CutPower(func() raftmem.Outcome { return raftmem.Torn })
	}
}

// ended reports whether the process ended by itself.
func (m *machine) ended() bool {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	return m.node != nil && m.node.Err() != nil
}

// failed reports whether the node's storage failed in a way that requires a
// restart.
func (m *machine) failed() bool {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	if !m.up() {
		return false
	}
	h := m.node.Store().Health()
	return h.State == store.StateFailed || h.State == store.StateIndexFailed
}

// members returns the members in the machine's copy of the control table, if it
// is up.
func (m *machine) members() []control.Member {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	if !m.up() || m.paused {
		return nil
	}
	return m.node.Control().State().Members
}

func (w *world) all() []*machine {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.machines)
}

func (w *world) machine(name string) *machine {
	for _, m := range w.all() {
		if m.name == name {
			return m
		}
	}
	w.t.Fatalf("there is no machine %s", name)
	return nil
}

// expectLoss records that a fault affected the volumes of a machine.
func (w *world) expectLoss(m *machine) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m.mayLose = true
}

func (w *world) lossExpected(m *machine) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return m.mayLose
}

// up reports whether the machine's node has all its parts.
func (m *machine) up() bool {
	if m.node == nil {
		return false
	}
	select {
	case <-m.node.Started():
		return m.node.Err() == nil
	default:
		return false
	}
}

// allReady reports whether every node serves and all are whole in the table, or
// the reason why not.
func (w *world) allReady() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.machines {
		if !m.up() {
			return fmt.Errorf("%s is down", m.name)
		}
		if err := m.node.Ready(); err != nil {
			return fmt.Errorf("%s is not ready: %w", m.name, err)
		}
		s := m.node.Control().State()
		if s.Change != nil {
			return fmt.Errorf("%s sees the open change %s of %s", m.name, s.Change.Kind, s.Change.Subject)
		}
		if len(s.Members) != len(w.machines) {
			return fmt.Errorf("%s knows %d members", m.name, len(s.Members))
		}
		for _, member := range s.Members {
			if !member.Whole {
				return fmt.Errorf("on %s, %s is not whole", m.name, member.Name)
			}
		}
	}
	return nil
}

// settle waits until allReady.
func (w *world) settle() {
	w.t.Helper()
	w.settleWithin(settleLimit)
}

func (w *world) settleWithin(limit time.Duration) {
	w.t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := w.allReady()
		if err == nil {
			w.mu.Lock()
			for _, m := range w.machines {
				m.mayLose = false
			}
			w.mu.Unlock()
			return
		}
		for _, m := range w.machines {
			if !w.supervised && m.ended() {
				w.t.Fatalf("%s ended by itself: %v", m.name, m.node.Err())
			}
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("the cluster does not settle within %s: %v", limit, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// close ends all processes; the bubble ends only when their goroutines have
// ended.
func (w *world) close() {
	for _, m := range w.machines {
		w.crash(m, memfs.KillProcess, false)
	}
	time.Sleep(30 * time.Second) // probes of memberlist and the pools of goleveldb end by themselves
}

// logger prints the nodes' logs when a single seed is run.
func (w *world) logger() *slog.Logger {
	if !verbose {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(testWriter{w}, &slog.HandlerOptions{Level: slog.LevelInfo, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

type testWriter struct{ w *world }

func (t testWriter) Write(p []byte) (int, error) {
	t.w.logf("%s", p[:len(p)-1])
	return len(p), nil
}
