package leveldbfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"

	"github.com/stemedb/stemedb/server/internal/vfs"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

func open(t *testing.T, fsys vfs.FS, dir string) *Storage {
	t.Helper()
	s, err := Open(fsys, dir, nil)
	require.NoError(t, err)
	return s
}

func TestDatabase(t *testing.T) {
	for name, fsys := range map[string]vfs.FS{"os": vfs.OS(), "memfs": memfs.New(1)} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for round := range 3 {
				s := open(t, fsys, dir)
				db, err := leveldb.Open(s, &opt.Options{WriteBuffer: 16 << 10})
				require.NoError(t, err)
				for i := range 2000 {
					require.NoError(t, db.Put(fmt.Appendf(nil, "%d/%d", round, i), make([]byte, 50), nil))
				}
				for r := range round + 1 {
					for i := range 2000 {
						ok, err := db.Has(fmt.Appendf(nil, "%d/%d", r, i), nil)
						require.True(t, ok && err == nil)
					}
				}
				require.NoError(t, db.CompactRange(util.Range{}))
				require.NoError(t, db.Close())
				require.NoError(t, s.Close())
				require.ErrorIs(t, s.Close(), storage.ErrClosed)
			}
			require.NoError(t, RemoveAll(fsys, dir))
			entries, err := fsys.ReadDir(dir)
			require.NoError(t, err)
			require.Len(t, entries, 1, "only the lock file stays")
			require.NoError(t, RemoveAll(fsys, dir+"/nothing"))
		})
	}
}

func TestLocks(t *testing.T) {
	disk := memfs.New(1)
	s := open(t, disk, "db")
	_, err := Open(disk, "db", nil)
	require.ErrorIs(t, err, vfs.ErrLocked)
	l, err := s.Lock()
	require.NoError(t, err)
	_, err = s.Lock()
	require.ErrorIs(t, err, storage.ErrLocked)
	l.Unlock()
	_, err = s.Lock()
	require.NoError(t, err)
	require.NoError(t, s.Close())
	_, err = s.Lock()
	require.ErrorIs(t, err, storage.ErrClosed)
	require.NoError(t, open(t, disk, "db").Close())
}

func TestMeta(t *testing.T) {
	disk := memfs.New(1)
	s := open(t, disk, "db")
	_, err := s.GetMeta()
	require.Equal(t, os.ErrNotExist, err, "goleveldb compares with ==")
	fd := storage.FileDesc{Type: storage.TypeManifest, Num: 7}
	w, err := s.Create(fd)
	require.NoError(t, err)
	require.NoError(t, w.Sync())
	require.NoError(t, w.Close())
	require.NoError(t, s.SetMeta(fd))
	disk.Crash(memfs.LoseAll)
	s = open(t, disk, "db")
	got, err := s.GetMeta()
	require.NoError(t, err)
	require.Equal(t, fd, got)

	var corrupted *storage.ErrCorrupted
	disk.Fail(memfs.OpOpen, "MANIFEST", 0, 1, syscall.EIO)
	_, err = s.GetMeta()
	require.ErrorIs(t, err, syscall.EIO)
	require.NotErrorAs(t, err, &corrupted, "a file that cannot be checked now is not lost")
	require.NoError(t, s.Remove(fd))
	_, err = s.GetMeta()
	require.ErrorAs(t, err, &corrupted, "a missing manifest is damage, not an empty database")
	require.NoError(t, disk.FlipBit("db/CURRENT", 0, 1))
	_, err = s.GetMeta()
	require.ErrorAs(t, err, &corrupted)
}

func TestNames(t *testing.T) {
	for _, fd := range []storage.FileDesc{
		{Type: storage.TypeManifest, Num: 1},
		{Type: storage.TypeJournal, Num: 123456789},
		{Type: storage.TypeTable, Num: 999999},
		{Type: storage.TypeTemp, Num: 2},
	} {
		got, ok := parseName(fd.String())
		require.True(t, ok)
		require.Equal(t, fd, got)
	}
	for _, name := range []string{"CURRENT", "LOCK", "MANIFEST-", "MANIFEST-00000x", "000001.pack", "1.ldb", "000001", ".ldb", "00001a.log"} {
		_, ok := parseName(name)
		require.False(t, ok, name)
	}
}

// TestCompactionIsABarrier: once CompactRange has flushed the memtable,
// everything written before it survives a power cut.
func TestCompactionIsABarrier(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		disk := memfs.New(seed)
		safe := uint64(0)
		disk.CutPowerAfter(100 + r.IntN(500))
		s, err := Open(disk, "db", nil)
		if err == nil {
			safe = writeUntilPowerCut(s, r)
		}
		disk.Crash([]memfs.Mode{memfs.LoseAll, memfs.LoseSome}[r.IntN(2)])
		s = open(t, disk, "db")
		db, err := leveldb.Open(s, &opt.Options{WriteBuffer: 4 << 10})
		require.NoError(t, err, "seed %d", seed)
		for i := range safe {
			ok, err := db.Has(key(i), nil)
			require.NoError(t, err)
			require.True(t, ok, "seed %d: %d of %d is lost", seed, i, safe)
		}
		require.NoError(t, db.Close())
		require.NoError(t, s.Close())
	}
}

func key(i uint64) []byte { return binary.BigEndian.AppendUint64(nil, i) }

func writeUntilPowerCut(s *Storage, r *rand.Rand) (safe uint64) {
	db, err := leveldb.Open(s, &opt.Options{WriteBuffer: 4 << 10})
	if err != nil {
		return 0
	}
	defer db.Close()
	for i := range uint64(5000) {
		if err := db.Put(key(i), make([]byte, r.IntN(60)), nil); err != nil {
			return safe
		}
		if i%97 == 0 {
			if err := db.CompactRange(util.Range{Start: key(i)}); err != nil {
				return safe
			}
			safe = i + 1
		}
	}
	return safe
}

func TestFaultsReachTheDatabase(t *testing.T) {
	disk := memfs.New(1)
	s := open(t, disk, "db")
	db, err := leveldb.Open(s, nil)
	require.NoError(t, err)
	disk.FailSync(1)
	require.True(t, errors.Is(db.Put([]byte("k"), nil, &opt.WriteOptions{Sync: true}), syscall.EIO))
	require.NoError(t, db.Close())
}
