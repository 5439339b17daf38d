package store

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// The index has two records at one position of the log, which holds one of them. The
// next start rebuilds the index. Nobody knows whether the log held the other record
// there, so the store is not whole.
func TestAnIndexThatPointsToAnotherRecordIsRebuilt(t *testing.T) {
	o := smallOptions(memfs.New(41))
	s := mustOpen(t, o)
	g := newSource(41)
	first, _ := g.content()
	second, _ := g.content()
	mustPut(t, s, first, second)
	drain(t, s)
	at := positionOf(t, s, first.Key)
	key := append(owner{second.Key.ID, second.Key.Project}.append(nil, spaceID), tagContent)
	value, err := s.db.Get(append(owner{first.Key.ID, first.Key.Project}.append(nil, spaceID), tagContent), nil)
	require.NoError(t, err)
	require.NoError(t, s.db.Put(key, value, nil))
	_, err = s.Read(second.Key)
	require.ErrorIs(t, err, ErrIndexFailed)
	require.Equal(t, StateIndexFailed, s.Health().State)
	require.Error(t, s.Close())

	s = mustOpen(t, o)
	for _, it := range []Item{first, second} {
		read, err := s.Read(it.Key)
		require.NoError(t, err)
		require.Equal(t, it.Key, read.Key)
	}
	require.Equal(t, at, positionOf(t, s, first.Key))
	require.False(t, s.Whole())
	require.NoError(t, s.Close())
}

// A scan for a peer meets an entry that is no valid record. Its bytes count as damage.
func TestAnInvalidEntryThatAScanMeetsIsDamage(t *testing.T) {
	s := mustOpen(t, smallOptions(memfs.New(42)))
	done := make(chan error, 1)
	require.NoError(t, s.log.Append(&wal.Commit{
		Entries: []wal.Entry{{Kind: uint8(KindVote), Payload: []byte("no vote")}},
		Done:    func(err error) { done <- err },
	}))
	require.NoError(t, <-done)
	require.True(t, s.Whole())
	keys, next, gaps, err := s.ScanKeys(0, 1<<20)
	require.NoError(t, err)
	require.Empty(t, keys)
	require.Equal(t, s.End(), next)
	require.Equal(t, 1, gaps)
	require.False(t, s.Whole())
	require.NoError(t, s.Close())
}
