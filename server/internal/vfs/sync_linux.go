package vfs

import (
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// fdatasync omits one part of fsync: a journal commit for time stamps that
// nobody reads. It is not retried: after a failure the kernel may mark lost
// pages clean. Only EINTR means that nothing was attempted.
func fdatasync(f *os.File) error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return &fs.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
		}
		return nil
	}
}
