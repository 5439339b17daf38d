// Package vfs is the only access to files. The log, the index and the packs
// reach their disk only through FS, so that a test can replace it with a
// simulated disk (see memfs) that loses unsynced data, fails the nth sync,
// fills up or flips bits.
//
// It promises only the guarantees of a POSIX file system:
//   - written data is durable only after Sync of that file;
//   - a created, renamed or removed name is durable only after SyncDir of its
//     directory (Sync of the file itself is not enough);
//   - Rename replaces its target atomically.
//
// Names are ordinary file names of the host; separators are filepath's.
package vfs

import (
	"errors"
	"io"
	"io/fs"
	"syscall"
)

// ErrLocked is returned by Lock if someone else holds the lock.
var ErrLocked = errors.New("locked by another process")

// FS is a file system. It is safe for concurrent use.
type FS interface {
	// OpenFile opens name with the flags of package os (O_RDONLY, O_RDWR,
	// O_CREATE, O_EXCL, O_TRUNC, O_APPEND).
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	// Rename renames oldname to newname, replacing newname if it exists.
	Rename(oldname, newname string) error
	// Remove removes a file or an empty directory.
	Remove(name string) error
	// MkdirAll creates a directory with its parents. New directory entries
	// are durable when it returns.
	MkdirAll(dir string, perm fs.FileMode) error
	// ReadDir lists a directory sorted by name.
	ReadDir(dir string) ([]fs.DirEntry, error)
	Stat(name string) (fs.FileInfo, error)
	// SyncDir makes the names in dir durable.
	SyncDir(dir string) error
	// Lock takes an exclusive lock that ends with the process; it creates the file
	// if needed. ErrLocked if it is already held. Close unlocks.
	Lock(name string) (io.Closer, error)
	// Free returns the bytes that can still be written below dir and the size of
	// the volume of dir.
	Free(dir string) (freeBytes, totalBytes uint64, err error)
}

// File is an open file. ReadAt and WriteAt are safe for concurrent use; Read
// and Write share one cursor and are not.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Reader
	io.Writer
	io.Closer
	// Sync makes the content and the size durable (fdatasync).
	Sync() error
	// Truncate changes the size; added bytes read as zero.
	Truncate(size int64) error
	// Size is the current size in bytes.
	Size() (int64, error)
	// Name is the name under which the file was opened.
	Name() string
}

// IsNoSpace reports whether err means that the volume, or the quota on it, is
// exhausted: a temporary condition, unlike a failing disk.
func IsNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
