package wal

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// After a failed write or sync of the WAL volume, nothing is retried.
// Acknowledged entries stay readable, now and after a restart.
func TestFailureIsSticky(t *testing.T) {
	for _, kind := range []memfs.OpKind{memfs.OpWrite, memfs.OpSync, memfs.OpSyncDir, memfs.OpRename, memfs.OpCreate} {
		for nth := range 25 {
			t.Run(fmt.Sprintf("%v-%d", kind, nth), func(t *testing.T) {
				d := memfs.New(1)
				reg := prometheus.NewRegistry()
				o := small(d)
				o.Registerer = reg
				l := mustOpen(t, o)
				d.Fail(kind, "wal", nth, -1, syscall.EIO)
				h := &history{owed: map[Position]string{}, commits: map[int]int{}}
				var err error
				for id := 0; id < 400 && err == nil; id++ {
					h.commits[id] = 1
					c := &Commit{Entries: []Entry{{1, []byte(fmt.Sprintf("%d.0 %s", id, text(300, "")))}}}
					done := make(chan error, 1)
					c.Done = func(err error) { done <- err }
					if err = l.Append(c); err == nil {
						if err = <-done; err == nil {
							h.acknowledge(c)
						}
					}
				}
				require.ErrorIs(t, err, ErrFailed)
				for range 3 {
					_, err := put(l, "again")
					require.ErrorIs(t, err, ErrFailed)
				}
				state, why := l.State()
				require.Equal(t, StateFailed, state)
				require.ErrorIs(t, why, syscall.EIO)
				require.Equal(t, 2.0, metric(t, reg, "stemedb_wal_state"))
				for pos, want := range h.owed {
					e, err := l.Read(pos)
					require.NoError(t, err)
					require.Equal(t, want, string(e.Payload))
				}
				require.ErrorIs(t, l.Close(), ErrFailed)
				d.Heal()
				d.Crash(memfs.LoseSome)
				l = mustOpen(t, small(d))
				require.NoError(t, h.check(l, rand.New(rand.NewPCG(1, 1))))
				require.NoError(t, l.Close())
			})
		}
	}
}

// A pack volume that fails loses nothing and stops nothing: segments wait.
func TestFailingPackVolume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := memfs.New(1)
		l := mustOpen(t, small(d))
		d.Fail(memfs.OpWrite, packPrefix, 0, 3, syscall.EIO)
		d.Fail(memfs.OpSync, packPrefix, 1, 2, syscall.EIO)
		all := fill(t, l, 0, 200)
		time.Sleep(12 * time.Hour)
		synctest.Wait()
		require.Greater(t, len(l.Packs()), 3)
		for pos, want := range all {
			e, err := l.Read(pos)
			require.NoError(t, err)
			require.Equal(t, want, string(e.Payload))
		}
		state, _ := l.State()
		require.Equal(t, StateOK, state)
		require.NoError(t, l.Close())
	})
}

// The disk fills up. The log turns read-only before that or at any point where
// space runs out, and continues when there is space. Nothing is lost.
func TestDiskFull(t *testing.T) {
	for _, volume := range []string{"wal", "db"} {
		for kib := uint64(60); kib < 160; kib += 4 {
			for _, reserve := range []uint64{1, 40 << 10} {
				t.Run(fmt.Sprintf("%s-%dKiB-%d", volume, kib, reserve), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { diskFull(t, volume, kib<<10, reserve) })
				})
			}
		}
	}
}

func diskFull(t *testing.T, volume string, capacity, reserve uint64) {
	t.Helper()
	d := memfs.New(capacity)
	d.SetCapacity(volume, capacity)
	o := small(d)
	o.Reserve, o.ReserveHigh, o.CheckInterval = reserve, reserve+20<<10, time.Second
	l, err := Open(o)
	if errors.Is(err, errNoSegment) {
		t.Skip("too small to begin")
	}
	require.NoError(t, err)
	h := &history{owed: map[Position]string{}, commits: map[int]int{}}
	next := 0
	fillUp := func(limit int) (err error) {
		for ; limit > 0 && err == nil; limit-- {
			id := next
			next++
			h.commits[id] = 1
			c := &Commit{Entries: []Entry{{1, []byte(fmt.Sprintf("%d.0 %s", id, text(700, "")))}}}
			done := make(chan error, 1)
			c.Done = func(err error) { done <- err }
			if err = l.Append(c); err == nil {
				if err = <-done; err == nil {
					h.acknowledge(c)
				}
			}
			time.Sleep(50 * time.Millisecond)
		}
		return err
	}
	err = fillUp(600)
	require.ErrorIs(t, err, ErrReadOnly)
	require.NotErrorIs(t, err, ErrFailed)
	state, _ := l.State()
	require.Equal(t, StateReadOnly, state)
	rng := rand.New(rand.NewPCG(1, 1))
	require.NoError(t, h.check(l, rng))

	// The log can be restarted and read while the disk is full.
	require.NoError(t, l.Close())
	l = mustOpen(t, o)
	require.NoError(t, h.check(l, rng))

	d.SetCapacity(volume, capacity+reserve+16<<20)
	time.Sleep(10 * time.Second)
	require.NoError(t, fillUp(200))
	require.NoError(t, h.check(l, rng))
	require.NoError(t, l.Close())
	d.Crash(memfs.LoseSome)
	l = mustOpen(t, o)
	require.NoError(t, h.check(l, rng))
	require.NoError(t, l.Close())
}

// Between the low and the high mark, the state does not change.
func TestReadOnlyHysteresis(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := memfs.New(1)
		o := small(d)
		o.Reserve, o.ReserveHigh, o.CheckInterval = 400<<10, 600<<10, time.Second
		free := func(kib uint64) {
			f, total, err := d.Free("db")
			require.NoError(t, err)
			d.SetCapacity("db", total-f+kib<<10)
			time.Sleep(2 * time.Second)
			synctest.Wait()
		}
		d.SetCapacity("db", 10<<20)
		l := mustOpen(t, o)
		for i, step := range []struct {
			kib  uint64
			want State
		}{{500, StateOK}, {399, StateReadOnly}, {500, StateReadOnly}, {599, StateReadOnly}, {600, StateOK}, {401, StateOK}} {
			free(step.kib)
			got, _ := l.State()
			require.Equal(t, step.want, got, "step %d", i)
			_, err := put(l, "x")
			require.Equal(t, step.want == StateReadOnly, errors.Is(err, ErrReadOnly))
		}
		require.NoError(t, l.Close())
	})
}

// A preallocated segment runs out of space: the batch is cut off, so that it
// cannot reappear, and the log continues in the next segment.
func TestNoSpaceInsideWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := memfs.New(1)
		o := small(d)
		o.CheckInterval = time.Second
		l := mustOpen(t, o)
		a := mustPut(t, l, "a")
		d.Fail(memfs.OpWrite, segmentPrefix, 0, 1, syscall.ENOSPC)
		_, err := put(l, "refused")
		require.ErrorIs(t, err, ErrReadOnly)
		time.Sleep(5 * time.Second)
		b := mustPut(t, l, "b")
		require.Equal(t, a[0].Segment()+1, b[0].Segment())
		d.Crash(memfs.LoseSome)
		_ = l.Close()
		l = mustOpen(t, o)
		es, gaps, err := scanAll(l, 0)
		require.NoError(t, err)
		require.Empty(t, gaps)
		require.Equal(t, []string{"a", "b"}, payloads(es))
		require.True(t, l.Whole())
		require.NoError(t, l.Close())
	})
}

// On a slow disk, commits gather in batches, the queue is bounded, Close drains
// it, and Done is called in log order. The test runs in virtual time.
func TestGroupCommitUnderVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := memfs.New(1)
		o := small(d)
		o.QueueBytes = 8 << 10
		reg := prometheus.NewRegistry()
		o.Registerer = reg
		l := mustOpen(t, o)
		synctest.Wait()
		d.SetLatency(func(op memfs.Op) time.Duration {
			if op.Kind == memfs.OpSync {
				return time.Millisecond
			}
			return 0
		})
		begun := time.Now()
		var order []Position
		accepted, busy := 0, 0
		for range 200 {
			c := &Commit{Entries: []Entry{{1, []byte(text(100, ""))}}}
			c.Done = func(err error) {
				if err == nil {
					order = append(order, c.Positions[0])
				}
			}
			switch err := l.Append(c); {
			case err == nil:
				accepted++
			case errors.Is(err, ErrBusy):
				busy++
				time.Sleep(time.Millisecond)
			default:
				require.NoError(t, err)
			}
		}
		require.NoError(t, l.Close())
		require.NotZero(t, busy)
		require.Len(t, order, accepted)
		require.IsIncreasing(t, order)
		require.Less(t, time.Since(begun), 50*time.Millisecond, "commits shared syncs")
		require.ErrorIs(t, l.Append(&Commit{Entries: []Entry{{Kind: 1}}}), ErrClosed)
	})
}

func TestWatch(t *testing.T) {
	l := mustOpen(t, small(memfs.New(1)))
	w := l.Watch()
	select {
	case <-w:
		t.Fatal("the channel was closed before the append")
	default:
	}
	before := l.End()
	mustPut(t, l, "x")
	<-w
	require.Greater(t, l.End(), before)
	w = l.Watch()
	require.NoError(t, l.Close())
	<-w
	<-l.Watch()
}

// A segment file that has readers is not reused.
func TestConcurrentReadersWhileSegmentsAreRecycled(t *testing.T) {
	l := mustOpen(t, small(memfs.New(1)))
	var mu sync.Mutex
	all := map[Position]string{}
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Add(1)
		go func() {
			defer readers.Done()
			for {
				select {
				case <-stop:
					return
				default:
				}
				mu.Lock()
				sample := map[Position]string{}
				for p, s := range all {
					if sample[p] = s; len(sample) == 20 {
						break
					}
				}
				mu.Unlock()
				for p, want := range sample {
					if e, err := l.Read(p); err != nil || string(e.Payload) != want {
						t.Errorf("read %v: %.10q, %v", p, e.Payload, err)
						return
					}
				}
				if _, gaps, err := scanAll(l, 3000); err != nil || len(gaps) > 0 {
					t.Errorf("scan: %v %v", gaps, err)
					return
				}
			}
		}()
	}
	for i := range 400 {
		p := fmt.Sprintf("%d %s", i, text(300, ""))
		pos := mustPut(t, l, p)[0]
		mu.Lock()
		all[pos] = p
		mu.Unlock()
		l.SetApplied(l.End())
	}
	close(stop)
	readers.Wait()
	waitSealed(t, l)
	require.Eventually(t, func() bool { return len(l.manifest.Load().Segments) <= 3 }, 10*time.Second, time.Millisecond)
	require.NoError(t, l.Close())
}

func TestRefusedCommits(t *testing.T) {
	l := mustOpen(t, small(memfs.New(1)))
	defer l.Close()
	for name, c := range map[string]struct {
		commit Commit
		want   error
	}{
		"no entries": {Commit{}, ErrInvalid},
		"kind 0":     {Commit{Entries: []Entry{{Kind: 0}}}, ErrInvalid},
		"kind 255":   {Commit{Entries: []Entry{{Kind: 255}}}, ErrInvalid},
		"entry":      {Commit{Entries: []Entry{{1, make([]byte, MaxPayload+1)}}}, ErrTooLarge},
		"commit":     {Commit{Entries: []Entry{{1, make([]byte, 15<<10)}}}, ErrTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			require.ErrorIs(t, l.Append(&c.commit), c.want)
		})
	}
	// A commit above MaxBatchBytes becomes a separate batch; an empty payload is
	// an ordinary entry.
	pos := mustPut(t, l, text(9<<10, ""), "", "z")
	e, err := l.Read(pos[1])
	require.NoError(t, err)
	require.Empty(t, e.Payload)
	for _, p := range []Position{0, pos[0] - 8, pos[0] + 1, pos[2] + 16, 99 << 32, l.End()} {
		_, err := l.Read(p)
		require.ErrorIs(t, err, ErrNoEntry, p)
	}
	require.True(t, l.Whole(), "a wrong position is not damage")
}

// A caller may pass a wrong position: inside a frame, or from another log. That
// is the caller's error and no damage on this node's disk.
func TestScanFromInsideAFrameIsNotDamage(t *testing.T) {
	l := mustOpen(t, small(memfs.New(1)))
	defer l.Close()
	pos := mustPut(t, l, text(300, ""), text(300, ""), "z")
	for from := pos[0] - 40; from < pos[2]; from += 8 {
		_, err := l.Scan(from, 0, func(Position, Entry) error { return nil })
		if err != nil {
			require.ErrorIs(t, err, ErrNoEntry, from)
		}
	}
	_, err := l.Scan(pos[0]+8, 0, func(Position, Entry) error { return nil })
	require.ErrorIs(t, err, ErrNoEntry)
	require.Empty(t, l.Damage())
	require.True(t, l.Whole())
}
