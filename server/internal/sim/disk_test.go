package sim

import (
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/stemedb/stemedb/server/internal/control/raftmem"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// temper is the behaviour of a machine's disk: how long each operation takes,
// whether the process is paused, and when the power is cut.
//
// Without latency, crashes find nothing: a crash can only fall between a write,
// its sync and its acknowledgement if these take time.
type temper struct {
	mu     sync.Mutex // guards everything here; never held while waiting
	rng    *rand.Rand
	median time.Duration // of a sync
	factor float64       // of a slow disk; 1 is normal

	paused  chan struct{} // closed on resume; nil while the process runs
	cutAt   int           // number of modifying operations until the power is cut; 0: never
	cut     chan struct{} // closed when it has been cut
	restore chan struct{} // closed when the machine is restarted
}

func newTemper(seed uint64) *temper {
	rng := rand.New(rand.NewPCG(seed, 0x7e3))
	return &temper{rng: rng, median: time.Duration(500+rng.IntN(6000)) * time.Microsecond, factor: 1}
}

// skewed returns a random value around a median: most values are near it, some
// are many times larger.
func (t *temper) skewed(median time.Duration) time.Duration {
	return time.Duration(t.factor * float64(median) * math.Exp(0.8*t.rng.NormFloat64()))
}

// stall returns the rare delay of a disk that is busy for seconds.
func (t *temper) stall() time.Duration {
	if t.rng.IntN(2000) > 0 {
		return 0
	}
	return time.Duration(200+t.rng.IntN(3800)) * time.Millisecond
}

// operation waits for a pause of the process to end, and returns how long the
// operation takes. It is memfs's latency.
//
// In the index only syncs take time. goleveldb holds mutexes while it opens and
// reads files, and virtual time does not advance while a goroutine waits for a
// mutex.
func (t *temper) operation(op memfs.Op) time.Duration {
	if strings.HasPrefix(op.Name, indexDir) && op.Kind != memfs.OpSync {
		return 0
	}
	t.wait(op.Kind >= memfs.OpCreate)
	t.mu.Lock()
	defer t.mu.Unlock()
	switch op.Kind {
	case memfs.OpSync, memfs.OpSyncDir:
		return t.skewed(t.median) + t.stall()
	case memfs.OpRead, memfs.OpOpen, memfs.OpWrite:
		// The page cache absorbs most of them at once.
		if t.rng.IntN(200) > 0 {
			return 0
		}
		return t.skewed(t.median)
	default:
		return t.skewed(t.median / 10)
	}
}

// raftWrite is the latency of Raft's storage, which syncs every write.
func (t *temper) raftWrite() time.Duration {
	t.wait(true)
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.skewed(t.median) + t.stall()
}

func (t *temper) wait(changes bool) {
	t.mu.Lock()
	if changes && t.cutAt > 0 {
		if t.cutAt--; t.cutAt == 0 {
			close(t.cut)
		}
	}
	paused, dark := t.paused, t.restore
	if t.cutAt > 0 || t.cut == nil {
		dark = nil
	}
	t.mu.Unlock()
	if paused != nil {
		<-paused
	}
	if dark != nil {
		<-dark
	}
}

// pause stops every operation until resume.
func (t *temper) pause() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.paused == nil {
		t.paused = make(chan struct{})
	}
}

func (t *temper) resume() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.paused != nil {
		close(t.paused)
		t.paused = nil
	}
}

func (t *temper) setFactor(f float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.factor = f
}

// cutAfter cuts the power at the nth modifying operation from now on: that one
// and all later ones wait for powerOn. The channel is closed at that moment.
func (t *temper) cutAfter(n int) <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cutAt, t.cut, t.restore = n, make(chan struct{}), make(chan struct{})
	return t.cut
}

// powerOn resumes the waiting operations: their process is dead and gets an
// error.
func (t *temper) powerOn() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.restore != nil {
		close(t.restore)
	}
	t.cutAt, t.cut, t.restore = 0, nil, nil
}

// raftDisk returns a new storage of Raft on a disk of this temper.
func (t *temper) raftDisk() *raftmem.Disk {
	d := raftmem.New()
	d.SetLatency(t.raftWrite)
	return d
}

func (t *temper) flip() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.rng.IntN(2) == 0
}
