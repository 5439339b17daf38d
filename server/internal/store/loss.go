package store

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/stemedb/stemedb/server/internal/wal"
)

// Losses and cursors
//
// A cursor guarantees that everything before it in a peer's log is held here. A
// loss makes that untrue: then every cursor is dropped, so that the peers' logs
// are read again from their beginning. A crash may occur at any point, and a node
// whose log accepts no entry, for lack of space, must still start and serve reads.
// So the order is:
//
//  1. The log records the loss, its own end at that time, and that the node is
//     not whole, in one write of its manifest. If there is no space even for that,
//     the next start finds the loss again.
//  2. An opened store has no cursor: Open clears them, in memory and in the index,
//     if the node is not whole and the log has no reset after the recorded end.
//     The old cursors are still in the log.
//  3. A reset goes into the log before the next Put that the log accepts: there,
//     replay drops the earlier cursors. Until the reset is durable, every start
//     repeats step 2. A cursor that a crash leaves in the log without the reset
//     does not count then, which costs a second read and nothing else.
//  4. SetWhole first waits until the reset is durable. So a start that finds the
//     node whole knows that all losses have been handled, including those that
//     were found while the store ran and for which its user moved the cursors
//     back. It drops nothing, however often the index is rebuilt.

// resetDue is the reset that is not written yet.
type resetDue struct {
	// due lets Put proceed without the lock if there is none.
	due atomic.Bool
	mu  sync.Mutex
	// sent is closed when the reset in flight is durable or has failed; nil if
	// none is in flight.
	sent chan struct{}
}

// noteLoss is the part of Open, after replay, that the text above describes.
func (s *Store) noteLoss() error {
	// The index holds the records below the marker at which replay began, except in
	// the gaps that an earlier replay recorded (noteGaps), and none of the damaged rest.
	unknown := slices.DeleteFunc(s.log.Damage(), func(r wal.Range) bool { return r.To <= s.replayedFrom })
	if err := s.noteGaps(append(s.log.Missing(), unknown...)); err != nil {
		return err
	}
	if mendable, err := s.mendable(); mendable || err != nil {
		return err // the cursors are still true for the records that the index names
	}
	b, err := s.meta(metaReset)
	if err != nil {
		return err
	}
	var last wal.Position
	if b != nil {
		if last, err = readPosition(b); err != nil {
			return fmt.Errorf("read the place of the last reset: %w", err)
		}
	}
	if last >= s.log.LastLoss() {
		return nil
	}
	s.logger.Warn("the cursors are dropped after a loss: the peers' logs are read again from their beginning", "found_at", s.log.LastLoss())
	s.reset.due.Store(true)
	return s.resetCursors(s.putOrHold)
}

// append hands a commit to the log, after the reset if one is due.
func (s *Store) append(c *wal.Commit) error {
	if s.reset.due.Load() {
		if _, err := s.sendReset(); err != nil {
			return err
		}
	}
	return s.log.Append(c)
}

// sendReset appends the reset if it is due. It returns a channel that is closed
// when the reset in flight has an outcome, nil if there is none.
func (s *Store) sendReset() (sent chan struct{}, err error) {
	r := &s.reset
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.due.Load() {
		return r.sent, nil
	}
	items := []Item{newReset("lost before " + s.log.LastLoss().String())}
	o := &putOp{s: s, items: items, change: makeChange(items), bytes: itemOverhead, done: func(res PutResult) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if res.Err != nil {
			r.due.Store(true)
		}
		close(r.sent)
		r.sent = nil
	}}
	o.commit.Done = o.synced
	o.commit.Entries = []wal.Entry{{Kind: uint8(KindReset), Payload: items[0].Payload}}
	s.mu.Lock()
	s.pending += o.bytes
	s.mu.Unlock()
	s.underWay.Add(1)
	if err := s.log.Append(&o.commit); err != nil {
		return nil, s.abandon(o, err)
	}
	r.due.Store(false)
	r.sent = make(chan struct{})
	return r.sent, nil
}

// awaitReset returns when no reset is due or in flight.
func (s *Store) awaitReset() error {
	for {
		sent, err := s.sendReset()
		if err != nil {
			return fmt.Errorf("drop the cursors after a loss: %w", err)
		}
		if sent == nil {
			return nil
		}
		<-sent
	}
}

// Losses of the log that the index does not cover, in its meta space.

func encodeGaps(gaps []wal.Range) []byte {
	b := make([]byte, 0, 16*len(gaps))
	for _, g := range gaps {
		b = binary.BigEndian.AppendUint64(b, uint64(g.From))
		b = binary.BigEndian.AppendUint64(b, uint64(g.To))
	}
	return b
}

// noteGaps adds parts of the log that the index holds nothing of.
func (s *Store) noteGaps(found []wal.Range) error {
	if len(found) == 0 {
		return nil
	}
	known, err := s.knownGaps()
	if err != nil {
		return err
	}
	before := len(known)
	for _, r := range found {
		if _, fresh := uncovered(known, []wal.Range{r}); fresh {
			known = append(known, r)
		}
	}
	if len(known) == before {
		return nil
	}
	if err := s.putOrHold(metaKey(metaGaps), encodeGaps(known)); err != nil {
		return fmt.Errorf("write the index's notes: %w", err)
	}
	return nil
}

func (s *Store) knownGaps() (gaps []wal.Range, err error) {
	b, err := s.meta(metaGaps)
	if err != nil {
		return nil, err
	}
	for ; len(b) >= 16; b = b[16:] {
		gaps = append(gaps, wal.Range{
			From: wal.Position(binary.BigEndian.Uint64(b)),
			To:   wal.Position(binary.BigEndian.Uint64(b[8:])),
		})
	}
	return gaps, nil
}

// uncovered returns the first of the gaps that is in none of the known ones.
func uncovered(known, gaps []wal.Range) (gap wal.Range, found bool) {
	for _, g := range gaps {
		if !slices.ContainsFunc(known, func(k wal.Range) bool { return k.From <= g.From && g.To <= k.To }) {
			return g, true
		}
	}
	return wal.Range{}, false
}
