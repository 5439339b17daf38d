package control

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"
)

// stored fills a storage on real files like Raft: a log, a vote, a snapshot.
func stored(t *testing.T, dir string) []*raft.Log {
	t.Helper()
	raw, err := OpenStorage(dir)
	require.NoError(t, err)
	s := sealed{RaftStorage: raw}
	var entries []*raft.Log
	for i := range uint64(300) {
		c, err := encodeCommand(&loss{Member: fmt.Sprint("a/", i), Loss: fmt.Sprint(i)})
		require.NoError(t, err)
		entries = append(entries, &raft.Log{Index: i + 1, Term: 1 + i/100, Type: raft.LogCommand, Data: c})
	}
	for i := 0; i < len(entries); i += 10 {
		require.NoError(t, s.Logs().StoreLogs(entries[i:i+10]))
	}
	require.NoError(t, s.Stable().SetUint64([]byte("CurrentTerm"), 7))
	require.NoError(t, s.Stable().Set([]byte("LastVoteCand"), []byte("a/1|a:1")))
	require.NoError(t, raw.Close())
	return entries
}

// saveSnapshot stores a snapshot of an empty cluster at index.
func saveSnapshot(t *testing.T, s sealed, index uint64) {
	t.Helper()
	_, encoder := raft.NewInmemTransport("")
	sink, err := s.Snapshots().Create(raft.SnapshotVersionMax, index, 3, raft.Configuration{}, 1, encoder)
	require.NoError(t, err)
	_, err = sink.Write(snapshotBytes(t, formed(t, "a", "b")))
	require.NoError(t, err)
	require.NoError(t, sink.Close())
	require.NoError(t, sink.Close(), "Raft closes twice")
}

// Whichever bit of the database flips, a read returns the stored data or an
// error; it never panics or returns another entry.
func TestAFlippedBitOfTheDatabaseIsNeverRead(t *testing.T) {
	dir := t.TempDir()
	entries := stored(t, dir)
	path := filepath.Join(dir, "control.db")
	intact, err := os.ReadFile(path)
	require.NoError(t, err)
	rng := rand.New(rand.NewPCG(1, 1))
	noticed := 0
	for range 400 {
		rotten := bytes.Clone(intact)
		at := rng.IntN(len(rotten))
		rotten[at] ^= 1 << rng.IntN(8)
		require.NoError(t, os.WriteFile(path, rotten, 0o600))
		if !readsWhatWasStored(t, dir, entries) {
			noticed++
		}
	}
	require.Positive(t, noticed)
}

func readsWhatWasStored(t *testing.T, dir string, entries []*raft.Log) bool {
	t.Helper()
	raw, err := OpenStorage(dir)
	if err != nil {
		return false
	}
	defer raw.Close()
	s := sealed{RaftStorage: raw}
	all := true
	for _, want := range entries {
		var e raft.Log
		if err := s.Logs().GetLog(want.Index, &e); err != nil {
			all = false
			continue
		}
		e.AppendedAt = want.AppendedAt
		require.Equal(t, want, &e)
	}
	term, err := s.Stable().GetUint64([]byte("CurrentTerm"))
	if err == nil {
		require.Equal(t, uint64(7), term)
	}
	vote, err2 := s.Stable().Get([]byte("LastVoteCand"))
	if err2 == nil {
		require.Equal(t, "a/1|a:1", string(vote))
	}
	found, err3 := inspect(s)
	return all && errors.Join(err, err2, err3, found.damage) == nil
}

func TestInspectionFindsWhatRaftCouldNotUse(t *testing.T) {
	rotEntry := func(i uint64) func(*testing.T, sealed) {
		return func(t *testing.T, s sealed) {
			var e raft.Log
			require.NoError(t, s.RaftStorage.Logs().GetLog(i, &e))
			e.Data[0] ^= 1
			require.NoError(t, s.RaftStorage.Logs().StoreLog(&e))
		}
	}
	loseEntry := func(i uint64) func(*testing.T, sealed) {
		return func(t *testing.T, s sealed) { require.NoError(t, s.Logs().DeleteRange(i, i)) }
	}
	rotFile := func(name string) func(*testing.T, sealed) {
		return func(t *testing.T, s sealed) {
			metas, err := s.Snapshots().List()
			require.NoError(t, err)
			path := filepath.Join(s.RaftStorage.(*boltStorage).snapshots.dir, metas[0].ID, name)
			b, err := os.ReadFile(path)
			require.NoError(t, err)
			b[len(b)/2] ^= 1
			require.NoError(t, os.WriteFile(path, b, 0o600))
		}
	}
	otherIndex := func(t *testing.T, s sealed) {
		metas, err := s.Snapshots().List()
		require.NoError(t, err)
		path := filepath.Join(s.RaftStorage.(*boltStorage).snapshots.dir, metas[0].ID, "meta.json")
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		changed := bytes.Replace(b, []byte(`"Index":200`), []byte(`"Index":201`), 1)
		require.NotEqual(t, b, changed)
		require.NoError(t, os.WriteFile(path, changed, 0o600))
	}
	garbage := func(t *testing.T, s sealed) {
		metas, err := s.Snapshots().List()
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(s.RaftStorage.(*boltStorage).snapshots.dir, metas[0].ID, "meta.json"), []byte("{"), 0o600))
	}
	cut := func(first, last uint64) func(*testing.T, sealed) {
		return func(t *testing.T, s sealed) { require.NoError(t, s.Logs().DeleteRange(first, last)) }
	}
	for name, c := range map[string]struct {
		snapshots []uint64
		spoil     []func(*testing.T, sealed)
		damage    bool
		cut       uint64
		hidden    int
	}{
		"nothing is wrong":                       {snapshots: []uint64{100, 200}},
		"an entry":                               {spoil: []func(*testing.T, sealed){rotEntry(17)}, damage: true},
		"the last entry":                         {snapshots: []uint64{200}, spoil: []func(*testing.T, sealed){rotEntry(300)}, damage: true},
		"an entry before the snapshot":           {snapshots: []uint64{200}, spoil: []func(*testing.T, sealed){rotEntry(17), rotEntry(18)}, cut: 18},
		"an entry is missing":                    {spoil: []func(*testing.T, sealed){loseEntry(17)}, damage: true},
		"one before the snapshot is missing":     {snapshots: []uint64{200}, spoil: []func(*testing.T, sealed){loseEntry(17)}},
		"the beginning is missing":               {spoil: []func(*testing.T, sealed){cut(1, 9)}, damage: true},
		"the newest snapshot, the log has it":    {snapshots: []uint64{100, 200}, spoil: []func(*testing.T, sealed){rotFile("state.bin")}, hidden: 1},
		"the only snapshot, the log has it":      {snapshots: []uint64{200}, spoil: []func(*testing.T, sealed){rotFile("state.bin")}, hidden: 1},
		"its description":                        {snapshots: []uint64{100, 200}, spoil: []func(*testing.T, sealed){otherIndex}, hidden: 1},
		"its description is unreadable":          {snapshots: []uint64{100, 200}, spoil: []func(*testing.T, sealed){garbage}, hidden: 1},
		"the newest snapshot, the log is short":  {snapshots: []uint64{100, 200}, spoil: []func(*testing.T, sealed){rotFile("state.bin"), cut(1, 120)}, damage: true, hidden: 1},
		"a snapshot that was newer than the log": {snapshots: []uint64{100, 400}, spoil: []func(*testing.T, sealed){garbage}, damage: true, hidden: 1},
		"the only one, and there is no log":      {snapshots: []uint64{400}, spoil: []func(*testing.T, sealed){garbage, cut(1, 300)}, damage: true, hidden: 1},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			stored(t, dir)
			raw, err := OpenStorage(dir)
			require.NoError(t, err)
			defer raw.Close()
			s := sealed{RaftStorage: raw}
			for _, index := range c.snapshots {
				saveSnapshot(t, s, index)
			}
			for _, spoil := range c.spoil {
				spoil(t, s)
			}
			found, err := inspect(s)
			require.NoError(t, err)
			require.Equal(t, c.damage, found.damage != nil, "%v", found.damage)
			require.Len(t, found.hidden, c.hidden)
			require.Equal(t, c.cut, found.cut)
			for _, id := range found.hidden {
				require.NoError(t, s.DropSnapshot(id))
			}
			if !c.damage {
				again, err := inspect(s)
				require.NoError(t, err)
				require.NoError(t, again.damage)
				require.Empty(t, again.hidden)
			}
		})
	}
}

func TestAStorageThatWasNeverUsedIsNotDamaged(t *testing.T) {
	raw, err := OpenStorage(t.TempDir())
	require.NoError(t, err)
	defer raw.Close()
	found, err := inspect(sealed{RaftStorage: raw})
	require.NoError(t, err)
	require.NoError(t, found.damage)
	has, err := storageHasState(raw)
	require.NoError(t, err)
	require.False(t, has)
}

// Failed attempts, on a full disk for example, leave nothing behind.
func TestUnfinishedSnapshotsAreRemoved(t *testing.T) {
	dir := t.TempDir()
	raw, err := OpenStorage(dir)
	require.NoError(t, err)
	_, encoder := raft.NewInmemTransport("")
	for i := range uint64(3) {
		_, err := raw.Snapshots().Create(raft.SnapshotVersionMax, i+1, 1, raft.Configuration{}, 1, encoder)
		require.NoError(t, err)
	}
	require.NoError(t, raw.Close())
	left := func() int {
		entries, err := os.ReadDir(filepath.Join(dir, "snapshots"))
		require.NoError(t, err)
		return len(entries)
	}
	require.Equal(t, 3, left())
	raw, err = OpenStorage(dir)
	require.NoError(t, err)
	require.NoError(t, raw.Close())
	require.Zero(t, left())
}

// A snapshot is sent to another member without its seal and is sealed there
// again.
func TestASealedSnapshotTravels(t *testing.T) {
	from, err := OpenStorage(t.TempDir())
	require.NoError(t, err)
	defer from.Close()
	saveSnapshot(t, sealed{RaftStorage: from}, 5)
	metas, err := sealed{RaftStorage: from}.Snapshots().List()
	require.NoError(t, err)
	meta, r, err := sealed{RaftStorage: from}.Snapshots().Open(metas[0].ID)
	require.NoError(t, err)
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	require.Len(t, b, int(meta.Size), "Raft counts what it receives")
	require.Equal(t, snapshotBytes(t, formed(t, "a", "b")), b)
}

// Opening replaces the database by a synced copy, since a failed sync leaves
// pages in memory that never reach the disk. The old one stays until then.
func TestOpeningRewritesTheDatabase(t *testing.T) {
	dir := t.TempDir()
	entries := stored(t, dir)
	path := filepath.Join(dir, "control.db")
	before, err := os.Stat(path)
	require.NoError(t, err)
	require.True(t, readsWhatWasStored(t, dir, entries))
	after, err := os.Stat(path)
	require.NoError(t, err)
	require.False(t, os.SameFile(before, after))
	require.NoError(t, os.Mkdir(path+".tmp", 0o700))
	_, err = OpenStorage(dir)
	require.Error(t, err, "the copy cannot be written")
	require.True(t, readsWhatWasStored(t, dir, entries))
}
