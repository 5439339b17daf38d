package wal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// fill writes n single-entry commits and returns payloads by position.
func fill(t testing.TB, l *Log, from, n int) map[Position]string {
	t.Helper()
	at := map[Position]string{}
	for i := from; i < from+n; i++ {
		p := fmt.Sprintf("%06d %s", i, text(300, ""))
		at[mustPut(t, l, p)[0]] = p
	}
	return at
}

func fileBytes(t testing.TB, d *memfs.Disk, name string) []byte {
	t.Helper()
	b, err := readWhole(d, name)
	require.NoError(t, err)
	return b
}

func listDir(t testing.TB, d *memfs.Disk, dir string) (names []string) {
	t.Helper()
	es, err := d.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range es {
		names = append(names, e.Name())
	}
	return names
}

// A flipped bit in acknowledged bytes is reported, nothing is cut, and
// everything else stays readable, wherever the bit is.
func TestFlippedBitInAcknowledgedBytes(t *testing.T) {
	// Offsets are relative to the frame: payload, length, kind, checksum.
	for _, place := range []string{"segment", "pack"} {
		for _, off := range []int64{100, 1, 2, 0, 5} {
			t.Run(fmt.Sprintf("%s+%d", place, off), func(t *testing.T) {
				d := memfs.New(1)
				l := mustOpen(t, small(d))
				all := fill(t, l, 0, 200)
				waitSealed(t, l)
				if place == "pack" {
					l.SetApplied(l.End())
				}
				var victim Position
				for pos := range all {
					inTail := pos.Segment() == l.End().Segment()
					if inTail == (place == "segment") && pos.Offset() > headerSize+1000 && (victim == 0 || pos < victim) {
						victim = pos
					}
				}
				require.NotZero(t, victim)
				require.NoError(t, l.Close())
				name := l.segmentName(victim.Segment())
				if place == "pack" {
					name = l.packName(victim.Segment())
				}
				require.NoError(t, d.FlipBit(name, int64(victim.Offset())+off, 3))
				before := fileBytes(t, d, name)

				l = mustOpen(t, small(d))
				if place == "segment" {
					require.False(t, l.Whole(), "found at start")
				}
				var damage *DamageError
				_, err := l.Read(victim)
				require.ErrorAs(t, err, &damage)
				require.Contains(t, l.Damage(), damage.Range)
				require.False(t, l.Whole())
				for pos, want := range all {
					if pos == victim {
						continue
					}
					e, err := l.Read(pos)
					require.NoError(t, err)
					require.Equal(t, want, string(e.Payload))
				}
				es, gaps, err := scanAll(l, 0)
				require.NoError(t, err)
				require.Len(t, es, len(all)-1)
				require.Equal(t, []Range{damage.Range}, gaps)
				require.Equal(t, before, fileBytes(t, d, name), "nothing is cut or repaired")
				more := fill(t, l, 1000, 3)
				require.NoError(t, l.SetWhole(1))
				require.NoError(t, l.Close())

				// Known damage does not clear the flag a second time.
				l = mustOpen(t, small(d))
				require.True(t, l.Whole())
				es, _, err = scanAll(l, 0)
				require.NoError(t, err)
				require.Len(t, es, len(all)-1+len(more))
				require.NoError(t, l.Close())
			})
		}
	}
}

// A damaged batch frame costs no entry: each entry has its own checksum.
func TestFlippedBitInBatchFrame(t *testing.T) {
	d := memfs.New(1)
	l := mustOpen(t, small(d))
	a := mustPut(t, l, "a0", "a1")
	b := mustPut(t, l, "b0")
	require.NoError(t, l.Close())
	require.NoError(t, d.FlipBit(l.segmentName(1), int64(a[0].Offset())-10, 0))
	l = mustOpen(t, small(d))
	es, gaps, err := scanAll(l, 0)
	require.NoError(t, err)
	require.Equal(t, []string{"a0", "a1", "b0"}, payloads(es))
	require.Len(t, gaps, 1)
	require.Equal(t, b[0], es[2].pos)
	require.Len(t, l.Damage(), 1)
	require.NoError(t, l.Close())
}

// tornLog returns a disk whose log ends in an unacknowledged batch: its sync
// failed and then the process was killed.
func tornLog(t *testing.T) (d *memfs.Disk, acked, torn Position) {
	t.Helper()
	d = memfs.New(1)
	l := mustOpen(t, small(d))
	acked = mustPut(t, l, "kept")[0]
	d.Fail(memfs.OpSync, segmentPrefix, 0, 1, errors.New("broken"))
	pos, err := put(l, text(2000, "torn "), "torn too")
	require.ErrorIs(t, err, ErrFailed)
	d.Heal()
	d.Crash(memfs.KillProcess)
	_ = l.Close()
	return d, acked, pos[0]
}

func TestTornTailIsSetAsideAndCut(t *testing.T) {
	d, acked, torn := tornLog(t)
	require.NoError(t, d.FlipBit("wal/wal-00000001.seg", int64(torn.Offset())+700, 1))
	reg := prometheus.NewRegistry()
	o := small(d)
	o.Registerer = reg
	l := mustOpen(t, o)
	require.True(t, l.Whole())
	require.Empty(t, l.Damage())
	require.Equal(t, 1.0, metric(t, reg, "stemedb_wal_torn_tails_total"))
	es, gaps, err := scanAll(l, 0)
	require.NoError(t, err)
	require.Empty(t, gaps)
	require.Equal(t, []string{"kept"}, payloads(es))
	_, err = l.Read(torn)
	require.ErrorIs(t, err, ErrNoEntry)
	aside := fileBytes(t, d, fmt.Sprintf("wal/tail-00000001-%010d.torn", torn.Offset()-batchFrame))
	require.Contains(t, string(aside), "torn too")
	require.True(t, allZeros(fileBytes(t, d, "wal/wal-00000001.seg")[acked.Offset()+16:]), "cut")
	require.Equal(t, torn, mustPut(t, l, "new")[0], "the place is used again")
	require.NoError(t, l.Close())
}

func allZeros(b []byte) bool { return strings.Trim(string(b), "\x00") == "" }

// A batch that arrived completely is kept, and made durable before anyone can
// read it: the kernel may mark pages clean that it failed to write.
func TestUnacknowledgedTailThatArrivedIsMadeDurable(t *testing.T) {
	d, acked, torn := tornLog(t)
	l := mustOpen(t, small(d))
	d.Crash(memfs.LoseAll)
	_ = l.Close()
	l = mustOpen(t, small(d))
	for _, pos := range []Position{acked, torn} {
		_, err := l.Read(pos)
		require.NoError(t, err)
	}
	require.True(t, l.Whole())
	require.NoError(t, l.Close())
}

// Torn files do not accumulate.
func TestTornFilesAreBounded(t *testing.T) {
	d := memfs.New(1)
	for i := range 3 * keepTorn {
		l := mustOpen(t, small(d))
		mustPut(t, l, "kept")
		d.Fail(memfs.OpSync, segmentPrefix, 0, 1, errors.New("broken"))
		pos, err := put(l, text(600, ""))
		require.ErrorIs(t, err, ErrFailed)
		d.Heal()
		d.Crash(memfs.KillProcess)
		_ = l.Close()
		require.NoError(t, d.FlipBit(l.segmentName(pos[0].Segment()), int64(pos[0].Offset())+300, uint(i)))
	}
	require.NoError(t, mustOpen(t, small(d)).Close())
	n := 0
	for _, name := range listDir(t, d, "wal") {
		if strings.HasSuffix(name, tornSuffix) {
			n++
		}
	}
	require.Equal(t, keepTorn, n)
}

// Unreadable bytes after the proven end may have been acknowledged: the log
// does not open, and nothing is cut.
func TestUnreadableTailIsNotCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := memfs.New(1)
		l := mustOpen(t, small(d))
		synctest.Wait() // the manifest is no longer written
		fill(t, l, 0, 10)
		d.Crash(memfs.LoseAll)
		_ = l.Close()
		before := fileBytes(t, d, l.segmentName(1))
		d.Fail(memfs.OpRead, "wal-00000001", 2, -1, errors.New("bad sector"))
		_, err := Open(small(d))
		require.ErrorContains(t, err, "nothing is cut")
		d.Heal()
		require.Equal(t, before, fileBytes(t, d, l.segmentName(1)))
		l = mustOpen(t, small(d))
		es, _, err := scanAll(l, 0)
		require.NoError(t, err)
		require.Len(t, es, 10)
		require.NoError(t, l.Close())
	})
}

// sealedLog returns a closed log with several packs, and its entries.
func sealedLog(t *testing.T) (*memfs.Disk, *Log, map[Position]string) {
	t.Helper()
	d := memfs.New(1)
	l := mustOpen(t, small(d))
	all := fill(t, l, 0, 200)
	l.SetApplied(l.End())
	waitSealed(t, l)
	require.NoError(t, l.Close())
	require.Greater(t, len(l.Packs()), 3)
	return d, l, all
}

func TestMissingPack(t *testing.T) {
	d, l, all := sealedLog(t)
	require.NoError(t, d.Remove(l.packName(2)))
	l = mustOpen(t, small(d))
	require.False(t, l.Whole())
	require.Len(t, l.Missing(), 1)
	lost := 0
	for pos, want := range all {
		e, err := l.Read(pos)
		if pos.Segment() == 2 {
			lost++
			require.ErrorIs(t, err, ErrGone)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, want, string(e.Payload))
	}
	es, gaps, err := scanAll(l, 0)
	require.NoError(t, err)
	require.Len(t, es, len(all)-lost)
	require.Len(t, gaps, 1)
	require.NoError(t, l.Close())
	l = mustOpen(t, small(d))
	require.False(t, l.Whole(), "durably")
	require.NoError(t, l.SetWhole(1))
	require.NoError(t, l.Close())
	l = mustOpen(t, small(d))
	require.True(t, l.Whole(), "a repaired loss is not found again")
	require.NoError(t, l.Close())
}

// A pack that reappears is read again.
func TestMissingPackComesBack(t *testing.T) {
	d, l, all := sealedLog(t)
	name := l.packName(2)
	require.NoError(t, d.Rename(name, "db/elsewhere"))
	require.NoError(t, mustOpen(t, small(d)).Close())
	require.NoError(t, d.Rename("db/elsewhere", name))
	l = mustOpen(t, small(d))
	require.Empty(t, l.Missing())
	require.False(t, l.Whole(), "only SetWhole makes it whole")
	es, gaps, err := scanAll(l, 0)
	require.NoError(t, err)
	require.Empty(t, gaps)
	require.Len(t, es, len(all))
	require.NoError(t, l.Close())
}

// The manifest replaces a damaged segment header.
func TestFlippedBitInSegmentHeader(t *testing.T) {
	for off := range int64(64) {
		d := memfs.New(1)
		l := mustOpen(t, small(d))
		all := fill(t, l, 0, 5)
		require.NoError(t, l.Close())
		require.NoError(t, d.FlipBit(l.segmentName(1), off, 1))
		for range 2 {
			l = mustOpen(t, small(d))
			require.True(t, l.Whole())
			es, _, err := scanAll(l, 0)
			require.NoError(t, err)
			require.Len(t, es, len(all))
			require.NoError(t, l.Close())
		}
		h, _, err := l.readHeader(l.segmentName(1))
		require.NoError(t, err)
		require.Equal(t, uint32(1), h.seq)
	}
}

func TestTruncatedPack(t *testing.T) {
	d, l, all := sealedLog(t)
	f, err := d.OpenFile(l.packName(2), os.O_RDWR, 0)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(9000))
	l = mustOpen(t, small(d))
	require.False(t, l.Whole())
	require.NotEmpty(t, l.Damage())
	good := 0
	for pos, want := range all {
		e, err := l.Read(pos)
		if pos.Segment() == 2 && pos.Offset()+400 > 9000 {
			var damage *DamageError
			require.ErrorAs(t, err, &damage, pos)
			continue
		}
		good++
		require.NoError(t, err)
		require.Equal(t, want, string(e.Payload))
	}
	es, _, err := scanAll(l, 0)
	require.NoError(t, err)
	require.Len(t, es, good)
	require.NoError(t, l.Close())
}

// While its segment still exists, a pack that fails verification is copied
// again.
func TestPackIsCopiedAgain(t *testing.T) {
	for name, spoil := range map[string]func(d *memfs.Disk, pack string) error{
		"missing": func(d *memfs.Disk, pack string) error { return d.Remove(pack) },
		"flipped": func(d *memfs.Disk, pack string) error { return d.FlipBit(pack, 5000, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			d := memfs.New(1)
			l := mustOpen(t, small(d))
			all := fill(t, l, 0, 100)
			waitSealed(t, l)
			require.NoError(t, l.Close())
			require.NoError(t, spoil(d, l.packName(1)))
			l = mustOpen(t, small(d))
			require.True(t, l.Whole())
			waitSealed(t, l)
			l.SetApplied(l.End())
			for pos, want := range all {
				e, err := l.Read(pos)
				require.NoError(t, err)
				require.Equal(t, want, string(e.Payload))
			}
			require.Empty(t, l.Damage())
			require.NoError(t, l.Close())
		})
	}
}

func TestMissingSegment(t *testing.T) {
	d := memfs.New(1)
	l := mustOpen(t, small(d))
	fill(t, l, 0, 10)
	require.NoError(t, l.Close())
	require.NoError(t, d.Remove(l.segmentName(1)))
	l = mustOpen(t, small(d))
	require.False(t, l.Whole())
	require.Len(t, l.Missing(), 1)
	more := fill(t, l, 50, 2)
	for pos := range more {
		require.Greater(t, pos.Segment(), uint32(1), "a position is never assigned twice")
	}
	require.NoError(t, l.Close())
}

func TestLostPackVolume(t *testing.T) {
	d, l, all := sealedLog(t)
	before := l.Identity()
	d.Wipe("db")
	l = mustOpen(t, small(d))
	require.Equal(t, before, l.Identity())
	require.False(t, l.Whole())
	require.NotEmpty(t, l.Missing())
	es, gaps, err := scanAll(l, 0)
	require.NoError(t, err)
	require.Less(t, len(es), len(all))
	require.NotEmpty(t, gaps)
	fill(t, l, 1000, 5)
	require.NoError(t, l.Close())
}

func TestLostWALVolume(t *testing.T) {
	d, l, all := sealedLog(t)
	before := l.Identity()
	d.Wipe("wal")
	l = mustOpen(t, small(d))
	require.NotEqual(t, before.Incarnation, l.Identity().Incarnation)
	require.False(t, l.Whole())
	require.Len(t, l.Missing(), 1)
	kept := 0
	for pos, want := range all {
		e, err := l.Read(pos)
		if err != nil {
			require.ErrorIs(t, err, ErrGone)
			continue
		}
		kept++
		require.Equal(t, want, string(e.Payload))
	}
	require.Greater(t, kept, len(all)/2, "packs are taken over")
	for pos := range fill(t, l, 1000, 5) {
		require.NotContains(t, all, pos)
	}
	es, gaps, err := scanAll(l, 0)
	require.NoError(t, err)
	require.Len(t, es, kept+5)
	require.Len(t, gaps, 1)
	require.NoError(t, l.Close())
	l = mustOpen(t, small(d))
	require.False(t, l.Whole())
	require.NoError(t, l.Close())
}

// A crash during the takeover by a new incarnation leaves no intermediate state.
func TestLostWALVolumeWithCrashes(t *testing.T) {
	for cut := range 30 {
		d, _, _ := sealedLog(t)
		d.Wipe("wal")
		d.CutPowerAfter(cut)
		if l, err := Open(small(d)); err == nil {
			_ = l.Close()
		}
		d.Crash(memfs.LoseSome)
		l := mustOpen(t, small(d))
		require.False(t, l.Whole())
		require.NotEmpty(t, l.Missing())
		es, _, err := scanAll(l, 0)
		require.NoError(t, err)
		require.NotEmpty(t, es)
		require.NoError(t, l.Close())
	}
}

func TestRottenManifestIsReadFromItsCopy(t *testing.T) {
	d, _, all := sealedLog(t)
	require.NoError(t, d.FlipBit("wal/manifest", 40, 2))
	l := mustOpen(t, small(d))
	es, _, err := scanAll(l, 0)
	require.NoError(t, err)
	require.Len(t, es, len(all))
	require.True(t, l.Whole())
	require.NoError(t, l.Close())
	require.NoError(t, d.FlipBit("wal/manifest", 40, 2))
	require.NoError(t, d.FlipBit("wal/manifest.copy", 40, 2))
	_, err = Open(small(d))
	require.ErrorContains(t, err, "manifest.copy")
	require.ErrorContains(t, err, "empty both volumes")
	_, err = d.Stat(l.packName(1))
	require.False(t, errors.Is(err, fs.ErrNotExist), "nothing is removed")
}
