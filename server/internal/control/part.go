package control

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/stemedb/stemedb/internal/sleep"
	"github.com/stemedb/stemedb/server/internal/remedy"
)

// A part is one instance of Raft with its storage. When it fails, Control stops
// it and starts another one in the same process: it reopens the storage, inspects
// it, fetches damaged entries from other members (mend.go) or, failing that, the
// table from the leader (fetch.go), and starts Raft. It retries with backoff
// until that succeeds.
type part struct {
	storage   *guard
	raft      *raft.Raft
	transport *raft.NetworkTransport

	ctx     context.Context
	stop    context.CancelFunc
	workers sync.WaitGroup

	renewing atomic.Bool // a snapshot is being taken
}

// failure is the reason why a part ended. Another start does not help against any
// other error that fails the table.
type failure struct {
	kind  string
	err   error
	fetch bool // the storage alone is not sufficient: the leader's table is needed
	// always: it is needed even if the storage is intact.
	always bool
	tried  error // error of the last attempt to fetch it
}

// The kinds of failures, as the metric names them.
const (
	storageFailed  = "storage"
	snapshotFailed = "snapshot"
	damaged        = "damage"
	diverged       = "divergence"
	inMemory       = "memory"
)

func (f *failure) Error() string {
	switch {
	case f.tried != nil:
		return fmt.Sprintf("%v; this node retries to fetch the table from the leader until that succeeds; last attempt: %v", f.err, f.tried)
	case f.fetch:
		return fmt.Sprintf("%v; this node fetches the table from the leader", f.err)
	case f.kind == storageFailed:
		return fmt.Sprintf("%v; this node reopens the control table's storage until that succeeds: repair the WAL volume if it keeps failing", f.err)
	}
	return f.err.Error()
}

func (f *failure) Unwrap() error { return f.err }

func damagedCopy(err error) *failure {
	return &failure{kind: damaged, fetch: true, err: fmt.Errorf("this node's copy of the control table is damaged: %w", err)}
}

// voteDamaged: without its term and vote a member might vote twice in one term,
// so it no longer participates.
func voteDamaged(err error, members int) *failure {
	return &failure{kind: damaged, err: fmt.Errorf("the stored term or vote of this member is unusable (%w), and it must not vote twice; %s",
		err, remedy.Volumes(members, remedy.ThisNode, putTableBack))}
}

// openPart opens the storage. The part exists even if the stored data is
// unusable.
func (c *Control) openPart() (*part, error) {
	raw, err := c.cfg.Storage()
	if err != nil {
		return nil, &failure{kind: storageFailed, err: fmt.Errorf("open the control table's storage: %w", err)}
	}
	p := &part{}
	p.ctx, p.stop = context.WithCancel(c.ctx)
	p.storage = &guard{
		sealed: sealed{raw, c.expected()},
		failed: func(f *failure) { c.table.fail(f) },
		remake: func() { c.damagedSnapshot(p) },
		renew:  func() { c.renewSnapshot(p) },
		missed: c.missedSnapshot, withheld: c.jury.undecided,
	}
	c.partMu.Lock()
	defer c.partMu.Unlock()
	c.part = p
	return p, nil
}

// beginPart starts Raft with the content of the storage.
func (c *Control) beginPart(p *part) error {
	found, err := inspect(p.storage.sealed)
	switch {
	case err != nil:
		return asFailure(err)
	case found.damage != nil:
		return damagedCopy(found.damage)
	}
	if err := p.storage.drop(found.hidden); err != nil {
		return asFailure(err)
	}
	if found.cut > 0 {
		c.log.Warn("dropping damaged entries of the control table's log that a snapshot covers", "up_to", found.cut)
		if err := p.storage.sealed.Logs().DeleteRange(found.first, found.cut); err != nil {
			return asFailure(err)
		}
	}
	if err := c.startRaft(p); err != nil {
		return asFailure(err)
	}
	if len(found.hidden) > 0 {
		c.log.Warn("a snapshot of the control table is damaged; the previous one and the log replace it", "snapshots", found.hidden)
		c.damagedSnapshot(p)
	}
	return nil
}

// asFailure marks an error of the storage as one that another start may resolve.
func asFailure(err error) error {
	var f *failure
	if errors.As(err, &f) || errors.Is(err, ErrTooOld) {
		return err
	}
	return &failure{kind: storageFailed, err: err}
}

// endPart stops the part and returns when all of it has stopped.
func (c *Control) endPart() error {
	c.readyTerm.Store(0)
	c.partMu.Lock()
	p := c.part
	c.part = nil
	c.partMu.Unlock()
	if p == nil {
		return nil
	}
	p.stop()
	var errs []error
	if p.raft != nil {
		errs = append(errs, p.raft.Shutdown().Error())
	}
	if p.transport != nil {
		p.transport.CloseStreams()
		errs = append(errs, p.transport.Close())
	}
	p.workers.Wait()
	return errors.Join(append(errs, p.storage.Close())...)
}

// keepRaft keeps a part running until the control table is closed; err is the
// error of the first start.
func (c *Control) keepRaft(err error) {
	pause := c.cfg.Timings.RestartAfter
	for {
		if err == nil {
			began := time.Now()
			if err = c.watchPart(); err == nil {
				return
			}
			if time.Since(began) > c.cfg.Timings.RestartMax {
				pause = c.cfg.Timings.RestartAfter
			}
		}
		c.partFailed(err)
		if err := c.endPart(); err != nil {
			c.log.Warn("a failed part of the control table did not end cleanly", "error", err)
		}
		var f *failure
		if !errors.As(err, &f) {
			<-c.ctx.Done() // another start would fail in the same way
			return
		}
		if !sleep.For(c.ctx, pause) {
			return
		}
		pause = min(2*pause, c.cfg.Timings.RestartMax)
		if err = c.restartPart(f); err == nil {
			c.down.Store(nil)
			c.changed.broadcast()
			c.restarts.Inc()
			c.log.Info("this node's part of the control table was restarted", "after", f.err)
		}
	}
}

// watchPart returns why the part failed, or nil when the control table is closed.
// It periodically verifies the table in memory.
func (c *Control) watchPart() error {
	audit := time.NewTicker(c.cfg.Timings.AuditEvery)
	defer audit.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return nil
		case <-c.table.broken:
			// It may be from the previous instance.
			if err := c.table.err(); err != nil {
				return err
			}
		case <-audit.C:
			if err := c.State().verify(); err != nil {
				c.table.fail(&failure{kind: inMemory, err: err})
			}
		}
	}
}

// partFailed reports the failure, and hands over leadership if this node led.
func (c *Control) partFailed(err error) {
	kind := "other"
	var f *failure
	if errors.As(err, &f) {
		kind = f.kind
	}
	c.failures.WithLabelValues(kind).Inc()
	c.log.Error("this node's copy of the control table has failed", "kind", kind, "error", err)
	c.down.Store(&err)
	c.table.failed.Store(&err)
	c.distrust()
	if kind == diverged || kind == inMemory {
		c.handOver(c.ctx)
	}
}

// restartPart starts another part after f. The storage is always read again,
// since the fault may have been a read error.
func (c *Control) restartPart(f *failure) error {
	p, err := c.openPart()
	if err != nil {
		return err
	}
	found, err := inspect(p.storage.sealed)
	if err != nil {
		return asFailure(err)
	}
	if len(found.bad) > 0 {
		if err := c.mendEntries(p.storage.sealed, found.bad); err != nil {
			c.log.Warn("damaged entries of the control table's log could not be repaired individually", "error", err)
		}
		if found, err = inspect(p.storage.sealed); err != nil {
			return asFailure(err)
		}
	}
	if found.damage == nil && !f.always && !found.thin {
		return c.beginPart(p)
	}
	err = c.fetchTable(p.storage.sealed)
	switch {
	case err != nil && found.damage != nil:
		return &failure{kind: damaged, fetch: true, always: f.always, err: damagedCopy(found.damage).err, tried: err}
	case err != nil:
		// The log is intact: this member may vote, and is needed if there is no leader.
		// Its table is not trusted until a comparison succeeds.
		c.log.Warn("the leader's table could not be fetched; retrying when this node's copy is compared", "error", err)
		if f.kind == diverged {
			c.doubts(f)
		}
	}
	return c.beginPart(p)
}

// missedSnapshot records a failed snapshot. Only the log grows meanwhile, so this
// copy continues.
func (c *Control) missedSnapshot(err error) {
	c.failures.WithLabelValues(snapshotFailed).Inc()
	c.log.Error("a snapshot of the control table could not be written; retrying", "error", err)
}

// remakeEvery is the interval between attempts to replace a damaged snapshot.
const remakeEvery = 10 * time.Second

func (c *Control) damagedSnapshot(p *part) {
	c.failures.WithLabelValues(damaged).Inc()
	c.renewSnapshot(p)
}

// renewSnapshot takes a new snapshot, which may have to wait for Raft. Concurrent
// requests are merged.
func (c *Control) renewSnapshot(p *part) {
	if !p.renewing.CompareAndSwap(false, true) {
		return
	}
	p.workers.Go(func() {
		defer p.renewing.Store(false)
		for p.ctx.Err() == nil {
			err := errors.New("the Raft instance has not started yet")
			if r := c.raft.Load(); r != nil {
				err = r.Snapshot().Error()
			}
			if err == nil || errors.Is(err, raft.ErrNothingNewToSnapshot) {
				return
			}
			c.log.Warn("a snapshot of the control table could not be renewed yet", "error", err)
			select {
			case <-p.ctx.Done():
			case <-time.After(remakeEvery):
			}
		}
	})
}
