package wal

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/vfs"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// A node with a full DB volume is scaled up, and the note that its cluster has
// other members does not fit. The node must start again anyway and serve reads.
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
	require.NoError(t, err, "it started on that volume before")
	require.True(t, l.Identity().Shared)
	require.NoError(t, l.Close())
	d.SetCapacity("db", 0)
	l = mustOpen(t, small(d))
	require.NoError(t, l.Close())
	var packs volume
	_, err = loadSmall(d, filepath.Join(small(d).PackDir, identityName), &packs)
	require.NoError(t, err)
	require.True(t, packs.Shared, "completed once there is space")
}
