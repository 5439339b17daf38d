package store

import (
	"errors"
	"fmt"

	"github.com/syndtr/goleveldb/leveldb"

	"github.com/stemedb/stemedb/internal/sleep"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// itemOverhead is the memory that an item needs besides its payload until the
// index has applied it: its index entries and the tree that holds them.
const itemOverhead = 1024

// putOp is one Put in progress. Fields below the line are guarded by Store.mu.
type putOp struct {
	s      *Store
	items  []Item // the new ones
	isNew  []bool // as PutResult.New
	keys   []Key  // that it has reserved in Store.flight
	change change
	commit wal.Commit
	bytes  int64
	again  bool // a Repair: nothing of it is new
	cursor bool // holds a cursor: must not be in the log before the items that it waits for

	// done is nil once Put has returned an error.
	done func(PutResult)
	// waits counts the Puts that write items of this one; dependents are the Puts
	// that wait for this one. A Put reserves and looks in one critical section, so
	// it waits only for earlier ones: there is no cycle.
	waits      int
	dependents []*putOp
	deferred   bool  // the commit waits until waits is 0
	settled    bool  // its own items are durable and visible, or failed
	err        error // of its own items or of those it waited for
}

// Put makes items durable and visible. done is called once, unless Put returns
// an error, and possibly before Put returns; it must not block and must not
// call Close. Items must not be changed until then. A Put holds at most as much
// as fits into a segment of the log. Errors of Put itself: ErrBusy,
// ErrIndexFailed, ErrClosed and those of wal.Log.Append.
func (s *Store) Put(items []Item, done func(PutResult)) error {
	return s.put(items, done, false)
}

// Repair rewrites items whose stored bytes are damaged and points the index to
// the new place. It is like Put, but writes items that are already held too.
func (s *Store) Repair(items []Item, done func(PutResult)) error {
	return s.put(items, done, true)
}

func (s *Store) put(items []Item, done func(PutResult), again bool) error {
	o := &putOp{s: s, isNew: make([]bool, len(items)), done: done, again: again}
	for i := range items {
		if err := items[i].complete(); err != nil {
			return err
		}
		if items[i].Kind == KindReset {
			return errors.New("a reset cannot be put")
		}
		o.bytes += int64(len(items[i].Payload) + itemOverhead)
		o.cursor = o.cursor || items[i].Kind == KindCursor
	}
	idKeys := idKeysOf(items)
	if err := s.reserve(o, items, idKeys, again); err != nil {
		return err
	}
	if err := s.dropHeld(o, items, idKeys, again); err != nil {
		return s.abandon(o, err)
	}
	if len(o.items) == 0 {
		s.settle(o, nil)
		return nil
	}
	o.change = makeChange(o.items)
	o.commit.Done = o.synced
	o.commit.Entries = make([]wal.Entry, len(o.items))
	for i := range o.items {
		o.commit.Entries[i] = wal.Entry{Kind: uint8(o.items[i].Kind), Payload: o.items[i].Payload}
	}
	if o.cursor {
		if deferred, err := s.deferCommit(o); err != nil {
			return s.abandon(o, err)
		} else if deferred {
			return nil
		}
	}
	if err := s.append(&o.commit); err != nil {
		return s.abandon(o, err)
	}
	return nil
}

// idKeysOf makes the index keys of the records among items, one buffer for all.
func idKeysOf(items []Item) [][]byte {
	keys := make([][]byte, len(items))
	buf := make([]byte, 0, len(items)*96)
	for i := range items {
		if items[i].Kind.Record() {
			at := len(buf)
			buf = appendIDKey(buf, &items[i])
			keys[i] = buf[at:len(buf):len(buf)]
		}
	}
	return keys
}

// reserve decides, for all items at once, which of them this Put writes: not
// those in flight (it waits for them) nor those in the overlay. The items that
// it writes are in flight from here on.
func (s *Store) reserve(o *putOp, items []Item, idKeys [][]byte, again bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closing:
		return ErrClosed
	case s.failure != nil:
		return s.failure
	case s.pending >= s.opts.ApplyBytes:
		if state, err := s.log.State(); state == wal.StateReadOnly {
			return err // why the index is behind
		}
		return ErrBusy // regardless of size: a large one must not starve behind small ones
	}
	s.pending += o.bytes
	s.underWay.Add(1)
	o.keys = make([]Key, 0, len(items))
	for i := range items {
		if !items[i].Kind.Record() || again {
			o.isNew[i] = true
			continue
		}
		if other := s.flight[items[i].Key]; other != nil {
			if other != o {
				o.waitFor(other)
			}
			continue
		}
		if v, held := s.overlayGet(idKeys[i]); held && s.intact(v) {
			continue
		}
		o.isNew[i] = true
		o.keys = append(o.keys, items[i].Key)
		s.flight[items[i].Key] = o
	}
	return nil
}

func (o *putOp) waitFor(other *putOp) {
	// The items of another Put are adjacent: comparing with the last one finds
	// most repetitions; the rest only cost a count.
	if n := len(other.dependents); n > 0 && other.dependents[n-1] == o {
		return
	}
	other.dependents = append(other.dependents, o)
	o.waits++
}

// dropHeld asks goleveldb about the items that reserve left. The overlay was
// asked first: items that have left it since are in goleveldb.
func (s *Store) dropHeld(o *putOp, items []Item, idKeys [][]byte, again bool) error {
	fresh := 0
	var newest Key // the last content that was found to be new
	for i := range items {
		if !o.isNew[i] {
			continue
		}
		// If a content is not in goleveldb, its signatures and votes are not there
		// either, unless they are orphans. That saves every other look-up.
		k := &items[i].Key
		belongs := k.Kind != KindContent && k.ID == newest.ID && k.Project == newest.Project && s.orphans.Load() == 0
		if k.Kind.Record() && !again && !belongs {
			held, err := s.held(idKeys[i])
			if err != nil {
				return s.indexError("look up a key", err)
			}
			if held {
				o.isNew[i] = false
				continue
			}
			if k.Kind == KindContent {
				newest = *k
			}
		}
		fresh++
	}
	if fresh == len(items) {
		o.items = items
		return nil
	}
	o.items = make([]Item, 0, fresh)
	for i := range items {
		if o.isNew[i] {
			o.items = append(o.items, items[i])
		}
	}
	return nil
}

// held reports whether goleveldb has the key. A record with known damage does
// not count: it is rewritten, not just acknowledged.
func (s *Store) held(idKey []byte) (bool, error) {
	if len(s.log.Damage()) == 0 {
		return s.db.Has(idKey, nil)
	}
	position, err := s.db.Get(idKey, nil)
	if errors.Is(err, leveldb.ErrNotFound) {
		return false, nil
	}
	return err == nil && s.intact(position), err
}

// deferCommit postpones the commit of a cursor while other Puts are still
// writing items that it covers: after a crash the cursor must not exist without
// them. If one of these Puts has failed by now, nobody is writing its items,
// and the error says so.
func (s *Store) deferCommit(o *putOp) (deferred bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.err != nil {
		return false, o.err
	}
	o.deferred = o.waits > 0
	return o.deferred, nil
}

// abandon ends a Put that returns err.
func (s *Store) abandon(o *putOp, err error) error {
	s.mu.Lock()
	o.done = nil
	s.mu.Unlock()
	s.settle(o, err)
	return err
}

// synced is the log's Done: it must not block, so it only hands over.
func (o *putOp) synced(err error) {
	s := o.s
	s.syncedMu.Lock()
	s.synced = append(s.synced, syncedOp{o, err})
	s.syncedMu.Unlock()
	sleep.Wake(s.syncedC)
}

type syncedOp struct {
	op  *putOp
	err error
}

// publish makes synced commits visible and calls back, in log order, while the
// log is already writing the next batch. It runs until stopPublish.
func (s *Store) publish() {
	defer s.goroutines.Done()
	var batch []syncedOp
	for {
		select {
		case <-s.syncedC:
		case <-s.stopPublish:
			return
		}
		s.syncedMu.Lock()
		batch, s.synced = s.synced, batch[:0]
		s.syncedMu.Unlock()
		for i := range batch {
			s.settle(batch[i].op, batch[i].err)
			batch[i] = syncedOp{}
		}
	}
}

// settle ends o's own part: its items are visible, or err is the reason why
// not. Then the Puts that wait for it continue.
func (s *Store) settle(o *putOp, err error) {
	s.mu.Lock()
	if err == nil && len(o.items) > 0 {
		s.active.add(&o.change, o.commit.Positions)
		s.active.bytes += o.bytes
		if !o.again {
			s.active.assertions += int64(len(o.change.contents))
		}
		for i := range o.change.cursors {
			s.setCursor(&o.change.cursors[i])
		}
		sleep.Wake(s.work)
	} else {
		s.pending -= o.bytes
	}
	for i := range o.keys {
		delete(s.flight, o.keys[i])
	}
	if err != nil {
		o.err = err
	}
	o.settled = true
	var ready []*putOp
	if o.waits == 0 {
		ready = append(ready, o)
	}
	for _, d := range o.dependents {
		d.waits--
		if err != nil && d.err == nil {
			d.err = fmt.Errorf("written by another request at the same time: %w", err)
		}
		if d.waits == 0 && (d.settled || d.deferred) {
			ready = append(ready, d)
		}
	}
	o.dependents = nil
	s.mu.Unlock()
	for _, r := range ready {
		r.proceed()
	}
}

// proceed continues a Put that no longer waits for others.
func (o *putOp) proceed() {
	s := o.s
	s.mu.Lock()
	settled, err, done := o.settled, o.err, o.done
	s.mu.Unlock()
	if settled {
		if done != nil {
			done(PutResult{New: o.isNew, Err: err})
		}
		s.underWay.Done()
		return
	}
	if err == nil {
		err = s.append(&o.commit)
	}
	if err != nil {
		s.settle(o, err)
	}
}
