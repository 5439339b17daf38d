package control

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/keys"
)

// someCommand returns a random command of a random kind; many are refused.
func someCommand(rng *rand.Rand) command {
	hash := func() keys.Hash { return keys.HashOf(fmt.Sprint(rng.IntN(20))) }
	op, label := fmt.Sprint(rng.Uint64()), fmt.Sprint(rng.IntN(3))
	name := string(rune('a' + rng.IntN(4)))
	id := MemberID(name, "1")
	switch rng.IntN(13) {
	case 0:
		return &admit{Member: member(name, fmt.Sprint(1+rng.IntN(2))), At: 5}
	case 1:
		return &loss{Member: id, Loss: op}
	case 2:
		return &refill{Member: id, At: 6}
	case 3:
		return &closeChange{Change: uint64(rng.IntN(3)), Generation: uint64(rng.IntN(5)), Whole: []string{id}}
	case 4, 5:
		return &createKey{Op: op, Key: keys.Key{Hash: hash(), Project: "p", Role: keys.Admin, Enabled: true, CreatedAt: 1}}
	case 6:
		return &patchKey{Op: op, Hash: hash(), Patch: keys.Patch{Version: uint64(rng.IntN(4)), Label: &label}}
	case 8:
		return &acceptLoss{Member: id}
	case 9:
		return &withdrawLoss{Member: id, Loss: label}
	case 10:
		return &live{Member: id, Known: []string{label}, Now: fmt.Sprint(rng.IntN(3)), RolledBack: rng.IntN(2) == 0}
	case 11:
		return &cancelChange{Change: uint64(rng.IntN(3))}
	case 7:
		return &revokeKey{Hash: hash(), At: 7}
	default:
		return &rotateKey{Op: op, Hash: hash(), Successor: hash(), At: 8, Grace: 3}
	}
}

// The digest that commands update equals the digest of the State, so a copy that
// was restored from a snapshot has the same one.
func TestDigestsFollowTheState(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		tb := formed(t, "a", "b", "c")
		for range 200 {
			before := tb.state.Load()
			applied(t, tb, someCommand(rng))
			s := tb.state.Load()
			require.NoError(t, s.verify())
			held, known := tb.digests.at(s.Index)
			require.True(t, known)
			require.Equal(t, s.digest, held)
			a, b := *s, *before
			a.Index, b.Index = 0, 0
			same, err := marshal(&a)
			require.NoError(t, err)
			was, err := marshal(&b)
			require.NoError(t, err)
			require.Equal(t, bytes.Equal(same, was), s.digest == before.digest, "equal digests mean equal tables")
		}
		again := newTable(&broadcast{})
		require.NoError(t, again.Restore(io.NopCloser(bytes.NewReader(snapshotBytes(t, tb)))))
		require.Equal(t, tb.state.Load().digest, again.state.Load().digest)
	}
}

func snapshotBytes(t *testing.T, tb *table) []byte {
	t.Helper()
	snap, err := tb.Snapshot()
	require.NoError(t, err)
	sink := &memSink{}
	require.NoError(t, snap.Persist(sink))
	return sink.Bytes()
}

// A State no longer matches its digest if any field of a key is corrupted, and
// such a State is not written into a snapshot.
func TestAStateThatRotsInMemoryIsNotWritten(t *testing.T) {
	for name, rot := range map[string]func(s *State, k keys.Key){
		"a revocation": func(s *State, k keys.Key) { k.RevokedAt = 0; s.Keys[k.Hash] = k },
		"a role":       func(s *State, k keys.Key) { k.Role = keys.Admin; s.Keys[k.Hash] = k },
		"a lost key":   func(s *State, k keys.Key) { delete(s.Keys, k.Hash) },
		"another hash": func(s *State, k keys.Key) { delete(s.Keys, k.Hash); k.Hash[3] ^= 1; s.Keys[k.Hash] = k },
		"a member":     func(s *State, _ keys.Key) { s.Members[0].Whole = !s.Members[0].Whole },
		"a generation": func(s *State, _ keys.Key) { s.Generation++ },
	} {
		t.Run(name, func(t *testing.T) {
			tb := formed(t, "a")
			k := keys.Key{Hash: keys.HashOf("k"), Project: "p", Role: keys.ReadOnly, Enabled: true}
			applied(t, tb, &createKey{Op: "1", Key: k}, &revokeKey{Hash: k.Hash, At: 8})
			s := tb.state.Load()
			require.NoError(t, s.verify())
			snap, err := tb.Snapshot()
			require.NoError(t, err)
			rot(s, s.Keys[k.Hash])
			require.ErrorIs(t, s.verify(), errDamaged)
			require.ErrorIs(t, snap.Persist(&memSink{}), errDamaged)
			require.ErrorIs(t, tb.err(), errDamaged)
		})
	}
}

// No flipped bit of a snapshot gives another table. (The seal of a stored
// snapshot also covers the index and unused bits.)
func TestNoFlippedBitOfASnapshotGivesAnotherTable(t *testing.T) {
	tb := formed(t, "a")
	applied(t, tb, &createKey{Op: "1", Key: keys.Key{Hash: keys.HashOf("k"), Project: "p", Role: keys.Admin, Enabled: true}})
	whole := snapshotBytes(t, tb)
	for i := range whole {
		for bit := range 8 {
			rotten := bytes.Clone(whole)
			rotten[i] ^= 1 << bit
			s, err := decodeSnapshot(rotten)
			if err == nil {
				s.Index = tb.state.Load().Index
				require.Equal(t, tb.state.Load(), s, "byte %d", i)
			}
		}
	}
}

// A command that is damaged on one member only changes that member's digest.
func TestACommandThatIsDamagedOnOneMemberShows(t *testing.T) {
	a, b := formed(t, "a"), formed(t, "a")
	c, err := encodeCommand(&createKey{Op: "1", Key: keys.Key{Hash: keys.HashOf("k"), Project: "p", Role: keys.Admin}})
	require.NoError(t, err)
	for i := range c {
		rotten := bytes.Clone(c)
		rotten[i] ^= 1
		require.ErrorIs(t, checkCommand(rotten), errDamaged, "byte %d", i)
	}
	rotten := bytes.Clone(c)
	rotten[len(c)-1] ^= 1
	require.NoError(t, a.Apply(&raft.Log{Index: 9, Data: c}).(*result).err())
	require.ErrorIs(t, b.Apply(&raft.Log{Index: 9, Data: rotten}).(*result).err(), errDamaged)
	one, _ := a.digests.at(9)
	other, _ := b.digests.at(9)
	require.NotEqual(t, one, other)
}

func TestHistoryAnswersForTheLastCommands(t *testing.T) {
	h := &history{}
	_, known := h.at(0)
	require.False(t, known)
	for i := range uint64(2 * rememberedDigests) {
		h.add(10+2*i, digest{byte(i), byte(i >> 8)})
	}
	last := uint64(2*rememberedDigests - 1)
	newest := 10 + 2*last
	for _, c := range []struct {
		index uint64
		want  uint64
		known bool
	}{
		{newest, last, true},
		{newest - 1, last - 1, true}, // between two commands the earlier digest applies
		{newest + 1, 0, false},
		{newest - 2*(rememberedDigests-1), last - rememberedDigests + 1, true},
		{newest - 2*rememberedDigests, 0, false},
	} {
		d, known := h.at(c.index)
		require.Equal(t, c.known, known, "at %d", c.index)
		if known {
			require.Equal(t, digest{byte(c.want), byte(c.want >> 8)}, d, "at %d", c.index)
		}
	}
}

// Only a majority makes a copy replace itself, and only a majority makes the
// leader step down.
func TestVerdicts(t *testing.T) {
	leader := &history{}
	for i := range uint64(20) {
		leader.add(i, digest{byte(i)})
	}
	agrees := func(i uint64) dated { return dated{i, digest{byte(i)}} }
	differs := func(i uint64) dated { return dated{i, digest{0xff}} }
	type heard struct {
		id string
		at dated
	}
	for name, c := range map[string]struct {
		voters int
		heard  []heard
		want   verdict
	}{
		"nobody else":                {1, nil, verdict{}},
		"all agree":                  {3, []heard{{"1", agrees(5)}, {"2", agrees(6)}}, verdict{}},
		"one of three differs":       {3, []heard{{"1", agrees(9)}, {"2", differs(8)}}, verdict{differs: map[string]bool{"2": true}}},
		"the other agreed before":    {3, []heard{{"1", agrees(7)}, {"2", differs(8)}}, verdict{undecided: []string{"2"}}},
		"the other is not heard":     {3, []heard{{"2", differs(8)}}, verdict{undecided: []string{"2"}}},
		"both differ":                {3, []heard{{"1", differs(9)}, {"2", differs(8)}}, verdict{undecided: []string{"1", "2"}, outvoted: true}},
		"one of two":                 {2, []heard{{"1", differs(9)}}, verdict{undecided: []string{"1"}}},
		"two of five, two agree":     {5, []heard{{"1", agrees(9)}, {"2", agrees(9)}, {"3", differs(8)}, {"4", differs(9)}}, verdict{differs: map[string]bool{"3": true, "4": true}}},
		"three of five":              {5, []heard{{"1", agrees(9)}, {"2", differs(9)}, {"3", differs(8)}, {"4", differs(9)}}, verdict{undecided: []string{"2", "3", "4"}, outvoted: true}},
		"one that does not vote":     {3, []heard{{"x", differs(8)}, {"1", agrees(9)}}, verdict{differs: map[string]bool{"x": true}}},
		"it alone decides nothing":   {3, []heard{{"x", differs(8)}}, verdict{}},
		"one that was replaced":      {3, []heard{{"1", differs(8)}, {"1", agrees(9)}}, verdict{}},
		"one that is ahead":          {3, []heard{{"1", differs(30)}}, verdict{}},
		"one that is not asked ever": {3, []heard{{"", differs(8)}}, verdict{}},
	} {
		t.Run(name, func(t *testing.T) {
			j := &jury{}
			j.hear(3, "gone", differs(1), leader) // of an earlier term
			for _, h := range c.heard {
				j.hear(4, h.id, h.at, leader)
			}
			if len(c.heard) == 0 {
				j.hear(4, "", dated{}, leader)
			}
			voters := []string{"leader"}
			for i := 1; i < c.voters; i++ {
				voters = append(voters, fmt.Sprint(i))
			}
			got := j.verdict(voters)
			require.ElementsMatch(t, c.want.undecided, got.undecided)
			require.Equal(t, c.want.outvoted, got.outvoted)
			require.Equal(t, len(c.want.differs), len(got.differs))
			for id := range c.want.differs {
				require.True(t, got.differs[id])
			}
		})
	}
}

func BenchmarkApply(b *testing.B) {
	for _, n := range []int{10, 10000} {
		b.Run(fmt.Sprint(n, " keys"), func(b *testing.B) {
			tb := newTable(&broadcast{})
			index := uint64(0)
			apply := func(c command) {
				data, err := encodeCommand(c)
				require.NoError(b, err)
				index++
				tb.Apply(&raft.Log{Index: index, Data: data})
			}
			apply(&found{ClusterID: "c", Members: []Member{member("a", "1")}})
			for i := range n {
				apply(&createKey{Op: fmt.Sprint(i), Key: keys.Key{Hash: keys.HashOf(fmt.Sprint(i)), Project: "p", Role: keys.Admin, Enabled: true}})
			}
			for b.Loop() {
				apply(&revokeKey{Hash: keys.HashOf("1"), At: int64(index)})
			}
		})
	}
}
