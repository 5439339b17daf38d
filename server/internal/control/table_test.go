package control

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/control/controlpb"
	"github.com/stemedb/stemedb/server/internal/keys"
)

// applied runs commands through a table like Raft.
func applied(t *testing.T, tb *table, cmds ...command) []*result {
	t.Helper()
	var answers []*result
	for _, c := range cmds {
		b, err := encodeCommand(c)
		require.NoError(t, err)
		answers = append(answers, tb.Apply(&raft.Log{Index: tb.state.Load().Index + 1, Data: b}).(*result))
	}
	return answers
}

func member(name, incarnation string) Member {
	return Member{Name: name, Incarnation: incarnation, PeerAddr: name + ":1", APIAddr: name + ":2"}
}

func formed(t *testing.T, names ...string) *table {
	t.Helper()
	tb := newTable(&broadcast{})
	f := &found{ClusterID: "c"}
	for _, name := range names {
		f.Members = append(f.Members, member(name, "1"))
	}
	require.NoError(t, applied(t, tb, f)[0].err())
	return tb
}

func TestUnknownCommandsAreRefused(t *testing.T) {
	tb := formed(t, "a")
	before := tb.state.Load()
	good, err := marshal(&revokeKey{})
	require.NoError(t, err)
	extra, err := marshal(map[string]any{"hash": make([]byte, 32), "at": 1, "surprise": true})
	require.NoError(t, err)
	whole := sealCommand(1, kindRevokeKey, good)
	flipped := bytes.Clone(whole)
	flipped[len(flipped)-1] ^= 1
	for name, c := range map[string]struct {
		command []byte
		want    error
	}{
		"nothing":        {nil, errDamaged},
		"one byte":       {[]byte{1}, errDamaged},
		"no body":        {whole[:commandPreamble], errDamaged},
		"a flipped bit":  {flipped, errDamaged},
		"bytes behind":   {append(bytes.Clone(whole), 0), errDamaged},
		"format 0":       {sealCommand(0, kindRevokeKey, good), errFormat},
		"newer format":   {sealCommand(2, kindRevokeKey, good), errFormat},
		"unknown kind":   {sealCommand(1, 200, good), errFormat},
		"broken body":    {sealCommand(1, kindRevokeKey, []byte{0xff}), errFormat},
		"unknown field":  {sealCommand(1, kindRevokeKey, extra), errFormat},
		"trailing bytes": {sealCommand(1, kindRevokeKey, append(bytes.Clone(good), 0)), errFormat},
	} {
		t.Run(name, func(t *testing.T) {
			answer := tb.Apply(&raft.Log{Index: 7, Data: c.command}).(*result)
			require.ErrorIs(t, answer.err(), c.want)
			after := *tb.state.Load()
			require.Equal(t, uint64(7), after.Index)
			after.Index = before.Index
			require.Equal(t, *before, after)
			require.NoError(t, tb.err(), "every node refuses it")
		})
	}
}

// The cluster has enabled a format that this code does not know: this copy must
// stop and not skip the command.
func TestNewerClusterStopsThisCopy(t *testing.T) {
	tb := formed(t, "a")
	s := tb.state.Load().clone()
	s.Format = Format + 1
	tb.publish(s)
	answer := tb.Apply(&raft.Log{Index: 9, Data: sealCommand(Format+1, kindRevokeKey, nil)}).(*result)
	require.ErrorIs(t, answer.err(), ErrTooOld)
	require.ErrorIs(t, tb.err(), ErrTooOld)
	applied(t, tb, &createKey{Op: "1", Key: keys.Key{Project: "p"}})
	require.Empty(t, tb.state.Load().Keys, "frozen")
	require.Less(t, tb.state.Load().Index, uint64(9))
	_, err := tb.Snapshot()
	require.ErrorIs(t, err, ErrTooOld)
	require.ErrorIs(t, tb.Restore(io.NopCloser(bytes.NewReader([]byte{Format + 1, 0xa0}))), ErrTooOld)
}

type memSink struct{ bytes.Buffer }

func (*memSink) ID() string    { return "x" }
func (*memSink) Cancel() error { return nil }
func (*memSink) Close() error  { return nil }

func TestSnapshotRoundTrip(t *testing.T) {
	tb := formed(t, "a", "b", "c")
	successor := keys.HashOf("s")
	applied(t, tb, &createKey{Op: "1", Key: keys.Key{Hash: keys.HashOf("k"), Project: "p", Role: keys.Admin, Label: "l", Enabled: true, CreatedAt: 5, ExpiresAt: 9, Root: true}},
		&rotateKey{Op: "2", Hash: keys.HashOf("k"), Successor: successor, At: 6, Grace: 3}, &revokeKey{Hash: successor, At: 8},
		&loss{Member: "b/1", Loss: "x"}, &admit{Member: member("d", "1"), At: 10})
	snap, err := tb.Snapshot()
	require.NoError(t, err)
	sink := &memSink{}
	require.NoError(t, snap.Persist(sink))
	again := newTable(&broadcast{})
	require.NoError(t, again.Restore(io.NopCloser(bytes.NewReader(sink.Bytes()))))
	require.Equal(t, tb.state.Load(), again.state.Load())
	require.NotNil(t, again.state.Load().Change)
	for cut := range sink.Len() {
		require.Error(t, newTable(&broadcast{}).Restore(io.NopCloser(bytes.NewReader(sink.Bytes()[:cut]))))
	}
}

// Commands are idempotent: sent again after a lost answer, they change nothing
// and return the same answer.
func TestCommandsBearRepeating(t *testing.T) {
	tb := formed(t, "a", "b", "c")
	k, label := keys.HashOf("k"), "new"
	for _, c := range []command{
		&createKey{Op: "1", Key: keys.Key{Hash: k, Project: "p", Role: keys.Admin, Enabled: true}},
		&patchKey{Op: "2", Hash: k, Patch: keys.Patch{Version: 1, Label: &label}},
		&rotateKey{Op: "3", Hash: k, Successor: keys.HashOf("s"), Grace: 3},
		&revokeKey{Hash: k, At: 5},
		&loss{Member: "b/1", Loss: "x"},
		&admit{Member: member("d", "1")},
		&found{ClusterID: "another"},
	} {
		t.Run(fmt.Sprintf("%T", c), func(t *testing.T) {
			first := applied(t, tb, c)[0]
			require.NoError(t, first.err())
			before := *tb.state.Load()
			second := applied(t, tb, c)[0]
			require.Equal(t, first, second)
			after := *tb.state.Load()
			after.Index = before.Index
			require.Equal(t, before, after)
		})
	}
}

// A node whose join was cancelled is admitted again. Its acknowledgements from
// its first admission no longer count: its volumes may have been restored to an
// older state meanwhile.
func TestAcknowledgementsFromBeforeAJoinCountForNothing(t *testing.T) {
	tb := formed(t, "a")
	join := &admit{Member: member("b", "1")}
	applied(t, tb, join)
	first := tb.state.Load().Generation
	require.True(t, tb.state.Load().Acknowledged(map[string]uint64{"a/1": first, "b/1": first}))
	applied(t, tb, &cancelChange{Change: tb.state.Load().Change.ID}, join)
	again := tb.state.Load().Generation
	require.False(t, tb.state.Load().Acknowledged(map[string]uint64{"a/1": again, "b/1": first}))
	require.True(t, tb.state.Load().Acknowledged(map[string]uint64{"a/1": again, "b/1": again}))
}

// An old State must not change while a reader holds it.
func TestStatesAreImmutable(t *testing.T) {
	tb := formed(t, "a", "b", "c")
	applied(t, tb, &admit{Member: member("d", "1")})
	held := tb.state.Load()
	copied := held.clone()
	applied(t, tb, &admit{Member: member("d", "2")}, &loss{Member: "a/1", Loss: "l"}, &admit{Member: member("b", "2")},
		&createKey{Op: "1", Key: keys.Key{Project: "p"}})
	require.Equal(t, copied, held)
	require.NotEqual(t, held, tb.state.Load())
}

func TestQuorums(t *testing.T) {
	for n, want := range map[int]struct{ write, read int }{1: {1, 1}, 2: {2, 2}, 3: {2, 2}, 4: {3, 3}, 5: {3, 3}, 6: {4, 4}, 7: {4, 4}} {
		var names []string
		for i := range n {
			names = append(names, string(rune('a'+i)))
		}
		s := formed(t, names...).state.Load()
		candidates, need := s.ReadSet()
		require.Len(t, candidates, n)
		require.Equal(t, want.read, need, "%d members", n)
		for acks := range n + 1 {
			left := acks
			require.Equal(t, acks >= want.write, s.WriteQuorum(func(string) bool { left--; return left >= 0 }), "%d of %d", acks, n)
		}
	}
	require.False(t, (&State{}).WriteQuorum(func(string) bool { return true }), "no cluster, no acknowledgement")
}

func progressOf(incarnation string, generation uint64, cursors map[string]uint64) *controlpb.ProgressResponse {
	return &controlpb.ProgressResponse{Incarnation: incarnation, Generation: generation, Cursors: cursors}
}

func TestClosable(t *testing.T) {
	whole := func(name string, is bool) Member {
		m := member(name, name+"1")
		m.Whole = is
		return m
	}
	a, b, c, d := whole("a", true), whole("b", true), whole("c", true), whole("d", false)
	lostC := whole("c", false)
	newC := member("c", "c2")
	all := map[string]uint64{"a1": 10, "b1": 20, "c1": 30}
	marks := map[string]uint64{a.ID(): 10, b.ID(): 20, c.ID(): 30}
	tests := []struct {
		name     string
		change   Change
		marks    map[string]uint64
		progress map[string]*controlpb.ProgressResponse
		closes   bool
		alsoKnow []string // in addition to those with marks
	}{
		{
			"join, all caught up",
			Change{Subject: d.ID(), Old: []Member{a, b, c}, New: []Member{a, b, c, d}, Generation: 5},
			marks,
			map[string]*controlpb.ProgressResponse{a.ID(): progressOf("a1", 5, all), b.ID(): progressOf("b1", 5, all), c.ID(): progressOf("c1", 5, all), d.ID(): progressOf("d1", 5, all)},
			true, nil,
		},
		{
			"two of three logs are enough",
			Change{Subject: d.ID(), Old: []Member{a, b, c}, New: []Member{a, b, c, d}, Generation: 5},
			marks,
			map[string]*controlpb.ProgressResponse{
				a.ID(): progressOf("a1", 5, map[string]uint64{"b1": 20}), b.ID(): progressOf("b1", 5, map[string]uint64{"c1": 30}),
				c.ID(): progressOf("c1", 5, map[string]uint64{"a1": 10}), d.ID(): progressOf("d1", 5, map[string]uint64{"a1": 10, "c1": 31}),
			},
			true, nil,
		},
		{
			"the newcomer lacks one byte",
			Change{Subject: d.ID(), Old: []Member{a, b, c}, New: []Member{a, b, c, d}, Generation: 5},
			marks,
			map[string]*controlpb.ProgressResponse{
				a.ID(): progressOf("a1", 5, all), b.ID(): progressOf("b1", 5, all), c.ID(): progressOf("c1", 5, all),
				d.ID(): progressOf("d1", 5, map[string]uint64{"a1": 10, "b1": 19}),
			},
			false, nil,
		},
		{
			"an old member lacks something",
			Change{Subject: d.ID(), Old: []Member{a, b, c}, New: []Member{a, b, c, d}, Generation: 5},
			marks,
			map[string]*controlpb.ProgressResponse{
				a.ID(): progressOf("a1", 5, nil), b.ID(): progressOf("b1", 5, all), c.ID(): progressOf("c1", 5, all), d.ID(): progressOf("d1", 5, all),
			},
			false, nil,
		},
		{
			"cursors told at an older generation",
			Change{Subject: d.ID(), Old: []Member{a, b, c}, New: []Member{a, b, c, d}, Generation: 5},
			marks,
			map[string]*controlpb.ProgressResponse{
				a.ID(): progressOf("a1", 5, all), b.ID(): progressOf("b1", 5, all), c.ID(): progressOf("c1", 5, all), d.ID(): progressOf("d1", 4, all),
			},
			false, nil,
		},
		{
			"replacement",
			Change{Subject: newC.ID(), Old: []Member{a, b, lostC}, New: []Member{a, b, newC}, Generation: 5},
			map[string]uint64{a.ID(): 10, b.ID(): 20},
			map[string]*controlpb.ProgressResponse{a.ID(): progressOf("a1", 5, all), b.ID(): progressOf("b1", 5, all), newC.ID(): progressOf("c2", 5, all)},
			true, nil,
		},
		{
			"replacement with one mark",
			Change{Subject: newC.ID(), Old: []Member{a, b, lostC}, New: []Member{a, b, newC}, Generation: 5},
			map[string]uint64{a.ID(): 10},
			map[string]*controlpb.ProgressResponse{a.ID(): progressOf("a1", 5, all), b.ID(): progressOf("b1", 5, all), newC.ID(): progressOf("c2", 5, all)},
			false, nil,
		},
		{
			// By the old rule one member answers a read: the one that does not know of the
			// change would miss records that the other two acknowledge.
			name:   "of two old members only one has heard",
			change: Change{Subject: d.ID(), Old: []Member{a, b}, New: []Member{a, b, d}, Generation: 5},
			marks:  map[string]uint64{a.ID(): 10},
			progress: map[string]*controlpb.ProgressResponse{
				a.ID(): progressOf("a1", 5, all), b.ID(): progressOf("b1", 4, all), d.ID(): progressOf("d1", 5, all),
			},
			closes: false,
		},
		{
			name:   "of two old members both have heard, one is not whole",
			change: Change{Subject: d.ID(), Old: []Member{a, whole("b", false)}, New: []Member{a, whole("b", false), d}, Generation: 5},
			marks:  map[string]uint64{a.ID(): 10},
			progress: map[string]*controlpb.ProgressResponse{
				a.ID(): progressOf("a1", 5, all), b.ID(): progressOf("b1", 5, all), d.ID(): progressOf("d1", 5, all),
			},
			closes:   true,
			alsoKnow: []string{b.ID()},
		},
		{
			name:   "of two old members only one has heard, the other one is not whole",
			change: Change{Subject: d.ID(), Old: []Member{a, whole("b", false)}, New: []Member{a, whole("b", false), d}, Generation: 5},
			marks:  map[string]uint64{a.ID(): 10},
			progress: map[string]*controlpb.ProgressResponse{
				a.ID(): progressOf("a1", 5, all), b.ID(): progressOf("b1", 4, all), d.ID(): progressOf("d1", 5, all),
			},
			closes: false,
		},
		{
			"one becomes two",
			Change{Subject: d.ID(), Old: []Member{a}, New: []Member{a, d}, Generation: 5},
			map[string]uint64{a.ID(): 10},
			map[string]*controlpb.ProgressResponse{a.ID(): progressOf("a1", 5, nil), d.ID(): progressOf("d1", 5, all)},
			true, nil,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			knows := map[string]bool{}
			for id := range test.marks {
				knows[id] = true
			}
			for _, id := range test.alsoKnow {
				knows[id] = true
			}
			got, waits := closable(&test.change, test.marks, knows, test.progress)
			require.Equal(t, test.closes, len(waits) == 0, waits)
			if test.closes {
				require.Contains(t, got, test.change.Subject)
			}
		})
	}
}

func FuzzCommand(f *testing.F) {
	for _, c := range []command{&found{}, &admit{}, &loss{}, &refill{}, &closeChange{}, &createKey{}, &patchKey{}, &revokeKey{}, &rotateKey{}} {
		b, err := encodeCommand(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		tb := formed(t, "a", "b", "c")
		applied(t, tb, &admit{Member: member("d", "1")})
		tb.Apply(&raft.Log{Index: 3, Data: b})
		s := tb.state.Load()
		require.NoError(t, tb.err())
		require.Equal(t, uint64(3), s.Index)
		require.Equal(t, "c", s.ClusterID)
	})
}

// Raft hands over many commands at once, mixed with its internal entries: the
// table is the same as after one at a time, and is copied once for all of them.
func TestManyCommandsAtOnceAreAppliedLikeOneAtATime(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	one, many := formed(t, "a", "b", "c"), formed(t, "a", "b", "c")
	index := one.state.Load().Index
	var batch []*raft.Log
	var want []any
	for range 200 {
		index++
		if index%7 == 0 {
			batch = append(batch, &raft.Log{Index: index, Type: raft.LogConfiguration})
			want = append(want, nil)
			continue
		}
		b, err := encodeCommand(someCommand(rng))
		require.NoError(t, err)
		l := &raft.Log{Index: index, Type: raft.LogCommand, Data: b}
		batch, want = append(batch, l), append(want, one.Apply(l))
	}
	require.Equal(t, want, many.ApplyBatch(batch))
	require.Equal(t, one.state.Load(), many.state.Load())
}

// BenchmarkReplay applies 10,000 registrations like a start, in batches of Raft's
// size.
func BenchmarkReplay(b *testing.B) {
	const count, size = 10_000, 64
	var logs []*raft.Log
	for i := range count {
		data, err := encodeCommand(&createKey{Op: fmt.Sprint(i), Key: keys.Key{Hash: keys.HashOf(fmt.Sprint(i)), Project: "p", Role: keys.Admin, Enabled: true}})
		require.NoError(b, err)
		logs = append(logs, &raft.Log{Index: uint64(i + 2), Type: raft.LogCommand, Data: data})
	}
	for b.Loop() {
		tb := newTable(&broadcast{})
		data, err := encodeCommand(&found{ClusterID: "c", Members: wholeMembers(1)})
		require.NoError(b, err)
		tb.Apply(&raft.Log{Index: 1, Type: raft.LogCommand, Data: data})
		for batch := range slices.Chunk(logs, size) {
			tb.ApplyBatch(batch)
		}
		require.Len(b, tb.state.Load().Keys, count)
	}
}
