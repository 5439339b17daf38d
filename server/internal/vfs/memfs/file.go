package memfs

import (
	"errors"
	"io"
	"io/fs"
	"syscall"

	"github.com/stemedb/stemedb/server/internal/vfs"
)

type file struct {
	d      *Disk
	n      *node
	name   string
	flag   int
	epoch  int
	cursor int64
	closed bool
}

var _ vfs.File = (*file)(nil)

func (f *file) begin(kind OpKind) (func(), error) {
	unlock, err := (&view{f.d, f.epoch}).begin(Op{kind, f.name})
	if err == nil && f.closed {
		unlock()
		err = fs.ErrClosed
	}
	if err != nil {
		return nil, &fs.PathError{Op: kind.String(), Path: f.name, Err: err}
	}
	return unlock, nil
}

func (f *file) ReadAt(b []byte, off int64) (int, error) {
	unlock, err := f.begin(OpRead)
	if err != nil {
		return 0, err
	}
	defer unlock()
	if off < 0 {
		return 0, &fs.PathError{Op: "read", Path: f.name, Err: syscall.EINVAL}
	}
	n := f.n.file.read(b, off)
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *file) Read(b []byte) (int, error) {
	n, err := f.ReadAt(b, f.cursor)
	f.cursor += int64(n)
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

func (f *file) WriteAt(b []byte, off int64) (int, error) {
	unlock, err := f.begin(OpWrite)
	if err != nil {
		return 0, err
	}
	defer unlock()
	if f.flag&(syscall.O_WRONLY|syscall.O_RDWR) == 0 {
		return 0, &fs.PathError{Op: "write", Path: f.name, Err: syscall.EBADF}
	}
	if off < 0 {
		return 0, &fs.PathError{Op: "write", Path: f.name, Err: syscall.EINVAL}
	}
	room := f.d.room(f.name, f.n, off+int64(len(b)))
	short := int64(len(b)) > room-off
	if short {
		b = b[:max(0, room-off)]
	}
	if len(b) > 0 {
		f.n.file.write(b, off)
	}
	if short {
		return len(b), &fs.PathError{Op: "write", Path: f.name, Err: syscall.ENOSPC}
	}
	return len(b), nil
}

func (f *file) Write(b []byte) (int, error) {
	if f.flag&syscall.O_APPEND != 0 {
		size, err := f.Size()
		if err != nil {
			return 0, err
		}
		f.cursor = size
	}
	n, err := f.WriteAt(b, f.cursor)
	f.cursor += int64(n)
	return n, err
}

// Sync makes the content durable. If an injected fault makes it fail, no later
// Sync writes the data written since the last Sync.
func (f *file) Sync() error {
	unlock, err := f.begin(OpSync)
	if err != nil {
		return err
	}
	defer unlock()
	f.n.file.sync()
	return nil
}

func (f *file) Truncate(size int64) error {
	unlock, err := f.begin(OpTruncate)
	if err != nil {
		return err
	}
	defer unlock()
	if room := f.d.room(f.name, f.n, size); size > room {
		return &fs.PathError{Op: "truncate", Path: f.name, Err: syscall.ENOSPC}
	}
	f.n.file.truncate(size)
	return nil
}

func (f *file) Size() (int64, error) {
	unlock, err := f.begin(OpRead)
	if err != nil {
		return 0, err
	}
	defer unlock()
	return f.n.file.size, nil
}

func (f *file) Name() string { return f.name }

func (f *file) Close() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.closed {
		return &fs.PathError{Op: "close", Path: f.name, Err: fs.ErrClosed}
	}
	f.closed = true
	if f.epoch == f.d.epoch {
		f.d.open--
	}
	return nil
}
