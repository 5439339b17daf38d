package store

import (
	"fmt"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/vfs/leveldbfs"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// lossy makes a disk with records and a peer's cursor, and loses its DB volume.
func lossy(t *testing.T, seed uint64) (*memfs.Disk, *model) {
	t.Helper()
	disk, m := filled(t, seed, 150)
	s := mustOpen(t, smallOptions(disk))
	mustPut(t, s, NewCursor("peer", 5))
	require.NotEmpty(t, s.Packs())
	require.NoError(t, s.Close())
	disk.Wipe("db")
	return disk, m
}

// setWhole is SetWhole by a caller that has repaired all known losses.
func setWhole(s *Store) error { return s.SetWhole(s.Health().Losses) }

func removeIndex(t *testing.T, disk *memfs.Disk) {
	t.Helper()
	require.NoError(t, leveldbfs.RemoveAll(disk, filepath.Join("db", indexDir)))
}

// TestLossOnAFullDisk: a node that lost records starts and serves reads
// although its log accepts no entry, and its old cursors do not come back, over
// any number of starts.
func TestLossOnAFullDisk(t *testing.T) {
	for name, free := range map[string]uint64{"below the reserve": 128 << 10, "full": 0} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				disk, m := lossy(t, 21)
				o := smallOptions(disk)
				o.Reserve, o.ReserveHigh = 256<<10, 512<<10
				left, total, err := disk.Free("wal")
				require.NoError(t, err)
				disk.SetCapacity("wal", total-left+free)
				for _, end := range []memfs.Mode{memfs.KillProcess, memfs.LoseAll, memfs.LoseSome} {
					s := mustOpen(t, o)
					require.Equal(t, StateReadOnly, s.Health().State)
					require.False(t, s.Whole())
					require.Empty(t, s.Cursors())
					require.NotZero(t, checkSubset(t, m, s))
					require.ErrorIs(t, putSync(s, NewCursor("peer", 1)).Err, wal.ErrReadOnly)
					require.ErrorIs(t, setWhole(s), wal.ErrReadOnly, "the old cursors are still in the log")
					require.False(t, s.Whole())
					disk.Crash(end)
					_ = s.Close()
				}
				disk.SetCapacity("wal", 1<<30)
				s := mustOpen(t, o)
				require.False(t, s.Whole())
				require.Empty(t, s.Cursors())
				mustPut(t, s, NewCursor("other", 3))
				want := map[string]wal.Position{"other": 3}
				require.Equal(t, want, s.Cursors())
				disk.Crash(memfs.LoseAll)
				_ = s.Close()
				for range 2 {
					s = mustOpen(t, o)
					require.Equal(t, want, s.Cursors())
					require.False(t, s.Whole())
					require.NoError(t, s.Close())
					removeIndex(t, disk)
				}
				time.Sleep(30 * time.Second)
			})
		})
	}
}

// TestResetWaitsForSpace: the reset precedes the first Put that the log
// accepts, without a start in between.
func TestResetWaitsForSpace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk, _ := lossy(t, 22)
		o := smallOptions(disk)
		o.Reserve, o.ReserveHigh = 256<<10, 512<<10
		left, total, err := disk.Free("wal")
		require.NoError(t, err)
		disk.SetCapacity("wal", total-left)
		s := mustOpen(t, o)
		disk.SetCapacity("wal", 1<<30)
		time.Sleep(time.Minute)
		for i := range 3 {
			mustPut(t, s, NewCursor("other", wal.Position(i+1)))
		}
		require.NoError(t, setWhole(s))
		require.NoError(t, s.Close())
		removeIndex(t, disk)
		s = mustOpen(t, o)
		require.True(t, s.Whole())
		require.Equal(t, map[string]wal.Position{"other": 3}, s.Cursors())
		closeInBubble(t, s)
	})
}

// TestResetThatFails: the log accepted the reset and could not write it. It
// stays due.
func TestResetThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk, _ := lossy(t, 27)
		s := mustOpen(t, smallOptions(disk))
		synctest.Wait()
		disk.Fail(memfs.OpWrite, filepath.Join("wal", "wal-"), 0, 1, syscall.ENOSPC)
		require.ErrorIs(t, putSync(s, NewCursor("other", 2)).Err, wal.ErrReadOnly)
		time.Sleep(time.Minute)
		mustPut(t, s, NewCursor("other", 3))
		require.NoError(t, setWhole(s))
		require.NoError(t, s.Close())
		removeIndex(t, disk)
		s = mustOpen(t, smallOptions(disk))
		require.Equal(t, map[string]wal.Position{"other": 3}, s.Cursors())
		closeInBubble(t, s)
	})
}

// TestEachLossCounts: handling one loss does not cover the next.
func TestEachLossCounts(t *testing.T) {
	disk, _ := lossy(t, 28)
	for i := range 3 {
		s := mustOpen(t, smallOptions(disk))
		require.False(t, s.Whole())
		require.Empty(t, s.Cursors())
		g := newSource(uint64(i))
		g.n = uint64(i+1) << 20
		it, _ := g.content()
		mustPut(t, s, it, NewCursor("peer", 7))
		require.NoError(t, setWhole(s))
		pos := positionOf(t, s, it.Key)
		require.NoError(t, s.Close())
		require.NoError(t, disk.FlipBit(fmt.Sprintf("wal/wal-%08d.seg", pos.Segment()), int64(pos.Offset())+40, 3))
		removeIndex(t, disk) // which could name the damaged record
	}
}

func positionOf(t *testing.T, s *Store, k Key) wal.Position {
	t.Helper()
	v, err := s.view()
	require.NoError(t, err)
	defer v.Close()
	pos, err := v.find(&k)
	require.NoError(t, err)
	require.NotZero(t, pos)
	return pos
}

// TestLostWALVolumeIsNotEmpty: a node whose WAL volume is gone, and that had
// sealed nothing, is not mistaken for a new one.
func TestLostWALVolumeIsNotEmpty(t *testing.T) {
	disk := memfs.New(26)
	s := mustOpen(t, smallOptions(disk))
	require.True(t, s.Empty())
	mustPut(t, s, NewCursor("peer", 5))
	require.NoError(t, s.Close())
	disk.Wipe("wal")
	s = mustOpen(t, smallOptions(disk))
	require.False(t, s.Empty())
	require.False(t, s.Whole())
	require.Empty(t, s.Cursors())
	require.NoError(t, s.Close())
}

// TestHealedLossStaysHealed: once the node is whole again, neither a start nor
// a rebuilt index brings the loss back.
func TestHealedLossStaysHealed(t *testing.T) {
	disk, _ := lossy(t, 23)
	o := smallOptions(disk)
	s := mustOpen(t, o)
	g := newSource(23)
	g.n = 1 << 20
	var items []Item
	for range 100 {
		it, _ := g.content()
		items = append(items, it)
		mustPut(t, s, it)
	}
	mustPut(t, s, NewCursor("peer", 3))
	require.NoError(t, setWhole(s))
	check := func(cursor wal.Position) {
		t.Helper()
		for range 2 {
			require.NoError(t, s.Close())
			removeIndex(t, disk)
			s = mustOpen(t, o)
			require.True(t, s.Whole())
			require.Equal(t, map[string]wal.Position{"peer": cursor}, s.Cursors())
		}
	}
	pos := positionOf(t, s, items[0].Key)
	require.Eventually(t, func() bool {
		return slices.ContainsFunc(s.Packs(), func(p wal.Pack) bool { return p.Segment == pos.Segment() })
	}, time.Minute, time.Millisecond)
	check(3)

	// Damage that is found while the store runs, and repaired by its user.
	file := filepath.Join("db", packDir, fmt.Sprintf("pack-%08d.pack", pos.Segment()))
	require.NoError(t, disk.FlipBit(file, int64(pos.Offset())+40, 3))
	_, err := s.Read(items[0].Key)
	var d *DamageError
	require.ErrorAs(t, err, &d)
	require.False(t, s.Whole())
	mustPut(t, s, NewCursor("peer", 0))
	done := make(chan PutResult, 1)
	require.NoError(t, s.Repair(items[:1], func(r PutResult) { done <- r }))
	require.NoError(t, (<-done).Err)
	mustPut(t, s, NewCursor("peer", 4))
	require.NoError(t, setWhole(s))
	check(4)
	_, err = s.Read(items[0].Key)
	require.NoError(t, err)
	require.NoError(t, s.Close())
}

// TestRefillGoesOn: a node that is being refilled keeps its progress over a
// start and over a rebuild of its index.
func TestRefillGoesOn(t *testing.T) {
	disk, _ := lossy(t, 24)
	s := mustOpen(t, smallOptions(disk))
	mustPut(t, s, NewCursor("peer", 2))
	for _, anew := range []bool{false, true, false, true} {
		require.NoError(t, s.Close())
		if anew {
			removeIndex(t, disk)
		}
		s = mustOpen(t, smallOptions(disk))
		require.False(t, s.Whole())
		require.Equal(t, map[string]wal.Position{"peer": 2}, s.Cursors())
	}
	require.NoError(t, s.Close())
}

// TestPackThatComesBackIsFound: a pack was missing at a start, which built the
// index without it, and is present again at a later one. Its records are found,
// and the index is not rebuilt a second time.
func TestPackThatComesBackIsFound(t *testing.T) {
	disk, m := filled(t, 29, 150)
	s := mustOpen(t, smallOptions(disk))
	all := checkSubset(t, m, s)
	file := filepath.Join("db", packDir, fmt.Sprintf("pack-%08d.pack", s.Packs()[0].Segment))
	require.NoError(t, s.Close())
	require.NoError(t, disk.Rename(file, filepath.Join("db", "elsewhere")))
	for range 2 {
		s = mustOpen(t, smallOptions(disk))
		require.Less(t, checkSubset(t, m, s), all)
		require.NoError(t, s.Close())
	}
	require.NoError(t, disk.Rename(filepath.Join("db", "elsewhere"), file))
	o := smallOptions(disk)
	for _, anew := range []bool{true, false} {
		o.Progress = func(p Progress) { require.Equal(t, anew, p.Rebuild) }
		s = mustOpen(t, o)
		require.Equal(t, all, checkSubset(t, m, s))
		require.False(t, s.Whole(), "only SetWhole makes it whole")
		require.NoError(t, s.Close())
	}
}

// TestCrashesAfterALoss: wherever the power is cut after a loss, no earlier
// cursor counts again, and the node is not whole before SetWhole.
func TestCrashesAfterALoss(t *testing.T) {
	over := false
	for cut := 0; !over; cut += 3 {
		disk, _ := lossy(t, 25)
		disk.CutPowerAfter(cut)
		said := false
		if s, err := Open(t.Context(), smallOptions(disk)); err == nil {
			require.Empty(t, s.Cursors())
			require.False(t, s.Whole())
			if putSync(s, NewCursor("other", 3)).Err == nil {
				said = true
				_ = setWhole(s)
			}
			_ = s.Close()
		}
		over = !disk.PoweredOff()
		disk.Crash(memfs.LoseSome)
		for range 2 {
			s := mustOpen(t, smallOptions(disk))
			require.Zero(t, s.Cursor("peer"), "cut %d", cut)
			if s.Whole() || said {
				require.EqualValues(t, 3, s.Cursor("other"), "cut %d", cut)
			}
			require.True(t, said || !s.Whole())
			require.NoError(t, s.Close())
			removeIndex(t, disk)
		}
	}
}
