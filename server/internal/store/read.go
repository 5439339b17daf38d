package store

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// Has reports for each key whether it is held durably. A cursor's key is held
// if the cursor is set.
func (s *Store) Has(keys []Key) ([]bool, error) {
	v, err := s.view()
	if err != nil {
		return nil, err
	}
	defer v.Close()
	held := make([]bool, len(keys))
	for i := range keys {
		if keys[i].Kind == KindCursor {
			held[i] = s.Cursor(keys[i].Project) != 0
			continue
		}
		pos, err := v.find(&keys[i])
		if err != nil {
			return nil, err
		}
		held[i] = pos != 0
	}
	return held, nil
}

// find returns the position of a record, 0 when it is not held.
func (v *view) find(k *Key) (wal.Position, error) {
	o := owner{k.ID, k.Project}
	switch k.Kind {
	case KindContent:
		return v.position(append(o.append(nil, spaceID), tagContent))
	case KindSignature:
		return v.position(append(append(o.append(nil, spaceID), tagSignature), k.Agent[:]...))
	case KindVote:
		return v.findVote(k, o)
	}
	return 0, nil
}

func (v *view) position(key []byte) (wal.Position, error) {
	b, err := v.get(key)
	if err != nil || b == nil {
		return 0, err
	}
	pos, err := readPosition(b)
	if err != nil {
		return 0, v.s.indexError("read a position", err)
	}
	return pos, nil
}

// findVote searches the agent's votes: the key does not contain the time.
func (v *view) findVote(k *Key, o owner) (wal.Position, error) {
	prefix := append(append(o.append(nil, spaceID), tagVote), k.Agent[:]...)
	m := v.prefix(prefix)
	defer m.release()
	for m.next() {
		if len(m.key) != len(prefix)+newestSize {
			return 0, v.s.indexError("read a vote", errIndexEntry)
		}
		if _, id := readNewest(m.key[len(prefix):]); id == k.Vote {
			pos, err := readPosition(m.value)
			if err != nil {
				return 0, v.s.indexError("read a vote", err)
			}
			return pos, nil
		}
	}
	return 0, m.err
}

// Read returns one record. Errors: ErrNotFound, *DamageError.
func (s *Store) Read(key Key) (Item, error) {
	v, err := s.view()
	if err != nil {
		return Item{}, err
	}
	defer v.Close()
	pos, err := v.find(&key)
	if err != nil {
		return Item{}, err
	}
	if pos == 0 {
		return Item{}, fmt.Errorf("%v: %w", key, ErrNotFound)
	}
	return s.readAt(key, pos)
}

// ReadAt returns the item at a position of the log, checked against its id but
// not against a key. Damage is a *DamageError without a key.
func (s *Store) ReadAt(pos wal.Position) (Item, error) {
	e, err := s.log.Read(pos)
	if err != nil {
		return Item{}, readError(Key{}, pos, err)
	}
	it, err := ParseItem(Kind(e.Kind), e.Payload)
	if err != nil {
		s.log.Condemn(pos, len(e.Payload), err)
		return Item{}, &DamageError{Position: pos, Err: err}
	}
	return it, nil
}

// readAt also checks that the item is the requested one: a content by its id,
// the others by their fields.
func (s *Store) readAt(key Key, pos wal.Position) (Item, error) {
	it, err := s.ReadAt(pos)
	var d *DamageError
	if errors.As(err, &d) {
		d.Key = key
	}
	if err != nil {
		return Item{}, err
	}
	if it.Key != key {
		return Item{}, s.mismatch(key, pos, &it)
	}
	return it, nil
}

// mismatch explains why another record is where the index has key. That counts as
// damage: the entry was wrong when it was written. The index may be wrong instead, which
// is likely if it has that record there too: then a start rebuilds it. It would forget
// key, so the loss is recorded in any case.
func (s *Store) mismatch(key Key, pos wal.Position, it *Item) error {
	why := fmt.Errorf("the log holds %v there", it.Key)
	v, err := s.view()
	if err != nil {
		return err
	}
	defer v.Close()
	at, err := v.find(&it.Key)
	if err != nil {
		return err
	}
	s.log.Condemn(pos, len(it.Payload), why)
	if at == pos || !it.Kind.Record() {
		return s.indexError(fmt.Sprintf("read %v at %v", key, pos), fmt.Errorf("%w: %w", errIndexEntry, why))
	}
	return &DamageError{Key: key, Position: pos, Err: why}
}

// readError distinguishes damage, which a peer can repair, from a disk that fails now.
func readError(key Key, pos wal.Position, err error) error {
	var d *wal.DamageError
	if errors.As(err, &d) || errors.Is(err, wal.ErrGone) || errors.Is(err, wal.ErrNoEntry) {
		return &DamageError{Key: key, Position: pos, Err: err}
	}
	return fmt.Errorf("read the log at %v: %w", pos, err)
}

// Assertion returns everything held about an id: ErrNotFound without content,
// *DamageError for the first unreadable part.
func (s *Store) Assertion(project record.ProjectName, id record.Hash) (*Stored, error) {
	return s.AssertionWithin(project, id, 0)
}

// AssertionWithin is Assertion with at most voices signatures and voices votes
// (0: any number), those of the agents with the smallest ids, and without the
// given signatures and votes, which cannot be read.
func (s *Store) AssertionWithin(project record.ProjectName, id record.Hash, voices int, without ...Key) (*Stored, error) {
	v, err := s.view()
	if err != nil {
		return nil, err
	}
	defer v.Close()
	return v.AssertionWithin(project, id, voices, without...)
}

// AssertionWithin implements Snapshot.
func (v *view) AssertionWithin(project record.ProjectName, id record.Hash, voices int, without ...Key) (*Stored, error) {
	s := v.s
	o := owner{id, project}
	prefix := o.append(nil, spaceID)
	m := v.prefix(prefix)
	defer m.release()
	st := &Stored{Project: project, ID: id}
	children := false
	for m.next() {
		k, ok, err := readIDKey(m.key)
		if err != nil {
			return nil, s.indexError("read an assertion", err)
		}
		if !ok {
			children = true
			continue
		}
		if n := len(st.Votes); k.Kind == KindVote && n > 0 && st.Votes[n-1].Agent == k.Agent {
			continue // an older one
		}
		if st.full(k.Kind, voices) || slices.Contains(without, k) {
			st.Partial = true
			continue
		}
		if err := st.take(s, k, m.value); err != nil {
			return nil, err
		}
		if st.Content == nil {
			break // signatures or votes alone
		}
	}
	if m.err != nil {
		return nil, m.err
	}
	if st.Content == nil {
		return nil, fmt.Errorf("assertion %v of project %s: %w", id, project, ErrNotFound)
	}
	st.Lifecycle = st.Content.Lifecycle
	if children {
		c := st.Content
		l, err := v.lineage(o, c.Timestamp, groupOf(c.Subject, c.Predicate), 0, make(map[record.Hash]lineage))
		if err != nil {
			return nil, err
		}
		if l.by != nil {
			st.Lifecycle, st.ReplacedBy = l.lifecycle, l.by
		}
	}
	return st, nil
}

// full reports whether st holds the maximum number of a kind.
func (st *Stored) full(kind Kind, voices int) bool {
	return voices > 0 && (kind == KindSignature && len(st.Signatures) >= voices || kind == KindVote && len(st.Votes) >= voices)
}

func (st *Stored) take(s *Store, k Key, value []byte) error {
	pos, err := readPosition(value)
	if err != nil {
		return s.indexError("read an assertion", err)
	}
	it, err := s.readAt(k, pos)
	if err != nil {
		return err
	}
	switch k.Kind {
	case KindContent:
		st.Content = it.content
	case KindSignature:
		sig, _ := it.Signature()
		st.Signatures = append(st.Signatures, sig)
	case KindVote:
		st.Votes = append(st.Votes, *it.vote)
	}
	return nil
}

// Cursor returns how much of the log of a peer's incarnation is held here; 0:
// nothing.
func (s *Store) Cursor(incarnation string) wal.Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cursors[incarnation]
}

// Cursors returns all of them, by incarnation.
func (s *Store) Cursors() map[string]wal.Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[string]wal.Position, len(s.cursors))
	for k, v := range s.cursors {
		all[k] = v
	}
	return all
}

// Witnesses returns the witnesses of the peers' logs, by incarnation.
func (s *Store) Witnesses() map[string]wal.Witness {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.witnesses)
}

// ScanKeys lists the records in the log at or after from, until about
// limitBytes of payload have been read; next is the position to continue at. If
// next equals End, there is nothing more for now. Unreadable entries are left
// out and counted in gaps: a peer that pulls this log does not get them here.
func (s *Store) ScanKeys(from wal.Position, limitBytes int) (keys []KeyAt, next wal.Position, gaps int, err error) {
	next, err = s.scanRecords(from, limitBytes, func(pos wal.Position, _ Kind, key Key, payload []byte) error {
		if s.log.Damaged(pos) {
			gaps++ // counted, and reported to the peer that pulls
			return nil
		}
		keys = append(keys, KeyAt{Key: key, Position: pos, Bytes: len(payload)})
		return nil
	})
	var gap *wal.Gap
	if errors.As(err, &gap) {
		return keys, next, gaps + 1, nil
	}
	if err != nil {
		err = fmt.Errorf("scan the log from %v: %w", from, err)
	}
	return keys, next, gaps, err
}

// scanRecords is wal.Log.Scan for records. An invalid one is recorded as damage before fn
// gets it.
func (s *Store) scanRecords(from wal.Position, limitBytes int, fn func(pos wal.Position, kind Kind, key Key, payload []byte) error) (wal.Position, error) {
	return s.log.Scan(from, limitBytes, func(pos wal.Position, e wal.Entry) error {
		kind := Kind(e.Kind)
		if !kind.Record() {
			return nil
		}
		key, err := keyOf(kind, e.Payload)
		if err != nil {
			s.log.Condemn(pos, len(e.Payload), err)
		}
		return fn(pos, kind, key, e.Payload)
	})
}

// keyOf reads only the part of a payload that its key needs.
func keyOf(kind Kind, payload []byte) (Key, error) {
	if kind != KindContent {
		it, err := ParseItem(kind, payload)
		return it.Key, err
	}
	project, rest, err := cutName(payload)
	return Key{Kind: kind, Project: project, ID: record.HashOf(rest)}, err
}
