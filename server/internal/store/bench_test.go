package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/lens"
	"github.com/stemedb/stemedb/server/internal/vfs"
)

// Benchmarks run on the host's disk, in the directory for temporary files.

func benchStore(b *testing.B) *Store {
	b.Helper()
	s := mustOpen(b, Options{FS: vfs.OS(), WALDir: b.TempDir(), DBDir: b.TempDir(), NodeName: "bench", Reserve: 1, ReserveHigh: 2})
	b.Cleanup(func() { require.NoError(b, s.Close()) })
	return s
}

// benchItems returns a content of about 300 canonical bytes and one signature.
func benchItems(n uint64) []Item {
	c := &record.Content{
		Subject:   fmt.Sprintf("code://go/github.com/org%d/repo%d/tls/cert_verification", n%97, n%5000),
		Predicate: "tls.verify", Object: record.Text(fmt.Sprintf("value %d", n)),
		Confidence: 0.9, SourceClass: record.Expert, Timestamp: 1_700_000_000 + n,
		SourceMetadata: map[string]string{"file": "internal/transport/client.go", "line": fmt.Sprint(n % 900), "commit": "0f3a5c1e9b"},
	}
	id := c.ID()
	s := record.Signature{}
	binary.BigEndian.PutUint64(s.Agent[:], n%50)
	return []Item{NewContent("alpha", id, c), NewSignature("alpha", id, s)}
}

// fill puts records [from, to) in commits of batch records, with several writers.
func fill(tb testing.TB, s *Store, from, to uint64, batch, writers int) {
	tb.Helper()
	var next atomic.Uint64
	next.Store(from)
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for {
				n := next.Add(uint64(batch)) - uint64(batch)
				if n >= to {
					return
				}
				var items []Item
				for i := n; i < min(n+uint64(batch), to); i++ {
					items = append(items, benchItems(i)...)
				}
				for {
					r := putSync(s, items...)
					if r.Err == nil {
						break
					}
					if !errors.Is(r.Err, ErrBusy) {
						tb.Error(r.Err)
						return
					}
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	wg.Wait()
}

// BenchmarkPut measures durable records (content and one signature) per second.
func BenchmarkPut(b *testing.B) {
	for _, c := range []struct{ batch, writers int }{{1, 1}, {1, 16}, {1, 256}, {100, 8}} {
		b.Run(fmt.Sprintf("batch=%d/writers=%d", c.batch, c.writers), func(b *testing.B) {
			s := benchStore(b)
			b.ReportAllocs()
			b.ResetTimer()
			fill(b, s, 0, uint64(b.N), c.batch, c.writers)
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
		})
	}
}

func BenchmarkRead(b *testing.B) {
	s := benchStore(b)
	const records = 200_000
	fill(b, s, 0, records, 500, 4)
	drain(b, s)
	key := func(n int) Key { return benchItems(uint64(n*7919) % records)[0].Key }
	var keys []Key
	for i := range 4096 {
		keys = append(keys, key(i))
	}
	b.Run("Has/held", func(b *testing.B) {
		for i := range b.N {
			held, err := s.Has(keys[i%4096 : i%4096+1])
			require.True(b, err == nil && held[0])
		}
	})
	b.Run("Has/not", func(b *testing.B) {
		for i := range b.N {
			k := keys[i%4096]
			k.ID[3]++
			held, err := s.Has([]Key{k})
			require.True(b, err == nil && !held[0])
		}
	})
	b.Run("Assertion", func(b *testing.B) {
		for i := range b.N {
			_, err := s.Assertion("alpha", keys[i%4096].ID)
			require.NoError(b, err)
		}
	})
	// 40 claims to a subject.
	subjects, err := s.Subjects("alpha", "", "", 1000)
	require.NoError(b, err)
	for _, name := range lens.Names() {
		b.Run("Claims/"+name, func(b *testing.B) {
			l, _ := lens.Get[*Claim](name)
			for i := range b.N {
				a, err := l(s.lensClaims(b, subjects[i%len(subjects)]), lens.Params{Now: 1_800_000_000})
				require.NoError(b, err)
				require.NotNil(b, a.Winner)
			}
		})
	}
	b.Run("SetDigest", func(b *testing.B) {
		for i := range b.N {
			_, err := s.SetDigest(b.Context(), Set{Project: "alpha", Subject: subjects[i%len(subjects)], Predicate: "tls.verify"})
			require.NoError(b, err)
		}
	})
}

func (s *Store) lensClaims(tb testing.TB, subject string) lens.Claims[*Claim] {
	tb.Helper()
	return func(yield func(*Claim) bool) {
		for c, err := range s.Claims(tb.Context(), ClaimQuery{Project: "alpha", Subject: subject, Predicate: "tls.verify"}, 0) {
			if err != nil {
				tb.Fatal(err)
			}
			if !yield(c) {
				return
			}
		}
	}
}

// BenchmarkMillion measures memory and speed with 1,000,000 records, then a
// start after a kill and a rebuild of the index. Run with -benchtime=1x.
func BenchmarkMillion(b *testing.B) {
	const records = 1_000_000
	for range b.N {
		o := Options{FS: vfs.OS(), WALDir: b.TempDir(), DBDir: b.TempDir(), NodeName: "bench", Reserve: 1, ReserveHigh: 2}
		s := mustOpen(b, o)
		began := time.Now()
		peak := watchMemory(func() { fill(b, s, 0, records, 100, 8) })
		b.ReportMetric(records/time.Since(began).Seconds(), "records/s")
		b.ReportMetric(float64(peak)/(1<<20), "peak-MiB")
		st := s.Stats()
		b.ReportMetric(float64(st.IndexBytes)/(1<<20), "index-MiB")
		b.ReportMetric(st.WriteDelay.Seconds(), "stalled-s")
		require.NoError(b, s.Close())

		began = time.Now()
		s = mustOpen(b, o)
		b.ReportMetric(time.Since(began).Seconds(), "open-s")
		require.NoError(b, s.noteRebuild())
		require.NoError(b, s.Close())
		began = time.Now()
		s = mustOpen(b, o)
		b.ReportMetric(time.Since(began).Seconds(), "rebuild-s")
		require.NoError(b, s.Close())
	}
}

// BenchmarkHotSubject reads one subject with 100,000 claims.
func BenchmarkHotSubject(b *testing.B) {
	s := benchStore(b)
	const claims = 100_000
	for n := 0; n < claims; n += 500 {
		var items []Item
		for i := n; i < n+500; i++ {
			c := &record.Content{Subject: "hot", Predicate: "tls.verify", Object: record.Number(float64(i % 10)), SourceClass: record.Expert, Timestamp: uint64(i)}
			id := c.ID()
			items = append(items, NewContent("alpha", id, c), NewSignature("alpha", id, record.Signature{Agent: agentOf(i % 1000)}))
		}
		mustPut(b, s, items...)
	}
	drain(b, s)
	for _, name := range lens.Names() {
		b.Run(name, func(b *testing.B) {
			l, _ := lens.Get[*Claim](name)
			b.ReportAllocs()
			for range b.N {
				a, err := l(s.lensClaims(b, "hot"), lens.Params{})
				require.NoError(b, err)
				require.NotNil(b, a.Winner)
			}
		})
	}
}

// watchMemory returns the peak memory that the process obtained from the system
// for its heap and stacks while fn ran.
func watchMemory(fn func()) uint64 {
	done := make(chan struct{})
	go func() { defer close(done); fn() }()
	var peak uint64
	for {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		peak = max(peak, m.Sys-m.HeapReleased)
		select {
		case <-done:
			return peak
		case <-time.After(50 * time.Millisecond):
		}
	}
}
