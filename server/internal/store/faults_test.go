package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/vfs/leveldbfs"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// filled creates a store with some records on a new disk and closes it.
func filled(t *testing.T, seed uint64, batches int) (*memfs.Disk, *model) {
	t.Helper()
	disk := memfs.New(seed)
	m := newModel()
	s := mustOpen(t, smallOptions(disk))
	load(s, m, []*source{newSource(seed)}, batches)
	require.NoError(t, s.Close())
	return disk, m
}

// TestRebuildResumes: a missing index is rebuilt, and after an interruption the
// rebuild continues where it was.
func TestRebuildResumes(t *testing.T) {
	disk, m := filled(t, 1, 900)
	require.NoError(t, leveldbfs.RemoveAll(disk, filepath.Join("db", indexDir)))
	var firstTotal int64
	ctx, cancel := context.WithCancel(t.Context())
	o := smallOptions(disk)
	o.Progress = func(p Progress) {
		require.True(t, p.Rebuild)
		require.LessOrEqual(t, p.Done, p.Total)
		firstTotal = p.Total
		if p.Done > p.Total/2 {
			cancel()
		}
	}
	o.replayChunk = 8 << 10
	_, err := Open(ctx, o)
	require.ErrorIs(t, err, context.Canceled)
	require.Zero(t, disk.OpenFiles())

	var last Progress
	o.Progress = func(p Progress) { last = p }
	s := mustOpen(t, o)
	require.False(t, last.Rebuild, "begins at the marker of the first attempt")
	require.Equal(t, last.Total, last.Done)
	require.Less(t, last.Total, firstTotal*3/4)
	m.check(t, s)
	require.NoError(t, s.Close())
}

func TestDamagedIndexIsMadeAnew(t *testing.T) {
	disk, m := filled(t, 2, 400)
	index := filepath.Join("db", indexDir)
	files := func() (names []string) {
		entries, err := disk.ReadDir(index)
		require.NoError(t, err)
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	r := rand.New(rand.NewPCG(2, 2))
	for _, name := range files() {
		if name == "LOCK" {
			continue
		}
		for range 4 {
			path := filepath.Join(index, name)
			st, err := disk.Stat(path)
			if err != nil || st.Size() == 0 {
				break // the index has been rebuilt meanwhile
			}
			require.NoError(t, disk.FlipBit(path, r.Int64N(st.Size()), uint(r.IntN(8))))
		}
		// Damage may be found immediately or when it is read: then the store reports
		// it, and the next start repairs it.
		for try := 0; ; try++ {
			require.Less(t, try, 3, "damage in %s is not repaired", name)
			s, err := Open(t.Context(), smallOptions(disk))
			require.NoError(t, err, name)
			wrong := failure(func(t require.TestingT) { m.check(t, s) })
			if wrong == "" {
				require.NoError(t, s.Close())
				break
			}
			require.Contains(t, wrong, ErrIndexFailed.Error())
			require.Equal(t, StateIndexFailed, s.Health().State)
			require.ErrorIs(t, putSync(s, NewCursor("x", 1)).Err, ErrIndexFailed)
			select {
			case <-s.Failed():
			default:
				require.Fail(t, "Failed is not closed")
			}
			require.Error(t, s.Close())
		}
	}
}

// failure returns the message of the first failed check, or nothing. Damage
// shows only in the read that encounters it, and any check may be the one.
func failure(check func(require.TestingT)) string {
	c := &firstFailure{}
	var wg sync.WaitGroup
	wg.Go(func() { check(c) })
	wg.Wait()
	return c.text
}

type firstFailure struct{ text string }

func (c *firstFailure) Errorf(format string, args ...any) { c.text = fmt.Sprintf(format, args...) }
func (c *firstFailure) FailNow()                          { runtime.Goexit() }

// The damage is in tables that the start does not read, and the replay of the
// log's tail makes goleveldb compact them.
func TestDamageThatAReplayMeetsIsMadeAnewInTheSameStart(t *testing.T) {
	for seed := range uint64(8) {
		disk, m := memfs.New(seed), newModel()
		o := smallOptions(disk)
		o.MarkerBytes = 1 << 30 // so that the replay is long
		s := mustOpen(t, o)
		load(s, m, []*source{newSource(seed)}, 300)
		drain(t, s)
		disk.Crash(memfs.KillProcess)
		_ = s.Close() // its disk is gone
		entries, err := disk.ReadDir("db/index")
		require.NoError(t, err)
		flipped := 0
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), ".ldb") {
				st, err := disk.Stat("db/index/" + e.Name())
				require.NoError(t, err)
				require.NoError(t, disk.FlipBit("db/index/"+e.Name(), min(int64(100+seed*50), st.Size()/2), 3))
				flipped++
			}
		}
		require.Positive(t, flipped)
		s = mustOpen(t, o)
		m.check(t, s)
		require.NoError(t, s.Close())
	}
}

// TestLostDBVolume: packs and index are gone. The node starts, is not whole,
// serves the records of the WAL volume, and has dropped its cursors.
func TestLostDBVolume(t *testing.T) {
	disk, m := filled(t, 3, 600)
	s := mustOpen(t, smallOptions(disk))
	mustPut(t, s, NewCursor("peer", 5))
	require.NotEmpty(t, s.Packs())
	require.NoError(t, s.Close())
	disk.Wipe("db")

	s = mustOpen(t, smallOptions(disk))
	require.False(t, s.Whole())
	require.Empty(t, s.Cursors())
	clear(m.cursors)
	held := checkSubset(t, m, s)
	require.Less(t, held, len(m.tried))
	mustPut(t, s, NewCursor("peer", 3))

	// Lost items can be put again.
	var items []Item
	for k, payload := range m.tried {
		items = append(items, Item{Key: k, Kind: k.Kind, Payload: payload})
	}
	for len(items) > 0 {
		n := min(20, len(items))
		mustPut(t, s, items[:n]...)
		items = items[n:]
	}
	m.check(t, s)
	require.NoError(t, setWhole(s))
	require.NoError(t, s.Close())

	rebuilds := 0
	o := smallOptions(disk)
	o.Progress = func(p Progress) {
		if p.Rebuild {
			rebuilds++
		}
	}
	s = mustOpen(t, o)
	require.Zero(t, rebuilds, "a loss is handled once")
	require.True(t, s.Whole())
	require.EqualValues(t, 3, s.Cursor("peer"), "a cursor set after the loss counts")
	m.check(t, s)
	require.NoError(t, s.Close())
}

func checkSubset(t *testing.T, m *model, s *Store) (held int) {
	t.Helper()
	for k, payload := range m.tried {
		it, err := s.Read(k)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		require.NoError(t, err, "a record that the index names must exist")
		require.Equal(t, payload, it.Payload)
		held++
	}
	return held
}

func TestForeignVolumesAreRefused(t *testing.T) {
	disk := memfs.New(4)
	for _, name := range []string{"a", "b"} {
		o := smallOptions(disk)
		o.NodeName, o.WALDir, o.DBDir = name, name+"/wal", name+"/db"
		s := mustOpen(t, o)
		mustPut(t, s, NewCursor("x", 1))
		require.NoError(t, s.Close())
	}
	o := smallOptions(disk)
	o.NodeName, o.WALDir, o.DBDir = "a", "a/wal", "b/db"
	_, err := Open(t.Context(), o)
	require.Error(t, err)
	o.NodeName, o.DBDir = "b", "a/db"
	_, err = Open(t.Context(), o)
	require.Error(t, err)
	require.Zero(t, disk.OpenFiles())
}

// TestIndexOfAnotherLog: only the directory of the index was exchanged.
func TestIndexOfAnotherLog(t *testing.T) {
	disk, m := filled(t, 5, 100)
	s := mustOpen(t, smallOptions(disk))
	require.NoError(t, s.putMeta(map[string][]byte{metaIdentity: []byte("somebody else")}))
	require.NoError(t, s.db.Put(owner{record.Hash{1}, "ghost"}.append(nil, spaceOrphan), nil, nil))
	require.NoError(t, s.Close())
	s = mustOpen(t, smallOptions(disk))
	ghost, err := s.db.Has(owner{record.Hash{1}, "ghost"}.append(nil, spaceOrphan), nil)
	require.NoError(t, err)
	require.False(t, ghost, "nothing of the other index is left")
	m.check(t, s)
	require.NoError(t, s.Close())
}

func TestBusyWhenTheIndexIsBehind(t *testing.T) {
	o := smallOptions(memfs.New(6))
	o.ApplyBytes = 64 << 10
	s := mustOpen(t, o)
	g := newSource(6)
	resume := stallApplier(t, s)
	m := newModel()
	busy := false
	for range 1000 {
		items := g.batch()
		m.note(items, false)
		before := s.Stats().PendingBytes
		r := putSync(s, items...)
		if errors.Is(r.Err, ErrBusy) {
			busy = true
			require.GreaterOrEqual(t, before, o.ApplyBytes)
			break
		}
		require.NoError(t, r.Err)
		m.note(items, true)
		require.Less(t, before, o.ApplyBytes)
	}
	require.True(t, busy)
	m.check(t, s) // all in the overlay
	resume()
	drain(t, s)
	items := g.batch()
	m.note(items, false)
	mustPut(t, s, items...)
	m.check(t, s)
	require.NoError(t, s.Close())
}

// TestRoomWhileALayerIsWritten: Puts are admitted while the index writes a
// layer, not only after it has all of it.
func TestRoomWhileALayerIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := memfs.New(6)
		o := smallOptions(disk)
		o.ApplyBytes = 256 << 10
		s := mustOpen(t, o)
		g := newSource(6)
		resume := stallApplier(t, s)
		for s.Stats().PendingBytes < o.ApplyBytes {
			mustPut(t, s, g.batch()...)
		}
		disk.SetLatency(func(op memfs.Op) time.Duration {
			if op.Kind == memfs.OpWrite && strings.HasPrefix(op.Name, filepath.Join("db", indexDir)) {
				return time.Second
			}
			return 0
		})
		resume()
		for s.Stats().PendingBytes >= o.ApplyBytes {
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait() // the look may coincide with the end of one layer and the start of the next
		s.mu.Lock()
		frozen := s.frozen != nil
		s.mu.Unlock()
		require.True(t, frozen, "the layer is still being written")
		mustPut(t, s, g.batch()...)
		disk.SetLatency(nil)
		for s.Stats().PendingBytes > 0 {
			time.Sleep(time.Second)
		}
		require.NoError(t, s.Close())
		time.Sleep(2 * time.Second) // goleveldb's last goroutine takes a second
	})
}

// TestFailingDiskBelowTheIndex: the store turns index-failed, acknowledged
// items stay readable, and a restart repairs it.
func TestFailingDiskBelowTheIndex(t *testing.T) {
	for _, kind := range []memfs.OpKind{memfs.OpWrite, memfs.OpSync} {
		disk := memfs.New(7)
		s := mustOpen(t, smallOptions(disk))
		m := newModel()
		load(s, m, []*source{newSource(7)}, 30)
		disk.Fail(kind, filepath.Join("db", indexDir), 0, -1, syscall.EIO)
		later := newSource(8)
		later.n = 1 << 20
		load(s, m, []*source{later}, 300)
		select {
		case <-s.Failed():
		case <-time.After(time.Minute):
			require.Fail(t, "the failure was not noticed")
		}
		require.Equal(t, StateIndexFailed, s.Health().State)
		for k, payload := range m.acked {
			it, err := s.Read(k)
			require.NoError(t, err)
			require.Equal(t, payload, it.Payload)
		}
		require.ErrorIs(t, s.Close(), ErrIndexFailed)
		disk.Heal()
		disk.Crash(memfs.LoseSome)
		s = mustOpen(t, smallOptions(disk))
		m.check(t, s)
		require.NoError(t, s.Close())
	}
}

func TestScrubRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := smallOptions(memfs.New(12))
		o.ScrubRate = scrubSlice // one slice a second
		s := mustOpen(t, o)
		g := newSource(12)
		for range 1500 {
			mustPut(t, s, g.batch()...)
		}
		began := time.Now()
		all, err := s.BucketDigests(t.Context(), nil)
		require.NoError(t, err)
		require.GreaterOrEqual(t, time.Since(began), 2*time.Second)
		// Narrowing by prefix gives the same sums.
		inner, err := s.BucketDigests(t.Context(), []byte{7})
		require.NoError(t, err)
		var sum Digest
		for _, d := range inner {
			sum.Add(d)
		}
		require.Equal(t, all[7], sum)
		keys, more, err := s.BucketKeys(t.Context(), []byte{7}, 1<<20)
		require.NoError(t, err)
		require.False(t, more)
		require.Len(t, keys, int(sum.Count))
		keys, more, err = s.BucketKeys(t.Context(), nil, 3)
		require.NoError(t, err)
		require.True(t, more)
		require.Len(t, keys, 3)
		s.SetDigestKey([32]byte{1})
		other, err := s.BucketDigests(t.Context(), []byte{7})
		require.NoError(t, err)
		require.NotEqual(t, inner, other)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		_, err = s.BucketDigests(ctx, nil)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		closeInBubble(t, s)
	})
}

func TestClaimsPagesAndAsOf(t *testing.T) {
	s := mustOpen(t, smallOptions(memfs.New(13)))
	g := newSource(13)
	for range 300 {
		mustPut(t, s, g.batch()...)
	}
	for _, predicate := range []string{"", "version"} {
		for _, asOf := range []uint64{0, 30} {
			q := ClaimQuery{Project: "alpha", Subject: "code://go/mod1/tls", Predicate: predicate, AsOf: asOf}
			var all []*Claim
			for c, err := range s.Claims(t.Context(), q, 0) {
				require.NoError(t, err)
				require.True(t, asOf == 0 || c.Timestamp <= asOf)
				for _, v := range c.Votes {
					require.True(t, asOf == 0 || v.Timestamp <= asOf)
				}
				all = append(all, c)
			}
			require.NotEmpty(t, all)
			var paged []*Claim
			for {
				n := 0
				for c, err := range s.Claims(t.Context(), q, 0) {
					require.NoError(t, err)
					paged = append(paged, c)
					if n++; n == 3 {
						break
					}
				}
				if n < 3 {
					break
				}
				last := paged[len(paged)-1]
				q.After = &ClaimCursor{Predicate: last.Predicate, Timestamp: last.Timestamp, ID: last.ID}
			}
			require.Equal(t, all, paged)
		}
	}
	require.NoError(t, s.Close())
}

// A vote arrives while the disk cannot read its content. Once the disk can read
// it again, the claims of the subject show the vote: while the store stays
// open, and after a start.
func TestWhatADiskDidNotGiveIsJoinedWhenItDoes(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprint("after a start ", restart), func(t *testing.T) {
			disk := memfs.New(1)
			o := smallOptions(disk)
			o.MarkerInterval = 20 * time.Millisecond
			s := mustOpen(t, o)
			src := newSource(1)
			content, c := src.content()
			mustPut(t, s, content)
			drain(t, s)
			disk.Fail(memfs.OpRead, "wal/", 0, -1, syscall.EIO)
			vote := src.vote(c)
			mustPut(t, s, vote)
			drain(t, s)
			disk.Heal()
			if restart {
				require.NoError(t, s.Close())
				s = mustOpen(t, o)
			}
			require.Eventually(t, func() bool {
				for claim, err := range s.Claims(t.Context(), ClaimQuery{Project: c.project, Subject: c.c.Subject}, 0) {
					return err == nil && len(claim.Votes) == 1 && claim.Votes[0].ID == vote.Key.Vote
				}
				return false
			}, 10*time.Second, 10*time.Millisecond)
			require.NoError(t, s.Close())
		})
	}
}
