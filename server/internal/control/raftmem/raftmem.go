// Package raftmem keeps Raft's log, vote and snapshots in memory, for tests in
// which a node is restarted. Written data survives Open like a restart on a
// synced disk; earlier instances can no longer write.
package raftmem

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// errStale is the error of a write by a node that has been restarted since.
var errStale = errors.New("this storage was reopened by a later start of the node")

// Disk is the storage of one node over its restarts.
type Disk struct {
	mu        sync.Mutex // guards everything here
	logs      *raft.InmemStore
	snapshots []*saved // finished ones, the newest first
	opened    int
	process   int
	failing   error
	full      error // of snapshots
	rotting   func(*raft.Log) bool
	latency   func() time.Duration
	underWay  []*write // in the order in which they began
}

// write is a write that waits for the disk.
type write struct {
	f    func() error
	logs []*raft.Log // that it stores, if it does
}

// Outcome is the fate of a write that a power cut interrupts.
type Outcome int

// The outcomes. After Torn, the last entry of the write has a flipped bit; a
// write without entries is lost.
const (
	Lost Outcome = iota
	Stored
	Torn
)

// kept is the number of snapshots kept, as on a real disk.
const kept = 2

// New returns an empty disk.
func New() *Disk {
	return &Disk{logs: raft.NewInmemStore()}
}

// Process begins a process of the node and returns the function that opens its
// storage. Storage of earlier processes fails from now on.
func (d *Disk) Process() func() (*Storage, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.process++
	d.opened++
	mine := d.process
	return func() (*Storage, error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.process != mine {
			return nil, errStale
		}
		return d.open(), nil
	}
}

// Open returns the storage for inspection by a test. Earlier ones fail from now
// on.
func (d *Disk) Open() *Storage {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.open()
}

func (d *Disk) open() *Storage {
	d.opened++
	return &Storage{disk: d, start: d.opened}
}

// SetLatency makes each write take as long as f returns; nil makes it immediate.
func (d *Disk) SetLatency(f func() time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.latency = f
}

// CutPower decides the fate of the writes in flight; those after one that is not
// stored are lost. None of their callers receives success: call Process or Open
// next.
func (d *Disk) CutPower(draw func() Outcome) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.underWay {
		outcome := draw()
		if outcome == Lost {
			break
		}
		if err := w.f(); err != nil || outcome != Torn {
			continue
		}
		if n := len(w.logs); n > 0 {
			torn := *w.logs[n-1]
			flip(&torn)
			_ = d.logs.StoreLog(&torn) // an InmemStore never fails
		}
		break
	}
	d.opened++
}

// Copy returns a copy of what is stored, as a snapshot of the volume holds it.
func (d *Disk) Copy() (*Disk, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := New()
	c.snapshots, c.latency = slices.Clone(d.snapshots), d.latency
	first, err := d.logs.FirstIndex()
	if err != nil {
		return nil, err
	}
	last, err := d.logs.LastIndex()
	if err != nil {
		return nil, err
	}
	for i := first; i <= last; i++ {
		var e raft.Log
		if err := d.logs.GetLog(i, &e); errors.Is(err, raft.ErrLogNotFound) {
			continue
		} else if err != nil {
			return nil, err
		}
		if err := c.logs.StoreLog(&e); err != nil {
			return nil, err
		}
	}
	for _, key := range [][]byte{[]byte("CurrentTerm"), []byte("LastVoteTerm"), []byte("LastVoteCand")} {
		if value, err := d.logs.Get(key); err == nil { // otherwise the error is "not found"
			if err := c.logs.Set(key, value); err != nil {
				return nil, err
			}
		}
		if number, _ := d.logs.GetUint64(key); number != 0 { // it never fails
			if err := c.logs.SetUint64(key, number); err != nil {
				return nil, err
			}
		}
	}
	return c, nil
}

// FailSnapshots makes later snapshots fail; nil lets them work again.
func (d *Disk) FailSnapshots(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full = err
}

// RotWrites makes the disk store entries that match with a flipped bit, without
// an error; nil ends that.
func (d *Disk) RotWrites(match func(*raft.Log) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rotting = match
}

// RotSnapshot flips a bit of a finished snapshot; 0 is the newest.
func (d *Disk) RotSnapshot(i int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.snapshots[i].data = bytes.Clone(d.snapshots[i].data)
	d.snapshots[i].data[len(d.snapshots[i].data)/2] ^= 1
}

// RotTerm flips a bit of the stored term.
func (d *Disk) RotTerm() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	key := []byte("CurrentTerm")
	held, err := d.logs.Get(key)
	if err != nil {
		return err
	}
	b := bytes.Clone(held)
	b[0] ^= 1
	return d.logs.Set(key, b)
}

// RotLog flips the last bit of the data of each entry that matches, and returns
// their number. A second call restores them.
func (d *Disk) RotLog(match func(*raft.Log) bool) (rotten int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	first, err := d.logs.FirstIndex()
	if err != nil {
		return 0, err
	}
	last, err := d.logs.LastIndex()
	if err != nil {
		return 0, err
	}
	for i := first; i <= last; i++ {
		var e raft.Log
		if err := d.logs.GetLog(i, &e); errors.Is(err, raft.ErrLogNotFound) {
			continue
		} else if err != nil {
			return rotten, err
		}
		if !match(&e) {
			continue
		}
		flip(&e)
		if err := d.logs.StoreLog(&e); err != nil {
			return rotten, err
		}
		rotten++
	}
	return rotten, nil
}

// flip flips the last bit of the data, or of the term when there is no data.
func flip(e *raft.Log) {
	if len(e.Data) == 0 {
		e.Term ^= 1
		return
	}
	e.Data = bytes.Clone(e.Data)
	e.Data[len(e.Data)-1] ^= 1
}

// Fail makes all later writes fail; nil lets them work again.
func (d *Disk) Fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failing = err
}

// Snapshot returns the index of the newest finished snapshot, 0 when there is
// none.
func (d *Disk) Snapshot() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.snapshots) == 0 {
		return 0
	}
	return d.snapshots[0].meta.Index
}

// Storage is the storage of one start of a node. It implements
// control.RaftStorage.
type Storage struct {
	disk   *Disk
	start  int
	closed bool
}

// write runs f unless the storage is closed, stale or failing. logs are the entries
// that f stores, if it does.
func (s *Storage) write(f func() error, logs ...*raft.Log) error {
	d := s.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	if latency := d.latency; latency != nil {
		w := &write{f, logs}
		d.underWay = append(d.underWay, w)
		d.mu.Unlock()
		time.Sleep(latency())
		d.mu.Lock()
		d.underWay = slices.DeleteFunc(d.underWay, func(other *write) bool { return other == w })
	}
	switch {
	case s.closed || d.opened != s.start:
		return errStale
	case d.failing != nil:
		return d.failing
	}
	return f()
}

// Logs implements control.RaftStorage.
func (s *Storage) Logs() raft.LogStore { return logs{s} }

// Stable implements control.RaftStorage.
func (s *Storage) Stable() raft.StableStore { return stable{s} }

// Snapshots implements control.RaftStorage.
func (s *Storage) Snapshots() raft.SnapshotStore { return snapshots{s} }

// Close implements control.RaftStorage.
func (s *Storage) Close() error {
	s.disk.mu.Lock()
	defer s.disk.mu.Unlock()
	s.closed = true
	return nil
}

// DropSnapshot implements control.RaftStorage.
func (s *Storage) DropSnapshot(id string) error {
	return s.write(func() error {
		s.disk.snapshots = slices.DeleteFunc(s.disk.snapshots, func(held *saved) bool { return held.meta.ID == id })
		return nil
	})
}

type logs struct{ s *Storage }

func (l logs) FirstIndex() (uint64, error)            { return l.s.disk.logs.FirstIndex() }
func (l logs) LastIndex() (uint64, error)             { return l.s.disk.logs.LastIndex() }
func (l logs) GetLog(index uint64, e *raft.Log) error { return l.s.disk.logs.GetLog(index, e) }
func (l logs) StoreLog(e *raft.Log) error             { return l.StoreLogs([]*raft.Log{e}) }

func (l logs) StoreLogs(e []*raft.Log) error {
	return l.s.write(func() error {
		stored := slices.Clone(e)
		for i := range stored {
			if rots := l.s.disk.rotting; rots != nil && rots(stored[i]) {
				c := *stored[i]
				flip(&c)
				stored[i] = &c
			}
		}
		return l.s.disk.logs.StoreLogs(stored)
	}, e...)
}

func (l logs) DeleteRange(first, last uint64) error {
	return l.s.write(func() error { return l.s.disk.logs.DeleteRange(first, last) })
}

type stable struct{ s *Storage }

func (t stable) Get(key []byte) ([]byte, error)       { return t.s.disk.logs.Get(key) }
func (t stable) GetUint64(key []byte) (uint64, error) { return t.s.disk.logs.GetUint64(key) }

func (t stable) Set(key, value []byte) error {
	return t.s.write(func() error { return t.s.disk.logs.Set(key, value) })
}

func (t stable) SetUint64(key []byte, value uint64) error {
	return t.s.write(func() error { return t.s.disk.logs.SetUint64(key, value) })
}

// saved is a snapshot.
type saved struct {
	meta raft.SnapshotMeta
	data []byte
}

type snapshots struct{ s *Storage }

// Create begins a snapshot, which exists once its sink is closed.
func (t snapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, _ raft.Transport,
) (raft.SnapshotSink, error) {
	id := fmt.Sprintf("%d-%d-%d", term, index, time.Now().UnixNano())
	return &sink{s: t.s, saved: saved{meta: raft.SnapshotMeta{
		Version: version, ID: id, Index: index, Term: term,
		Configuration: configuration, ConfigurationIndex: configurationIndex,
	}}}, nil
}

func (t snapshots) List() ([]*raft.SnapshotMeta, error) {
	t.s.disk.mu.Lock()
	defer t.s.disk.mu.Unlock()
	var all []*raft.SnapshotMeta
	for _, held := range t.s.disk.snapshots {
		meta := held.meta
		all = append(all, &meta)
	}
	return all, nil
}

func (t snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	t.s.disk.mu.Lock()
	defer t.s.disk.mu.Unlock()
	for _, have := range t.s.disk.snapshots {
		if have.meta.ID == id {
			meta := have.meta
			return &meta, io.NopCloser(bytes.NewReader(bytes.Clone(have.data))), nil
		}
	}
	return nil, nil, fmt.Errorf("there is no snapshot %s", id)
}

type sink struct {
	s *Storage
	saved
	done bool
}

func (k *sink) ID() string { return k.meta.ID }

func (k *sink) Write(p []byte) (int, error) {
	k.data = append(k.data, p...)
	return len(p), nil
}

func (k *sink) Close() error {
	if k.done {
		return nil
	}
	k.done = true
	return k.s.write(func() error {
		if k.s.disk.full != nil {
			return k.s.disk.full
		}
		k.meta.Size = int64(len(k.data))
		all := slices.Insert(k.s.disk.snapshots, 0, &k.saved)
		k.s.disk.snapshots = all[:min(len(all), kept)]
		return nil
	})
}

func (k *sink) Cancel() error {
	k.done = true
	return nil
}
