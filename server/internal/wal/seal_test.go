package wal

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/vfs"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// badPages is a disk that cannot read some pages of one file.
type badPages struct {
	*memfs.Disk
	file string

	mu       sync.Mutex
	from, to int64 // nothing is bad when to is 0
}

func (d *badPages) spoil(from, to int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.from, d.to = from, to
}

func (d *badPages) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	f, err := d.Disk.OpenFile(name, flag, perm)
	if err != nil || filepath.Base(name) != d.file {
		return f, err
	}
	return badPagesFile{f, d}, nil
}

// Rename moves the bad pages along: they belong to the file, not to the name.
func (d *badPages) Rename(from, to string) error {
	if err := d.Disk.Rename(from, to); err != nil {
		return err
	}
	if filepath.Base(from) == d.file {
		d.file = filepath.Base(to)
	}
	return nil
}

type badPagesFile struct {
	vfs.File
	d *badPages
}

func (f badPagesFile) ReadAt(b []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if off < f.d.to && f.d.from < off+int64(len(b)) {
		return 0, &fs.PathError{Op: "read", Path: f.Name(), Err: syscall.EIO}
	}
	return f.File.ReadAt(b, off)
}

// withBadPage returns a log that was filled while a part of its first segment
// was unreadable, and its entries.
func withBadPage(t *testing.T, from, to int64) (d *badPages, l *Log, all map[Position]string) {
	t.Helper()
	d = &badPages{Disk: memfs.New(1), file: numbered(segmentPrefix, 1, segmentSuffix)}
	l = mustOpen(t, badOptions(d))
	d.spoil(from, to)
	all = fill(t, l, 0, 200)
	l.SetApplied(l.End())
	synctest.Wait()
	return d, l, all
}

func badOptions(d *badPages) Options {
	o := small(d.Disk)
	o.FS, o.CheckInterval = d, time.Second
	return o
}

func sealed(l *Log) (numbers []uint32) {
	for _, p := range l.Packs() {
		numbers = append(numbers, p.Segment)
	}
	return numbers
}

// One unreadable segment does not hold up the others: they are sealed and their
// files reused. A part that stays unreadable becomes damage; the rest of the
// segment is sealed too.
func TestUnreadableSegmentHoldsUpNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const from, to = 2 * readPage, 3 * readPage
		d, l, all := withBadPage(t, from, to)
		last := l.End().Segment()
		require.Len(t, sealed(l), int(last)-2, "all but the first and the last")
		require.NotContains(t, sealed(l), uint32(1))
		require.LessOrEqual(t, len(l.manifest.Load().Segments), 3)
		require.True(t, l.Whole(), "the disk may still recover")

		time.Sleep(time.Hour)
		synctest.Wait()
		require.Len(t, sealed(l), int(last)-1)
		require.IsIncreasing(t, sealed(l))
		require.Nil(t, l.manifest.Load().segment(1), "the file is free")
		require.False(t, l.Whole())
		require.Len(t, l.Damage(), 1)
		require.Contains(t, l.Damage()[0].Reason, syscall.EIO.Error())
		require.Equal(t, l.End(), l.LastLoss())
		check := func() {
			lost := 0
			for pos, want := range all {
				e, err := l.Read(pos)
				var damage *DamageError
				if errors.As(err, &damage) {
					require.Equal(t, uint32(1), pos.Segment())
					require.Less(t, pos.Offset(), uint32(to))
					require.Greater(t, pos.Offset()+uint32(frameSize(len(want))), uint32(from))
					lost++
					continue
				}
				require.NoError(t, err)
				require.Equal(t, want, string(e.Payload))
			}
			es, gaps, err := scanAll(l, 0)
			require.NoError(t, err)
			require.Len(t, gaps, 1)
			require.Equal(t, l.Damage()[0].From, gaps[0].From)
			require.Equal(t, l.Damage()[0].To, gaps[0].To)
			require.Len(t, es, len(all)-lost)
			entries := uint64(0)
			for _, p := range l.Packs() {
				entries += p.Entries
			}
			l.tab.Lock()
			entries += l.cur.entries
			l.tab.Unlock()
			require.EqualValues(t, len(es), entries)
		}
		check()
		require.NoError(t, l.SetWhole(1))
		require.NoError(t, l.Close())

		l = mustOpen(t, badOptions(d))
		check()
		require.True(t, l.Whole(), "the damage is found once")
		require.NoError(t, l.Close())
	})
}

// A completely unreadable segment waits until it is readable, however long that takes.
func TestSegmentThatIsOutOfReachWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, l, all := withBadPage(t, 0, 1<<40)
		time.Sleep(time.Hour)
		synctest.Wait()
		require.NotContains(t, sealed(l), uint32(1))
		d.spoil(0, 0)
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Contains(t, sealed(l), uint32(1))
		for pos, want := range all {
			e, err := l.Read(pos)
			require.NoError(t, err)
			require.Equal(t, want, string(e.Payload))
		}
		require.NoError(t, l.Close())
	})
}

// A file that the disk could not read completely is not reused as a segment:
// the writer would have to read a page before it writes part of it.
func TestUnreadableFileIsNotUsedAgain(t *testing.T) {
	for name, run := range map[string]func(t *testing.T, d *badPages, l *Log) *Log{
		"at once": func(t *testing.T, _ *badPages, l *Log) *Log {
			l.SetApplied(l.End())
			time.Sleep(time.Hour)
			require.Len(t, l.Damage(), 1)
			return l
		},
		"it could be read in the end": func(t *testing.T, d *badPages, l *Log) *Log {
			l.SetApplied(l.End())
			time.Sleep(time.Second)
			d.spoil(0, 0)
			time.Sleep(time.Hour)
			require.Empty(t, l.Damage())
			return l
		},
		"a start before it is applied": func(t *testing.T, d *badPages, l *Log) *Log {
			time.Sleep(time.Hour)
			require.Len(t, l.Damage(), 1)
			require.NoError(t, l.Close())
			l = mustOpen(t, badOptions(d))
			l.SetApplied(l.End())
			return l
		},
		"a start before it is removed": func(t *testing.T, d *badPages, l *Log) *Log {
			l.SetApplied(l.End())
			d.Fail(memfs.OpRemove, d.file, 0, -1, syscall.EIO)
			time.Sleep(time.Hour)
			require.Nil(t, l.manifest.Load().segment(1))
			require.NoError(t, l.Close())
			d.Heal()
			return mustOpen(t, badOptions(d))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &badPages{Disk: memfs.New(1), file: numbered(segmentPrefix, 1, segmentSuffix)}
				l := mustOpen(t, badOptions(d))
				d.spoil(2*readPage, 3*readPage)
				for i := 0; l.End().Segment() == 1; i++ {
					fill(t, l, i, 1)
				}
				synctest.Wait()
				l = run(t, d, l)
				synctest.Wait()
				fill(t, l, 1000, 100) // uses up the spares
				synctest.Wait()
				require.NoError(t, l.Close())
				require.Equal(t, numbered(segmentPrefix, 1, segmentSuffix), d.file, "the file was renamed")
				_, err := d.Stat(filepath.Join("wal", d.file))
				require.ErrorIs(t, err, fs.ErrNotExist)
			})
		})
	}
}

// A disk that recovers in time costs nothing.
func TestUnreadableSegmentThatComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, l, all := withBadPage(t, 0, 16<<10)
		time.Sleep(15 * time.Second)
		d.spoil(0, 0)
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Contains(t, sealed(l), uint32(1))
		require.IsIncreasing(t, sealed(l))
		require.True(t, l.Whole())
		require.Empty(t, l.Damage())
		es, gaps, err := scanAll(l, 0)
		require.NoError(t, err)
		require.Empty(t, gaps)
		require.Len(t, es, len(all))
		require.NoError(t, l.Close())
	})
}

// The header of a segment holds no entry, and the log knows its contents.
func TestUnreadableHeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, l, all := withBadPage(t, 0, 64)
		require.NoError(t, l.Close())
		l = mustOpen(t, badOptions(d)) // a start encounters it too
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Contains(t, sealed(l), uint32(1))
		require.True(t, l.Whole())
		require.Empty(t, l.Damage())
		es, _, err := scanAll(l, 0)
		require.NoError(t, err)
		require.Len(t, es, len(all))
		p, err := l.adoptPack(1)
		require.NoError(t, err)
		require.Equal(t, l.Packs()[0].Hash, p.Hash)
		require.NoError(t, l.Close())
	})
}

// A segment file that something else truncated is sealed up to its end.
func TestShortSegmentIsSealed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, l, all := withBadPage(t, 0, 16<<10)
		l.tab.Lock()
		require.NoError(t, l.segments[0].src.file.Truncate(9000))
		l.tab.Unlock()
		d.spoil(0, 0)
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Contains(t, sealed(l), uint32(1))
		require.False(t, l.Whole())
		for pos, want := range all {
			e, err := l.Read(pos)
			if pos.Segment() == 1 && pos.Offset()+uint32(frameSize(len(want))) > 9000 {
				var damage *DamageError
				require.ErrorAs(t, err, &damage)
				continue
			}
			require.NoError(t, err)
			require.Equal(t, want, string(e.Payload))
		}
		require.NoError(t, l.Close())
	})
}

// Segments after the waiting one are sealed and reused. A crash at any moment
// of that loses nothing from either.
func TestCrashWhileASegmentWaits(t *testing.T) {
	for cut := range 250 {
		synctest.Test(t, func(t *testing.T) {
			d := memfs.New(uint64(cut))
			l := mustOpen(t, small(d))
			d.Fail(memfs.OpRead, numbered(segmentPrefix, 1, segmentSuffix), 0, -1, syscall.EIO)
			d.CutPowerAfter(cut)
			h := &history{owed: map[Position]string{}, commits: map[int]int{}}
			for id := 0; !d.PoweredOff(); id++ {
				h.commits[id] = 1
				c := &Commit{Entries: []Entry{{1, []byte(fmt.Sprintf("%d.0 %s", id, text(1500, "")))}}}
				c.Done = func(err error) {
					if err == nil {
						h.acknowledge(c)
					}
				}
				if l.Append(c) != nil {
					break
				}
				synctest.Wait()
				l.SetApplied(l.End())
				synctest.Wait()
			}
			_ = l.Close()
			d.Heal()
			d.Crash(memfs.LoseSome)
			l = mustOpen(t, small(d))
			require.NoError(t, h.check(l, rand.New(rand.NewPCG(1, 1))), "cut %d", cut)
			require.NoError(t, l.Close())
		})
	}
}
