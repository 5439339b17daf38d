// Package leveldbfs keeps goleveldb's files on a vfs.FS, so that simulated
// crashes, failing syncs and flipped bits reach the index too.
//
// It promises the same as goleveldb's own file storage, and a little more:
// SetMeta is atomic and durable, and syncing any file also makes its name
// durable. So a manifest never names a table that a power cut removed.
package leveldbfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/syndtr/goleveldb/leveldb/storage"

	"github.com/stemedb/stemedb/server/internal/vfs"
)

const (
	currentName = "CURRENT"
	tempName    = "CURRENT.new"
	lockName    = "LOCK"
)

// Storage is a goleveldb storage in one directory.
type Storage struct {
	fs     vfs.FS
	dir    string
	logger *slog.Logger
	lock   io.Closer

	mu      sync.Mutex
	locked  bool // by goleveldb, through Lock
	closed  bool
	journal storage.FileDesc // the latest one created

	patience patience
	staged   staged
}

var _ storage.Storage = (*Storage)(nil)

// Open locks dir and creates it if needed. logger may be nil.
func Open(fsys vfs.FS, dir string, logger *slog.Logger) (*Storage, error) {
	if err := fsys.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the index directory: %w", err)
	}
	lock, err := fsys.Lock(filepath.Join(dir, lockName))
	if err != nil {
		return nil, fmt.Errorf("lock the index directory: %w", err)
	}
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Storage{
		fs: fsys, dir: dir, logger: logger, lock: lock,
		patience: patience{aborted: make(chan struct{})},
	}, nil
}

// Lock implements storage.Storage.
func (s *Storage) Lock() (storage.Locker, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, storage.ErrClosed
	}
	if s.locked {
		return nil, storage.ErrLocked
	}
	s.locked = true
	return unlocker{s}, nil
}

type unlocker struct{ s *Storage }

func (u unlocker) Unlock() {
	u.s.mu.Lock()
	defer u.s.mu.Unlock()
	u.s.locked = false
}

// Log implements storage.Storage: goleveldb reports its compactions.
func (s *Storage) Log(str string) { s.logger.Debug("goleveldb", "msg", str) }

// SetMeta implements storage.Storage.
func (s *Storage) SetMeta(fd storage.FileDesc) error {
	if err := s.check(fd); err != nil {
		return err
	}
	if s.staged.setCurrent(fd) {
		return nil
	}
	if err := s.withSpace(func() error { return s.writeNext(fd) }); err != nil {
		return err
	}
	return s.switchCurrent()
}

// GetMeta implements storage.Storage.
func (s *Storage) GetMeta() (storage.FileDesc, error) {
	if fd, ok := s.staged.getCurrent(); ok {
		return fd, nil
	}
	b, err := readAll(s.fs, filepath.Join(s.dir, currentName))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = os.ErrNotExist
		}
		return storage.FileDesc{}, err
	}
	name, whole := bytes.CutSuffix(b, []byte("\n"))
	fd, ok := parseName(string(name))
	if !whole || !ok || fd.Type != storage.TypeManifest {
		return storage.FileDesc{}, &storage.ErrCorrupted{Err: fmt.Errorf("%s holds %.40q instead of the name of a manifest", currentName, b)}
	}
	if _, err := s.fs.Stat(filepath.Join(s.dir, fd.String())); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			return storage.FileDesc{}, err // it may still exist
		}
		// CURRENT is written only after its manifest is synced: a missing manifest
		// was lost, and an empty database must not take its place.
		return storage.FileDesc{}, &storage.ErrCorrupted{Fd: fd, Err: fmt.Errorf("the manifest that %s names: %w", currentName, err)}
	}
	return fd, nil
}

// List implements storage.Storage.
func (s *Storage) List(ft storage.FileType) ([]storage.FileDesc, error) {
	entries, err := s.fs.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var fds []storage.FileDesc
	for _, e := range entries {
		if fd, ok := parseName(e.Name()); ok && fd.Type&ft != 0 {
			fds = append(fds, fd)
		}
	}
	return s.staged.list(fds, ft), nil
}

// Open implements storage.Storage.
func (s *Storage) Open(fd storage.FileDesc) (storage.Reader, error) {
	if err := s.check(fd); err != nil {
		return nil, err
	}
	if r, ok := s.staged.open(fd); ok {
		return r, nil
	}
	f, err := s.fs.OpenFile(s.path(fd), os.O_RDONLY, 0)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, os.ErrNotExist // goleveldb compares with ==
		}
		return nil, err
	}
	size, err := f.Size()
	if err != nil {
		f.Close()
		return nil, err
	}
	return reader{io.NewSectionReader(f, 0, size), f}, nil
}

// Create implements storage.Storage.
func (s *Storage) Create(fd storage.FileDesc) (storage.Writer, error) {
	if err := s.check(fd); err != nil {
		return nil, err
	}
	w, err := s.staged.create(s, fd)
	if err == nil && w == nil {
		w, err = s.createOnDisk(fd)
	}
	if err != nil {
		return nil, err
	}
	if fd.Type == storage.TypeJournal {
		s.mu.Lock()
		s.journal = fd
		s.mu.Unlock()
	}
	return w, nil
}

func (s *Storage) createOnDisk(fd storage.FileDesc) (storage.Writer, error) {
	var f vfs.File
	err := s.withSpace(func() (err error) {
		f, err = s.fs.OpenFile(s.path(fd), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &writer{File: f, s: s}, nil
}

// Journal names the journal that goleveldb began last. Everything written
// before is in this one or an earlier one.
func (s *Storage) Journal() storage.FileDesc {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.journal
}

// Gone reports whether goleveldb has removed a file. A removed journal means
// that everything written to it, and to earlier ones, is in tables.
func (s *Storage) Gone(fd storage.FileDesc) (bool, error) {
	if _, staged := s.Staged(); staged {
		return false, nil // staged data is in no table
	}
	_, err := s.fs.Stat(s.path(fd))
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return false, err
}

// Remove implements storage.Storage.
func (s *Storage) Remove(fd storage.FileDesc) error {
	if err := s.check(fd); err != nil {
		return err
	}
	if s.staged.remove(fd) {
		return nil
	}
	return s.fs.Remove(s.path(fd))
}

// Rename implements storage.Storage.
func (s *Storage) Rename(oldfd, newfd storage.FileDesc) error {
	if err := s.check(oldfd); err != nil {
		return err
	}
	if err := s.check(newfd); err != nil {
		return err
	}
	if oldfd == newfd {
		return nil
	}
	if _, on := s.Staged(); on {
		return errors.ErrUnsupported // goleveldb renames in RecoverFile only
	}
	return s.fs.Rename(s.path(oldfd), s.path(newfd))
}

// Close releases the directory. goleveldb does not do it: the caller of Open
// does.
func (s *Storage) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return storage.ErrClosed
	}
	s.closed = true
	return s.lock.Close()
}

func (s *Storage) path(fd storage.FileDesc) string { return filepath.Join(s.dir, fd.String()) }

func (s *Storage) check(fd storage.FileDesc) error {
	if !storage.FileDescOk(fd) {
		return storage.ErrInvalidFile
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return storage.ErrClosed
	}
	return nil
}

// RemoveAll durably removes every file that goleveldb may have left in dir, and
// nothing else. A missing directory is fine.
func RemoveAll(fsys vfs.FS, dir string) error {
	entries, err := fsys.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list the index directory: %w", err)
	}
	// CURRENT is removed first: without it goleveldb finds no database.
	for _, name := range []string{currentName, tempName} {
		if err := fsys.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the index: %w", err)
		}
	}
	if err := fsys.SyncDir(dir); err != nil {
		return err
	}
	for _, e := range entries {
		if _, ok := parseName(e.Name()); !ok {
			continue
		}
		if err := fsys.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the index: %w", err)
		}
	}
	return fsys.SyncDir(dir)
}

type reader struct {
	*io.SectionReader
	f vfs.File
}

func (r reader) Close() error { return r.f.Close() }

type writer struct {
	vfs.File
	s *Storage
}

// Sync makes the file's name durable too. goleveldb's own storage does so for
// manifests only. But a manifest's record may reach the disk before the names
// do, and then it names a table that a power cut has removed. So a table must
// have a durable name before any manifest mentions it.
func (w *writer) Sync() error {
	if err := w.File.Sync(); err != nil {
		return err
	}
	return w.s.fs.SyncDir(w.s.dir)
}

// parseName is the inverse of storage.FileDesc.String.
func parseName(name string) (storage.FileDesc, bool) {
	var fd storage.FileDesc
	var digits string
	if rest, ok := strings.CutPrefix(name, "MANIFEST-"); ok {
		fd.Type, digits = storage.TypeManifest, rest
	} else {
		rest, ext, _ := strings.Cut(name, ".")
		digits = rest
		switch ext {
		case "log":
			fd.Type = storage.TypeJournal
		case "ldb":
			fd.Type = storage.TypeTable
		case "tmp":
			fd.Type = storage.TypeTemp
		default:
			return fd, false
		}
	}
	if len(digits) < 6 || len(digits) > 18 {
		return fd, false
	}
	for i := range len(digits) {
		if digits[i] < '0' || digits[i] > '9' {
			return fd, false
		}
		fd.Num = fd.Num*10 + int64(digits[i]-'0')
	}
	return fd, true
}

func readAll(fsys vfs.FS, name string) ([]byte, error) {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 1<<10))
}

func writeSynced(fsys vfs.FS, name string, b []byte) error {
	f, err := fsys.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
