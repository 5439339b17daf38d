package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// Raft's address of a server is "id|host:port": a connection names its target,
// and another incarnation at that address refuses it. Otherwise a node that lost
// its volumes would be mistaken for its earlier incarnation, and a vote or an
// entry would count that no longer exists.
func raftAddress(id, addr string) raft.ServerAddress { return raft.ServerAddress(id + "|" + addr) }

func splitRaftAddress(a raft.ServerAddress) (id, addr string) {
	id, addr, ok := strings.Cut(string(a), "|")
	if !ok {
		return "", string(a)
	}
	return id, addr
}

// startRaft starts an instance of Raft on p's storage. A node without state stays
// passive until it is bootstrapped or a leader contacts it.
func (c *Control) startRaft(p *part) error {
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
	if err := forgetBrokenFounding(p.storage); err != nil {
		return err
	}
	p.transport = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: c.layer.session(), MaxPool: 3, Timeout: t.CallTimeout, Logger: conf.Logger, MsgpackUseNewTimeFormat: true,
		MaxRPCsInFlight: oneAtATime,
	})
	c.table.restart()
	r, err := newRaft(conf, c.table, p)
	if r == nil {
		return fmt.Errorf("start the control table: %w", err)
	}
	p.raft = r
	c.raft.Store(r)
	c.started.Store(true)
	c.observe(p)
	c.hurryAlone()
	return nil
}

// newRaft calls raft.NewRaft in a separate goroutine, because the storage may end
// it (see guard) and because Raft panics when a term cannot be written.
func newRaft(conf *raft.Config, fsm raft.FSM, p *part) (r *raft.Raft, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("%v", p)
			}
		}()
		r, err = raft.NewRaft(conf, fsm, p.storage.Logs(), p.storage.Stable(), p.storage.Snapshots(), p.transport)
	}()
	<-done
	if failed := p.storage.failure(); r == nil && failed != nil {
		return nil, failed
	}
	return r, err
}

// hurryAlone makes the only voter start an election at once: there is no other
// node whose heartbeat it could wait for, and its start is an outage. Raft has no
// call for that, but a follower checks its timer again when the time-out is
// shortened.
func (c *Control) hurryAlone() {
	conf := c.raft.Load().GetConfiguration()
	if conf.Error() != nil {
		return
	}
	if servers := conf.Configuration().Servers; len(servers) != 1 || servers[0].ID != raft.ServerID(c.id) {
		return
	}
	reload := c.raft.Load().ReloadableConfig()
	reload.HeartbeatTimeout -= time.Millisecond
	if err := c.raft.Load().ReloadConfig(reload); err != nil {
		c.log.Warn("the election of the only voter could not be sped up", "error", err)
	}
}

// forgetBrokenFounding undoes an interrupted founding: Raft writes term 1 and
// then the first configuration, and would refuse to bootstrap forever if the node
// crashed in between. A node without an entry or a vote has promised nothing in
// term 1.
func forgetBrokenFounding(storage RaftStorage) error {
	if has, err := storageHasState(storage); has || err != nil {
		return err
	}
	stable := storage.Stable()
	if storedNumber(stable, "CurrentTerm") != 1 || storedNumber(stable, "LastVoteTerm") != 0 {
		return nil
	}
	if err := stable.SetUint64([]byte("CurrentTerm"), 0); err != nil {
		return fmt.Errorf("undo an interrupted founding: %w", err)
	}
	return nil
}

// storedNumber is 0 when there is none, which stores report as an error. An
// unreadable number makes the start of Raft fail immediately afterwards.
func storedNumber(stable raft.StableStore, key string) uint64 {
	n, err := stable.GetUint64([]byte(key))
	if err != nil {
		return 0
	}
	return n
}

// observe wakes the watchers when the known leader changes.
func (c *Control) observe(p *part) {
	seen := make(chan raft.Observation, 8)
	observer := raft.NewObserver(seen, false, func(o *raft.Observation) bool {
		_, is := o.Data.(raft.LeaderObservation)
		return is
	})
	p.raft.RegisterObserver(observer)
	p.workers.Go(func() {
		defer p.raft.DeregisterObserver(observer)
		for {
			select {
			case <-seen:
				c.changed.broadcast()
			case <-p.ctx.Done():
				return
			}
		}
	})
}

// hasState reports whether Raft's log or snapshots hold anything. A vote alone is
// no state: no committed entry can depend on it.
func (c *Control) hasState() (bool, error) {
	if c.hadState.Load() {
		return true, nil // it is never removed
	}
	c.partMu.Lock()
	defer c.partMu.Unlock()
	if c.part == nil {
		return false, errors.New("the control table's storage is not open")
	}
	has, err := storageHasState(c.part.storage)
	if has {
		c.hadState.Store(true)
	}
	return has, err
}

func storageHasState(storage RaftStorage) (bool, error) {
	last, err := storage.Logs().LastIndex()
	if err != nil {
		return false, fmt.Errorf("read the control table's log: %w", err)
	}
	snapshots, err := storage.Snapshots().List()
	if err != nil {
		return false, fmt.Errorf("list the control table's snapshots: %w", err)
	}
	return last > 0 || len(snapshots) > 0, nil
}

// hclog returns a logger for Raft that writes to this node's log. Raft logs an
// absent peer as an error; here that is a warning.
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

// oneAtATime turns Raft's pipelining off. With it, a follower that refuses
// entries or knows a newer term ends the goroutine that reads its answers, and
// the sending goroutine may wait forever for the next answer to be read (raft
// v1.7.3, pipelineReplicate): that follower gets no further entry from this
// leader, and Raft's Shutdown never returns. The table changes too rarely to
// benefit from pipelining.
const oneAtATime = 1
