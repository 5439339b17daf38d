package control

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/stemedb/stemedb/server/internal/keys"
)

// remembered is the number of operations kept for deduplication. Retries come
// within seconds.
const remembered = 256

func (c *found) apply(s *State) *result {
	if s.Formed() {
		return &result{}
	}
	s.ClusterID, s.DigestKey, s.Format = c.ClusterID, c.DigestKey, 1
	s.Members = slices.Clone(c.Members)
	for i := range s.Members {
		s.Members[i].Whole = true // no record was acknowledged before
	}
	sortMembers(s.Members)
	s.Generation = 1
	return &result{}
}

func (c *admit) apply(s *State) *result {
	m := c.Member
	m.Whole, m.Loss, m.LaterLoss, m.LostAt = false, "", "", s.Generation+1
	if held, ok := s.MemberByID(m.ID()); ok {
		if held.PeerAddr != m.PeerAddr || held.APIAddr != m.APIAddr {
			s.update(m.ID(), func(e *Member) { e.PeerAddr, e.APIAddr = m.PeerAddr, m.APIAddr })
		}
		return &result{}
	}
	self, known := s.Member(m.Name)
	switch {
	case s.Change == nil && !known:
		if err := s.mayGrow(m); err != nil {
			return refuse(err)
		}
		s.open(Join, m.ID(), append(slices.Clone(s.Members), m), c.At)
	case s.Change == nil:
		s.gone(self, m)
		s.open(Replace, m.ID(), swap(s.Members, m), c.At)
	case known && s.Change.Subject == self.ID():
		// The newcomer lost its volumes before the change was closed.
		s.gone(self, m)
		if s.Change.Kind == Refill {
			s.Change.Kind = Replace
		}
		s.Change.Subject, s.Change.New = m.ID(), swap(s.Change.New, m)
		s.bump()
	case known:
		// Another member lost its volumes meanwhile. It has to wait, but it must no
		// longer count as whole.
		if s.gone(self, m) {
			s.bump()
		}
		return s.busy(m)
	default:
		return s.busy(m)
	}
	return &result{}
}

// gone records that a node of the member's name asks to join with empty volumes, so
// the member's records are gone. That counts as a report of a loss: answers of the
// member and decisions of an operator from before it are outdated. It returns false
// when the same report is recorded already.
func (s *State) gone(m, newcomer Member) bool {
	if m.report() == newcomer.ID() {
		return false
	}
	s.update(m.ID(), func(e *Member) { e.Whole, e.Loss, e.LaterLoss, e.LostAt = false, "", newcomer.ID(), s.Generation+1 })
	return true
}

func (s *State) busy(m Member) *result {
	return refuse(fmt.Errorf("%w: %s of %s (change %d); %s has to wait until it is closed",
		errBusy, s.Change.Kind, s.Change.Subject, s.Change.ID, m.ID()))
}

func (c *loss) apply(s *State) *result {
	m, ok := s.MemberByID(c.Member)
	if !ok {
		return refuse(fmt.Errorf("%w: %s", errNotMember, c.Member))
	}
	if m.report() == c.Loss {
		return &result{} // the same report again
	}
	s.update(c.Member, func(e *Member) { e.lost(c.Loss, s.Generation+1) })
	s.bump() // even if it was not whole: its earlier answers are outdated
	return &result{}
}

func (c *acceptLoss) apply(s *State) *result {
	m, ok := s.MemberByID(c.Member)
	if !ok {
		return refuse(fmt.Errorf("%w: %s", errNotMember, c.Member))
	}
	if m.Whole {
		return &result{}
	}
	if err := c.allowed(s, m); err != nil {
		return refuse(err)
	}
	s.reinstate(c.Member)
	return &result{}
}

func (c *withdrawLoss) apply(s *State) *result {
	m, ok := s.MemberByID(c.Member)
	switch {
	case !ok:
		return refuse(fmt.Errorf("%w: %s", errNotMember, c.Member))
	case m.Loss == "" || m.Loss != c.Loss:
		return refuse(fmt.Errorf("%w: the latest loss of %s is another one", errOutdated, c.Member))
	}
	s.reinstate(c.Member)
	return &result{}
}

// reinstate makes a member whole and ends its refill. It is for members that were
// whole before.
func (s *State) reinstate(id string) {
	s.update(id, (*Member).whole)
	if s.Change != nil && s.Change.Subject == id && s.Change.Kind == Refill {
		s.Members, s.Change = s.Change.New, nil
	}
	s.bump()
}

func (c *live) apply(s *State) *result {
	m, ok := s.MemberByID(c.Member)
	if !ok {
		return refuse(fmt.Errorf("%w: %s", errNotMember, c.Member))
	}
	known := m.Life == "" || m.Life == c.Now || slices.Contains(c.Known, m.Life)
	if !known && !c.RolledBack {
		return refuse(errRolledBack)
	}
	s.update(c.Member, func(e *Member) {
		e.Life = c.Now
		if !known {
			e.lost(c.Now, s.Generation+1)
		}
	})
	if !known {
		s.bump()
	}
	return &result{}
}

func (c *refill) apply(s *State) *result {
	m, ok := s.MemberByID(c.Member)
	switch {
	case !ok:
		return refuse(fmt.Errorf("%w: %s", errNotMember, c.Member))
	case s.Change != nil:
		return s.busy(m)
	case m.Whole:
		return refuse(fmt.Errorf("%w: %s is whole", errOutdated, c.Member))
	}
	s.open(Refill, c.Member, slices.Clone(s.Members), c.At)
	return &result{}
}

func (c *closeChange) apply(s *State) *result {
	if s.Change == nil || s.Change.ID != c.Change || s.Generation != c.Generation {
		return refuse(fmt.Errorf("%w: change %d at generation %d is not the open one", errOutdated, c.Change, c.Generation))
	}
	if !slices.Contains(c.Whole, s.Change.Subject) {
		return refuse(fmt.Errorf("%w: %s is not whole yet", errOutdated, s.Change.Subject))
	}
	s.Members = s.Change.New
	s.Change = nil
	for i := range s.Members {
		if m := &s.Members[i]; slices.Contains(c.Whole, m.ID()) {
			m.whole()
		}
	}
	s.bump()
	return &result{}
}

func (c *cancelChange) apply(s *State) *result {
	if s.Change == nil || s.Change.ID != c.Change {
		return refuse(fmt.Errorf("%w: change %d is not open", errOutdated, c.Change))
	}
	if c.Generation != 0 && c.Generation != s.Generation {
		return refuse(fmt.Errorf("%w: change %d has changed since generation %d", errOutdated, c.Change, c.Generation))
	}
	s.Change = nil // Members are those of Old
	s.bump()
	return &result{}
}

func (c *createKey) apply(s *State) *result {
	held, ok := s.Keys[c.Key.Hash]
	if ok && slices.Contains(s.Recent, c.Op) {
		return &result{Key: &held, Created: true}
	}
	var before *keys.Key
	if ok {
		before = &held
	}
	after, created, err := keys.Register(before, c.Key)
	if err != nil {
		return refuse(err)
	}
	if created {
		s.setKey(after)
		s.remember(c.Op)
	}
	return &result{Key: &after, Created: created}
}

func (c *patchKey) apply(s *State) *result {
	held, ok := s.Keys[c.Hash]
	if !ok {
		return refuse(keys.ErrNotFound)
	}
	if slices.Contains(s.Recent, c.Op) {
		return &result{Key: &held}
	}
	after, err := held.Patched(c.Patch)
	if err != nil {
		return refuse(err)
	}
	s.setKey(after)
	s.remember(c.Op)
	return &result{Key: &after}
}

func (c *revokeKey) apply(s *State) *result {
	held, ok := s.Keys[c.Hash]
	if !ok {
		return refuse(keys.ErrNotFound)
	}
	held = held.RevokedNow(c.At)
	s.setKey(held)
	return &result{Key: &held}
}

func (c *rotateKey) apply(s *State) *result {
	held, ok := s.Keys[c.Hash]
	if !ok {
		return refuse(keys.ErrNotFound)
	}
	successor, taken := s.Keys[c.Successor]
	if taken && slices.Contains(s.Recent, c.Op) {
		return &result{Key: &held, Fresh: &successor}
	}
	if taken {
		return refuse(keys.ErrExists)
	}
	old, fresh, err := held.Rotate(c.Successor, c.At, c.Grace)
	if err != nil {
		return refuse(err)
	}
	s.setKey(old)
	s.setKey(fresh)
	s.remember(c.Op)
	return &result{Key: &old, Fresh: &fresh}
}

// open opens a change from the members as they are to next.
func (s *State) open(kind ChangeKind, subject string, next []Member, at int64) {
	sortMembers(next)
	s.LastChange++
	s.Change = &Change{ID: s.LastChange, Kind: kind, Subject: subject, Old: slices.Clone(s.Members), New: next, OpenedAt: at}
	s.bump()
}

// bump begins a new generation. Log ends noted earlier for an open change no
// longer count.
func (s *State) bump() {
	s.Generation++
	if s.Change != nil {
		s.Change.Generation = s.Generation
	}
}

// update changes a member in every set that contains it.
func (s *State) update(id string, change func(*Member)) {
	sets := [][]Member{s.Members}
	if s.Change != nil {
		sets = append(sets, s.Change.Old, s.Change.New)
	}
	for _, set := range sets {
		for i := range set {
			if set[i].ID() == id {
				change(&set[i])
			}
		}
	}
}

func (s *State) remember(op string) {
	s.Recent = append(s.Recent, op)
	if extra := len(s.Recent) - remembered; extra > 0 {
		s.Recent = slices.Delete(s.Recent, 0, extra)
	}
}

// swap returns the set with m in place of the member of the same name.
func swap(set []Member, m Member) []Member {
	next := slices.Clone(set)
	for i := range next {
		if next[i].Name == m.Name {
			next[i] = m
		}
	}
	return next
}

func sortMembers(set []Member) {
	slices.SortFunc(set, func(a, b Member) int { return cmp.Compare(a.Name, b.Name) })
}
