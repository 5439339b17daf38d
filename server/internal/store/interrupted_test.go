package store

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// The index is made anew, and a record in a pack has rotted: the new index lacks it.
// The start is interrupted behind that record and goes on at the next start. The
// damage is still one that the index does not name.
func TestDamageThatAnInterruptedRebuildMetIsNotNamed(t *testing.T) {
	disk := memfs.New(37)
	o := smallOptions(disk)
	s := mustOpen(t, o)
	g := newSource(37)
	g.n = 1 << 20
	var items []Item
	for range 800 {
		it, _ := g.content()
		items = append(items, it)
		mustPut(t, s, it)
	}
	pos := positionOf(t, s, items[0].Key)
	require.Eventually(t, func() bool {
		return slices.ContainsFunc(s.Packs(), func(p wal.Pack) bool { return p.Segment == pos.Segment() })
	}, time.Minute, time.Millisecond)
	require.NoError(t, s.Close())
	file := filepath.Join("db", packDir, fmt.Sprintf("pack-%08d.pack", pos.Segment()))
	require.NoError(t, disk.FlipBit(file, int64(pos.Offset())+40, 3))
	removeIndex(t, disk)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	interrupted := o
	interrupted.Progress = func(p Progress) {
		if p.Done > 3*p.Total/4 {
			cancel()
		}
	}
	_, err := Open(ctx, interrupted)
	require.ErrorIs(t, err, context.Canceled)

	s = mustOpen(t, o)
	require.NotZero(t, s.replayedFrom, "the second start goes on where the first one was")
	require.False(t, s.Whole())
	_, err = s.Read(items[0].Key)
	require.ErrorIs(t, err, ErrNotFound, "the index does not have it")
	keys, all, err := s.DamagedKeys(t.Context())
	require.NoError(t, err)
	require.False(t, all, "a record is lost, and the index, which names %d damaged records, is said to name all of them", len(keys))
	require.NoError(t, s.Close())
}

// As above, and the record has not rotted: the disk did not give its pack while the
// first start read it, and gives it again. No byte is missing, so the record is found.
func TestAnOutageOfReadsDuringAnInterruptedRebuildHidesNothing(t *testing.T) {
	disk := memfs.New(39)
	o := smallOptions(disk)
	s := mustOpen(t, o)
	g := newSource(39)
	g.n = 1 << 20
	var items []Item
	for range 800 {
		it, _ := g.content()
		items = append(items, it)
		mustPut(t, s, it)
	}
	require.NoError(t, s.Close())
	s = mustOpen(t, o)
	drain(t, s)
	require.NoError(t, s.Close())
	removeIndex(t, disk)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	interrupted := o
	interrupted.Progress = func(p Progress) {
		if p.Done > 3*p.Total/4 {
			cancel()
		}
	}
	disk.Fail(memfs.OpRead, "pack-00000001.pack", 1, -1, syscall.EIO)
	_, err := Open(ctx, interrupted)
	require.ErrorIs(t, err, context.Canceled)
	disk.Heal()

	for start := range 2 {
		s = mustOpen(t, o)
		keys, all, err := s.DamagedKeys(t.Context())
		if errors.Is(err, ErrIndexLacks) || err == nil && !all {
			require.NoError(t, s.Close())
			continue // another start is asked for, or the other members
		}
		require.NoError(t, err)
		require.Empty(t, keys)
		missing := 0
		for _, it := range items {
			if _, err := s.Read(it.Key); err != nil {
				missing++
			}
		}
		require.NoError(t, s.Close())
		require.Zero(t, missing, "start %d: of 800 records, all of which the disk gives, and nothing says that they are lost", start)
	}
}
