package wal

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// small makes rotation, sealing and recycling happen early.
func small(d *memfs.Disk) Options {
	return Options{
		FS: d, WALDir: "wal", PackDir: "db/packs", Node: "node-0",
		SegmentSize: 16 << 10, MaxBatchBytes: 4 << 10, QueueBytes: 64 << 10,
		CheckInterval: time.Hour, Reserve: 1,
		Logger: testLogger(),
	}
}

func mustOpen(t testing.TB, o Options) *Log {
	t.Helper()
	l, err := Open(o)
	require.NoError(t, err)
	return l
}

// put appends one commit and waits for it.
func put(l *Log, payloads ...string) ([]Position, error) {
	c := &Commit{}
	for _, p := range payloads {
		c.Entries = append(c.Entries, Entry{Kind: 1, Payload: []byte(p)})
	}
	done := make(chan error, 1)
	c.Done = func(err error) { done <- err }
	if err := l.Append(c); err != nil {
		return nil, err
	}
	return c.Positions, <-done
}

func mustPut(t testing.TB, l *Log, payloads ...string) []Position {
	t.Helper()
	pos, err := put(l, payloads...)
	require.NoError(t, err)
	return pos
}

type got struct {
	pos     Position
	payload string
}

// scanAll scans to the end, continuing after gaps, and checks that positions
// increase.
func scanAll(l *Log, limit int) (entries []got, gaps []Range, err error) {
	var next, last Position
	for end := l.End(); next < end; {
		before := next
		n, err := l.Scan(next, limit, func(pos Position, e Entry) error {
			if pos <= last {
				return fmt.Errorf("position %v after %v", pos, last)
			}
			last = pos
			entries = append(entries, got{pos, string(e.Payload)})
			return nil
		})
		next = n
		var gap *Gap
		switch {
		case errors.As(err, &gap):
			gaps = append(gaps, gap.Range)
		case err != nil:
			return nil, nil, err
		}
		if next <= before {
			return nil, nil, fmt.Errorf("scan from %v does not advance beyond %v", before, next)
		}
	}
	return entries, gaps, nil
}

func payloads(es []got) (out []string) {
	for _, e := range es {
		out = append(out, e.payload)
	}
	return out
}

func text(n int, tag string) string {
	return tag + string(bytes.Repeat([]byte{'x'}, n))
}

// testLogger prints if WAL_TEST_LOG is set.
func testLogger() *slog.Logger {
	if os.Getenv("WAL_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// waitSealed waits until every full segment is a pack.
func waitSealed(t testing.TB, l *Log) {
	t.Helper()
	require.Eventually(t, func() bool {
		l.tab.Lock()
		defer l.tab.Unlock()
		for _, s := range l.segments {
			if s.rotated && !s.packed && s.src != nil {
				return false
			}
		}
		return true
	}, 20*time.Second, time.Millisecond)
}

// metric sums the counters and gauges of one name; for a histogram it returns
// the number of observations.
func metric(t testing.TB, reg *prometheus.Registry, name string) (sum float64) {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
		return sum
	}
	require.Fail(t, "no metric "+name)
	return 0
}
