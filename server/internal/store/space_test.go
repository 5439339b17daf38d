package store

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// Somebody fills the DB volume to the last byte: reads go on, Put is refused as on
// a full WAL volume, a restart works, and with space the store goes on by itself.
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
		disk.SetCapacity("db", total-free) // all of the rest is somebody else's
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
