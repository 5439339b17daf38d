package store

import (
	"bytes"
	"context"
	"fmt"
	"iter"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/lens"
)

// Claims yields the claims of a subject: by predicate, then newest first
// (timestamp, then id, descending). An error is yielded last: that of ctx when
// it ends. A claim holds at most voices agents and voices votes (0: any
// number), those of the agents with the smallest ids, and is marked partial if
// there are more: so nodes with the same records yield the same claims. Yielded
// claims may be kept. The iteration sees the store as of its beginning; a long
// one delays goleveldb's garbage collection.
func (s *Store) Claims(ctx context.Context, q ClaimQuery, voices int) iter.Seq2[*Claim, error] {
	return once(s, noClaim, func(v *view) iter.Seq2[*Claim, error] { return v.Claims(ctx, q, voices) })
}

func noClaim(err error) (*Claim, error) { return nil, err }

// Claims implements Snapshot.
func (v *view) Claims(ctx context.Context, q ClaimQuery, voices int) iter.Seq2[*Claim, error] {
	return func(yield func(*Claim, error) bool) {
		b := claimBuilder{
			q: &q, voices: voices,
			walk: descent{v: v, pace: pace{ctx: ctx}, memo: make(map[record.Hash]lineage), size: memoSize},
		}
		left := false
		give := func() error {
			c, err := b.finish()
			left = err == nil && c != nil && !yield(c, nil)
			return err
		}
		err := v.eachEntry(ctx, &q, func(e *claimEntry) (bool, error) {
			if e.tag() == tagContent {
				if err := give(); err != nil || left {
					return false, err
				}
				return true, b.begin(e)
			}
			b.add(e)
			return true, nil
		})
		if err == nil && !left {
			err = give()
		}
		if err != nil {
			yield(nil, err)
		}
	}
}

// claimBuilder builds claims from the entries of their groups.
type claimBuilder struct {
	q      *ClaimQuery
	voices int
	walk   descent

	c        *Claim // nil: the current group is skipped
	children bool
	// predicate is that of the last claim: most claims share it.
	predicate string
}

func (b *claimBuilder) begin(e *claimEntry) error {
	b.c, b.children = nil, false
	if b.q.AsOf != 0 && e.time > b.q.AsOf {
		return nil
	}
	if string(e.predicate()) != b.predicate {
		b.predicate = string(e.predicate())
	}
	c := &Claim{Project: b.q.Project, Subject: b.q.Subject, Predicate: b.predicate}
	c.ID, c.Timestamp = e.id, e.time
	b.c = c
	if err := readFacts(e.value, c); err != nil {
		return b.walk.v.s.indexError("read a claim", err)
	}
	return nil
}

func (b *claimBuilder) add(e *claimEntry) {
	c := b.c
	if c == nil {
		return
	}
	switch e.tag() {
	case tagSignature:
		if b.full(len(c.Agents)) {
			c.Partial = true
			return
		}
		c.Agents = append(c.Agents, record.AgentID(e.rest()))
	case tagVote:
		v := lens.Vote{Agent: record.AgentID(e.rest()), Weight: readFloat(e.value)}
		v.Timestamp, v.ID = readNewest(e.rest()[32:])
		late := b.q.AsOf != 0 && v.Timestamp > b.q.AsOf
		switch n := len(c.Votes); {
		case late, n > 0 && c.Votes[n-1].Agent == v.Agent:
		case b.full(n):
			c.Partial = true
		default:
			c.Votes = append(c.Votes, v)
		}
	case tagChild:
		b.children = true
	}
}

// full reports whether a claim holds the maximum number of agents, or votes.
func (b *claimBuilder) full(n int) bool { return b.voices > 0 && n >= b.voices }

// finish returns the claim in progress, if there is one.
func (b *claimBuilder) finish() (*Claim, error) {
	c := b.c
	b.c = nil
	if c == nil || !b.children {
		return c, nil
	}
	l, err := b.walk.lineage(owner{c.ID, c.Project}, c.Timestamp, groupOf(c.Subject, c.Predicate), b.q.AsOf)
	if err != nil {
		return nil, err
	}
	if l.by != nil {
		c.Lifecycle, c.ReplacedBy = l.lifecycle, l.by
	}
	return c, nil
}

// claimEntry is one entry of the group of a claim, valid until the next one.
type claimEntry struct {
	// place is the key after the subject: predicate 0 ^time ^id tag rest. Nodes
	// that hold the same records have the same places.
	place []byte
	at    int // offset of the tag in it
	time  uint64
	id    record.Hash
	value []byte
}

func (e *claimEntry) group() []byte     { return e.place[:e.at] }
func (e *claimEntry) predicate() []byte { return e.place[:e.at-newestSize-1] }
func (e *claimEntry) tag() byte         { return e.place[e.at] }
func (e *claimEntry) rest() []byte      { return e.place[e.at+1:] }

func readClaimPlace(place []byte) (e claimEntry, err error) {
	n := bytes.IndexByte(place, 0)
	if n < 0 || len(place) < n+1+newestSize+1 {
		return e, fmt.Errorf("claim entry at %x: %w", place, errIndexEntry)
	}
	e.place, e.at = place, n+1+newestSize
	e.time, e.id = readNewest(place[n+1:])
	if size, known := restSize(e.tag()); !known || len(e.rest()) != size {
		return e, fmt.Errorf("claim entry with tag %d and %d bytes: %w", e.tag(), len(e.rest()), errIndexEntry)
	}
	return e, nil
}

// restSize is the number of bytes after a tag in the group of a claim.
func restSize(tag byte) (size int, known bool) {
	switch tag {
	case tagContent, tagChild:
		return 0, true
	case tagSignature:
		return 32, true
	case tagVote:
		return 32 + newestSize, true
	}
	return 0, false
}

// eachEntry calls fn for the entries of a query's claims, in order, until it
// returns false: for each claim first the content, then signatures by agent,
// votes by agent and newest first, and whether it has children.
func (v *view) eachEntry(ctx context.Context, q *ClaimQuery, fn func(*claimEntry) (bool, error)) error {
	prefix := appendSubject(nil, q.Project, q.Subject, q.Predicate)
	head := len(prefix)
	if q.Predicate != "" {
		head -= len(q.Predicate) + 1
	}
	m := v.iterate(q.start(prefix, head), after(prefix), false)
	defer m.release()
	p := pace{ctx: ctx}
	var group []byte
	elsewhere := false // the claim's other entries are read from the id space
	for m.next() {
		if err := p.step(); err != nil {
			return err
		}
		e, err := readClaimPlace(m.key[head:])
		if err != nil {
			return v.s.indexError("read a claim", err)
		}
		e.value = m.value
		content := e.tag() == tagContent
		switch {
		case content:
			group = append(group[:0], e.group()...)
		case !bytes.Equal(group, e.group()):
			return v.s.indexError("read a claim", fmt.Errorf("claim %v without its content's entry: %w", e.id, errIndexEntry))
		case elsewhere:
			continue
		}
		if more, err := fn(&e); err != nil || !more {
			return err
		}
		if !content {
			continue
		}
		o := owner{e.id, q.Project}
		if elsewhere, err = v.behind(o, m.overlay); err != nil {
			return err
		}
		if elsewhere {
			if more, err := v.eachOfID(&p, o, e, fn); err != nil || !more {
				return err
			}
		}
	}
	return m.err
}

// behind reports whether the group of a claim is incomplete: while the applier
// is behind, entries that arrived without their content are only in the id
// space.
func (v *view) behind(o owner, overlay bool) (bool, error) {
	if v.inOverlay(o.append(nil, spaceLoose)) {
		return true, nil
	}
	if !overlay || !v.orphans {
		return false, nil
	}
	held, err := v.snap.Has(o.append(nil, spaceOrphan), nil)
	if err != nil {
		return false, v.s.indexError("read a claim", err)
	}
	return held, nil
}

// eachOfID passes on the entries of a claim, except its content, from the id
// space.
func (v *view) eachOfID(p *pace, o owner, e claimEntry, fn func(*claimEntry) (bool, error)) (more bool, err error) {
	prefix := o.append(nil, spaceID)
	m := v.prefix(prefix)
	defer m.release()
	place := bytes.Clone(e.group())
	for m.next() {
		if err := p.step(); err != nil {
			return false, err
		}
		behind, value := m.key[len(prefix):], m.value
		switch {
		case len(behind) == 0:
			return false, v.s.indexError("read a claim", errIndexEntry)
		case behind[0] == tagContent:
			continue
		case behind[0] == tagVote && len(value) == 16:
			value = value[8:]
		case behind[0] == tagChild:
			behind = behind[:1] // one is enough
		}
		one, err := readClaimPlace(append(place[:e.at], behind...))
		if err != nil {
			return false, v.s.indexError("read a claim", err)
		}
		place, one.value = one.place, value
		if more, err := fn(&one); err != nil || !more {
			return false, err
		}
		if one.tag() == tagChild {
			break
		}
	}
	return true, m.err
}

// start is the key at which the iteration begins. It can skip to a time only if
// there is one predicate.
func (q *ClaimQuery) start(prefix []byte, head int) []byte {
	switch {
	case q.After != nil:
		b := append(append(bytes.Clone(prefix[:head]), q.After.Predicate...), 0)
		b = append(appendNewest(b, q.After.Timestamp, q.After.ID), 0xff)
		if bytes.Compare(b, prefix) > 0 {
			return b
		}
	case q.AsOf != 0 && q.Predicate != "":
		return appendNewest(bytes.Clone(prefix), q.AsOf, record.Hash(bytes.Repeat([]byte{0xff}, 32)))
	}
	return prefix
}

// pace checks a context now and then: a check costs more than a step.
type pace struct {
	ctx  context.Context // nil: the work cannot be cancelled
	done int
}

const stepsPerLook = 256

func (p *pace) step() error {
	if p.done++; p.done%stepsPerLook != 0 || p.ctx == nil {
		return nil
	}
	return p.ctx.Err()
}

// lineage is the lifecycle from the newest descendant; by is nil if there is none.
type lineage struct {
	lifecycle record.Lifecycle
	by        *record.Hash
}

// descent follows the newest child of the newest child … of assertions. A child
// counts if it has the same subject and predicate and is not older than its
// parent, so each step goes forward in the order of claims.
type descent struct {
	v    *view
	pace pace
	// memo holds the results for ids on the way, so that a long chain is not
	// walked again for each of its members; at most size of them. When it is full,
	// it starts over with the latest results: claims come newest first, so the
	// next one is usually the parent of the last one.
	memo map[record.Hash]lineage
	size int
}

// memoSize is the size of a memo: about 1 MiB.
const memoSize = 8192

func (v *view) lineage(o owner, time uint64, cg claimGroup, asOf uint64, memo map[record.Hash]lineage) (lineage, error) {
	d := descent{v: v, memo: memo, size: memoSize}
	return d.lineage(o, time, cg, asOf)
}

func (d *descent) lineage(o owner, time uint64, cg claimGroup, asOf uint64) (lineage, error) {
	var found lineage
	var path []record.Hash
	for {
		if l, ok := d.memo[o.id]; ok {
			if l.by != nil {
				found = l
			}
			break
		}
		if len(path) < d.size {
			path = append(path, o.id)
		}
		child, err := d.newestChild(o, time, cg, asOf)
		if err != nil {
			return lineage{}, err
		}
		if child == nil {
			break
		}
		found = lineage{child.lifecycle, &child.id}
		o.id, time = child.id, child.time
	}
	if len(d.memo)+len(path) > d.size {
		clear(d.memo)
	}
	// Every id on the path leads to the same end, except the end itself.
	for _, id := range path {
		if found.by != nil && id == *found.by {
			d.memo[id] = lineage{}
			continue
		}
		d.memo[id] = found
	}
	return found, nil
}

// child is an assertion that names another one as its parent.
type child struct {
	id        record.Hash
	time      uint64
	lifecycle record.Lifecycle
}

// newestChild returns nil if no child counts.
func (d *descent) newestChild(o owner, time uint64, cg claimGroup, asOf uint64) (*child, error) {
	prefix := append(o.append(nil, spaceID), tagChild)
	m := d.v.prefix(prefix)
	defer m.release()
	for m.next() {
		if err := d.pace.step(); err != nil {
			return nil, err
		}
		if len(m.key) != len(prefix)+newestSize || len(m.value) != 1+len(cg) {
			return nil, d.v.s.indexError("read an assertion's children", errIndexEntry)
		}
		c := child{lifecycle: record.Lifecycle(m.value[0])}
		c.time, c.id = readNewest(m.key[len(prefix):])
		if asOf != 0 && c.time > asOf || claimGroup(m.value[1:]) != cg {
			continue
		}
		if c.time < time {
			break
		}
		return &c, nil
	}
	return nil, m.err
}

// Subjects lists at most limit subjects of the project that begin with prefix
// and sort after behind, in byte order.
func (s *Store) Subjects(project record.ProjectName, prefix, behind string, limit int) ([]string, error) {
	v, err := s.view()
	if err != nil {
		return nil, err
	}
	defer v.Close()
	head := appendName([]byte{spaceSubject}, project)
	start := append(bytes.Clone(head), prefix...)
	end := after(start)
	if behind >= prefix {
		// The smallest text after another one is that text and a zero byte.
		start = append(append(bytes.Clone(head), behind...), 0)
	}
	m := v.iterate(start, end, false)
	defer m.release()
	var subjects []string
	for len(subjects) < limit && m.next() {
		subjects = append(subjects, string(m.key[len(head):]))
	}
	return subjects, m.err
}
