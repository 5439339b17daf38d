package wal

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// A log that was rolled back keeps its entries, is not whole, and assigns no
// position that it may have assigned before.
func TestRolledBackLogSkipsThePositionsThatItMayHaveGiven(t *testing.T) {
	d := memfs.New(1)
	l := mustOpen(t, small(d))
	all := fill(t, l, 0, 50)
	end := l.End()
	known := makePosition(end.Segment()+3, headerSize+512)
	require.NoError(t, l.NoteRollback(known, "a test says so"))
	require.False(t, l.Whole())
	require.NoError(t, l.Close())

	l = mustOpen(t, small(d))
	require.False(t, l.Whole())
	require.True(t, l.RolledBack())
	require.GreaterOrEqual(t, l.End().Segment(), known.Segment()+SkipAfterRollback)
	lost, _ := l.Outstanding()
	require.Len(t, lost, 1)
	require.Equal(t, end, lost[0].From)
	_, err := l.Read(known)
	require.ErrorIs(t, err, ErrGone)
	more := fill(t, l, 1000, 50)
	es, gaps, err := scanAll(l, 0)
	require.NoError(t, err)
	require.Len(t, es, len(all)+len(more))
	require.NotEmpty(t, gaps)

	// The rollback is found once, and is over when the life is set and the log is whole.
	require.NoError(t, l.SetLife(l.Lives()[len(l.Lives())-1]))
	require.NoError(t, l.SetWhole(1))
	require.NoError(t, l.Close())
	l = mustOpen(t, small(d))
	defer l.Close()
	require.True(t, l.Whole())
	require.False(t, l.RolledBack())
	lost, _ = l.Outstanding()
	require.Empty(t, lost)
	require.Less(t, l.End().Segment(), known.Segment()+2*SkipAfterRollback)
}

// Every start lists one more life, until one is registered.
func TestLivesAreListedUntilOneIsSet(t *testing.T) {
	d := memfs.New(1)
	var last string
	for i := range 3 {
		l := mustOpen(t, small(d))
		require.Len(t, l.Lives(), i+1)
		require.NotEqual(t, last, l.Lives()[i])
		last = l.Lives()[i]
		require.NoError(t, l.Close())
	}
	l := mustOpen(t, small(d))
	now := l.Lives()[3]
	require.NoError(t, l.SetLife(now))
	require.NoError(t, l.Close())
	l = mustOpen(t, small(d))
	defer l.Close()
	require.Len(t, l.Lives(), 2)
	require.Equal(t, now, l.Lives()[0])
}
