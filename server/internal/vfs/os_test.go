package vfs

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
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

// All file descriptors of the process are in use. Every operation that needs one waits,
// and succeeds when some are closed.
func TestOperationsWaitForFileDescriptors(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "there"), nil, 0o600))
	var before unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &before))
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 100, Max: before.Max}))
	t.Cleanup(func() { require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &before)) })
	for name, do := range map[string]func() error{
		"open": func() error {
			f, err := OS().OpenFile(filepath.Join(dir, "new"), os.O_RDWR|os.O_CREATE, 0o600)
			if err == nil {
				err = f.Close()
			}
			return err
		},
		"list": func() error { _, err := OS().ReadDir(dir); return err },
		"sync": func() error { return OS().SyncDir(dir) },
		"lock": func() error {
			l, err := OS().Lock(filepath.Join(dir, "lock"))
			if err == nil {
				err = l.Close()
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			var taken []int
			for {
				fd, err := unix.Dup(0)
				if err != nil {
					require.ErrorIs(t, err, unix.EMFILE)
					break
				}
				taken = append(taken, fd)
			}
			done := make(chan error, 1)
			go func() { done <- do() }()
			select {
			case err := <-done:
				t.Errorf("it does not wait: %v", err)
				done <- nil
			case <-time.After(100 * time.Millisecond):
			}
			for _, fd := range taken {
				require.NoError(t, unix.Close(fd))
			}
			require.NoError(t, <-done)
		})
	}
}
