package control

import (
	"cmp"
	"maps"
	"slices"

	"github.com/stemedb/stemedb/server/internal/keys"
)

// Format is the newest format of commands and snapshots that this code knows.
const Format = 1

// Member is one node of the cluster as the control table names it.
type Member struct {
	// Name is the node's permanent name, such as stemedb-0.
	Name string `cbor:"name"`
	// Incarnation is a random id, generated when a node starts with empty volumes.
	Incarnation string `cbor:"incarnation"`
	// PeerAddr and APIAddr are host:port of the peer port and of the HTTP API.
	PeerAddr string `cbor:"peer_addr"`
	APIAddr  string `cbor:"api_addr"`
	// Whole: the member holds everything that was acknowledged, except for records
	// that catch-up is still fetching, and therefore counts in reads. Closing a
	// change sets it, a reported loss clears it.
	Whole bool `cbor:"whole"`
	// Loss names the report that cleared Whole, so that a repeated report can be
	// distinguished from a new one.
	Loss string `cbor:"loss,omitempty"`
	// LaterLoss names the latest report of a member that was not whole and has no
	// Loss. Withdrawing that report would not make the member whole. For a member
	// whose volumes are gone it is the id of the newcomer that showed it.
	LaterLoss string `cbor:"later_loss,omitempty"`
	// LostAt is the generation of the latest report of a loss, 0 when there was
	// none. It is kept when the member is whole again: acknowledgements of the
	// member from before that generation prove nothing.
	LostAt uint64 `cbor:"lost_at,omitempty"`
	// Life identifies the member's latest start.
	Life string `cbor:"life,omitempty"`
}

// report names the member's latest report of a loss.
func (m *Member) report() string { return cmp.Or(m.LaterLoss, m.Loss) }

// lost records a report of a loss at a generation.
func (m *Member) lost(report string, generation uint64) {
	m.LostAt = generation
	if m.Whole || m.Loss != "" {
		m.Whole, m.Loss = false, report
	} else {
		m.LaterLoss = report
	}
}

func (m *Member) whole() { m.Whole, m.Loss, m.LaterLoss = true, "", "" }

// ID is name/incarnation: the identity that votes in Raft and acknowledges
// records.
func (m Member) ID() string { return MemberID(m.Name, m.Incarnation) }

// MemberID joins a name and an incarnation.
func MemberID(name, incarnation string) string { return name + "/" + incarnation }

// ChangeKind is the purpose of a change of members.
type ChangeKind string

// The kinds of changes.
const (
	// Join adds a member.
	Join ChangeKind = "join"
	// Replace replaces a lost incarnation by a new one.
	Replace ChangeKind = "replace"
	// Refill makes a member that lost data whole again.
	Refill ChangeKind = "refill"
)

// Change is an open change of members. Meanwhile writes need a majority of Old
// and one of New, and reads follow Old.
type Change struct {
	ID   uint64     `cbor:"id"`
	Kind ChangeKind `cbor:"kind"`
	// Subject is the id of the member that the change makes whole.
	Subject string `cbor:"subject"`
	// Old and New are ordered by name. A member of both is the same in both.
	Old []Member `cbor:"old"`
	New []Member `cbor:"new"`
	// Generation is the generation since which Old and New are unchanged. Log ends
	// noted at an older generation prove nothing about this change.
	Generation uint64 `cbor:"generation"`
	// OpenedAt is the table's time in unix seconds.
	OpenedAt int64 `cbor:"opened_at"`
}

// State is the control table at one moment. A published State is immutable.
type State struct {
	// ClusterID is empty until the cluster has formed.
	ClusterID string `cbor:"cluster_id"`
	// Generation grows by one with every change of the members, of their wholeness
	// or of the open change. A change of an address leaves it unchanged.
	Generation uint64 `cbor:"generation"`
	// Members is ordered by name. While a change is open these are the old ones.
	Members []Member `cbor:"members"`
	Change  *Change  `cbor:"change,omitempty"`
	// DigestKey keys the digests that members compare.
	DigestKey [32]byte `cbor:"digest_key"`
	// Keys includes all revoked keys.
	Keys map[keys.Hash]keys.Key `cbor:"keys"`
	// Format is the newest format of commands that every member is known to
	// understand; every member refuses a command of a newer format.
	Format int `cbor:"format"`
	// Index is the Raft index of the last command that was applied.
	Index uint64 `cbor:"index"`

	// LastChange is the id of the newest change ever opened.
	LastChange uint64 `cbor:"last_change"`
	// Recent names the last applied operations, oldest first, so that an operation
	// that is sent again after a lost answer is not applied twice.
	Recent []string `cbor:"recent"`

	// keySum and digest are derived from the fields above; see digest.go.
	keySum keySum
	digest digest
}

// Formed reports whether the table belongs to a cluster yet.
func (s *State) Formed() bool { return s.ClusterID != "" }

// Member returns the member of that name: of the new set while a change is open.
func (s *State) Member(name string) (Member, bool) {
	return find(s.Current(), func(m Member) bool { return m.Name == name })
}

// MemberByID returns the member with that id, of the new or of the old set.
func (s *State) MemberByID(id string) (Member, bool) {
	is := func(m Member) bool { return m.ID() == id }
	if m, ok := find(s.Current(), is); ok {
		return m, true
	}
	return find(s.Members, is)
}

// joining reports whether the open change adds that member.
func (s *State) joining(id string) bool {
	return s.Change != nil && s.Change.Kind == Join && s.Change.Subject == id
}

// Current is the set of members after the open change, or the members when none
// is open.
func (s *State) Current() []Member {
	if s.Change != nil {
		return s.Change.New
	}
	return s.Members
}

// Everyone returns the members of the old and of the new set, each once, ordered
// by id: the targets of writes.
func (s *State) Everyone() []Member {
	all := slices.Clone(s.Current())
	if s.Change != nil {
		for _, m := range s.Change.Old {
			if _, ok := find(all, func(o Member) bool { return o.ID() == m.ID() }); !ok {
				all = append(all, m)
			}
		}
	}
	slices.SortFunc(all, func(a, b Member) int { return cmp.Compare(a.ID(), b.ID()) })
	return all
}

// Majority is the smallest majority of n.
func Majority(n int) int { return n/2 + 1 }

// Acknowledged is WriteQuorum for acknowledgements that were each given before
// the member had passed a generation. An acknowledgement from before the member's
// latest loss does not count: the record may be among those lost, and the logs
// from which the member was refilled may not have held it yet.
func (s *State) Acknowledged(acks map[string]uint64) bool {
	return s.WriteQuorum(func(id string) bool { return s.counts(id, acks) })
}

// Durable is the number of current members whose acknowledgement counts; see
// Acknowledged.
func (s *State) Durable(acks map[string]uint64) (n int) {
	for _, m := range s.Current() {
		if s.counts(m.ID(), acks) {
			n++
		}
	}
	return n
}

func (s *State) counts(id string, acks map[string]uint64) bool {
	generation, acked := acks[id]
	m, _ := s.MemberByID(id)
	return acked && m.LostAt <= generation
}

// WriteQuorum reports whether a record is acknowledged by the members for which
// acked is true: a majority of the members or, while a change is open, of its old
// set and of its new set. It is evaluated with the state at the completion of a
// write, never with the state at its beginning.
func (s *State) WriteQuorum(acked func(memberID string) bool) bool {
	if s.Change == nil {
		return majorityOf(s.Members, acked)
	}
	return majorityOf(s.Change.Old, acked) && majorityOf(s.Change.New, acked)
}

// ReadSet returns the members that count in reads, and how many of them have to
// be heard: a majority of the members, of the old set while a change is open.
// With fewer candidates than needed, quorum reads fail.
//
// n−m+1 of n members meet every acknowledged write. For an even n that is no
// majority: a reader that hears one half of the members could show a record that
// the other half does not hold.
func (s *State) ReadSet() (candidates []Member, need int) {
	set := s.readFrom()
	for _, m := range set {
		if countsInReads(set, m) {
			candidates = append(candidates, m)
		}
	}
	return candidates, Majority(len(set))
}

// countsInReads reports whether a member counts in reads. A single member does
// even after a loss, because there is no other; its answers say so.
func countsInReads(set []Member, m Member) bool { return m.Whole || len(set) == 1 }

// readFrom is the set whose whole members count in reads.
func (s *State) readFrom() []Member {
	if s.Change != nil {
		return s.Change.Old
	}
	return s.Members
}

// ReadQuorum reports whether the members for which heard is true suffice for a
// quorum read: a majority of the set that reads follow, counting whole members
// only, and while a change is open also a majority of the new set. The latter is
// needed because other nodes may have closed the change already and then write to
// a majority of the new set.
func (s *State) ReadQuorum(heard func(memberID string) bool) bool {
	counts := func(id string) bool {
		m, ok := find(s.readFrom(), func(m Member) bool { return m.ID() == id })
		return ok && countsInReads(s.readFrom(), m) && heard(id)
	}
	return majorityOf(s.readFrom(), counts) && (s.Change == nil || majorityOf(s.Change.New, heard))
}

// meeting is the number of members out of n that intersects every majority:
// n−m+1.
func meeting(n int) int { return n - Majority(n) + 1 }

func majorityOf(set []Member, acked func(string) bool) bool {
	count := 0
	for _, m := range set {
		if acked(m.ID()) {
			count++
		}
	}
	return len(set) > 0 && count >= Majority(len(set))
}

func find(set []Member, match func(Member) bool) (Member, bool) {
	if i := slices.IndexFunc(set, match); i >= 0 {
		return set[i], true
	}
	return Member{}, false
}

// clone returns a copy whose slices and maps can be modified.
func (s *State) clone() *State {
	c := *s
	c.Members = slices.Clone(s.Members)
	c.Keys = maps.Clone(s.Keys)
	if c.Keys == nil {
		c.Keys = map[keys.Hash]keys.Key{}
	}
	c.Recent = slices.Clone(s.Recent)
	if s.Change != nil {
		change := *s.Change
		change.Old = slices.Clone(change.Old)
		change.New = slices.Clone(change.New)
		c.Change = &change
	}
	return &c
}
