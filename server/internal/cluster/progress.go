package cluster

import (
	"context"
	"errors"
	"maps"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// Progress is this node's progress in the logs of the others. It is created
// before the control table, which takes it as its Data.
type Progress struct {
	store Store

	mu sync.Mutex
	// cursors: everything below the position in that incarnation's log is durable
	// here. The store's cursors lag behind, since progress without new records is
	// seldom made durable.
	cursors map[string]wal.Position
	// holes are parts of those logs that could not be read, and how far each log was
	// read behind them: a new link continues there.
	holes map[string]hole
	// witnesses holds the end of each of those logs as last seen.
	witnesses map[string]wal.Witness
	// epoch grows when all cursors are reset, so that a pull in flight does not move
	// its cursor forward again.
	epoch int

	// noting is held while a rollback is being recorded, which waits for the disk.
	noting chan struct{}
	// puts is held by each put of a cursor, and completely by reset.
	puts *semaphore.Weighted
	// fatal receives the reason why the process has to be restarted.
	fatal chan error
}

// NewProgress starts from the cursors in the store.
func NewProgress(s Store) *Progress {
	return &Progress{store: s, cursors: maps.Clone(s.Cursors()), witnesses: maps.Clone(s.Witnesses()), noting: make(chan struct{}, 1), puts: semaphore.NewWeighted(manyPuts), fatal: make(chan error, 1)}
}

// LogEnd is the end of the durable part of this node's log.
func (p *Progress) LogEnd() uint64 { return uint64(p.store.End()) }

// Cursors maps each incarnation of a peer to the position up to which this node
// durably holds that peer's log.
func (p *Progress) Cursors() map[string]uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make(map[string]uint64, len(p.cursors))
	for incarnation, pos := range p.cursors {
		all[incarnation] = uint64(pos)
	}
	return all
}

// Read maps each incarnation of a peer to the position up to which that peer's
// log was read behind an unreadable part.
func (p *Progress) Read() map[string]uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make(map[string]uint64, len(p.holes))
	for incarnation, h := range p.holes {
		all[incarnation] = uint64(h.at)
	}
	return all
}

// Empty reports whether this node holds no record.
func (p *Progress) Empty() bool { return p.store.Empty() }

// Lives, RolledBack and SetLife delegate to the store.
func (p *Progress) Lives() []string           { return p.store.Lives() }
func (p *Progress) RolledBack() bool          { return p.store.RolledBack() }
func (p *Progress) SetLife(life string) error { return p.store.SetLife(life) }

// NoteRollback records that the volumes were restored to an older state, and ends
// Run, so that the process is restarted.
func (p *Progress) NoteRollback(why string) { p.rolledBack(0, why) }

// rolledBack is NoteRollback with a position that the log is known to have
// reached. It reports whether the loss is recorded.
func (p *Progress) rolledBack(known wal.Position, why string) (noted bool) {
	p.noting <- struct{}{}
	defer func() { <-p.noting }()
	end := p.store.End()
	if p.store.RolledBack() {
		return true
	}
	if known.Segment() > end.Segment()+wal.SkipAfterRollback {
		return false // invalid: no log grows so much after a snapshot
	}
	err := p.store.NoteRollback(known, why)
	noted = err == nil
	if noted {
		err = errors.New("the volumes of this node were restored to an older state (" + why + "); after a restart of the process the other members refill it")
	}
	p.restart(err)
	return noted
}

// restart ends Run with this error, so that the process is restarted.
func (p *Progress) restart(why error) {
	select {
	case p.fatal <- why:
	default:
	}
}

func (p *Progress) at(incarnation string) (pos wal.Position, epoch int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cursors[incarnation], p.epoch
}

func (p *Progress) hole(incarnation string) (h hole, epoch int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.holes[incarnation], p.epoch
}

// setHole replaces the hole at a cursor, unless all cursors were reset after
// epoch was read.
func (p *Progress) setHole(incarnation string, h hole, epoch int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case epoch != p.epoch:
	case h.at == 0:
		delete(p.holes, incarnation)
	case p.holes == nil:
		p.holes = map[string]hole{incarnation: h}
	default:
		p.holes[incarnation] = h
	}
}

// set moves a cursor, unless all were reset after epoch was read.
func (p *Progress) set(incarnation string, pos wal.Position, epoch int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if epoch != p.epoch {
		return
	}
	if p.cursors == nil {
		p.cursors = map[string]wal.Position{}
	}
	p.cursors[incarnation] = pos
}

// witness returns the last seen end of that incarnation's log.
func (p *Progress) witness(incarnation string) wal.Witness {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.witnesses[incarnation]
}

// saw replaces the witness of that incarnation's log; by then, the member has
// compared its log with the earlier witness. A delayed answer does not replace a
// newer one.
func (p *Progress) saw(incarnation string, w wal.Witness) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.witnesses == nil {
		p.witnesses = map[string]wal.Witness{}
	}
	held := p.witnesses[incarnation]
	if w != (wal.Witness{}) && (w.Opening.Number < held.Opening.Number || w.Opening == held.Opening && w.End < held.End) {
		return
	}
	p.witnesses[incarnation] = w
}

// cursor returns the item that makes a position durable, together with its
// witness.
func (p *Progress) cursor(incarnation string, pos wal.Position) store.Item {
	return store.NewWitnessedCursor(incarnation, pos, p.witness(incarnation))
}

// keep makes a cursor durable by put, unless all cursors were reset after epoch
// was read: a later start must not find such a cursor. No reset begins before put
// returns.
func (p *Progress) keep(ctx context.Context, epoch int, put func() error) (stale bool, err error) {
	if err := p.puts.Acquire(ctx, 1); err != nil {
		return false, err
	}
	defer p.puts.Release(1)
	if _, now := p.at(""); now != epoch {
		return true, nil
	}
	return false, put()
}

// manyPuts exceeds the number of pullers.
const manyPuts = 1 << 20

// reset clears every cursor: records were lost, so nothing is known to be held
// any longer. It returns the incarnations that had cursors. When ctx ends, it
// does not wait for cursors on their way to the disk.
func (p *Progress) reset(ctx context.Context) (incarnations []string) {
	if p.puts.Acquire(ctx, manyPuts) == nil {
		defer p.puts.Release(manyPuts)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for incarnation := range p.cursors {
		incarnations = append(incarnations, incarnation)
	}
	clear(p.cursors)
	p.epoch++
	clear(p.holes)
	return incarnations
}
