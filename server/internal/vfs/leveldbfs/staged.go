package leveldbfs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/syndtr/goleveldb/leveldb/storage"

	"github.com/stemedb/stemedb/server/internal/vfs"
)

// goleveldb writes when it opens: tables made of its journals, a new journal, a
// new manifest. On a volume without space for them they are staged: kept in
// memory, while nothing on disk changes or is removed, so a crash loses only
// data that the next open makes again. Once there is space, Commit writes all
// of it to disk while goleveldb keeps running.
//
// The journals bound the memory: an open makes tables of the two that are on
// disk, each of Options.WriteBuffer, and afterwards two more can be filled
// before goleveldb waits for a table.

// mu guards staged, including the data of its files. A reader that opens a file
// waits while Commit writes.
type staged struct {
	mu      sync.Mutex
	on      bool
	opened  bool // the open has written its tables
	files   map[storage.FileDesc]*stagedFile
	removed map[storage.FileDesc]struct{}
	current storage.FileDesc // the manifest, zero when it is the one on disk
}

// stagedFile is a storage.Writer.
type stagedFile struct {
	s      *Storage
	data   []byte
	closed bool
	out    *writer // the file on disk after Commit, nil if it was closed before
}

// Stage keeps all changes in memory until Commit. Call it before goleveldb
// opens the storage.
func (s *Storage) Stage() {
	s.staged.mu.Lock()
	defer s.staged.mu.Unlock()
	s.staged.on, s.staged.opened = true, false
	s.staged.files = make(map[storage.FileDesc]*stagedFile)
	s.staged.removed = make(map[storage.FileDesc]struct{})
	s.staged.current = storage.FileDesc{}
}

// Staged reports whether changes are kept in memory, and their size in bytes.
func (s *Storage) Staged() (bytes uint64, on bool) {
	s.staged.mu.Lock()
	defer s.staged.mu.Unlock()
	for _, f := range s.staged.files {
		bytes += uint64(len(f.data))
	}
	return bytes, s.staged.on
}

// Commit writes the staged files to disk, durably; from then on goleveldb writes
// there. After an error for lack of space (vfs.IsNoSpace) everything is as before.
func (s *Storage) Commit() error {
	g := &s.staged
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.on {
		return nil
	}
	written := make(map[storage.FileDesc]vfs.File)
	err := s.writeStaged(written)
	if err != nil {
		for fd, f := range written {
			_ = f.Close()
			_ = s.fs.Remove(s.path(fd))
		}
		_ = s.fs.Remove(filepath.Join(s.dir, tempName))
		return fmt.Errorf("write the index's staged files: %w", err)
	}
	if !g.current.Zero() {
		if err := s.switchCurrent(); err != nil {
			// CURRENT may be the new one, so no second attempt may touch the files: this
			// error must not pass for lack of space.
			return fmt.Errorf("switch to the index's staged files: %v", err) //nolint:errorlint // see above
		}
	}
	for fd, f := range g.files {
		if f.closed {
			_ = written[fd].Close() // synced
		} else {
			f.out = &writer{File: written[fd], s: s}
		}
		f.data = nil
	}
	for fd := range g.removed {
		if err := s.fs.Remove(s.path(fd)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.logger.Warn("an obsolete file of the index stays until the next start", "file", fd, "error", err)
		}
	}
	g.on, g.files, g.removed = false, nil, nil
	return nil
}

// writeStaged writes the staged files, and the next CURRENT under a temporary name.
func (s *Storage) writeStaged(written map[storage.FileDesc]vfs.File) error {
	for fd, f := range s.staged.files {
		out, err := s.fs.OpenFile(s.path(fd), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		written[fd] = out
		if _, err := out.Write(f.data); err != nil {
			return err
		}
		if err := out.Sync(); err != nil {
			return err
		}
	}
	if err := s.fs.SyncDir(s.dir); err != nil {
		return err
	}
	if s.staged.current.Zero() {
		return nil
	}
	return s.writeNext(s.staged.current)
}

func (s *Storage) writeNext(fd storage.FileDesc) error {
	return writeSynced(s.fs, filepath.Join(s.dir, tempName), []byte(fd.String()+"\n"))
}

func (s *Storage) switchCurrent() error {
	if err := s.fs.Rename(filepath.Join(s.dir, tempName), filepath.Join(s.dir, currentName)); err != nil {
		return err
	}
	return s.fs.SyncDir(s.dir)
}

// create returns nil if nothing is staged. A table created after the journal
// belongs to a compaction: it waits until it can be written to disk.
func (g *staged) create(s *Storage, fd storage.FileDesc) (storage.Writer, error) {
	for {
		g.mu.Lock()
		if !g.on {
			g.mu.Unlock()
			return nil, nil
		}
		if fd.Type != storage.TypeTable || !g.opened {
			f := &stagedFile{s: s}
			g.files[fd] = f
			delete(g.removed, fd)
			g.opened = g.opened || fd.Type == storage.TypeJournal
			g.mu.Unlock()
			return f, nil
		}
		g.mu.Unlock()
		select {
		case <-time.After(spaceEvery):
		case <-s.patience.aborted:
			return nil, fmt.Errorf("begin a table: %w", syscall.ENOSPC)
		}
	}
}

func (g *staged) open(fd storage.FileDesc) (storage.Reader, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f, ok := g.files[fd]
	if !ok {
		return nil, false
	}
	return stagedReader{bytes.NewReader(f.data)}, true
}

func (g *staged) remove(fd storage.FileDesc) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.on {
		delete(g.files, fd)
		g.removed[fd] = struct{}{}
	}
	return g.on
}

func (g *staged) setCurrent(fd storage.FileDesc) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.on {
		g.current = fd
	}
	return g.on
}

func (g *staged) getCurrent() (storage.FileDesc, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.current, g.on && !g.current.Zero()
}

// list turns the list of files on disk into the one that goleveldb expects.
func (g *staged) list(fds []storage.FileDesc, ft storage.FileType) []storage.FileDesc {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.on {
		return fds
	}
	all := make(map[storage.FileDesc]struct{})
	for _, fd := range fds {
		all[fd] = struct{}{}
	}
	for fd := range g.removed {
		delete(all, fd)
	}
	for fd := range g.files {
		if fd.Type&ft != 0 {
			all[fd] = struct{}{}
		}
	}
	fds = fds[:0]
	for fd := range maps.Keys(all) {
		fds = append(fds, fd)
	}
	return fds
}

// onDisk returns the file after Commit.
func (f *stagedFile) onDisk(inMemory func()) *writer {
	f.s.staged.mu.Lock()
	defer f.s.staged.mu.Unlock()
	if f.out == nil {
		inMemory()
	}
	return f.out
}

func (f *stagedFile) Write(b []byte) (int, error) {
	if w := f.onDisk(func() { f.data = append(f.data, b...) }); w != nil {
		return w.Write(b)
	}
	return len(b), nil
}

func (f *stagedFile) Sync() error {
	if w := f.onDisk(func() {}); w != nil {
		return w.Sync()
	}
	return nil
}

func (f *stagedFile) Close() error {
	if w := f.onDisk(func() { f.closed = true }); w != nil {
		return w.Close()
	}
	return nil
}

type stagedReader struct{ *bytes.Reader }

func (stagedReader) Close() error { return nil }
