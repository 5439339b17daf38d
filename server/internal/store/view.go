package store

import (
	"bytes"
	"errors"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
	"github.com/tidwall/btree"
)

// view is the index at one moment: the overlay over a snapshot of goleveldb. The
// overlay is taken first, so entries that leave it in between are in the snapshot.
type view struct {
	s      *Store
	layers []*btree.BTreeG[kv] // newest first; no longer changed
	snap   *leveldb.Snapshot
	// orphans: there may be orphan marks in the snapshot. Read before the snapshot
	// is taken: the entries that the applier has joined by then are in it.
	orphans bool
}

func (s *Store) view() (*view, error) {
	v := &view{s: s}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, ErrClosed
	}
	if s.active.tree.Len() > 0 {
		v.layers = append(v.layers, s.active.tree.Copy())
	}
	if s.frozen != nil {
		v.layers = append(v.layers, s.frozen.tree)
	}
	v.orphans = s.orphans.Load() > 0
	s.mu.Unlock()
	snap, err := s.db.GetSnapshot()
	if err != nil {
		return nil, s.indexError("read the index", err)
	}
	v.snap = snap
	return v, nil
}

func (v *view) inOverlay(key []byte) bool {
	for _, l := range v.layers {
		if _, ok := l.Get(kv{k: key}); ok {
			return true
		}
	}
	return false
}

// get returns nil without error for a missing key.
func (v *view) get(key []byte) ([]byte, error) {
	for _, l := range v.layers {
		if e, ok := l.Get(kv{k: key}); ok {
			return e.v, nil
		}
	}
	b, err := v.snap.Get(key, nil)
	if errors.Is(err, leveldb.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, v.s.indexError("read the index", err)
	}
	return b, nil
}

// overlayGet looks into the current overlay; Store.mu is held.
func (s *Store) overlayGet(key []byte) ([]byte, bool) {
	if v, ok := s.active.get(key); ok {
		return v, true
	}
	if s.frozen != nil {
		return s.frozen.get(key)
	}
	return nil, false
}

// merged iterates over a range of a view in order of the keys. For equal keys,
// the newest layer counts.
type merged struct {
	v     *view
	limit []byte // nil: no limit
	trees []treeHead
	db    iterator.Iterator
	dbOK  bool

	// Of the current entry; key and value are valid until the next call.
	key, value []byte
	overlay    bool // goleveldb has no or another value for it
	err        error
}

type treeHead struct {
	it btree.IterG[kv]
	ok bool
}

// iterate begins at start (included); limit is excluded. cold bypasses the
// cache, for passes over everything.
func (v *view) iterate(start, limit []byte, cold bool) *merged {
	m := &merged{v: v, limit: limit, trees: make([]treeHead, len(v.layers))}
	for i, l := range v.layers {
		m.trees[i].it = l.Iter()
		m.trees[i].ok = m.trees[i].it.Seek(kv{k: start})
		m.trees[i].check(limit)
	}
	m.db = v.snap.NewIterator(&util.Range{Start: start, Limit: limit}, &opt.ReadOptions{DontFillCache: cold})
	m.dbOK = m.db.Next()
	return m
}

func (v *view) prefix(prefix []byte) *merged { return v.iterate(prefix, after(prefix), false) }

func (h *treeHead) check(limit []byte) {
	h.ok = h.ok && (limit == nil || bytes.Compare(h.it.Item().k, limit) < 0)
}

// next goes to the first or next entry.
func (m *merged) next() bool {
	if m.key != nil {
		m.advance()
	}
	m.key, m.overlay = nil, false
	for i := range m.trees {
		if h := &m.trees[i]; h.ok {
			if e := h.it.Item(); m.key == nil || bytes.Compare(e.k, m.key) < 0 {
				m.key, m.value, m.overlay = e.k, e.v, true
			}
		}
	}
	if m.dbOK && (m.key == nil || bytes.Compare(m.db.Key(), m.key) < 0) {
		m.key, m.value, m.overlay = m.db.Key(), m.db.Value(), false
	}
	if m.key == nil {
		if err := m.db.Error(); err != nil {
			m.err = m.v.s.indexError("read the index", err)
		}
	}
	return m.key != nil
}

// advance moves every source that is at the current key. goleveldb goes last,
// since the key may be its own.
func (m *merged) advance() {
	dbEqual := m.dbOK && bytes.Equal(m.db.Key(), m.key)
	for i := range m.trees {
		if h := &m.trees[i]; h.ok && bytes.Equal(h.it.Item().k, m.key) {
			h.ok = h.it.Next()
			h.check(m.limit)
		}
	}
	if dbEqual {
		m.dbOK = m.db.Next()
	}
}

func (m *merged) release() {
	m.db.Release()
	for i := range m.trees {
		m.trees[i].it.Release()
	}
}
