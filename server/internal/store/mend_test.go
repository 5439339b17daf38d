package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/vfs"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// damagedRecord writes records until the first of them is in a pack, and flips
// one of its bits there.
func damagedRecord(t *testing.T) (s *Store, o Options, bad Item) {
	t.Helper()
	disk := memfs.New(29)
	o = smallOptions(disk)
	s = mustOpen(t, o)
	g := newSource(29)
	g.n = 1 << 20
	var items []Item
	for range 100 {
		it, _ := g.content()
		items = append(items, it)
		mustPut(t, s, it)
	}
	pos := positionOf(t, s, items[0].Key)
	require.Eventually(t, func() bool {
		return slices.ContainsFunc(s.Packs(), func(p wal.Pack) bool { return p.Segment == pos.Segment() })
	}, time.Minute, time.Millisecond)
	require.NoError(t, s.Close())
	s = mustOpen(t, o)
	file := filepath.Join("db", packDir, fmt.Sprintf("pack-%08d.pack", pos.Segment()))
	require.NoError(t, disk.FlipBit(file, int64(pos.Offset())+40, 3))
	_, err := s.Read(items[0].Key)
	var d *DamageError
	require.ErrorAs(t, err, &d)
	return s, o, items[0]
}

// The index knows which records are damaged, before and after a start, until
// they are rewritten.
func TestDamagedRecordsAreNamedUntilTheyAreRewritten(t *testing.T) {
	s, o, bad := damagedRecord(t)
	mustPut(t, s, NewCursor("peer", 5))
	for range 2 {
		require.Equal(t, map[string]wal.Position{"peer": 5}, s.Cursors(), "nothing is lost yet")
		keys, all, err := s.DamagedKeys(t.Context())
		require.NoError(t, err)
		require.True(t, all)
		require.Equal(t, []Key{bad.Key}, keys)
		require.False(t, s.Whole())
		require.NoError(t, s.Close())
		s = mustOpen(t, o)
	}
	done := make(chan PutResult, 1)
	require.NoError(t, s.Repair([]Item{bad}, func(r PutResult) { done <- r }))
	require.NoError(t, (<-done).Err)
	keys, all, err := s.DamagedKeys(t.Context())
	require.NoError(t, err)
	require.True(t, all)
	require.Empty(t, keys)
	require.Len(t, s.Outstanding(), 1)
	require.NoError(t, setWhole(s))
	require.Empty(t, s.Outstanding())
	require.NoError(t, s.Close())
}

// Without the index, the records of the damaged part are unknown.
func TestDamageThatTheIndexDoesNotCoverIsNotNamed(t *testing.T) {
	s, o, _ := damagedRecord(t)
	require.NoError(t, s.Close())
	require.NoError(t, o.FS.Remove(filepath.Join(o.DBDir, indexDir, "CURRENT")))
	s = mustOpen(t, o)
	_, all, err := s.DamagedKeys(t.Context())
	require.NoError(t, err)
	require.False(t, all)
	require.NoError(t, s.Close())
}

// When damaged records are given up, the index built by the next start does not
// name them, and a record that is put again is stored.
func TestRecordsThatAreGivenUpAreNotHeld(t *testing.T) {
	s, o, bad := damagedRecord(t)
	keys, err := s.Unreadable(t.Context())
	require.NoError(t, err)
	require.Equal(t, []Key{bad.Key}, keys)
	before := s.Stats().Assertions
	require.NoError(t, s.RebuildAtNextStart())
	require.NoError(t, setWhole(s))
	require.NoError(t, s.Close())
	for range 2 {
		s = mustOpen(t, o)
		require.True(t, s.Whole())
		require.Equal(t, before-1, s.Stats().Assertions)
		has, err := s.Has([]Key{bad.Key})
		require.NoError(t, err)
		require.Equal(t, []bool{false}, has)
		require.NoError(t, s.Close())
	}
	s = mustOpen(t, o)
	require.NoError(t, putIt(s, bad))
	_, err = s.Read(bad.Key)
	require.NoError(t, err)
	require.NoError(t, s.Close())
}

// A record that is held but damaged is rewritten before it is acknowledged.
func TestPutOfADamagedRecordWritesItAgain(t *testing.T) {
	s, o, bad := damagedRecord(t)
	require.NoError(t, putIt(s, bad))
	_, err := s.Read(bad.Key)
	require.NoError(t, err)
	require.NoError(t, s.Close())
	s = mustOpen(t, o)
	_, err = s.Read(bad.Key)
	require.NoError(t, err)
	require.NoError(t, s.Close())
}

func putIt(s *Store, it Item) error {
	done := make(chan PutResult, 1)
	if err := s.Put([]Item{it}, func(r PutResult) { done <- r }); err != nil {
		return err
	}
	return (<-done).Err
}

// A WAL volume that is older than the index has lost records: the store records
// that durably before it deletes the index, and continues after the positions
// that it may have assigned.
func TestWALVolumeThatIsOlderThanTheIndexIsALoss(t *testing.T) {
	disk := memfs.New(31)
	o := smallOptions(disk)
	s := mustOpen(t, o)
	g := newSource(31)
	var old, lost []Item
	for range 20 {
		it, _ := g.content()
		old = append(old, it)
		mustPut(t, s, it)
	}
	require.NoError(t, s.Close())
	files := map[string][]byte{}
	entries, err := disk.ReadDir(o.WALDir)
	require.NoError(t, err)
	for _, e := range entries {
		files[e.Name()] = readFile(t, disk, filepath.Join(o.WALDir, e.Name()))
	}
	s = mustOpen(t, o)
	for range 20 {
		it, _ := g.content()
		lost = append(lost, it)
		mustPut(t, s, it)
	}
	end := s.End()
	require.NoError(t, s.Close())
	disk.Wipe(o.WALDir)
	require.NoError(t, disk.MkdirAll(o.WALDir, 0o700))
	for name, b := range files {
		f, err := disk.OpenFile(filepath.Join(o.WALDir, name), os.O_RDWR|os.O_CREATE, 0o600)
		require.NoError(t, err)
		_, err = f.WriteAt(b, 0)
		require.NoError(t, err)
		require.NoError(t, f.Sync())
		require.NoError(t, f.Close())
	}
	require.NoError(t, disk.SyncDir(o.WALDir))
	for range 2 {
		s = mustOpen(t, o)
		require.False(t, s.Whole())
		require.Len(t, s.Outstanding(), 1)
		require.Contains(t, s.Outstanding()[0].Reason, "restored to an older state")
		require.Greater(t, s.End().Segment(), end.Segment())
		for _, it := range old {
			_, err := s.Read(it.Key)
			require.NoError(t, err)
		}
		has, err := s.Has([]Key{lost[0].Key})
		require.NoError(t, err)
		require.Equal(t, []bool{false}, has)
		_, all, err := s.DamagedKeys(t.Context())
		require.NoError(t, err)
		require.False(t, all)
		require.NoError(t, s.Close())
	}
}

func readFile(t *testing.T, fsys vfs.FS, name string) []byte {
	t.Helper()
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	require.NoError(t, err)
	defer f.Close()
	size, err := f.Size()
	require.NoError(t, err)
	b := make([]byte, size)
	if _, err := f.ReadAt(b, 0); size > 0 && !errors.Is(err, io.EOF) {
		require.NoError(t, err)
	}
	return b
}
