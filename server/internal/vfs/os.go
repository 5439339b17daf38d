package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// OS is the host's file system. While the process has no file descriptors left, its
// operations wait for some, up to descriptorsWait: connections of callers may use them up,
// and a log or an index that fails for that reason would stay failed after they are gone.
func OS() FS { return osFS{} }

const (
	descriptorsWait = 5 * time.Minute
	descriptorsPoll = 20 * time.Millisecond
)

// patiently calls do until a file descriptor is free.
func patiently[T any](do func() (T, error)) (T, error) {
	for deadline := time.Now().Add(descriptorsWait); ; time.Sleep(descriptorsPoll) {
		v, err := do()
		out := errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE)
		if !out || time.Now().After(deadline) {
			return v, err
		}
	}
}

type osFS struct{}

func (osFS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	f, err := patiently(func() (*os.File, error) { return os.OpenFile(name, flag, perm) })
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osFS) Rename(oldname, newname string) error  { return os.Rename(oldname, newname) }
func (osFS) Remove(name string) error              { return os.Remove(name) }
func (osFS) Stat(name string) (fs.FileInfo, error) { return os.Stat(name) }

func (osFS) ReadDir(dir string) ([]fs.DirEntry, error) {
	return patiently(func() ([]fs.DirEntry, error) { return os.ReadDir(dir) })
}

// MkdirAll syncs the parent of each directory that it creates: a volume whose
// root was just created must not lose it with its contents.
func (o osFS) MkdirAll(dir string, perm fs.FileMode) error {
	dir = filepath.Clean(dir)
	if st, err := os.Stat(dir); err == nil {
		if !st.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: dir, Err: unix.ENOTDIR}
		}
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := o.MkdirAll(parent, perm); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return o.SyncDir(parent)
}

func (osFS) SyncDir(dir string) error {
	d, err := patiently(func() (*os.File, error) { return os.Open(dir) })
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}

func (osFS) Lock(name string) (io.Closer, error) {
	f, err := patiently(func() (*os.File, error) { return os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600) })
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w", name, ErrLocked)
		}
		return nil, &fs.PathError{Op: "flock", Path: name, Err: err}
	}
	return f, nil
}

func (osFS) Free(dir string) (freeBytes, totalBytes uint64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	size := uint64(st.Bsize)
	return uint64(st.Bavail) * size, uint64(st.Blocks) * size, nil //nolint:unconvert // signed on other systems
}

type osFile struct{ *os.File }

func (f osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (f osFile) Sync() error { return fdatasync(f.File) }
