package store

import (
	"bytes"
	"fmt"
	"iter"

	"github.com/stemedb/stemedb/server/internal/lens"
	"github.com/stemedb/stemedb/server/record"
)

// Claims yields the claims of a subject: by predicate, then newest first
// (timestamp, then id, descending). An error is the last thing yielded. What
// was yielded may be kept. The iteration sees the store as it was when it
// began; a long one holds back goleveldb's garbage.
func (s *Store) Claims(q ClaimQuery) iter.Seq2[*Claim, error] {
	return func(yield func(*Claim, error) bool) {
		err := s.eachGroup(q, func(g *group) (bool, error) {
			if q.AsOf != 0 && g.claim.Timestamp > q.AsOf {
				return true, nil
			}
			c, err := g.finish(q.AsOf)
			if err != nil {
				return false, err
			}
			return yield(c, nil), nil
		})
		if err != nil {
			yield(nil, err)
		}
	}
}

// group is one claim with everything in its group.
type group struct {
	v     *view
	owner owner
	claim Claim
	// votes are all of them, by agent, then newest first.
	votes    []lens.Vote
	children bool
	overlay  bool // the content is in the overlay

	facts bool // the content's entry was there
	memo  map[record.Hash]lineage
}

// eachGroup calls fn for each claim until it returns false.
func (s *Store) eachGroup(q ClaimQuery, fn func(*group) (bool, error)) error {
	v, err := s.view()
	if err != nil {
		return err
	}
	defer v.release()
	prefix := appendSubject(nil, q.Project, q.Subject, q.Predicate)
	head := len(prefix)
	if q.Predicate != "" {
		head -= len(q.Predicate) + 1
	}
	m := v.iterate(q.start(prefix, head), after(prefix), false)
	defer m.release()
	memo := make(map[record.Hash]lineage)
	var g *group
	var groupKey []byte
	for m.next() {
		if g == nil || !bytes.HasPrefix(m.key, groupKey) {
			if g != nil {
				if more, err := fn(g); err != nil || !more {
					return err
				}
			}
			if g, groupKey, err = newGroup(m.key, head, groupKey); err != nil {
				return s.indexError("read a claim", err)
			}
			g.v, g.memo = v, memo
			g.owner.project, g.claim.Project, g.claim.Subject = q.Project, q.Project, q.Subject
		}
		if err := g.take(m.key[len(groupKey):], m.value, m.overlay); err != nil {
			return s.indexError("read a claim", err)
		}
	}
	if m.err != nil {
		return m.err
	}
	if g != nil {
		_, err = fn(g)
	}
	return err
}

// start is where the iteration begins. The time can only be jumped to when
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

// newGroup reads predicate, time and id; groupKey's memory is used again.
func newGroup(key []byte, head int, groupKey []byte) (*group, []byte, error) {
	n := bytes.IndexByte(key[head:], 0)
	if n < 0 || len(key) < head+n+1+newestSize+1 {
		return nil, nil, fmt.Errorf("index key %x: %w", key, errIndexEntry)
	}
	g := &group{}
	g.claim.Predicate = string(key[head : head+n])
	at := head + n + 1
	g.claim.Timestamp, g.claim.ID = readNewest(key[at:])
	g.owner.id = g.claim.ID
	return g, append(groupKey[:0], key[:at+newestSize]...), nil
}

// take adds an entry; rest is the key behind the group's prefix.
func (g *group) take(rest, value []byte, overlay bool) error {
	tag, rest := rest[0], rest[1:]
	switch {
	case tag == tagContent && len(rest) == 0:
		g.facts, g.overlay = true, overlay
		return readFacts(value, &g.claim)
	case tag == tagSignature && len(rest) == 32:
		g.claim.Agents = append(g.claim.Agents, record.AgentID(rest))
	case tag == tagVote && len(rest) == 32+newestSize && len(value) == 8:
		g.addVote(rest, value)
	case tag == tagChild && len(rest) == 0:
		g.children = true
	default:
		return fmt.Errorf("claim entry with tag %d and %d bytes: %w", tag, len(rest), errIndexEntry)
	}
	return nil
}

func (g *group) addVote(rest, weight []byte) {
	v := lens.Vote{Agent: record.AgentID(rest), Weight: readFloat(weight)}
	v.Timestamp, v.ID = readNewest(rest[32:])
	g.votes = append(g.votes, v)
}

// settle makes the group complete: while the applier is still behind, what
// came without its content stands in the id space only.
func (g *group) settle() error {
	if !g.facts {
		return g.v.s.indexError("read a claim", fmt.Errorf("claim %v without its content's entry: %w", g.claim.ID, errIndexEntry))
	}
	behind := g.v.inOverlay(g.owner.append(nil, spaceLoose))
	if !behind && g.overlay && g.v.orphans {
		held, err := g.v.snap.Has(g.owner.append(nil, spaceOrphan), nil)
		if err != nil {
			return g.v.s.indexError("read a claim", err)
		}
		behind = held
	}
	if !behind {
		return nil
	}
	g.claim.Agents, g.votes = nil, nil
	prefix := g.owner.append(nil, spaceID)
	m := g.v.prefix(prefix)
	defer m.release()
	for m.next() {
		switch tag, rest := m.key[len(prefix)], m.key[len(prefix)+1:]; tag {
		case tagSignature:
			g.claim.Agents = append(g.claim.Agents, record.AgentID(rest))
		case tagVote:
			g.addVote(rest, m.value[8:])
		case tagChild:
			g.children = true
		}
	}
	return m.err
}

// finish makes the claim that callers get.
func (g *group) finish(asOf uint64) (*Claim, error) {
	if err := g.settle(); err != nil {
		return nil, err
	}
	c := &g.claim
	for i := range g.votes {
		v := &g.votes[i]
		if asOf != 0 && v.Timestamp > asOf {
			continue
		}
		if n := len(c.Votes); n == 0 || c.Votes[n-1].Agent != v.Agent {
			c.Votes = append(c.Votes, *v)
		}
	}
	if !g.children {
		return c, nil
	}
	l, err := g.v.lineage(g.owner, c.Timestamp, groupOf(c.Subject, c.Predicate), asOf, g.memo)
	if err != nil {
		return nil, err
	}
	if l.by != nil {
		c.Lifecycle, c.ReplacedBy = l.lifecycle, l.by
	}
	return c, nil
}

// eachKey calls fn for every key of the group.
func (g *group) eachKey(fn func(Key)) error {
	if err := g.settle(); err != nil {
		return err
	}
	k := Key{Kind: KindContent, Project: g.owner.project, ID: g.owner.id}
	fn(k)
	for _, k.Agent = range g.claim.Agents {
		k.Kind = KindSignature
		fn(k)
	}
	for i := range g.votes {
		k.Kind, k.Agent, k.Vote = KindVote, g.votes[i].Agent, g.votes[i].ID
		fn(k)
	}
	return nil
}

// lineage is what the newest descendant says; by is nil without one.
type lineage struct {
	lifecycle record.Lifecycle
	by        *record.Hash
}

// lineage follows the newest child of the newest child … of an assertion. A
// child counts when it is about the same subject and predicate and is not
// older than its parent, so each step goes forward in the order of claims. memo holds what
// was found for ids on the way, which keeps a long chain from being walked
// again for each of its members.
func (v *view) lineage(o owner, time uint64, cg claimGroup, asOf uint64, memo map[record.Hash]lineage) (lineage, error) {
	var found lineage
	var path []record.Hash
	for {
		if l, ok := memo[o.id]; ok {
			if l.by != nil {
				found = l
			}
			break
		}
		path = append(path, o.id)
		child, childTime, lifecycle, err := v.newestChild(o, time, cg, asOf)
		if err != nil {
			return lineage{}, err
		}
		if child == nil {
			break
		}
		found = lineage{lifecycle, child}
		o.id, time = *child, childTime
	}
	// Every id on the path leads to the same end, but for the end itself.
	for _, id := range path {
		if found.by != nil && id == *found.by {
			memo[id] = lineage{}
			continue
		}
		memo[id] = found
	}
	return found, nil
}

func (v *view) newestChild(o owner, time uint64, cg claimGroup, asOf uint64) (*record.Hash, uint64, record.Lifecycle, error) {
	prefix := append(o.append(nil, spaceID), tagChild)
	m := v.prefix(prefix)
	defer m.release()
	for m.next() {
		if len(m.key) != len(prefix)+newestSize || len(m.value) != 1+len(cg) {
			return nil, 0, 0, v.s.indexError("read an assertion's children", errIndexEntry)
		}
		childTime, id := readNewest(m.key[len(prefix):])
		if asOf != 0 && childTime > asOf || claimGroup(m.value[1:]) != cg {
			continue
		}
		if childTime < time {
			break
		}
		return &id, childTime, record.Lifecycle(m.value[0]), nil
	}
	return nil, 0, 0, m.err
}

// Subjects lists subjects of the project that begin with prefix and lie behind
// after, in the order of their bytes, at most limit.
func (s *Store) Subjects(project record.ProjectName, prefix, behind string, limit int) ([]string, error) {
	v, err := s.view()
	if err != nil {
		return nil, err
	}
	defer v.release()
	head := appendName([]byte{spaceSubject}, project)
	start := append(bytes.Clone(head), prefix...)
	end := after(start)
	if behind >= prefix {
		// The smallest text behind another one is that text and a zero byte.
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
