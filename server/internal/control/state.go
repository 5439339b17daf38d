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
	// Name is the node's lasting name, such as stemedb-0.
	Name string `cbor:"name"`
	// Incarnation is drawn anew when a node begins with empty volumes.
	Incarnation string `cbor:"incarnation"`
	// PeerAddr and APIAddr are host:port of the peer port and of the HTTP API.
	PeerAddr string `cbor:"peer_addr"`
	APIAddr  string `cbor:"api_addr"`
	// Whole: the member holds everything that was acknowledged, but for what
	// catch-up is still bringing, and therefore counts in reads. Closing a
	// change sets it, a reported loss clears it.
	Whole bool `cbor:"whole"`
	// Loss names the report that cleared Whole, so that a repeated report is
	// told from a new one.
	Loss string `cbor:"loss,omitempty"`
	// LaterLoss names the latest report of a member that was not whole and has no
	// Loss. Taking that report back would not make the member whole. For a member
	// whose volumes are gone it is the id of the newcomer that showed it.
	LaterLoss string `cbor:"later_loss,omitempty"`
	// LostAt is the generation of the latest report of a loss, 0 when there was
	// none. It stays when the member is whole again: acknowledgements of the member
	// from before that generation prove nothing.
	LostAt uint64 `cbor:"lost_at,omitempty"`
	// Life is that of the member's latest start.
	Life string `cbor:"life,omitempty"`
}

// report names the member's latest report of a loss.
func (m *Member) report() string { return cmp.Or(m.LaterLoss, m.Loss) }

// lost notes a report of a loss at a generation.
func (m *Member) lost(report string, generation uint64) {
	m.LostAt = generation
	if m.Whole || m.Loss != "" {
		m.Whole, m.Loss = false, report
	} else {
		m.LaterLoss = report
	}
}

func (m *Member) whole() { m.Whole, m.Loss, m.LaterLoss = true, "", "" }

// ID is name/incarnation: what votes in Raft, and what acknowledges records.
func (m Member) ID() string { return MemberID(m.Name, m.Incarnation) }

// MemberID joins a name and an incarnation.
func MemberID(name, incarnation string) string { return name + "/" + incarnation }

// ChangeKind says what a change of members is for.
type ChangeKind string

// The kinds of changes.
const (
	// Join adds a member.
	Join ChangeKind = "join"
	// Replace puts a new incarnation in the place of a lost one.
	Replace ChangeKind = "replace"
	// Refill makes a member whole that lost a part of its data.
	Refill ChangeKind = "refill"
)

// Change is a change of members that is open. While it is, writes need a
// majority of Old and one of New, and reads follow Old.
type Change struct {
	ID   uint64     `cbor:"id"`
	Kind ChangeKind `cbor:"kind"`
	// Subject is the id of the member that is to become whole by the change.
	Subject string `cbor:"subject"`
	// Old and New are ordered by name. A member of both is the same in both.
	Old []Member `cbor:"old"`
	New []Member `cbor:"new"`
	// Generation is the one since which Old and New are what they are. Log
	// ends noted at an older generation prove nothing about this change.
	Generation uint64 `cbor:"generation"`
	// OpenedAt is in unix seconds of the table's time.
	OpenedAt int64 `cbor:"opened_at"`
}

// State is the control table at one moment. A State that was handed out is
// never changed.
type State struct {
	// ClusterID is empty until the cluster has formed.
	ClusterID string `cbor:"cluster_id"`
	// Generation grows by one whenever it changes who is a member, who is whole
	// or what change is open. An address that changes leaves it as it is.
	Generation uint64 `cbor:"generation"`
	// Members is ordered by name. While a change is open these are the old ones.
	Members []Member `cbor:"members"`
	Change  *Change  `cbor:"change,omitempty"`
	// DigestKey keys the digests that members compare.
	DigestKey [32]byte `cbor:"digest_key"`
	// Keys never forgets a revoked key.
	Keys map[keys.Hash]keys.Key `cbor:"keys"`
	// Format is the newest format of commands that every member is known to
	// understand; a command of a newer one is refused by all alike.
	Format int `cbor:"format"`
	// Index is the Raft index of the last command that was applied.
	Index uint64 `cbor:"index"`

	// LastChange is the id of the newest change ever opened.
	LastChange uint64 `cbor:"last_change"`
	// Recent names the last operations that were applied, oldest first, so
	// that one which is sent again after a lost answer is not applied twice.
	Recent []string `cbor:"recent"`

	// keySum and digest are derived from the fields above; see digest.go.
	keySum keySum
	digest digest
}

// Formed tells whether the table belongs to a cluster yet.
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

// Current is the set of members that holds when the open change is done, or the
// members when none is open: whom to replicate to besides Members.
func (s *State) Current() []Member {
	if s.Change != nil {
		return s.Change.New
	}
	return s.Members
}

// Everyone returns the members of the old and of the new set, each once,
// ordered by id: everyone to whom writes are sent.
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

// Majority is how many of n make a majority.
func Majority(n int) int { return n/2 + 1 }

// Acknowledged is WriteQuorum for acknowledgements that were each given while the
// member had not passed a generation. One from before the member's latest loss does
// not count: the record may be among those lost, and the logs that the member was
// refilled from may not have held it yet.
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

// WriteQuorum tells whether the members for which acked is true make a record
// acknowledged: a majority of the members and, while a change is open, a
// majority of its old set and one of its new set. It is asked with the state at
// the time of completion, never with one from the beginning of a write.
func (s *State) WriteQuorum(acked func(memberID string) bool) bool {
	if s.Change == nil {
		return majorityOf(s.Members, acked)
	}
	return majorityOf(s.Change.Old, acked) && majorityOf(s.Change.New, acked)
}

// ReadSet returns the members that count in reads, and how many of them have to
// be heard: a majority of the members, of the old set while a change is open.
// When fewer candidates than needed are left, no read can be answered, and
// readers say so.
//
// n−m+1 of n members would meet every acknowledged write. Of an even n that is
// no majority: a reader that heard half of the members, all of them alike, would
// show a record that the other half never held.
func (s *State) ReadSet() (candidates []Member, need int) {
	set := s.readFrom()
	for _, m := range set {
		if countsInReads(set, m) {
			candidates = append(candidates, m)
		}
	}
	return candidates, Majority(len(set))
}

// countsInReads: a single member is asked whatever it lost, for there is nobody
// else; its answers say so.
func countsInReads(set []Member, m Member) bool { return m.Whole || len(set) == 1 }

// readFrom is the set whose whole members count in reads.
func (s *State) readFrom() []Member {
	if s.Change != nil {
		return s.Change.Old
	}
	return s.Members
}

// ReadQuorum reports whether hearing the members for which heard is true makes a
// quorum read: a majority of the set that reads follow, counting whole members
// only, and while a change is open also a majority of the new set. The latter
// holds no record that the former would miss, but other nodes may have closed
// the change already, and then it is a majority of the new set that they write
// to.
func (s *State) ReadQuorum(heard func(memberID string) bool) bool {
	counts := func(id string) bool {
		m, ok := find(s.readFrom(), func(m Member) bool { return m.ID() == id })
		return ok && countsInReads(s.readFrom(), m) && heard(id)
	}
	return majorityOf(s.readFrom(), counts) && (s.Change == nil || majorityOf(s.Change.New, heard))
}

// meeting is how many of n members meet every majority of them: n−m+1.
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

// clone returns a copy whose slices and maps can be changed.
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
