package vfs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestOS(t *testing.T) {
	o, dir := OS(), filepath.Join(t.TempDir(), "a", "b")
	require.NoError(t, o.MkdirAll(dir, 0o700))
	require.NoError(t, o.MkdirAll(dir, 0o700))
	name := filepath.Join(dir, "f")
	f, err := o.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("hello"), 3)
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	size, err := f.Size()
	require.NoError(t, err)
	require.EqualValues(t, 8, size)
	require.Equal(t, name, f.Name())
	require.NoError(t, f.Truncate(4))
	require.NoError(t, f.Close())
	require.NoError(t, o.Rename(name, name+"2"))
	require.NoError(t, o.SyncDir(dir))
	require.Error(t, o.SyncDir(dir+"/none"))
	require.Error(t, o.MkdirAll(name+"2", 0o700), "a file is in the way")
	l, err := o.Lock(filepath.Join(dir, "LOCK"))
	require.NoError(t, err)
	_, err = o.Lock(filepath.Join(dir, "LOCK"))
	require.ErrorIs(t, err, ErrLocked)
	require.NoError(t, l.Close())
	free, total, err := o.Free(dir)
	require.NoError(t, err)
	require.Positive(t, free)
	require.GreaterOrEqual(t, total, free)
	es, err := o.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, es, 2)
	require.NoError(t, o.Remove(name+"2"))
}
