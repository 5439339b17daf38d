package wal

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

func witnessOf(l *Log) Witness { return Witness{Opening: l.Opening(), End: l.End()} }

func TestWitnessOfAnEarlierOpeningStaysTrue(t *testing.T) {
	d := memfs.New(1)
	var seen []Witness
	for i := range 5 {
		l := mustOpen(t, small(d))
		for _, w := range seen {
			require.NoError(t, l.Check(w))
		}
		fill(t, l, 100*i, 40)
		seen = append(seen, witnessOf(l))
		d.Crash(memfs.LoseAll)
		_ = l.Close()
	}
}

// A copy of the volume that was taken while the log was open, and restored later,
// is distinguished from the log that continued, however far the copy grows.
func TestCopyThatWasPutBackIsToldHoweverFarItGrows(t *testing.T) {
	d := memfs.New(1)
	l := mustOpen(t, small(d))
	fill(t, l, 0, 40)
	before := witnessOf(l)
	copied := map[string][]byte{}
	entries, err := d.ReadDir("wal")
	require.NoError(t, err)
	for _, e := range entries {
		if e.IsDir() || e.Name() == lockName {
			continue
		}
		copied["wal/"+e.Name()] = fileBytes(t, d, "wal/"+e.Name())
	}
	fill(t, l, 1000, 40)
	after := witnessOf(l)
	require.NoError(t, l.Close())

	d.Wipe("wal")
	require.NoError(t, d.MkdirAll("wal", 0o700))
	for name, b := range copied {
		f, err := d.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
		require.NoError(t, err)
		_, err = f.WriteAt(b, 0)
		require.NoError(t, err)
		require.NoError(t, f.Sync())
		require.NoError(t, f.Close())
	}
	require.NoError(t, d.SyncDir("wal"))
	l = mustOpen(t, small(d))
	defer l.Close()
	require.NoError(t, l.Check(before))
	require.ErrorIs(t, l.Check(after), ErrRolledBack)
	fill(t, l, 2000, 200)
	require.Greater(t, l.End(), after.End)
	require.ErrorIs(t, l.Check(after), ErrRolledBack)

	// Once that loss is recorded, earlier witnesses prove nothing more.
	require.NoError(t, l.NoteRollback(after.End, "a test says so"))
	require.ErrorIs(t, l.Check(after), ErrForgotten)
	require.ErrorIs(t, l.Check(before), ErrForgotten)
	require.Zero(t, l.Opening(), "no opening is known until the log is reopened")
}

func TestWitnessOfManyOpeningsAgoIsForgotten(t *testing.T) {
	d := memfs.New(1)
	l := mustOpen(t, small(d))
	old := witnessOf(l)
	require.NoError(t, l.Close())
	for range maxOpenings {
		l = mustOpen(t, small(d))
		require.NoError(t, l.Close())
	}
	l = mustOpen(t, small(d))
	defer l.Close()
	require.ErrorIs(t, l.Check(old), ErrForgotten)
	require.NoError(t, l.Check(witnessOf(l)))
}
