package vfs

import (
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// fdatasync leaves out what fsync adds: a journal commit for time stamps that
// nobody reads. It is not retried: after a failure the kernel may call lost
// pages clean. EINTR alone means that nothing was tried.
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
