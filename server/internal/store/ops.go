package store

import (
	"bytes"
	"encoding/binary"

	"github.com/tidwall/btree"

	"github.com/stemedb/stemedb/server/internal/wal"
)

// kv is one entry of the index.
type kv struct{ k, v []byte }

func lessKV(a, b kv) bool { return bytes.Compare(a.k, b.k) < 0 }

// op is an entry that may still need its item's position: if item is not
// negative, the first 8 bytes of v are that position.
type op struct {
	kv
	item int32
}

// loose is an item that belongs in the group of a claim whose content came
// separately: the applier looks for the content.
type loose struct {
	owner owner // whose group it belongs to
	tag   byte
	rest  []byte // of the key, after the tag
	value []byte // in the claim's group
	// For a child: the group that it must match to count.
	group claimGroup
	time  uint64
}

// change is the effect of a set of items on the index.
type change struct {
	ops      []op
	loose    []loose
	contents []content
	cursors  []Item
}

// content is a content of the change, with the prefix of its claim group.
type content struct {
	owner  owner
	prefix []byte
	time   uint64
}

// group is that of the claim: the prefix holds subject and predicate.
func (c *content) group() claimGroup {
	return groupOfNames(c.prefix[2+len(c.owner.project) : len(c.prefix)-newestSize-1])
}

// makeChange computes the entries of items, which are complete.
func makeChange(items []Item) change {
	b := changeBuilder{buf: make([]byte, 0, 1024*min(len(items), 64))}
	for i := range items {
		if items[i].Kind == KindContent {
			b.addContentPrefix(&items[i])
		}
	}
	next := 0
	for i := range items {
		n := int32(i)
		switch it := &items[i]; it.Kind {
		case KindContent:
			b.addContent(it, &b.contents[next], n)
			next++
		case KindSignature:
			b.addSignature(it, n)
		case KindVote:
			b.addVote(it, n)
		case KindCursor:
			b.cursors = append(b.cursors, *it)
			b.add(appendName(b.key(spaceCursor), it.Key.Project), cursorValue(it.cursor, it.witness), -1)
		case KindReset:
			b.add(metaKey(metaReset), b.u64(0), n)
		}
	}
	return b.change
}

// cursorValue is the index's value of a cursor.
func cursorValue(pos wal.Position, w wal.Witness) []byte {
	v := binary.BigEndian.AppendUint64(make([]byte, 0, 8+witnessSize), uint64(pos))
	if w == (wal.Witness{}) {
		return v
	}
	return appendWitness(v, w)
}

// changeBuilder cuts keys and values out of one buffer; there are too many of
// them for separate allocations.
type changeBuilder struct {
	change
	buf []byte
	// last is the index of the latest content; signatures follow theirs.
	last int
	// byOwner finds the others; created when first needed.
	byOwner map[owner]int
}

func (b *changeBuilder) key(space byte) []byte { return append(b.value(), space) }

// grow makes sure that a key or value of the usual size fits; append allocates
// memory for longer ones.
func (b *changeBuilder) grow() {
	if cap(b.buf)-len(b.buf) < 512 {
		b.buf = make([]byte, 0, 8<<10)
	}
}

// keep adds the bytes that were appended after the buffer to it.
func (b *changeBuilder) keep(p []byte) []byte {
	if cap(b.buf)-len(b.buf) >= len(p) && len(p) > 0 && &b.buf[:len(b.buf)+1][len(b.buf)] == &p[0] {
		b.buf = b.buf[:len(b.buf)+len(p)]
	}
	return p[:len(p):len(p)]
}

// value begins a key or value in the buffer, to be appended to.
func (b *changeBuilder) value() []byte {
	b.grow()
	return b.buf[len(b.buf):]
}

func (b *changeBuilder) u64(v uint64) []byte {
	return binary.BigEndian.AppendUint64(make([]byte, 0, 8), v)
}

func (b *changeBuilder) add(k, v []byte, item int32) {
	b.ops = append(b.ops, op{kv{b.keep(k), v}, item})
}

func (b *changeBuilder) addContentPrefix(it *Item) {
	b.contents = append(b.contents, content{
		owner:  owner{it.Key.ID, it.Key.Project},
		prefix: b.keep(appendClaim(b.value(), it.Key.Project, it.Key.ID, it.content)),
		time:   it.content.Timestamp,
	})
}

func (b *changeBuilder) addContent(it *Item, c *content, n int32) {
	b.add(appendIDKey(b.value(), it), b.u64(0), n)
	facts := b.keep(appendFacts(b.value(), 0, it.content))
	b.add(append(append(b.value(), c.prefix...), tagContent), facts, n)
	b.add(append(appendName(b.key(spaceSubject), it.Key.Project), it.content.Subject...), nil, -1)
	parent := it.content.ParentHash
	if parent == nil {
		return
	}
	group := c.group()
	o := owner{*parent, it.Key.Project}
	rest := appendNewest(make([]byte, 0, newestSize), it.content.Timestamp, it.Key.ID)
	key := append(append(o.append(b.value(), spaceID), tagChild), rest...)
	b.add(key, append([]byte{byte(it.content.Lifecycle)}, group[:]...), -1)
	// Even if the parent is in the same change: that is rare, and the applier sees
	// the parent's content by then.
	b.addLoose(loose{owner: o, tag: tagChild, group: group, time: it.content.Timestamp})
}

func (b *changeBuilder) addSignature(it *Item, n int32) {
	b.add(appendIDKey(b.value(), it), b.u64(0), n)
	o := owner{it.Key.ID, it.Key.Project}
	if c := b.find(o); c != nil {
		key := append(append(b.value(), c.prefix...), tagSignature)
		b.add(append(key, it.Key.Agent[:]...), nil, -1)
		return
	}
	b.addLoose(loose{owner: o, tag: tagSignature, rest: it.Key.Agent[:]})
}

func (b *changeBuilder) addVote(it *Item, n int32) {
	b.add(appendIDKey(b.value(), it), appendFloat(b.u64(0), it.vote.Weight), n)
	o := owner{it.Key.ID, it.Key.Project}
	rest := append(make([]byte, 0, 32+newestSize), it.Key.Agent[:]...)
	rest = appendNewest(rest, it.vote.Timestamp, it.Key.Vote)
	weight := appendFloat(nil, it.vote.Weight)
	if c := b.find(o); c != nil {
		key := append(append(b.value(), c.prefix...), tagVote)
		b.add(append(key, rest...), weight, -1)
		return
	}
	b.addLoose(loose{owner: o, tag: tagVote, rest: rest, value: weight})
}

func (b *changeBuilder) addLoose(l loose) {
	b.loose = append(b.loose, l)
	b.add(l.owner.append(b.value(), spaceLoose), nil, -1)
}

// find looks for a content in the same change.
func (b *changeBuilder) find(o owner) *content {
	for i := b.last; i < min(b.last+2, len(b.contents)); i++ {
		if b.contents[i].owner == o {
			b.last = i
			return &b.contents[i]
		}
	}
	if b.byOwner == nil {
		b.byOwner = make(map[owner]int, len(b.contents))
		for i := range b.contents {
			b.byOwner[b.contents[i].owner] = i
		}
	}
	i, ok := b.byOwner[o]
	if !ok {
		return nil
	}
	b.last = i
	return &b.contents[i]
}

// setPosition completes the entries of an item.
func (o *op) setPosition(positions []wal.Position) {
	if o.item >= 0 {
		binary.BigEndian.PutUint64(o.v, uint64(positions[o.item]))
	}
}

// layer is a part of the index that is not in goleveldb yet. It is filled under
// the store's lock, then frozen, written and dropped as a whole.
type layer struct {
	tree     *btree.BTreeG[kv]
	loose    []loose
	contents []content
	// end is the position of the last entry in it.
	end wal.Position
	// assertions is the number of new contents.
	assertions int64
	bytes      int64 // as counted when the Puts were accepted
	written    int64 // the part of bytes that is in goleveldb; for the applier
}

func newLayer() *layer {
	return &layer{tree: btree.NewBTreeGOptions(lessKV, btree.Options{NoLocks: true, Degree: 16})}
}

func (l *layer) add(c *change, positions []wal.Position) {
	for i := range c.ops {
		c.ops[i].setPosition(positions)
		l.tree.Set(c.ops[i].kv)
	}
	l.loose = append(l.loose, c.loose...)
	l.contents = append(l.contents, c.contents...)
	if n := len(positions); n > 0 {
		l.end = positions[n-1]
	}
}

func (l *layer) get(key []byte) ([]byte, bool) {
	e, ok := l.tree.Get(kv{k: key})
	return e.v, ok
}
