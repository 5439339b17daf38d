package store

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"

	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// The marker guarantees everything below it, so it must not be in goleveldb,
// and the log must not receive it, before the barrier is complete.
func TestMarkerIsWrittenBehindItsBarrier(t *testing.T) {
	o := smallOptions(memfs.New(1))
	o.MarkerBytes, o.MarkerInterval = 1<<30, time.Hour // only when the test asks for it
	var s *Store
	barriers := 0
	var atBarrier []byte
	o.betweenBarrier = func() {
		if s == nil {
			return // Open marks too
		}
		barriers++
		v, err := s.db.Get(metaKey(metaApplied), nil)
		if err != nil {
			require.ErrorIs(t, err, leveldb.ErrNotFound)
		}
		atBarrier = v
	}
	opened := mustOpen(t, o)
	before, err := opened.db.Get(metaKey(metaApplied), nil)
	if err != nil {
		require.ErrorIs(t, err, leveldb.ErrNotFound)
	}
	s = opened
	load(s, newModel(), []*source{newSource(1)}, 20)
	drain(t, s)
	require.NoError(t, s.mark())
	require.Positive(t, barriers)
	require.Equal(t, before, atBarrier, "the marker was written before the barrier")
	after, err := s.db.Get(metaKey(metaApplied), nil)
	require.NoError(t, err)
	require.NotEqual(t, before, after)
	require.NoError(t, s.Close())
}
