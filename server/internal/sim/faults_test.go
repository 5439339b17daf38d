package sim

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"path"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// fault is one kind of disturbance.
type fault struct {
	name   string
	weight int
	run    func(*episode)
}

// mildFaults destroy no synced data. They may overlap, and affect any number of
// machines.
var mildFaults = []fault{
	{"crash", 5, (*episode).crash},
	{"power cut at a disk operation", 6, (*episode).powerCut},
	{"power cut everywhere", 2, (*episode).powerCutEverywhere},
	{"restart", 2, (*episode).restart},
	{"one way cut", 3, (*episode).cutOneWay},
	{"isolation", 3, (*episode).isolate},
	{"partition", 2, (*episode).partition},
	{"slow link", 2, (*episode).slowLink},
	{"datagram loss", 2, (*episode).loseDatagrams},
	{"moved address", 2, (*episode).moveAddress},
	{"pause", 3, (*episode).pauseProcess},
	{"wrong clock", 2, (*episode).wrongClock},
	{"slow disk", 3, (*episode).slowDisk},
	{"sync error", 2, func(e *episode) { e.diskErrors(memfs.OpSync, 1) }},
	{"write error", 2, func(e *episode) { e.diskErrors(memfs.OpWrite, 1) }},
	{"read errors", 2, func(e *episode) { e.diskErrors(memfs.OpRead, -1) }},
	{"full disk", 2, (*episode).fullDisk},
	{"control storage error", 1, (*episode).controlStorage},
	{"nothing", 2, func(e *episode) { e.last(20 * time.Second) }},
}

// graveFaults destroy synced data. The promises cover one at a time, while all
// other members are whole; mild faults overlap with it.
var graveFaults = []fault{
	{"both volumes lost", 3, func(e *episode) { e.lose(walDir, dbDir) }},
	{"WAL volume lost", 2, func(e *episode) { e.lose(walDir) }},
	{"DB volume lost", 2, func(e *episode) { e.lose(dbDir) }},
	{"pack lost", 2, (*episode).losePack},
	{"flipped bit", 4, (*episode).flipBit},
	{"rollback of both volumes", 1, func(e *episode) { e.rollBack(walDir, dbDir) }},
	{"rollback of the WAL volume", 1, func(e *episode) { e.rollBack(walDir) }},
	{"rollback of the DB volume", 1, func(e *episode) { e.rollBack(dbDir) }},
	{"torn control storage", 2, (*episode).tornControl},
}

// episode is one active fault. Its machine is reserved for it.
type episode struct {
	w *world
	m *machine
	r *rand.Rand
	// begun is closed once data has been destroyed; overlapping faults wait for it.
	begun func()
}

func draw(r *rand.Rand, from []fault) *fault {
	sum := 0
	for i := range from {
		sum += from[i].weight
	}
	n := r.IntN(sum)
	for i := range from {
		if n -= from[i].weight; n < 0 {
			return &from[i]
		}
	}
	panic("unreachable")
}

// step chooses a random fault, or several that overlap, and waits until they end.
func (w *world) step() {
	var running sync.WaitGroup
	grave := w.rng.IntN(4) == 0
	if grave {
		w.heal()
		w.settle()
		begun := make(chan struct{})
		running.Go(w.episode(draw(w.rng, graveFaults), sync.OnceFunc(func() { close(begun) })))
		<-begun
	}
	// A newcomer joins during other faults, including the loss of a volume.
	if len(w.machines) < 5 && w.rng.IntN(12) == 0 {
		w.join()
	}
	n := w.rng.IntN(3)
	if !grave {
		n++
	}
	for range n {
		running.Go(w.episode(draw(w.rng, mildFaults), func() {}))
		time.Sleep(time.Duration(w.rng.Int64N(int64(5 * time.Second))))
	}
	running.Wait()
}

// episode prepares a fault; the returned function carries it out.
func (w *world) episode(f *fault, begun func()) func() {
	e := &episode{w: w, r: rand.New(rand.NewPCG(w.rng.Uint64(), 2)), begun: begun}
	e.m = w.machines[w.rng.IntN(len(w.machines))]
	w.faults[f.name]++
	return func() {
		defer begun()
		e.m.reserve()
		defer e.m.release()
		w.logf("%s: %s ...", f.name, e.m.name)
		f.run(e)
		w.logf("%s: %s ends", f.name, e.m.name)
	}
}

func (e *episode) last(most time.Duration) { time.Sleep(time.Duration(e.r.Int64N(int64(most)))) }

func (e *episode) other() *machine {
	for {
		if m := e.w.machines[e.r.IntN(len(e.w.machines))]; m != e.m {
			return m
		}
	}
}

func (w *world) join() {
	w.mu.Lock()
	m := w.addMachine(w.seed)
	w.mu.Unlock()
	w.faults["join"]++
	w.logf("%s joins", m.name)
	w.startMachine(m)
}

func (e *episode) crash() {
	mode := []memfs.Mode{memfs.KillProcess, memfs.LoseAll, memfs.LoseSome, memfs.LoseSome, memfs.KeepAll}[e.r.IntN(5)]
	e.w.crash(e.m, mode, e.r.IntN(2) == 0)
	e.last(15 * time.Second)
	e.w.startMachine(e.m)
	e.last(10 * time.Second)
}

// powerCut cuts the power between two disk operations, such as a write and its
// sync, or a sync and the acknowledgement.
func (e *episode) powerCut() {
	cut := e.m.temper.cutAfter(1 + e.r.IntN(60))
	select {
	case <-cut:
	case <-time.After(20 * time.Second): // too few operations occurred
	}
	e.w.crash(e.m, []memfs.Mode{memfs.LoseAll, memfs.LoseSome}[e.r.IntN(2)], true)
	e.last(10 * time.Second)
	e.w.startMachine(e.m)
	e.last(10 * time.Second)
}

func (e *episode) powerCutEverywhere() {
	e.m.release()
	for _, m := range e.w.machines {
		m.reserve()
		e.w.crash(m, memfs.LoseSome, true)
	}
	e.last(5 * time.Second)
	for _, m := range e.w.machines {
		e.w.startMachine(m)
		m.release()
	}
	e.last(20 * time.Second)
	e.m.reserve()
}

func (e *episode) restart() {
	e.w.stopMachine(e.m)
	e.w.startMachine(e.m)
	e.last(5 * time.Second)
}

func (e *episode) cutOneWay() {
	to := e.other().name
	e.w.net.CutOneWay(e.m.name, to)
	e.last(30 * time.Second)
	e.w.net.Heal(e.m.name, to)
}

func (e *episode) isolate() {
	e.w.net.Isolate(e.m.name)
	e.last(40 * time.Second)
	e.w.net.Rejoin(e.m.name)
	e.last(5 * time.Second)
}

func (e *episode) partition() {
	var here, there []string
	for _, m := range e.w.machines {
		if e.r.IntN(2) == 0 {
			here = append(here, m.name)
		} else {
			there = append(there, m.name)
		}
	}
	for _, a := range here {
		for _, b := range there {
			e.w.net.Cut(a, b)
		}
	}
	e.last(40 * time.Second)
	for _, a := range here {
		for _, b := range there {
			e.w.net.Heal(a, b)
		}
	}
}

func (e *episode) slowLink() {
	to := e.other().name
	most := time.Duration(1+e.r.IntN(3000)) * time.Millisecond
	e.w.net.SetDelayBetween(e.m.name, to, most/10, most)
	e.last(30 * time.Second)
	e.w.net.SetDelayBetween(e.m.name, to, leastDelay, mostDelay)
}

func (e *episode) loseDatagrams() {
	e.w.net.SetLoss(0.05 + 0.6*e.r.Float64())
	e.last(40 * time.Second)
	e.w.net.SetLoss(0)
}

func (e *episode) moveAddress() {
	e.w.crash(e.m, memfs.KillProcess, false)
	e.m.host.Move()
	e.last(10 * time.Second)
	e.w.startMachine(e.m)
}

// pauseProcess stops the process like SIGSTOP or a frozen virtual machine:
// nothing gets in or out, and afterwards it continues with its stale state.
func (e *episode) pauseProcess() {
	e.w.setPaused(e.m, true)
	e.m.temper.pause()
	e.w.net.Isolate(e.m.name)
	e.last(40 * time.Second)
	e.w.net.Rejoin(e.m.name)
	e.m.temper.resume()
	e.w.setPaused(e.m, false)
	e.last(5 * time.Second)
}

func (w *world) setPaused(m *machine, paused bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m.paused = paused
}

func (e *episode) wrongClock() {
	most := []time.Duration{4 * time.Second, time.Minute, 2 * time.Hour}[e.r.IntN(3)]
	e.m.clock.Set(time.Duration(e.r.Int64N(int64(2*most))) - most)
	e.last(40 * time.Second)
	e.m.clock.Set(0)
}

func (e *episode) slowDisk() {
	e.m.temper.setFactor(float64(5 + e.r.IntN(100)))
	e.last(20 * time.Second)
	e.m.temper.setFactor(1)
}

// diskErrors makes one kind of operation fail on one volume for a while; the data
// is unchanged.
func (e *episode) diskErrors(kind memfs.OpKind, times int) {
	if kind == memfs.OpRead {
		e.w.expectLoss(e.m) // it cannot tell while it cannot read
	}
	volume := []string{walDir, dbDir}[e.r.IntN(2)]
	e.m.disk.Fail(kind, volume, e.r.IntN(30), times, syscall.EIO)
	e.last(20 * time.Second)
	if e.r.IntN(3) == 0 {
		e.w.crash(e.m, memfs.KillProcess, false)
		e.last(5 * time.Second)
		e.w.startMachine(e.m)
		e.last(5 * time.Second)
	}
	e.w.mendDisk(e.m)
}

// mendDisk ends the faults of a disk, and restarts a node whose storage has
// failed permanently.
func (w *world) mendDisk(m *machine) {
	m.disk.Heal()
	m.disk.SetLatency(m.temper.operation)
	m.disk.SetCapacity(walDir, 0)
	m.disk.SetCapacity(dbDir, 0)
	m.temper.setFactor(1)
	m.failRaft(nil)
	if m.failed() {
		w.logf("%s is started again: its storage failed", m.name)
		w.crash(m, memfs.KillProcess, false)
		w.startMachine(m)
	}
}

func (e *episode) fullDisk() {
	volume := []string{walDir, dbDir}[e.r.IntN(2)]
	free, total, err := e.m.disk.Free(volume)
	if err != nil {
		return
	}
	e.m.disk.SetCapacity(volume, total-free+uint64(e.r.IntN(1<<20)))
	e.last(30 * time.Second)
	if e.r.IntN(2) == 0 {
		e.w.crash(e.m, memfs.LoseSome, false)
		e.w.startMachine(e.m)
		e.last(20 * time.Second)
	}
	e.m.disk.SetCapacity(volume, 0)
	e.last(10 * time.Second)
}

func (e *episode) controlStorage() {
	e.m.failRaft(syscall.EIO)
	e.last(20 * time.Second)
	e.m.failRaft(nil)
	e.last(10 * time.Second)
}

// lose deletes volumes, like a deleted volume claim.
func (e *episode) lose(volumes ...string) {
	e.w.crash(e.m, memfs.LoseAll, true)
	e.w.expectLoss(e.m)
	for _, v := range volumes {
		e.m.wipe(v)
	}
	e.begun()
	e.last(10 * time.Second)
	e.w.startMachine(e.m)
	e.last(30 * time.Second)
}

func (e *episode) losePack() {
	dir := packDir
	files := e.m.list(dir)
	if len(files) == 0 {
		return
	}
	down := e.r.IntN(2) == 0
	if down {
		e.w.crash(e.m, memfs.KillProcess, false)
	}
	e.w.expectLoss(e.m)
	name := files[e.r.IntN(len(files))]
	_ = e.m.disk.Remove(name)
	_ = e.m.disk.SyncDir(dir)
	e.begun()
	e.last(5 * time.Second)
	if !down { // an open file stays readable until the process ends
		e.w.crash(e.m, memfs.KillProcess, false)
	}
	e.w.startMachine(e.m)
	e.last(20 * time.Second)
}

// flipBit damages one bit of the log, a pack or the index.
func (e *episode) flipBit() {
	down := e.r.IntN(2) == 0
	if down {
		e.w.crash(e.m, memfs.KillProcess, false)
	}
	e.w.expectLoss(e.m)
	for range 10 {
		dir := []string{walDir, packDir, indexDir}[e.r.IntN(3)]
		files := e.m.list(dir)
		if len(files) == 0 {
			continue
		}
		name := files[e.r.IntN(len(files))]
		st, err := e.m.disk.Stat(name)
		if err != nil || st.Size() == 0 {
			continue
		}
		at := e.r.Int64N(st.Size())
		if e.m.disk.FlipBit(name, at, uint(e.r.IntN(8))) == nil {
			e.w.logf("a bit of %s at %d flips", name, at)
			break
		}
	}
	e.begun()
	e.last(20 * time.Second)
	e.w.startMachine(e.m)
}

// list returns the files of a directory that hold records or the index. The small
// files beside them have two copies; see the tests of package wal.
func (m *machine) list(dir string) (names []string) {
	entries, err := m.disk.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || err != nil {
		return nil
	}
	for _, entry := range entries {
		name := entry.Name()
		if !entry.IsDir() && (strings.HasSuffix(name, ".seg") || strings.HasSuffix(name, ".pack") || strings.HasSuffix(name, ".ldb") || strings.HasSuffix(name, ".log")) {
			names = append(names, path.Join(dir, name))
		}
	}
	return names
}

// rollBack restores volumes to an earlier state.
func (e *episode) rollBack(volumes ...string) {
	live := e.r.IntN(2) == 0
	if !live {
		e.w.stopMachine(e.m)
	}
	old := e.m.copyVolumes()
	if !live {
		e.w.startMachine(e.m)
	}
	e.last(60 * time.Second)
	e.w.crash(e.m, memfs.LoseSome, true)
	e.w.expectLoss(e.m)
	for _, v := range volumes {
		if v == walDir {
			e.m.rollBack(walDir, old.wal)
			e.m.rollBackRaft(old)
		} else {
			e.m.rollBack(dbDir, old.db)
		}
	}
	e.begun()
	e.last(10 * time.Second)
	e.w.startMachine(e.m)
	e.last(20 * time.Second)
}

// tornControl cuts the power during a write of the control table's log, which
// damages its last entry.
func (e *episode) tornControl() {
	e.w.expectLoss(e.m)
	cut := e.m.temper.cutAfter(1 + e.r.IntN(20))
	select {
	case <-cut:
	case <-time.After(20 * time.Second):
	}
	e.m.tear()
	e.w.crash(e.m, memfs.LoseSome, true)
	e.begun()
	e.last(10 * time.Second)
	e.w.startMachine(e.m)
	e.last(10 * time.Second)
}

// heal ends all lasting effects of a fault.
func (w *world) heal() {
	w.net.HealAll()
	w.net.SetLoss(0)
	for _, m := range w.machines {
		m.reserve()
		m.clock.Set(0)
		w.mendDisk(m)
		w.startMachine(m)
		m.release()
	}
}
