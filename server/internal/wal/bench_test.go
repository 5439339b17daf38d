package wal

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/vfs"
)

// The benchmarks run on the file system of the temporary directory: set TMPDIR
// to the disk in question. -benchtime 5000x gives steady figures.

func report(b *testing.B, took []time.Duration, entries int) {
	b.Helper()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
	b.ReportMetric(float64(entries)/b.Elapsed().Seconds(), "entries/s")
}

// BenchmarkRawSync measures the disk itself: one write into a zero-filled file
// and one fdatasync, one after the other.
func BenchmarkRawSync(b *testing.B) {
	for _, size := range []int{600, 8 << 10, 52 << 10} {
		b.Run(fmt.Sprintf("%dB", size), func(b *testing.B) {
			f, err := vfs.OS().OpenFile(filepath.Join(b.TempDir(), "f"), os.O_RDWR|os.O_CREATE, 0o600)
			require.NoError(b, err)
			defer f.Close()
			const room = 64 << 20
			require.NoError(b, zeroFill(b.Context(), f, room))
			require.NoError(b, f.Sync())
			buf := make([]byte, size)
			took := make([]time.Duration, b.N)
			b.ResetTimer()
			for i := range b.N {
				begun := time.Now()
				buf[0] = byte(i)
				if _, err := f.WriteAt(buf, int64(i*size)%(room-int64(size))); err != nil {
					b.Fatal(err)
				}
				if err := f.Sync(); err != nil {
					b.Fatal(err)
				}
				took[i] = time.Since(begun)
			}
			report(b, took, b.N)
		})
	}
}

// BenchmarkAppend makes b.N commits of 500-byte entries durable, from several
// concurrent committers, each of which waits for its commit.
func BenchmarkAppend(b *testing.B) {
	for _, per := range []int{1, 100} {
		for _, committers := range []int{1, 16, 256} {
			b.Run(fmt.Sprintf("entries=%d/committers=%d", per, committers), func(b *testing.B) {
				dir := b.TempDir()
				l := mustOpen(b, Options{WALDir: filepath.Join(dir, "wal"), PackDir: filepath.Join(dir, "packs"), Node: "n"})
				defer l.Close()
				// Meanwhile, the first segments are preallocated.
				require.Eventually(b, func() bool { return len(l.manifest.Load().Segments) > 1 }, 20*time.Second, time.Millisecond)
				took := make([]time.Duration, b.N)
				var next atomic.Int64
				var all sync.WaitGroup
				b.ReportAllocs()
				b.ResetTimer()
				for range committers {
					all.Add(1)
					go func() {
						defer all.Done()
						commitLoop(b, l, per, took, &next)
					}()
				}
				all.Wait()
				b.StopTimer()
				report(b, took, b.N*per)
			})
		}
	}
}

func commitLoop(b *testing.B, l *Log, per int, took []time.Duration, next *atomic.Int64) {
	b.Helper()
	done := make(chan error, 1)
	c := &Commit{Done: func(err error) { done <- err }}
	payload := make([]byte, 500)
	for range per {
		c.Entries = append(c.Entries, Entry{1, payload})
	}
	for i := next.Add(1) - 1; i < int64(len(took)); i = next.Add(1) - 1 {
		begun := time.Now()
		if err := l.Append(c); err != nil {
			b.Error(err)
			return
		}
		if err := <-done; err != nil {
			b.Error(err)
			return
		}
		took[i] = time.Since(begun)
		if i%500 == 0 {
			l.SetApplied(l.End())
		}
	}
}

func BenchmarkRead(b *testing.B) {
	dir := b.TempDir()
	l := mustOpen(b, Options{WALDir: filepath.Join(dir, "wal"), PackDir: filepath.Join(dir, "packs"), Node: "n"})
	defer l.Close()
	c := &Commit{}
	done := make(chan error, 1)
	c.Done = func(err error) { done <- err }
	for range 10_000 {
		c.Entries = append(c.Entries, Entry{1, make([]byte, 500)})
	}
	require.NoError(b, l.Append(c))
	require.NoError(b, <-done)
	b.Run("Read", func(b *testing.B) {
		b.ReportAllocs()
		for i := range b.N {
			if _, err := l.Read(c.Positions[i*7919%len(c.Positions)]); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Scan", func(b *testing.B) {
		b.ReportAllocs()
		for n := 0; n < b.N; {
			_, err := l.Scan(0, 0, func(Position, Entry) error { n++; return nil })
			require.NoError(b, err)
		}
	})
}

// BenchmarkEncode measures Append without a disk.
func BenchmarkEncode(b *testing.B) {
	e := Entry{1, make([]byte, 500)}
	buf := make([]byte, 0, 1<<20)
	b.ReportAllocs()
	b.SetBytes(500)
	for i := range b.N {
		if len(buf) > 1<<19 {
			buf = buf[:0]
		}
		buf = appendFrame(buf, 1, Position(i), e)
	}
}

// BenchmarkOpen opens a log of 1,000,000 entries after a clean shutdown:
// recovery reads the tail and the unsealed segments, not the packs.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	o := Options{WALDir: filepath.Join(dir, "wal"), PackDir: filepath.Join(dir, "packs"), Node: "n"}
	l := mustOpen(b, o)
	done := make(chan error, 1)
	c := &Commit{Done: func(err error) { done <- err }}
	for range 1000 {
		c.Entries = append(c.Entries, Entry{1, make([]byte, 500)})
	}
	for range 1000 {
		require.NoError(b, l.Append(c))
		require.NoError(b, <-done)
	}
	l.SetApplied(l.End())
	waitSealed(b, l)
	require.NoError(b, l.Close())
	b.ResetTimer()
	for range b.N {
		l := mustOpen(b, o)
		b.StopTimer()
		require.NoError(b, l.Close())
		b.StartTimer()
	}
}
