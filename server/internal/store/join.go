package store

import (
	"errors"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// join makes the groups of claims agree with the groups by id: for contents
// whose signatures, votes or children arrived first, and for loose items whose
// content arrived first. The id space of all of them is already in goleveldb.
func (s *Store) join(contents []content, items []loose) error {
	b := s.newBatcher()
	if s.orphans.Load() > 0 {
		for i := range contents {
			if err := s.joinOrphans(b, &contents[i]); err != nil {
				return err
			}
		}
	}
	var prefixes map[owner]*content
	if len(items) > 0 {
		prefixes = make(map[owner]*content, len(contents))
		for i := range contents {
			prefixes[contents[i].owner] = &contents[i]
		}
	}
	for i := range items {
		l := &items[i]
		c, ok := prefixes[l.owner]
		if !ok {
			var err error
			if c, err = s.findContent(l.owner); err != nil {
				return err
			}
			prefixes[l.owner] = c
		}
		if c == nil {
			if err := s.addOrphan(l.owner); err != nil {
				return err
			}
			continue
		}
		b.join(c, l)
	}
	b.flush()
	return b.err
}

// join writes a loose item into the group of its claim.
func (b *batcher) join(c *content, l *loose) {
	if l.tag == tagChild && (l.time < c.time || l.group != c.group()) {
		return
	}
	key := make([]byte, 0, len(c.prefix)+1+len(l.rest))
	key = append(append(key, c.prefix...), l.tag)
	b.put(append(key, l.rest...), l.value)
}

// joinOrphans joins a content with the entries that arrived before it.
func (s *Store) joinOrphans(b *batcher, c *content) error {
	mark := c.owner.append(nil, spaceOrphan)
	if held, err := s.db.Has(mark, nil); err != nil || !held {
		return err
	}
	prefix := c.owner.append(nil, spaceID)
	it := s.db.NewIterator(util.BytesPrefix(prefix), nil)
	defer it.Release()
	for it.Next() {
		l := loose{owner: c.owner, tag: it.Key()[len(prefix)], rest: it.Key()[len(prefix)+1:]}
		switch l.tag {
		case tagContent:
			continue
		case tagVote:
			l.value = it.Value()[8:]
		case tagChild:
			copy(l.group[:], it.Value()[1:])
			l.time, _ = readNewest(l.rest)
			l.rest = nil
		}
		b.join(c, &l)
	}
	if err := it.Error(); err != nil {
		return err
	}
	b.flush()
	if b.err != nil {
		return b.err
	}
	s.orphans.Add(-1)
	return s.db.Delete(mark, nil)
}

// findContent looks for a content in the index; nil if it is not held or cannot
// be read. Repair restores a damaged one; one that the disk could not read is
// looked up again (rejoin).
func (s *Store) findContent(o owner) (*content, error) {
	v, err := s.db.Get(append(o.append(nil, spaceID), tagContent), nil)
	if errors.Is(err, leveldb.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	pos, err := readPosition(v)
	if err != nil {
		return nil, err
	}
	it, err := s.readAt(Key{Kind: KindContent, Project: o.project, ID: o.id}, pos)
	if err != nil {
		s.logger.Warn("a content cannot be joined with its signatures, votes and children now", "err", err)
		s.unjoined.Store(true)
		return nil, nil
	}
	return &content{
		owner:  o,
		prefix: appendClaim(nil, o.project, o.id, it.content),
		time:   it.content.Timestamp,
	}, nil
}

func (s *Store) addOrphan(o owner) error {
	mark := o.append(nil, spaceOrphan)
	held, err := s.db.Has(mark, nil)
	if err != nil || held {
		return err
	}
	s.orphans.Add(1)
	return s.db.Put(mark, nil, nil)
}

// rejoin joins contents that findContent could not read at the time. The
// applier and Open call it.
func (s *Store) rejoin() {
	if !s.unjoined.Swap(false) || s.orphans.Load() == 0 {
		return
	}
	err := s.joinHeld()
	if err == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failLocked(err)
}

// joinHeld goes through the orphans and joins those whose content is held.
func (s *Store) joinHeld() error {
	b := s.newBatcher()
	it := s.db.NewIterator(util.BytesPrefix([]byte{spaceOrphan}), nil)
	defer it.Release()
	for it.Next() {
		o, _, err := cutOwner(it.Key())
		if err != nil {
			return err
		}
		c, err := s.findContent(o)
		if err != nil {
			return err
		}
		if c == nil {
			continue
		}
		if err := s.joinOrphans(b, c); err != nil {
			return err
		}
	}
	return it.Error()
}
