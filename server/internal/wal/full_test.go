package wal

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/vfs"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// A node on a full DB volume is scaled up: the note that its cluster has other members
// finds no room there. It must start again all the same, and be read.
func TestALogOnAFullPackVolumeOpensAlthoughTheNoteOfOtherMembersIsNotThere(t *testing.T) {
	d := memfs.New(1)
	d.SetCapacity("db", 1<<30)
	use(t, small(d))
	l := mustOpen(t, small(d))
	require.NoError(t, l.SetClusterID("one"))
	free, total, err := d.Free("db")
	require.NoError(t, err)
	d.SetCapacity("db", total-free)
	require.True(t, vfs.IsNoSpace(l.SetShared()))
	require.NoError(t, l.Close())
	l, err = Open(small(d))
	require.NoError(t, err, "it came up on that volume before")
	require.True(t, l.Identity().Shared)
	require.NoError(t, l.Close())
	d.SetCapacity("db", 0)
	l = mustOpen(t, small(d))
	require.NoError(t, l.Close())
	var packs volume
	_, err = loadSmall(d, filepath.Join(small(d).PackDir, identityName), &packs)
	require.NoError(t, err)
	require.True(t, packs.Shared, "completed when there is room")
}
