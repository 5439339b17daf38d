package wal

import (
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// Damage counts even while it cannot be recorded, and is recorded once that is
// possible.
func TestDamageFoundOnAFullDisk(t *testing.T) {
	d, l, all := sealedLog(t)
	var victim Position
	for pos := range all {
		if pos.Segment() == 2 {
			victim = pos
		}
	}
	require.NoError(t, d.FlipBit(l.packName(2), int64(victim.Offset())+100, 3))
	l = mustOpen(t, small(d))
	d.Fail(memfs.OpCreate, manifestName, 0, -1, syscall.ENOSPC)
	var damage *DamageError
	_, err := l.Read(victim)
	require.ErrorAs(t, err, &damage)
	require.False(t, l.Whole())
	require.Len(t, l.Damage(), 1)
	d.Heal()
	require.NoError(t, l.Close())
	l = mustOpen(t, small(d))
	require.False(t, l.Whole())
	require.Len(t, l.Damage(), 1)
	require.NoError(t, l.Close())
}

// A loss that is found while an earlier one is being repaired is not ignored
// when the log is declared whole.
func TestLossFoundMeanwhile(t *testing.T) {
	d, l, all := sealedLog(t)
	victims := map[uint32]Position{}
	for pos := range all {
		victims[pos.Segment()] = pos
	}
	for _, seq := range []uint32{1, 2} {
		require.NoError(t, d.FlipBit(l.packName(seq), int64(victims[seq].Offset())+100, 3))
	}
	l = mustOpen(t, small(d))
	var damage *DamageError
	_, err := l.Read(victims[1])
	require.ErrorAs(t, err, &damage)
	losses := len(l.Damage())
	_, err = l.Read(victims[2])
	require.ErrorAs(t, err, &damage)
	require.ErrorIs(t, l.SetWhole(losses), ErrMoreLost)
	require.False(t, l.Whole())
	require.NoError(t, l.Close())
	l = mustOpen(t, small(d))
	require.False(t, l.Whole(), "durably")
	require.NoError(t, l.SetWhole(losses+1))
	require.True(t, l.Whole())
	require.NoError(t, l.Close())
}

// A missing segment that was prepared and never used held nothing. The manifest
// proves it, even after a crash.
func TestMissingPreparedSegmentThatWasNeverUsedIsNoLoss(t *testing.T) {
	for _, crashed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			d := memfs.New(1)
			l := mustOpen(t, small(d))
			all := fill(t, l, 0, 150)
			synctest.Wait() // the next one is prepared
			ahead := l.segmentName(l.End().Segment() + 1)
			if crashed {
				d.Crash(memfs.LoseAll)
			}
			_ = l.Close()
			require.NoError(t, d.Remove(ahead))
			require.NoError(t, d.SyncDir("wal"))
			l = mustOpen(t, small(d))
			require.True(t, l.Whole())
			require.Empty(t, l.Missing())
			for pos, want := range fill(t, l, 1000, 150) {
				all[pos] = want
			}
			es, gaps, err := scanAll(l, 0)
			require.NoError(t, err)
			require.Empty(t, gaps)
			require.Len(t, es, len(all))
			require.NoError(t, l.Close())
		})
	}
}

// A missing segment that was used is a loss, even after a crash right after its
// first batch: the log continues after it and does not reuse its number.
func TestMissingTailSegment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := memfs.New(1)
		l := mustOpen(t, small(d))
		all := fill(t, l, 0, 10)
		for l.End().Segment() < 2 {
			for pos, want := range fill(t, l, 10*len(all), 1) {
				if all[pos] = want; pos.Segment() == 2 {
					delete(all, pos)
				}
			}
		}
		d.Crash(memfs.LoseAll)
		_ = l.Close()
		require.NoError(t, d.Remove(l.segmentName(2)))
		require.NoError(t, d.SyncDir("wal"))
		for range 2 {
			l = mustOpen(t, small(d))
			require.False(t, l.Whole())
			require.Len(t, l.Missing(), 1)
			for pos, want := range fill(t, l, 100*len(all), 150) {
				require.Greater(t, pos.Segment(), uint32(2))
				require.Greater(t, pos, l.LastLoss())
				require.NotContains(t, all, pos)
				all[pos] = want
			}
			synctest.Wait()
			es, _, err := scanAll(l, 0)
			require.NoError(t, err)
			require.Len(t, es, len(all))
			for _, e := range es {
				require.Equal(t, all[e.pos], e.payload)
			}
			require.NoError(t, l.Close())
		}
	})
}

// A log that lost its end starts on a nearly full disk.
func TestMissingTailOnAFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := memfs.New(1)
		o := small(d)
		o.Reserve, o.ReserveHigh, o.CheckInterval = 60<<10, 80<<10, time.Second
		d.SetCapacity("wal", 100<<10)
		l := mustOpen(t, o)
		var err error
		for err == nil { // until there is no space for the next segment
			_, err = put(l, text(1000, ""))
			time.Sleep(time.Second)
		}
		require.ErrorIs(t, err, ErrReadOnly)
		last := l.End()
		require.NoError(t, l.Close())
		for _, m := range l.manifest.Load().Segments {
			if m.Seq >= last.Segment() {
				require.NoError(t, d.Remove(l.segmentName(m.Seq)))
			}
		}
		free, total, err := d.Free("wal")
		require.NoError(t, err)
		d.SetCapacity("wal", total-free+40<<10) // below the reserve
		l = mustOpen(t, o)
		require.False(t, l.Whole())
		require.NotEmpty(t, l.Missing())
		require.Greater(t, l.End(), last)
		require.LessOrEqual(t, l.LastLoss(), l.End())
		require.GreaterOrEqual(t, l.LastLoss(), last)
		_, err = put(l, "x")
		require.ErrorIs(t, err, ErrReadOnly)
		d.SetCapacity("wal", 10<<20)
		time.Sleep(2 * time.Second)
		mustPut(t, l, "x")
		require.NoError(t, l.Close())
	})
}

// A disk that is unreadable for a while loses nothing: ranges that are readable
// again are not damaged, and the log can be declared whole without any repair.
func TestAnOutageOfStorageIsNoLoss(t *testing.T) {
	for _, when := range []string{"while the log is open", "at the next start"} {
		t.Run(when, func(t *testing.T) {
			d := memfs.New(1)
			l := mustOpen(t, small(d))
			all := fill(t, l, 0, 300)
			d.Fail(memfs.OpRead, "", 0, -1, syscall.EIO)
			for range 3 {
				_, _, err := scanAll(l, 0)
				require.NoError(t, err)
				fill(t, l, 1000, 2) // the unreadable part ends at another place
			}
			require.False(t, l.Whole())
			require.NotEmpty(t, l.Damage())
			require.LessOrEqual(t, len(l.Damage()), len(l.manifest.Load().Segments), "one range for each segment")
			readable, err := l.Recheck()
			require.NoError(t, err)
			require.Empty(t, readable, "the disk is still out")
			losses := l.Losses()
			d.Heal()
			if when == "at the next start" {
				require.NoError(t, l.Close())
				l = mustOpen(t, small(d))
			}
			readable, err = l.Recheck()
			require.NoError(t, err)
			require.NotEmpty(t, readable)
			require.Empty(t, l.Damage())
			require.False(t, l.Whole(), "only SetWhole makes it whole")
			require.Equal(t, losses, l.Losses(), "the findings still count")
			require.NoError(t, l.SetWhole(losses))
			es, gaps, err := scanAll(l, 0)
			require.NoError(t, err)
			require.Empty(t, gaps)
			require.GreaterOrEqual(t, len(es), len(all))
			require.NoError(t, l.Close())
		})
	}
}
