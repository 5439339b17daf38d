package wal

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/vfs"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

var crashPoints = flag.Int("crash-points", 10_000, "power cuts that TestCrash makes")

// history holds the obligations of a log: every entry that was acknowledged or
// read is at its position, exactly once, and every commit is complete or absent.
type history struct {
	mu sync.Mutex
	// owed holds the required payloads by position.
	owed map[Position]string
	// commits holds the number of entries of each attempted commit.
	commits map[int]int
}

func (h *history) acknowledge(c *Commit) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, p := range c.Positions {
		h.owed[p] = string(c.Entries[i].Payload)
	}
}

// check compares the log with the history. Entries that it finds are owed from now on.
func (h *history) check(l *Log, rng *rand.Rand) error {
	if d := l.Damage(); len(d) > 0 || !l.Whole() || len(l.Missing()) > 0 {
		return fmt.Errorf("damage %v, missing %v, whole %t after crashes alone", d, l.Missing(), l.Whole())
	}
	entries, gaps, err := scanAll(l, []int{0, 1, 500, 5000}[rng.IntN(4)])
	if err != nil || len(gaps) > 0 {
		return fmt.Errorf("scan: gaps %v: %w", gaps, err)
	}
	found := make(map[Position]string, len(entries))
	parts := map[int]int{}
	seen := map[string]Position{}
	for _, e := range entries {
		id, _, _ := strings.Cut(e.payload, " ")
		if p, twice := seen[id]; twice {
			return fmt.Errorf("%s at %v and again at %v", id, p, e.pos)
		}
		seen[id] = e.pos
		found[e.pos] = e.payload
		var commit, part int
		if _, err := fmt.Sscanf(id, "%d.%d", &commit, &part); err != nil {
			return fmt.Errorf("unknown entry %q at %v", id, e.pos)
		}
		parts[commit]++
	}
	for commit, n := range parts {
		if n != h.commits[commit] {
			return fmt.Errorf("%d of the %d entries of commit %d", n, h.commits[commit], commit)
		}
	}
	for pos, want := range h.owed {
		if found[pos] != want {
			return fmt.Errorf("%.12q was at %v, now there is %.12q", want, pos, found[pos])
		}
		if e, err := l.Read(pos); err != nil || string(e.Payload) != want {
			return fmt.Errorf("read %v: %.12q instead of %.12q: %w", pos, e.Payload, want, err)
		}
	}
	for pos, p := range found {
		h.owed[pos] = p
	}
	return nil
}

// crashRun puts one disk through a number of power cuts and returns the first
// broken promise. wrap may insert a faulty layer between log and disk.
func crashRun(seed uint64, cuts int, wrap func(*memfs.Disk) vfs.FS) (err error) {
	rng := rand.New(rand.NewPCG(seed, 1))
	d := memfs.New(seed)
	o := small(d)
	o.FS = wrap(d)
	h := &history{owed: map[Position]string{}, commits: map[int]int{}}
	for cut := range cuts {
		o.SegmentSize = int64(16+4*rng.IntN(3)) << 10
		o.Rand = randReader{rng}
		// Mostly during normal work, sometimes during recovery.
		n := rng.IntN(150)
		if rng.IntN(4) == 0 {
			n = rng.IntN(12)
		}
		d.CutPowerAfter(n)
		l, err := Open(o)
		switch {
		case err == nil:
			err = h.work(l, d, rng)
			if cerr := l.Close(); err == nil && cerr != nil && !d.PoweredOff() {
				err = cerr
			}
		case d.PoweredOff():
			err = nil
		}
		if err != nil {
			return fmt.Errorf("seed %d, cut %d: %w", seed, cut, err)
		}
		d.Crash(memfs.Mode(rng.IntN(4)))
	}
	l, err := Open(o)
	if err != nil {
		return fmt.Errorf("seed %d: last open: %w", seed, err)
	}
	defer l.Close()
	if err := h.check(l, rng); err != nil {
		return fmt.Errorf("seed %d, at the end: %w", seed, err)
	}
	return nil
}

type randReader struct{ *rand.Rand }

func (r randReader) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return len(b), nil
}

// work checks the log and then appends until the power is cut or its quota is reached.
func (h *history) work(l *Log, d *memfs.Disk, rng *rand.Rand) error {
	if err := h.check(l, rng); err != nil && !d.PoweredOff() {
		return err
	}
	flight := make(chan struct{}, 1+rng.IntN(8))
	var all sync.WaitGroup
	defer all.Wait()
	var once sync.Once
	var broken error
	var last Position
	for range 1 + rng.IntN(60) {
		id := len(h.commits)
		c := &Commit{}
		for part := range 1 + rng.IntN(1+rng.IntN(8)) {
			size := rng.IntN(400)
			if rng.IntN(20) == 0 {
				size = rng.IntN(5000)
			}
			c.Entries = append(c.Entries, Entry{Kind: uint8(1 + id%3), Payload: []byte(fmt.Sprintf("%d.%d ", id, part) + text(size, ""))})
		}
		h.commits[id] = len(c.Entries)
		c.Done = func(err error) {
			if err == nil {
				h.acknowledge(c)
				if c.Positions[0] < last {
					once.Do(func() { broken = fmt.Errorf("commit at %v acknowledged after %v", c.Positions[0], last) })
				}
				last = c.Positions[0]
			}
			<-flight
			all.Done()
		}
		flight <- struct{}{}
		all.Add(1)
		if err := l.Append(c); err != nil {
			<-flight
			all.Done()
			if errors.Is(err, ErrTooLarge) {
				continue
			}
			if !errors.Is(err, ErrFailed) {
				return fmt.Errorf("append: %w", err)
			}
			break
		}
		if rng.IntN(10) == 0 {
			l.SetApplied(l.End())
		}
	}
	all.Wait()
	return broken
}

func honest(d *memfs.Disk) vfs.FS { return d }

func TestCrash(t *testing.T) {
	const cuts = 20
	points := *crashPoints
	if testing.Short() {
		points = 1000
	}
	for seed := range uint64((points + cuts - 1) / cuts) {
		require.NoError(t, crashRun(seed, cuts, honest))
	}
}

// liar omits the operations that skip selects.
type liar struct {
	*memfs.Disk
	skip func(op, name string) bool
}

func (f liar) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	file, err := f.Disk.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return liarFile{file, f.skip}, nil
}

func (f liar) SyncDir(dir string) error {
	if f.skip("syncdir", dir) {
		return nil
	}
	return f.Disk.SyncDir(dir)
}

func (f liar) Lock(name string) (io.Closer, error) { return f.Disk.Lock(name) }

type liarFile struct {
	vfs.File
	skip func(op, name string) bool
}

func (f liarFile) Sync() error {
	if f.skip("sync", filepath.Base(f.Name())) {
		return nil
	}
	return f.File.Sync()
}

// The crash test must fail when a call that durability depends on is omitted.
func TestCrashTestCanFail(t *testing.T) {
	for name, skip := range map[string]func(op, name string) bool{
		"no directory sync of the WAL volume":  func(op, name string) bool { return op == "syncdir" && name == "wal" },
		"no directory sync of the pack volume": func(op, name string) bool { return op == "syncdir" && name == "db/packs" },
		"no sync of segments":                  func(op, name string) bool { return op == "sync" && strings.HasPrefix(name, segmentPrefix) },
		"no sync of packs":                     func(op, name string) bool { return op == "sync" && strings.HasPrefix(name, packPrefix) },
		"no sync of the manifest":              func(op, name string) bool { return op == "sync" && strings.HasPrefix(name, manifestName) },
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(300) {
				if err := crashRun(seed, 20, func(d *memfs.Disk) vfs.FS { return liar{d, skip} }); err != nil {
					t.Log("found:", err)
					return
				}
			}
			t.Fatal("the crash test did not notice")
		})
	}
}
