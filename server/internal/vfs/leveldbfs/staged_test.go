package leveldbfs

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"

	"github.com/stemedb/stemedb/server/internal/vfs"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// crashedDB is a database with synced keys in its tables and its journal, on a
// full volume.
func crashedDB(t *testing.T, seed uint64) *memfs.Disk {
	t.Helper()
	disk := memfs.New(seed)
	s := open(t, disk, "db")
	db, err := leveldb.Open(s, stagedOptions())
	require.NoError(t, err)
	putKeys(t, db, "before")
	disk.CutPowerAfter(0)
	s.Abort()
	_ = db.Close()
	_ = s.Close()
	disk.Crash(memfs.KillProcess)
	fill(t, disk)
	return disk
}

func stagedOptions() *opt.Options { return &opt.Options{WriteBuffer: 16 << 10} }

func fill(t *testing.T, disk *memfs.Disk) {
	t.Helper()
	free, total, err := disk.Free("db")
	require.NoError(t, err)
	disk.SetCapacity("db", total-free)
}

func putKeys(t *testing.T, db *leveldb.DB, name string) {
	t.Helper()
	for i := range 150 {
		require.NoError(t, db.Put(fmt.Appendf(nil, "%s/%d", name, i), make([]byte, 50), &opt.WriteOptions{Sync: true}))
	}
}

func requireKeys(t *testing.T, db *leveldb.DB, names ...string) {
	t.Helper()
	for _, name := range names {
		for i := range 150 {
			v, err := db.Get(fmt.Appendf(nil, "%s/%d", name, i), nil)
			require.NoError(t, err, "%s/%d", name, i)
			require.Len(t, v, 50)
		}
	}
}

func filesOf(t *testing.T, disk *memfs.Disk) map[string]int64 {
	t.Helper()
	entries, err := disk.ReadDir("db")
	require.NoError(t, err)
	sizes := map[string]int64{}
	for _, e := range entries {
		st, err := disk.Stat("db/" + e.Name())
		require.NoError(t, err)
		sizes[e.Name()] = st.Size()
	}
	return sizes
}

func openStaged(t *testing.T, disk *memfs.Disk) (*Storage, *leveldb.DB) {
	t.Helper()
	s := open(t, disk, "db")
	s.Stage()
	db, err := leveldb.Open(s, stagedOptions())
	require.NoError(t, err)
	return s, db
}

func TestStagedDatabaseChangesNothingOnDiskBeforeItsCommit(t *testing.T) {
	disk := crashedDB(t, 1)
	before := filesOf(t, disk)
	s, db := openStaged(t, disk)
	putKeys(t, db, "staged")
	requireKeys(t, db, "before", "staged")
	require.True(t, vfs.IsNoSpace(s.Commit()))
	bytes, on := s.Staged()
	require.True(t, on)
	require.Positive(t, bytes)
	require.Equal(t, before, filesOf(t, disk))

	disk.SetCapacity("db", 1<<20)
	require.NoError(t, s.Commit())
	bytes, on = s.Staged()
	require.False(t, on)
	require.Zero(t, bytes)
	require.NoError(t, s.Commit(), "of nothing")
	putKeys(t, db, "after")
	requireKeys(t, db, "before", "staged", "after")
	require.NoError(t, db.Close())
	require.NoError(t, s.Close())

	s = open(t, disk, "db")
	db, err := leveldb.Open(s, stagedOptions())
	require.NoError(t, err)
	requireKeys(t, db, "before", "staged", "after")
	require.NoError(t, db.Close())
	require.NoError(t, s.Close())
}

// A compaction waits for the commit, but no longer than the storage is open.
func TestStagedDatabaseWritesNoTablesAfterItsOpen(t *testing.T) {
	disk := crashedDB(t, 1)
	s, db := openStaged(t, disk)
	bytes, _ := s.Staged()
	written := make(chan error)
	go func() {
		var err error
		for i := 0; err == nil && i < 2000; i++ {
			err = db.Put(fmt.Appendf(nil, "more/%d", i), make([]byte, 50), nil)
		}
		written <- err
	}()
	require.Eventually(t, func() bool {
		now, _ := s.Staged()
		return now > bytes+2*16<<10
	}, 10*time.Second, time.Millisecond)
	s.Abort()
	require.Error(t, <-written)
	now, _ := s.Staged()
	require.Less(t, now, bytes+4*16<<10, "two memtables' journals")
	_ = db.Close() // with the error of the compaction
	require.NoError(t, s.Close())
}

// Wherever the power is cut during a commit, the next open finds everything that
// was synced before the database was staged; after the commit it finds everything.
func TestCrashDuringACommitOfStagedFilesLosesNothing(t *testing.T) {
	for n := 0; ; n++ {
		cut := n / 2 // with each of two modes
		disk := crashedDB(t, uint64(n))
		s, db := openStaged(t, disk)
		putKeys(t, db, "staged")
		disk.SetCapacity("db", 1<<20)
		disk.CutPowerAfter(cut)
		err := s.Commit()
		off := disk.PoweredOff()
		disk.CutPowerAfter(0)
		s.Abort()
		_ = db.Close()
		_ = s.Close()
		disk.Crash([]memfs.Mode{memfs.LoseAll, memfs.LoseSome}[n%2])

		s = open(t, disk, "db")
		db, oerr := leveldb.Open(s, stagedOptions())
		require.NoError(t, oerr, "power cut at operation %d", cut)
		requireKeys(t, db, "before")
		if err == nil {
			requireKeys(t, db, "staged")
		}
		require.NoError(t, db.Close())
		require.NoError(t, s.Close())
		if !off {
			require.Greater(t, cut, 5)
			return
		}
	}
}
