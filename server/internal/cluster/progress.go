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

// Progress is how far this node has come in the logs of the others. It is made
// before the control table, which takes it as its Data.
type Progress struct {
	store Store

	mu sync.Mutex
	// cursors: everything below the position in that incarnation's log is held
	// here, durably. The store's own cursors lag behind these, since progress
	// that brought nothing new is noted seldom.
	cursors map[string]wal.Position
	// holes are parts of those logs that could not be read, with how far the log
	// was read behind them: a new link goes on there.
	holes map[string]hole
	// witnesses are what was seen of those logs.
	witnesses map[string]wal.Witness
	// epoch grows when all cursors are set back, so that a puller which is
	// just coming from further on does not set its own forward again.
	epoch int

	// noting is held by the one that notes a rollback, which waits for the disk.
	noting chan struct{}
	// puts is held by each put of a cursor, and as a whole by reset.
	puts *semaphore.Weighted
	// fatal is why the process has to be started again.
	fatal chan error
}

// NewProgress begins with the cursors that the store holds.
func NewProgress(s Store) *Progress {
	return &Progress{store: s, cursors: maps.Clone(s.Cursors()), witnesses: maps.Clone(s.Witnesses()), noting: make(chan struct{}, 1), puts: semaphore.NewWeighted(manyPuts), fatal: make(chan error, 1)}
}

// LogEnd is the end of the durable part of this node's log.
func (p *Progress) LogEnd() uint64 { return uint64(p.store.End()) }

// Cursors tells for each incarnation of a peer up to which position of that
// peer's log this node holds everything, durably.
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
// log was read behind a part that could not be read.
func (p *Progress) Read() map[string]uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make(map[string]uint64, len(p.holes))
	for incarnation, h := range p.holes {
		all[incarnation] = uint64(h.at)
	}
	return all
}

// Empty tells whether this node holds no record at all.
func (p *Progress) Empty() bool { return p.store.Empty() }

// Lives, RolledBack and SetLife are those of the store.
func (p *Progress) Lives() []string           { return p.store.Lives() }
func (p *Progress) RolledBack() bool          { return p.store.RolledBack() }
func (p *Progress) SetLife(life string) error { return p.store.SetLife(life) }

// NoteRollback records that the volumes are older than they were, and ends Run,
// so that the process is started again.
func (p *Progress) NoteRollback(why string) { p.rolledBack(0, why) }

// rolledBack is NoteRollback with a position that the log is known to have
// reached. It reports whether the loss is noted.
func (p *Progress) rolledBack(known wal.Position, why string) (noted bool) {
	p.noting <- struct{}{}
	defer func() { <-p.noting }()
	end := p.store.End()
	if p.store.RolledBack() {
		return true
	}
	if known.Segment() > end.Segment()+wal.SkipAfterRollback {
		return false // nonsense: no log has written so much since a snapshot
	}
	err := p.store.NoteRollback(known, why)
	noted = err == nil
	if noted {
		err = errors.New("the volumes of this node were put back to an older state (" + why + "); a start of the process goes on from there, and the other members refill it")
	}
	p.restart(err)
	return noted
}

// restart makes Run end with this error, so that the process is started again.
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

// setHole replaces the hole at a cursor, unless all cursors were set back since
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

// set moves a cursor, unless all were set back since epoch was read.
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

// witness is what was seen of that incarnation's log.
func (p *Progress) witness(incarnation string) wal.Witness {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.witnesses[incarnation]
}

// saw replaces what was seen of that incarnation's log; the member has compared
// the earlier witness with its log by then. An answer that comes late does not
// replace what a later one has shown.
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

// cursor is the item that makes a position durable, with what was seen.
func (p *Progress) cursor(incarnation string, pos wal.Position) store.Item {
	return store.NewWitnessedCursor(incarnation, pos, p.witness(incarnation))
}

// keep makes a cursor durable by put, unless all cursors were set back since epoch
// was read: then a start must not find it. No reset begins before put returns.
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

// manyPuts is more than there are pullers.
const manyPuts = 1 << 20

// reset sets every cursor back: records were lost, so nothing is known to be
// held any more. It returns whose cursors there were. When ctx ends, it does not
// wait for the cursors on their way to the disk.
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
