package store

import (
	"context"
	"io/fs"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// The index is far behind when the DB volume is filled. Each start reads the rest
// of the log into memory instead of using up the space that the next start needs.
func TestTailThatFindsNoRoomInTheIndexIsHeldInMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := memfs.New(1)
		o := smallOptions(disk)
		o.Reserve, o.ReserveHigh, o.MarkerInterval = 256<<10, 320<<10, 5*time.Second
		o.MarkerBytes = 64 << 20 // so no marker is written
		disk.SetCapacity("db", 16<<20)
		s := mustOpen(t, o)
		g, m := newSource(1), newModel()
		for range 300 {
			items := g.batch()
			m.note(items, false)
			require.NoError(t, putSync(s, items...).Err)
			m.note(items, true)
		}
		time.Sleep(3 * time.Second)
		for i := range 4 {
			disk.CutPowerAfter(0)
			_ = s.Close()
			disk.Crash(memfs.KillProcess)
			free, total, err := disk.Free("db")
			require.NoError(t, err)
			if i != 1 { // in the end, the space of the ballast is taken too
				disk.SetCapacity("db", total-free)
			}
			s = mustOpen(t, o)
			require.Equal(t, StateReadOnly, s.Health().State)
			require.ErrorIs(t, putSync(s, g.batch()...).Err, wal.ErrReadOnly)
			m.check(t, s)
			time.Sleep(10 * time.Second)
			m.check(t, s)
		}
		require.Greater(t, s.distance(s.Stats().Marker, s.End()), s.ballastSize(), "the tail is larger than the ballast")
		disk.SetCapacity("db", 64<<20)
		time.Sleep(time.Minute)
		require.Equal(t, StateOK, s.Health().State)
		require.Zero(t, s.Stats().PendingBytes)
		m.check(t, s)
		require.NoError(t, s.Close())
		s = mustOpen(t, o)
		m.check(t, s)
		require.NoError(t, s.Close())
		time.Sleep(time.Minute)
	})
}

// A log that is too long for memory is not read into it: the start waits for space.
func TestStartThatMayHoldNoMoreWaitsForRoomAsLongAsItsContextLasts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := memfs.New(1)
		o := smallOptions(disk)
		o.MarkerBytes = 64 << 20 // so no marker is written
		disk.SetCapacity("db", 64<<20)
		s := mustOpen(t, o)
		g, m := newSource(1), newModel()
		for range 300 {
			items := g.batch()
			m.note(items, false)
			require.NoError(t, putSync(s, items...).Err)
			m.note(items, true)
		}
		time.Sleep(3 * time.Second)
		disk.CutPowerAfter(0)
		_ = s.Close()
		disk.Crash(memfs.KillProcess)
		require.NoError(t, disk.Remove("db/ballast"))
		free, total, err := disk.Free("db")
		require.NoError(t, err)
		disk.SetCapacity("db", total-free)

		o.ApplyBytes = 32 << 10
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		began := time.Now()
		_, err = Open(ctx, o)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "free or add space")
		require.Equal(t, time.Minute, time.Since(began))

		time.AfterFunc(time.Minute, func() { disk.SetCapacity("db", 64<<20) })
		s = mustOpen(t, o)
		m.check(t, s)
		require.NoError(t, s.Close())
		s = mustOpen(t, o)
		m.check(t, s)
		require.NoError(t, s.Close())
		time.Sleep(time.Minute)
	})
}

// The DB volume is filled to the last byte: reads continue, Put is rejected as on a
// full WAL volume, a restart works, and with space the store continues by itself.
func TestFullDBVolumeIsReadOnlyAndPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := memfs.New(1)
		o := smallOptions(disk)
		o.Reserve, o.ReserveHigh, o.MarkerInterval = 256<<10, 320<<10, 5*time.Second
		const capacity = 4 << 20
		disk.SetCapacity("db", capacity)
		s := mustOpen(t, o)
		g, m := newSource(1), newModel()
		write := func() error {
			items := g.batch()
			m.note(items, false)
			r := putSync(s, items...)
			if r.Err == nil {
				m.note(items, true)
			}
			return r.Err
		}
		for range 50 {
			require.NoError(t, write())
		}
		time.Sleep(time.Minute)
		free, total, err := disk.Free("db")
		require.NoError(t, err)
		disk.SetCapacity("db", total-free) // something else uses the rest
		var refused error
		for i := 0; refused == nil && i < 10_000; i++ {
			refused = write()
		}
		require.ErrorIs(t, refused, wal.ErrReadOnly)
		time.Sleep(time.Minute)
		require.Equal(t, StateReadOnly, s.Health().State)
		m.check(t, s)

		for range 2 {
			require.NoError(t, s.Close())
			s = mustOpen(t, o)
			m.check(t, s)
			time.Sleep(time.Minute)
			require.ErrorIs(t, write(), wal.ErrReadOnly)
			require.Equal(t, StateReadOnly, s.Health().State)
			m.check(t, s)
		}

		disk.SetCapacity("db", capacity)
		time.Sleep(time.Minute)
		require.Equal(t, StateOK, s.Health().State)
		for range 50 {
			require.NoError(t, write())
		}
		m.check(t, s)
		require.True(t, s.Whole())
		require.NoError(t, s.Close())
		time.Sleep(time.Minute) // goroutines of goleveldb linger
	})
}

// The whole log is read into memory, including a reset and the cursors around it. The
// resulting index is identical to the one that replay makes on a volume with space.
func TestIndexThatWasHeldInMemoryIsTheOneThatReplayMakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk, m := lossy(t, 22)
		o := smallOptions(disk)
		o.MarkerInterval = 5 * time.Second
		s := mustOpen(t, o)
		mustPut(t, s, NewCursor("other", 3)) // after a reset
		require.NoError(t, setWhole(s))
		require.NoError(t, s.Close())
		want := map[string]wal.Position{"other": 3}

		disk.SetCapacity("db", 64<<20)
		var dumps []map[string]string
		for _, full := range []bool{false, true} {
			removeIndex(t, disk)
			if err := disk.Remove("db/ballast"); err != nil {
				require.ErrorIs(t, err, fs.ErrNotExist)
			}
			if full {
				free, total, err := disk.Free("db")
				require.NoError(t, err)
				disk.SetCapacity("db", total-free)
			}
			s = mustOpen(t, o)
			require.Equal(t, want, s.Cursors())
			checkSubset(t, m, s)
			require.Equal(t, full, s.heldBack())
			require.Equal(t, full, s.Stats().Marker == 0)
			disk.SetCapacity("db", 64<<20)
			time.Sleep(time.Minute)
			drain(t, s)
			require.Equal(t, want, s.Cursors())
			dumps = append(dumps, dump(t, s))
			require.NoError(t, s.Close())
			s = mustOpen(t, o)
			require.Equal(t, want, s.Cursors())
			require.NotZero(t, s.Stats().Marker)
			require.NoError(t, s.Close())
		}
		sameIndex(t, dumps[0], dumps[1], "held in memory first")
		time.Sleep(time.Minute)
	})
}
