package memfs

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"time"
)

// ErrPowerCut is returned by every operation after a power cut, and permanently
// by handles opened before it.
var ErrPowerCut = errors.New("memfs: the power was cut")

// OpKind names an operation of the disk.
type OpKind int

// Kinds of operations. OpOpen also covers operations that change nothing
// (ReadDir, Stat, Lock, Free); OpCreate is an open that may create or truncate.
const (
	OpOpen OpKind = iota
	OpRead
	OpCreate
	OpWrite
	OpSync
	OpTruncate
	OpRename
	OpRemove
	OpMkdir
	OpSyncDir
)

func (k OpKind) String() string {
	names := [...]string{"open", "read", "create", "write", "sync", "truncate", "rename", "remove", "mkdir", "syncdir"}
	if k < 0 || int(k) >= len(names) {
		return fmt.Sprintf("OpKind(%d)", int(k))
	}
	return names[k]
}

// changes reports whether the operation modifies the disk. Only such operations
// count for CutPowerAfter.
func (k OpKind) changes() bool { return k >= OpCreate }

// Op is one operation on one name (the old one for a rename).
type Op struct {
	Kind OpKind
	Name string
}

type fault struct {
	kind  OpKind
	match string
	left  int // operations still let through
	times int // failures left; < 0 = all
	err   error
}

// Fail makes operations of a kind fail with err, on names that contain match
// ("" = all): n of them succeed first, then `times` fail (negative: all later
// ones). A failing write writes nothing; a failing Sync loses the data that it
// should have made durable. Several calls accumulate.
func (d *Disk) Fail(kind OpKind, match string, n, times int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.faults = append(d.faults, &fault{kind, match, n, times, err})
}

// FailSync makes the nth (from 1) file Sync from now on fail, and only that one.
func (d *Disk) FailSync(n int) { d.Fail(OpSync, "", n-1, 1, syscall.EIO) }

// Heal removes all faults and the latency.
func (d *Disk) Heal() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.faults, d.latency = nil, nil
}

// SetLatency makes each operation sleep first; nil removes the latency.
func (d *Disk) SetLatency(f func(Op) time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.latency = f
}

// SetCapacity makes dir a volume of the given size. Files occupy whole 4 KiB
// pages. Existing files stay even if they exceed it. 0 removes the limit.
func (d *Disk) SetCapacity(dir string, bytes uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if bytes == 0 {
		delete(d.volumes, strings.Join(split(dir), "/"))
		return
	}
	d.volumes[strings.Join(split(dir), "/")] = bytes
}

// FlipBit inverts one bit (0..7) of the byte at off, durably.
func (d *Disk) FlipBit(name string, off int64, bit uint) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, _, _, err := d.find("flip", name)
	if err != nil {
		return err
	}
	if n == nil || n.dir || off < 0 || off >= n.file.size {
		return fmt.Errorf("memfs: no byte %d in %s", off, name)
	}
	p := n.file.page(off/pageSize, true)
	p[off%pageSize] ^= 1 << (bit % 8)
	if old := n.file.dirty[off/sectorSize]; old != nil {
		old[off%sectorSize] ^= 1 << (bit % 8)
	}
	return nil
}

// Wipe empties a directory immediately and durably, like a replaced volume.
func (d *Disk) Wipe(dir string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n, _, _, err := d.find("wipe", dir); err == nil && n != nil && n.dir {
		n.names, n.durable, n.pending = map[string]*node{}, map[string]*node{}, nil
	}
}

// OpenFiles is the number of handles and locks not closed yet.
func (d *Disk) OpenFiles() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.open
}

// CutPowerAfter cuts the power after n more modifying operations: operation n+1
// and everything after it fail with ErrPowerCut until Crash.
func (d *Disk) CutPowerAfter(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.crashAt = d.ops + n + 1
}

// PoweredOff reports whether the power has been cut.
func (d *Disk) PoweredOff() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.off
}

// Mode decides which unsynced data survives a crash.
type Mode int

const (
	// KillProcess: everything survives, in the page cache, and is still not
	// durable.
	KillProcess Mode = iota
	// LoseAll: no unsynced data survives.
	LoseAll
	// KeepAll: everything happened to be written in time.
	KeepAll
	// LoseSome: each sector survives by chance, drawn from the seed, and so does a
	// prefix of each directory's changes.
	LoseSome
)

// Crash ends the process that used the disk: its handles are dead, its locks
// are released, and mode decides about unsynced data. The disk can be used
// again afterwards; a planned power cut is forgotten, faults stay.
func (d *Disk) Crash(mode Mode) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.epoch++
	d.open, d.locks = 0, map[string]*lock{}
	d.off, d.crashAt = false, 0
	if mode == KillProcess {
		return
	}
	keep := map[Mode]float64{LoseAll: 0, KeepAll: 1}[mode]
	if mode == LoseSome {
		// Disks mostly write all or nothing of a burst; both extremes and the middle
		// must occur.
		keep = []float64{0.1, 0.5, 0.9, 0.98}[d.rng.IntN(4)]
	}
	d.crashNode(d.root, mode, keep, map[*node]bool{})
}

func (d *Disk) crashNode(n *node, mode Mode, keep float64, seen map[*node]bool) {
	if seen[n] {
		return
	}
	seen[n] = true
	if !n.dir {
		n.file.crash(d.rng, keep)
		return
	}
	upTo := len(n.pending)
	switch mode {
	case LoseAll:
		upTo = 0
	case LoseSome:
		upTo = d.rng.IntN(len(n.pending) + 1)
	}
	for _, c := range n.pending[:upTo] {
		c.apply()
	}
	n.pending = nil
	n.names = maps.Clone(n.durable)
	for _, name := range sortedKeys(n.names) {
		d.crashNode(n.names[name], mode, keep, seen)
	}
}

// begin is the start of every operation: latency, power, faults. It returns
// with the disk locked, or with an error.
func (v *view) begin(op Op) (unlock func(), err error) {
	d := v.d
	d.mu.Lock()
	epoch := v.epoch
	if epoch == anyEpoch {
		epoch = d.epoch
	}
	if f := d.latency; f != nil {
		d.mu.Unlock()
		time.Sleep(f(op))
		d.mu.Lock()
	}
	err = ErrPowerCut
	if epoch == d.epoch {
		err = d.gate(op)
	}
	if err != nil {
		d.mu.Unlock()
		return nil, err
	}
	return d.mu.Unlock, nil
}

func (d *Disk) gate(op Op) error {
	if d.off {
		return ErrPowerCut
	}
	if op.Kind.changes() {
		d.ops++
		if d.crashAt > 0 && d.ops >= d.crashAt {
			d.off = true
			return ErrPowerCut
		}
	}
	for _, f := range d.faults {
		if f.kind != op.Kind || f.times == 0 || !strings.Contains(op.Name, f.match) {
			continue
		}
		if f.left > 0 {
			f.left--
			continue
		}
		f.times--
		if op.Kind == OpSync {
			if n, _, _, err := d.find("sync", op.Name); err == nil && n != nil {
				n.file.syncFailed()
			}
		}
		return f.err
	}
	return nil
}

// volume returns the volume of a name and its capacity.
func (d *Disk) volume(name string) (dir string, capacity uint64) {
	parts, capacity := split(name), uint64(1<<40)
	for i := 0; i <= len(parts); i++ {
		v := strings.Join(parts[:i], "/")
		if c, ok := d.volumes[v]; ok {
			dir, capacity = v, c
		}
	}
	return dir, capacity
}

func pages(size int64) uint64 { return uint64((size + pageSize - 1) / pageSize * pageSize) }

// used counts the bytes below a volume's directory, without other volumes.
func (d *Disk) used(vol string) uint64 {
	n, _, _, err := d.find("statfs", vol)
	if err != nil || n == nil {
		return 0
	}
	var sum uint64
	var walk func(n *node, at string)
	walk = func(n *node, at string) {
		for name, c := range n.names {
			below := strings.TrimPrefix(at+"/"+name, "/")
			if _, other := d.volumes[below]; other {
				continue
			}
			if c.dir {
				walk(c, below)
			} else {
				sum += pages(c.file.size)
			}
		}
	}
	walk(n, vol)
	return sum
}

// room returns the size that n can reach: want if there is space for it.
func (d *Disk) room(name string, n *node, want int64) int64 {
	if len(d.volumes) == 0 || pages(want) <= pages(n.file.size) {
		return max(want, n.file.size)
	}
	vol, capacity := d.volume(name)
	used := d.used(vol)
	if used >= capacity {
		return int64(pages(n.file.size))
	}
	return int64(pages(n.file.size) + (capacity-used)/pageSize*pageSize)
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	return slices.Sorted(maps.Keys(m))
}
