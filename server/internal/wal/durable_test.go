package wal

import (
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/vfs"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// Each acknowledged batch survives a power cut immediately after it, however
// many batches came before.
func TestEachBatchIsDurableWhenItIsAcknowledged(t *testing.T) {
	for n := 1; n <= 6; n++ {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			d := memfs.New(1)
			l := mustOpen(t, small(d))
			var last []Position
			for i := range n {
				last = mustPut(t, l, fmt.Sprintf("batch %d", i))
			}
			d.CutPowerAfter(0)
			_ = l.Close() // fails: the power is off
			d.Crash(memfs.LoseAll)
			l = mustOpen(t, small(d))
			e, err := l.Read(last[0])
			require.NoError(t, err)
			require.Equal(t, fmt.Sprintf("batch %d", n-1), string(e.Payload))
			require.NoError(t, l.Close())
		})
	}
}

func TestNothingIsAcknowledgedBeforeItsSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := memfs.New(1)
		l := mustOpen(t, small(d))
		defer func() { _ = l.Close() }()
		synctest.Wait() // the next segment is prepared
		d.SetLatency(func(op memfs.Op) time.Duration {
			if op.Kind == memfs.OpSync {
				return time.Minute
			}
			return 0
		})
		defer d.Heal()
		var mu sync.Mutex
		var acknowledged time.Time
		end, began := l.End(), time.Now()
		c := &Commit{Entries: []Entry{{1, []byte("slow")}}, Done: func(err error) {
			mu.Lock()
			defer mu.Unlock()
			acknowledged = time.Now()
		}}
		require.NoError(t, l.Append(c))
		time.Sleep(59 * time.Second)
		synctest.Wait()
		mu.Lock()
		require.True(t, acknowledged.IsZero(), "acknowledged while the sync was under way")
		mu.Unlock()
		require.Equal(t, end, l.End(), "shown while the sync was under way")
		time.Sleep(2 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		require.Equal(t, time.Minute, acknowledged.Sub(began))
		require.Greater(t, l.End(), end)
	})
}

// forgetful is a disk that silently corrupts the first piece of a pack, times
// times.
type forgetful struct {
	*memfs.Disk
	mu    sync.Mutex
	times int
}

func (d *forgetful) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	f, err := d.Disk.OpenFile(name, flag, perm)
	if err != nil || !strings.Contains(name, packPrefix) {
		return f, err
	}
	return forgetfulFile{f, d}, nil
}

type forgetfulFile struct {
	vfs.File
	d *forgetful
}

func (f forgetfulFile) WriteAt(b []byte, off int64) (int, error) {
	f.d.mu.Lock()
	spoil := off == 0 && f.d.times > 0
	if spoil {
		f.d.times--
	}
	f.d.mu.Unlock()
	if spoil {
		b = append([]byte(nil), b...)
		b[headerSize+100] ^= 1
	}
	return f.File.WriteAt(b, off)
}

// The segment is the only other copy: it is released after the pack has been
// read back, not after it has been written.
func TestPackIsReadBackBeforeItsSegmentIsUsedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &forgetful{Disk: memfs.New(1), times: 3}
		o := small(d.Disk)
		o.FS, o.CheckInterval = d, time.Second
		l := mustOpen(t, o)
		defer func() { _ = l.Close() }()
		all := fill(t, l, 0, 200)
		l.SetApplied(l.End())
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Greater(t, len(l.Packs()), 3)
		require.Zero(t, d.times, "the disk corrupted packs as planned")
		for pos, want := range all {
			e, err := l.Read(pos)
			require.NoError(t, err)
			require.Equal(t, want, string(e.Payload))
		}
		require.Empty(t, l.Damage())
		require.True(t, l.Whole())
	})
}

// A missing segment that was prepared and never used is no loss. The recorded
// end of the previous segment distinguishes it from a used one. Only the writer
// can record that end here: no further segment is prepared, and no pack is
// made.
func TestEndOfASegmentIsNotedBeforeTheNextOneTakesABatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := memfs.New(1)
		l := mustOpen(t, small(d))
		synctest.Wait() // the second segment is prepared
		d.SetLatency(func(op memfs.Op) time.Duration {
			if op.Kind == memfs.OpCreate && (strings.Contains(op.Name, spareName) || strings.Contains(op.Name, packPrefix)) {
				return time.Hour
			}
			return 0
		})
		var last []Position
		for len(last) == 0 || last[0].Segment() == 1 {
			last = mustPut(t, l, text(1000, ""))
		}
		require.Equal(t, uint32(2), last[0].Segment())
		d.CutPowerAfter(0)
		_ = l.Close() // fails: the power is off
		d.Heal()
		d.Crash(memfs.LoseAll)
		require.NoError(t, d.Remove(l.segmentName(2)))
		l = mustOpen(t, small(d))
		defer func() { _ = l.Close() }()
		require.False(t, l.Whole(), "an acknowledged record was in the segment that is gone")
	})
}
