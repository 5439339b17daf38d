package memfs

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/vfs"
)

func create(t *testing.T, d *Disk, name, content string) vfs.File {
	t.Helper()
	f, err := d.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte(content), 0)
	require.NoError(t, err)
	return f
}

func contentOf(t *testing.T, d *Disk, name string) string {
	t.Helper()
	f, err := d.OpenFile(name, os.O_RDONLY, 0)
	require.NoError(t, err)
	defer f.Close()
	b, err := io.ReadAll(f)
	require.NoError(t, err)
	return string(b)
}

func exists(d *Disk, name string) bool {
	_, err := d.Stat(name)
	return err == nil
}

func TestWhatSurvivesACrash(t *testing.T) {
	for name, c := range map[string]struct {
		mode          Mode
		content, name bool
	}{
		"kill": {KillProcess, true, true},
		"keep": {KeepAll, true, true},
		"lose": {LoseAll, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			d := New(1)
			require.NoError(t, d.MkdirAll("v/w", 0o700))
			f := create(t, d, "v/w/synced", "old")
			require.NoError(t, f.Sync())
			require.NoError(t, d.SyncDir("v/w"))
			_, err := f.WriteAt([]byte("new!"), 0)
			require.NoError(t, err)
			g := create(t, d, "v/w/unsynced-name", "x")
			require.NoError(t, g.Sync())
			d.Crash(c.mode)
			want := "old"
			if c.content {
				want = "new!"
			}
			require.Equal(t, want, contentOf(t, d, "v/w/synced"))
			require.Equal(t, c.name, exists(d, "v/w/unsynced-name"))
			_, err = f.WriteAt([]byte("z"), 0)
			require.ErrorIs(t, err, ErrPowerCut, "old handles are dead")
			require.Zero(t, d.OpenFiles())
		})
	}
}

// A rename is atomic, and a prefix of a directory's changes survives.
func TestRenameIsAtomic(t *testing.T) {
	seen := map[string]int{}
	for seed := range uint64(100) {
		d := New(seed)
		require.NoError(t, d.MkdirAll("v", 0o700))
		require.NoError(t, create(t, d, "v/a", "old").Sync())
		require.NoError(t, d.SyncDir("v"))
		require.NoError(t, create(t, d, "v/b", "new").Sync())
		require.NoError(t, d.Rename("v/b", "v/a"))
		d.Crash(LoseSome)
		require.True(t, exists(d, "v/a"))
		state := contentOf(t, d, "v/a")
		if exists(d, "v/b") {
			state += "+b"
		}
		seen[state]++
	}
	require.Len(t, seen, 3)
	require.NotContains(t, seen, "new+b")
}

// Sectors are lost individually and never torn inside.
func TestSectorsTear(t *testing.T) {
	mixed := 0
	for seed := range uint64(50) {
		d := New(seed)
		f := create(t, d, "f", strings.Repeat("a", 8*sectorSize))
		require.NoError(t, f.Sync())
		require.NoError(t, d.SyncDir("/"))
		_, err := f.WriteAt([]byte(strings.Repeat("b", 8*sectorSize)), 0)
		require.NoError(t, err)
		d.Crash(LoseSome)
		s := contentOf(t, d, "f")
		for i := 0; i < len(s); i += sectorSize {
			sector := s[i : i+sectorSize]
			require.Equal(t, strings.Repeat(sector[:1], sectorSize), sector)
		}
		if strings.Contains(s, "a") && strings.Contains(s, "b") {
			mixed++
		}
	}
	require.Greater(t, mixed, 10)
}

// After a failed sync, the content reads as written, a later sync succeeds, and
// a crash still restores the old bytes.
func TestFailedSyncLosesForGood(t *testing.T) {
	d := New(1)
	f := create(t, d, "f", "old")
	require.NoError(t, f.Sync())
	require.NoError(t, d.SyncDir("/"))
	_, err := f.WriteAt([]byte("new"), 0)
	require.NoError(t, err)
	d.FailSync(1)
	require.ErrorIs(t, f.Sync(), syscall.EIO)
	require.Equal(t, "new", contentOf(t, d, "f"))
	require.NoError(t, f.Sync())
	d.Crash(KeepAll)
	require.Equal(t, "old", contentOf(t, d, "f"))
}

func TestTruncate(t *testing.T) {
	d := New(1)
	f := create(t, d, "f", strings.Repeat("x", 6000))
	require.NoError(t, f.Sync())
	require.NoError(t, d.SyncDir("/"))
	require.NoError(t, f.Truncate(5000))
	require.NoError(t, f.Truncate(7000))
	require.Equal(t, strings.Repeat("x", 5000)+strings.Repeat("\x00", 2000), contentOf(t, d, "f"))
	d.Crash(LoseAll)
	require.Equal(t, strings.Repeat("x", 6000), contentOf(t, d, "f"))
}

func TestCapacity(t *testing.T) {
	d := New(1)
	require.NoError(t, d.MkdirAll("small", 0o700))
	d.SetCapacity("small", 3*pageSize)
	f := create(t, d, "small/f", "x")
	n, err := f.WriteAt(make([]byte, 4*pageSize), 0)
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.True(t, vfs.IsNoSpace(err))
	require.Equal(t, 3*pageSize, n)
	free, total, err := d.Free("small")
	require.NoError(t, err)
	require.Zero(t, free)
	require.EqualValues(t, 3*pageSize, total)
	_, err = f.WriteAt([]byte("over existing bytes"), 0)
	require.NoError(t, err)
	create(t, d, "elsewhere", strings.Repeat("x", 5*pageSize))
	require.NoError(t, d.Remove("small/f"))
	free, _, err = d.Free("small")
	require.NoError(t, err)
	require.EqualValues(t, 3*pageSize, free)
}

func TestFaultsPowerAndLocks(t *testing.T) {
	d := New(1)
	boom := errors.New("boom")
	d.Fail(OpWrite, "log", 1, 2, boom)
	f := create(t, d, "log", "x")
	for _, want := range []error{boom, boom, nil} {
		_, err := f.WriteAt([]byte("y"), 0)
		require.ErrorIs(t, err, want)
	}
	create(t, d, "other", "x")
	require.NoError(t, d.FlipBit("log", 0, 0))
	require.Equal(t, "x", contentOf(t, d, "log"))
	require.Error(t, d.FlipBit("log", 99, 0))

	l, err := d.Lock("LOCK")
	require.NoError(t, err)
	_, err = d.Lock("./LOCK")
	require.ErrorIs(t, err, vfs.ErrLocked)
	require.NoError(t, l.Close())
	_, err = d.Lock("LOCK")
	require.NoError(t, err)

	d.CutPowerAfter(1)
	require.NoError(t, f.Sync())
	require.ErrorIs(t, f.Sync(), ErrPowerCut)
	_, err = d.Stat("log")
	require.ErrorIs(t, err, ErrPowerCut)
	require.True(t, d.PoweredOff())
	d.Crash(LoseAll)
	_, err = d.Lock("LOCK")
	require.NoError(t, err, "a lock dies with its process")
	_, err = d.OpenFile("gone", os.O_RDONLY, 0)
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = d.OpenFile("no/dir", os.O_CREATE|os.O_RDWR, 0)
	require.ErrorIs(t, err, fs.ErrNotExist)
}
