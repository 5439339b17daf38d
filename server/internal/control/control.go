// Package control holds the data that all nodes must agree on: the cluster's
// identity, its members, the open change of members, and the API keys. It is one
// small table on hashicorp/raft, of which every node has a copy.
//
// Promises:
//   - There is never a second cluster: a new one is founded only by the first
//     node of the join list, and only when every listed node has answered that it
//     is empty. A node without state joins any cluster that it finds. A node
//     whose volumes belonged to a cluster of several members founds none.
//   - A change is acknowledged when Raft has committed it, whichever node
//     received the request.
//   - Confirmed reports whether this copy was current at some moment of the last
//     30 s. A caller that trusts only a confirmed copy never trusts a key that
//     was revoked more than 30 s ago.
//   - A copy is not used for decisions until it has been confirmed once since the
//     start and that start registered (MayDecide): until then the copy may be
//     older than the one before the restart, and so may the node's volumes.
//   - Decisions use the table's time: the median of the members' clocks, which no
//     single clock can shift. While no majority of them agrees, decisions that
//     depend on the time are refused. See clocks.go.
//   - A change of members closes only when every member that will count in reads
//     holds everything acknowledged or shown before; otherwise it stays open,
//     visibly. It can be cancelled. The leader cancels a change that blocks
//     others if its subject makes no progress. A cluster with too few whole
//     members to fill a newcomer opens no join.
//   - A loss is accepted only by an operator's decision about that very loss, and
//     only when too few whole members are left to repair it.
//   - A joining node has no vote until it holds everything.
//   - Members that restart with their volumes under other host names find each
//     other through the join list, and the table is updated.
//   - A node never answers for another incarnation.
//   - A copy is trusted only while its digest equals that of the leader and of a
//     majority. A copy that is damaged, differs or has failed storage reports
//     that in Err and is replaced automatically as soon as a leader is reachable
//     and the storage works.
package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/stemedb/stemedb/server/internal/clock"
	"github.com/stemedb/stemedb/server/internal/peertls"
)

// Data gives the control table access to the state of the node's records.
type Data interface {
	// LogEnd is the end of the durable part of this node's log.
	LogEnd() uint64
	// Cursors maps each incarnation of a peer to the position up to which this node
	// durably holds that peer's log. A node that lost records resets its cursors
	// *before* it calls ReportNotWhole.
	Cursors() map[string]uint64
	// Read maps each incarnation of a peer to the position up to which that peer's
	// log was read in this run. It is beyond the cursor while the peer cannot read a
	// part of its log, and proves nothing about held records.
	Read() map[string]uint64
	// Empty reports whether both volumes hold no record.
	Empty() bool
	// Lives, RolledBack and SetLife delegate to the log (wal/life.go).
	Lives() []string
	RolledBack() bool
	SetLife(life string) error
	// NoteRollback records that the volumes were restored to an older state, and
	// ends the process, which has to be restarted.
	NoteRollback(why string)
}

// RaftStorage stores Raft's log, term, vote and snapshots. It belongs to the
// incarnation: a node that lost it starts as a new one.
type RaftStorage interface {
	Logs() raft.LogStore
	Stable() raft.StableStore
	Snapshots() raft.SnapshotStore
	// DropSnapshot removes a damaged snapshot.
	DropSnapshot(id string) error
	Close() error
}

// Timings are the intervals of the control table; zero values mean defaults.
type Timings struct {
	ConfirmEvery   time.Duration // 2 s: how often the leader is asked
	ConfirmedFor   time.Duration // 30 s: how long an answer is valid
	ClockBound     time.Duration // 5 s: maximum difference of clocks that agree
	FormEvery      time.Duration // 1 s: between rounds of questions while forming or joining
	DriveEvery     time.Duration // 500 ms: between steps of the leader's work on members
	CallTimeout    time.Duration // 3 s: bounds one call of a peer
	StuckAfter     time.Duration // 1 min: a change that is open for longer is logged as a warning
	GiveUpAfter    time.Duration // 5 min: a change whose subject is silent or makes no progress for longer is cancelled, see hopeless; also the pause before the next join
	Heartbeat      time.Duration // 2 s: Raft's heartbeat and election time-out; a leader's lease is half of it
	SnapshotEvery  time.Duration // 2 min
	SnapshotAfter  uint64        // 1024 commands
	ShutdownBudget time.Duration // 5 s for the transfer of leadership
	RestartAfter   time.Duration // 1 s: before the first restart of a failed part; doubles each time
	RestartMax     time.Duration // 1 min: the longest of those pauses
	AuditEvery     time.Duration // 2 min: how often the table in memory is verified against its digest
}

// Config is one node's part of the control table.
type Config struct {
	// Name and Incarnation identify the node; both come from its volumes.
	Name, Incarnation string
	// ClusterID is the cluster recorded on the volumes, empty on new volumes. A
	// table of another cluster is refused.
	ClusterID string
	// Shared: the volumes belonged to a cluster with other members, so the node
	// founds none, whatever its join list.
	Shared bool
	// PeerAddr (gRPC and Raft), APIAddr and GossipAddr are the host:port that others
	// use. Only the last one may be empty.
	PeerAddr, APIAddr, GossipAddr string
	// Join lists host:port of the first members' peer ports, the founder
	// first. Empty: a single node, which forms a cluster alone.
	Join []string
	// Storage opens Raft's storage: once in New, and again after each failure, when
	// the previous one is closed.
	Storage func() (RaftStorage, error)
	// Peers dials other nodes; RaftListener accepts their Raft connections.
	Peers        *peertls.Transport
	RaftListener net.Listener
	Data         Data
	Clock        clock.Clock // this machine's; nil means clock.Wall
	Logger       *slog.Logger
	Registerer   prometheus.Registerer // nil: no metrics
	Timings      Timings
}

func (t Timings) withDefaults() Timings {
	return Timings{
		ConfirmEvery:   cmp.Or(t.ConfirmEvery, 2*time.Second),
		ConfirmedFor:   cmp.Or(t.ConfirmedFor, 30*time.Second),
		ClockBound:     cmp.Or(t.ClockBound, 5*time.Second),
		FormEvery:      cmp.Or(t.FormEvery, time.Second),
		DriveEvery:     cmp.Or(t.DriveEvery, 500*time.Millisecond),
		CallTimeout:    cmp.Or(t.CallTimeout, 3*time.Second),
		StuckAfter:     cmp.Or(t.StuckAfter, time.Minute),
		GiveUpAfter:    cmp.Or(t.GiveUpAfter, 5*time.Minute),
		Heartbeat:      cmp.Or(t.Heartbeat, 2*time.Second),
		SnapshotEvery:  cmp.Or(t.SnapshotEvery, 2*time.Minute),
		SnapshotAfter:  cmp.Or(t.SnapshotAfter, 1024),
		ShutdownBudget: cmp.Or(t.ShutdownBudget, 5*time.Second),
		RestartAfter:   cmp.Or(t.RestartAfter, time.Second),
		RestartMax:     cmp.Or(t.RestartMax, time.Minute),
		AuditEvery:     cmp.Or(t.AuditEvery, 2*time.Minute),
	}
}

// Control is one node's part of the control table. Its methods are safe for
// concurrent use.
type Control struct {
	cfg    Config
	id     string // name/incarnation
	log    *slog.Logger
	table  *table
	clocks *clocks

	// started is set once raft is set: peers may call before Start has returned.
	started atomic.Bool
	began   time.Time // when Start was called
	letIn   time.Time // when this node's request to join was accepted last (runForm only)
	// registered: this start is in the table.
	registered atomic.Bool
	// raft is the newest instance, which may have failed.
	raft     atomic.Pointer[raft.Raft]
	layer    *streamLayer
	leaderCh chan bool
	partMu   sync.Mutex            // guards part
	part     *part                 // nil while there is none; owned by keepRaft
	down     atomic.Pointer[error] // why the last part ended, until another one has started
	hadState atomic.Bool
	doubt    atomic.Pointer[error] // this copy differs from another one
	jury     jury
	// readyTerm is the term in which this node is the leader and has applied all
	// entries committed in earlier ones; 0 while it is not the leader.
	readyTerm atomic.Uint64

	addresses addresses
	changed   broadcast // signals Watch, in addition to the table
	poke      chan struct{}

	mu        sync.Mutex // guards the fields below; never held across a wait
	phase     string
	confirmed time.Time // time of the newest successful question
	// confirmedMoment is the same moment on this node's clocks.
	confirmedMoment moment
	waitsFor        []string
	nextRound       *round

	driver  driver // used by the leader's goroutine only
	ctx     context.Context
	stop    context.CancelFunc
	workers sync.WaitGroup
	metrics []prometheus.Collector

	failures *prometheus.CounterVec
	restarts prometheus.Counter
}

// New checks the configuration and the content of the storage. It starts nothing;
// register the service, then call Start.
func New(cfg Config) (*Control, error) {
	switch {
	case cfg.Name == "" || cfg.Incarnation == "":
		return nil, errors.New("control table: the node has no name or no incarnation")
	case strings.ContainsAny(cfg.Name+cfg.Incarnation, "/|"):
		return nil, fmt.Errorf("control table: name %q and incarnation %q must not contain / or |", cfg.Name, cfg.Incarnation)
	case cfg.PeerAddr == "":
		return nil, errors.New("control table: the node has no peer address")
	case cfg.Storage == nil || cfg.Peers == nil || cfg.RaftListener == nil || cfg.Data == nil:
		return nil, errors.New("control table: storage, peers, listener and data are required")
	}
	cfg.Timings = cfg.Timings.withDefaults()
	c := &Control{
		cfg: cfg, id: MemberID(cfg.Name, cfg.Incarnation), log: cfg.Logger,
		leaderCh: make(chan bool, 8), poke: make(chan struct{}, 1), nextRound: newRound(),
	}
	c.table = newTable(&c.changed)
	c.clocks = newClocks(cfg.Clock, cfg.Timings)
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.failures, c.restarts = newFailureMetrics()
	c.ctx, c.stop = context.WithCancel(context.Background())
	if _, err := c.openPart(); err != nil {
		return nil, err
	}
	state, err := c.hasState()
	if err == nil && !state && cfg.ClusterID != "" {
		err = fmt.Errorf("the volumes belong to cluster %s as %s, but the control table's log is gone: this incarnation may have voted and must not vote again; "+
			"%s", cfg.ClusterID, c.id, c.remedy(putLogBack))
	}
	if err != nil {
		return nil, errors.Join(err, c.endPart())
	}
	return c, nil
}

// Start begins to form, join or resume. It does not wait for a cluster. ctx
// bounds the start only; Close ends what was started.
func (c *Control) Start(context.Context) error {
	if err := c.registerMetrics(); err != nil {
		return err
	}
	c.began = time.Now()
	c.layer = newStreamLayer(c.cfg.Peers, c.cfg.RaftListener, c.id, c.cfg.PeerAddr, &c.addresses)
	err := c.beginPart(c.part)
	c.workers.Go(func() { c.keepRaft(err) })
	c.workers.Go(c.runForm)
	c.workers.Go(c.runLeader)
	c.workers.Go(c.runConfirm)
	return nil
}

// Close hands leadership over, stops everything and closes the storage. Waiting
// calls get ErrClosed.
func (c *Control) Close(ctx context.Context) error {
	c.handOver(ctx)
	c.stop()
	c.changed.broadcast()
	c.workers.Wait()
	err := c.endPart()
	if err != nil {
		err = fmt.Errorf("stop the control table: %w", err)
	}
	if c.layer != nil {
		err = errors.Join(err, c.layer.Close())
	}
	c.unregisterMetrics()
	return err
}

// handOver transfers leadership before this node stops, so that the others need
// not wait for an election time-out.
func (c *Control) handOver(ctx context.Context) {
	if c.role() != raft.Leader || len(c.State().Members) < 2 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timings.ShutdownBudget)
	defer cancel()
	done := make(chan error, 1)
	c.workers.Go(func() { done <- c.raft.Load().LeadershipTransfer().Error() })
	select {
	case err := <-done:
		if err != nil {
			c.log.Warn("leadership of the control table was not handed over; the others elect a leader after their time-out", "error", err)
		}
	case <-ctx.Done():
	}
}

// State is the newest table that this node has applied. It is immutable.
func (c *Control) State() *State { return c.table.state.Load() }

// Watch returns a channel that is closed at the next change of State, of the
// leader or of Phase. Take it before reading the state, so that no change is
// missed.
func (c *Control) Watch() <-chan struct{} { return c.changed.wait() }

// ID is this node's member id.
func (c *Control) ID() string { return c.id }

// Self is this node's entry in the table.
func (c *Control) Self() (Member, bool) { return c.State().MemberByID(c.id) }

// Leader is the name of the leader as far as this node knows.
func (c *Control) Leader() (name string, ok bool) {
	_, id := c.leader()
	name, _, ok = strings.Cut(id, "/")
	return name, ok
}

// IsLeader reports whether this node leads and may answer as the leader.
func (c *Control) IsLeader() bool { return c.leading() }

// led is the time of the last contact from a leader, or of the node's start.
func (c *Control) led() time.Time {
	if r := c.raft.Load(); r != nil && r.LastContact().After(c.began) {
		return r.LastContact()
	}
	return c.began
}

func (c *Control) leader() (addr, id string) {
	if !c.started.Load() {
		return "", ""
	}
	address, serverID := c.raft.Load().LeaderWithID()
	_, addr = splitRaftAddress(address)
	return addr, string(serverID)
}

func (c *Control) leading() bool {
	term := c.readyTerm.Load()
	return term != 0 && c.table.err() == nil && c.role() == raft.Leader && c.raft.Load().CurrentTerm() == term
}

// role is this node's role in Raft: Shutdown while no instance runs.
func (c *Control) role() raft.RaftState {
	if r := c.raft.Load(); r != nil {
		return r.State()
	}
	return raft.Shutdown
}

// Phase describes what forming or joining waits for; empty when the node is a
// member.
func (c *Control) Phase() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.phase
}

func (c *Control) setPhase(phase string) {
	c.mu.Lock()
	was := c.phase
	c.phase = phase
	c.mu.Unlock()
	if was == phase {
		return
	}
	c.changed.broadcast()
	if phase != "" {
		c.log.Info("control table: " + phase)
	}
}

// Err is why this copy no longer follows the table or is not trusted, with the
// remedy; nil otherwise.
func (c *Control) Err() error {
	if err := c.table.err(); err != nil {
		return err
	}
	if err := c.down.Load(); err != nil {
		return *err
	}
	if err := c.doubt.Load(); err != nil {
		return *err
	}
	return nil
}

// ChangeWaitsFor lists the conditions that keep the change open, as of the leader's last
// confirmation.
func (c *Control) ChangeWaitsFor() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.waitsFor
}
