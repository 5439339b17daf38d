// Package memfs is a simulated disk that behaves as badly as a real one may.
//
// It distinguishes written data from durable data. Content becomes durable by
// File.Sync, names by FS.SyncDir, and Crash decides, from the seed, which other
// data reached the platter: any subset of the unsynced 512-byte sectors of a
// file, and any prefix of the unsynced changes of a directory. A failed Sync
// behaves like the kernel's: the content reads as written, later syncs succeed,
// and a crash restores the old bytes.
//
// A Disk does no real input or output, starts no goroutine, and waits only by
// time.Sleep, when SetLatency asks for it: it runs under testing/synctest.
// Directories may represent separate volumes (SetCapacity).
package memfs

import (
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/stemedb/stemedb/server/internal/vfs"
)

// Disk is a simulated disk. It implements vfs.FS, for callers that outlive
// crashes; a simulated process uses Process.
type Disk struct {
	view
	mu      sync.Mutex
	rng     *rand.Rand
	root    *node
	locks   map[string]*lock
	volumes map[string]uint64 // directory → capacity in bytes
	open    int
	// epoch increases with each Crash; a handle of an earlier epoch is dead.
	epoch   int
	ops     int
	crashAt int // the operation at which the power is cut; 0 = none
	off     bool
	faults  []*fault
	latency func(Op) time.Duration
}

var _ vfs.FS = (*Disk)(nil)

// view is the disk as a process sees it: after the Crash that ends the process,
// every operation fails, even one that was waiting for the disk.
type view struct {
	d     *Disk
	epoch int // that of the process; anyEpoch outlives crashes
}

const anyEpoch = -1

// Process returns the disk for a process that starts now and ends with the next
// Crash.
func (d *Disk) Process() vfs.FS {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &view{d, d.epoch}
}

// New returns an empty disk. The seed decides which data survives crashes.
func New(seed uint64) *Disk {
	d := &Disk{
		rng:     rand.New(rand.NewPCG(seed, 0x5eed)),
		root:    newDir(),
		locks:   map[string]*lock{},
		volumes: map[string]uint64{},
	}
	d.view = view{d, anyEpoch}
	return d
}

// node is a file or a directory.
type node struct {
	dir   bool
	mtime time.Time
	file  content
	// names is the visible state of a directory, durable the state that certainly
	// survives a crash, pending the changes between the two, in order.
	names   map[string]*node
	durable map[string]*node
	pending []*change
}

// change is one unsynced change of names. A rename changes several at once and
// takes effect as a whole.
type change struct {
	edits   []edit
	applied bool
}

type edit struct {
	in   *node
	name string
	to   *node // nil removes
}

func newDir() *node {
	return &node{dir: true, mtime: time.Now(), names: map[string]*node{}, durable: map[string]*node{}}
}

func split(name string) []string {
	name = filepath.ToSlash(filepath.Clean(name))
	name = strings.Trim(name, "/")
	if name == "" || name == "." {
		return nil
	}
	return strings.Split(name, "/")
}

// find returns the node of name, and its parent with the last element.
func (d *Disk) find(op, name string) (n, parent *node, base string, err error) {
	n = d.root
	for _, el := range split(name) {
		if n == nil {
			return nil, nil, "", &fs.PathError{Op: op, Path: name, Err: syscall.ENOENT}
		}
		if !n.dir {
			return nil, nil, "", &fs.PathError{Op: op, Path: name, Err: syscall.ENOTDIR}
		}
		parent, base, n = n, el, n.names[el]
	}
	return n, parent, base, nil
}

func (d *Disk) change(edits ...edit) {
	c := &change{edits: edits}
	for i, e := range edits {
		if e.to == nil {
			delete(e.in.names, e.name)
		} else {
			e.in.names[e.name] = e.to
		}
		if i == 0 || edits[i-1].in != e.in {
			e.in.pending = append(e.in.pending, c)
		}
	}
}

func (c *change) apply() {
	if c.applied {
		return
	}
	c.applied = true
	for _, e := range c.edits {
		if e.to == nil {
			delete(e.in.durable, e.name)
		} else {
			e.in.durable[e.name] = e.to
		}
	}
}

// OpenFile implements vfs.FS.
func (v *view) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	kind := OpOpen
	if flag&(syscall.O_CREAT|syscall.O_TRUNC) != 0 {
		kind = OpCreate
	}
	unlock, err := v.begin(Op{kind, name})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	defer unlock()
	n, parent, base, err := v.d.find("open", name)
	switch {
	case err != nil:
		return nil, err
	case n == nil && flag&syscall.O_CREAT == 0:
		return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.ENOENT}
	case n != nil && n.dir:
		return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.EISDIR}
	case n != nil && flag&syscall.O_CREAT != 0 && flag&syscall.O_EXCL != 0:
		return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.EEXIST}
	case n == nil:
		n = &node{mtime: time.Now()}
		v.d.change(edit{parent, base, n})
	case flag&syscall.O_TRUNC != 0:
		n.file.truncate(0)
	}
	v.d.open++
	return &file{d: v.d, n: n, name: name, flag: flag, epoch: v.d.epoch}, nil
}

// Rename implements vfs.FS.
func (v *view) Rename(oldname, newname string) error {
	unlock, err := v.begin(Op{OpRename, oldname})
	if err != nil {
		return &fs.PathError{Op: "rename", Path: oldname, Err: err}
	}
	defer unlock()
	n, oldDir, oldBase, err := v.d.find("rename", oldname)
	if err != nil {
		return err
	}
	if n == nil || oldDir == nil {
		return &fs.PathError{Op: "rename", Path: oldname, Err: syscall.ENOENT}
	}
	_, newDir, newBase, err := v.d.find("rename", newname)
	if err != nil {
		return err
	}
	if oldDir == newDir && oldBase == newBase {
		return nil
	}
	v.d.change(edit{oldDir, oldBase, nil}, edit{newDir, newBase, n})
	return nil
}

// Remove implements vfs.FS.
func (v *view) Remove(name string) error {
	unlock, err := v.begin(Op{OpRemove, name})
	if err != nil {
		return &fs.PathError{Op: "remove", Path: name, Err: err}
	}
	defer unlock()
	n, parent, base, err := v.d.find("remove", name)
	if err != nil {
		return err
	}
	if n == nil || parent == nil {
		return &fs.PathError{Op: "remove", Path: name, Err: syscall.ENOENT}
	}
	if n.dir && len(n.names) > 0 {
		return &fs.PathError{Op: "remove", Path: name, Err: syscall.ENOTEMPTY}
	}
	v.d.change(edit{parent, base, nil})
	return nil
}

// MkdirAll implements vfs.FS; new directories are durable at once.
func (v *view) MkdirAll(dir string, _ fs.FileMode) error {
	unlock, err := v.begin(Op{OpMkdir, dir})
	if err != nil {
		return &fs.PathError{Op: "mkdir", Path: dir, Err: err}
	}
	defer unlock()
	n := v.d.root
	for _, el := range split(dir) {
		next := n.names[el]
		if next == nil {
			next = newDir()
			n.names[el], n.durable[el] = next, next
		}
		if !next.dir {
			return &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
		}
		n = next
	}
	return nil
}

// ReadDir implements vfs.FS.
func (v *view) ReadDir(dir string) ([]fs.DirEntry, error) {
	unlock, err := v.begin(Op{OpOpen, dir})
	if err != nil {
		return nil, &fs.PathError{Op: "readdir", Path: dir, Err: err}
	}
	defer unlock()
	n, _, _, err := v.d.find("readdir", dir)
	if err != nil {
		return nil, err
	}
	if n == nil || !n.dir {
		return nil, &fs.PathError{Op: "readdir", Path: dir, Err: syscall.ENOENT}
	}
	out := make([]fs.DirEntry, 0, len(n.names))
	for name, c := range n.names {
		out = append(out, fs.FileInfoToDirEntry(newInfo(name, c)))
	}
	slices.SortFunc(out, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return out, nil
}

// Stat implements vfs.FS.
func (v *view) Stat(name string) (fs.FileInfo, error) {
	unlock, err := v.begin(Op{OpOpen, name})
	if err != nil {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	defer unlock()
	n, _, base, err := v.d.find("stat", name)
	if err != nil {
		return nil, err
	}
	if n == nil {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: syscall.ENOENT}
	}
	return newInfo(base, n), nil
}

// SyncDir implements vfs.FS.
func (v *view) SyncDir(dir string) error {
	unlock, err := v.begin(Op{OpSyncDir, dir})
	if err != nil {
		return &fs.PathError{Op: "syncdir", Path: dir, Err: err}
	}
	defer unlock()
	n, _, _, err := v.d.find("syncdir", dir)
	if err != nil {
		return err
	}
	if n == nil || !n.dir {
		return &fs.PathError{Op: "syncdir", Path: dir, Err: syscall.ENOENT}
	}
	for _, c := range n.pending {
		c.apply()
	}
	n.pending = nil
	return nil
}

// Lock implements vfs.FS. A crash releases all locks.
func (v *view) Lock(name string) (io.Closer, error) {
	unlock, err := v.begin(Op{OpOpen, name})
	if err != nil {
		return nil, &fs.PathError{Op: "lock", Path: name, Err: err}
	}
	defer unlock()
	n, parent, base, err := v.d.find("lock", name)
	if err != nil {
		return nil, err
	}
	if n == nil {
		v.d.change(edit{parent, base, &node{mtime: time.Now()}})
	}
	key := strings.Join(split(name), "/")
	if v.d.locks[key] != nil {
		return nil, fmt.Errorf("%s: %w", name, vfs.ErrLocked)
	}
	v.d.open++
	v.d.locks[key] = &lock{d: v.d, key: key}
	return v.d.locks[key], nil
}

type lock struct {
	d   *Disk
	key string
}

func (l *lock) Close() error {
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	if l.d.locks[l.key] == l {
		delete(l.d.locks, l.key)
		l.d.open--
	}
	return nil
}

// Free implements vfs.FS. Without SetCapacity a volume has 1 TiB.
func (v *view) Free(dir string) (freeBytes, totalBytes uint64, err error) {
	unlock, err := v.begin(Op{OpOpen, dir})
	if err != nil {
		return 0, 0, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	defer unlock()
	vol, total := v.d.volume(dir)
	used := v.d.used(vol)
	return total - min(used, total), total, nil
}

type info struct {
	name string
	size int64
	dir  bool
	at   time.Time
}

func newInfo(name string, n *node) info { return info{name, n.file.size, n.dir, n.mtime} }

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.size }
func (i info) ModTime() time.Time { return i.at }
func (i info) IsDir() bool        { return i.dir }
func (i info) Sys() any           { return nil }
func (i info) Mode() fs.FileMode {
	if i.dir {
		return fs.ModeDir | 0o700
	}
	return 0o600
}
