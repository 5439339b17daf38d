package wal

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stemedb/stemedb/internal/sleep"
	"github.com/stemedb/stemedb/server/internal/vfs"
)

// Log is an open log. All methods are safe for concurrent use.
type Log struct {
	opts     Options
	fs       vfs.FS
	log      *slog.Logger
	metrics  *metrics
	inc      incarnation
	replaces string
	saltKey  uint64
	locks    []io.Closer

	idMu sync.Mutex
	id   Identity

	// manifestTurn has capacity one: its holder may write the small files.
	manifestTurn chan struct{}
	manifest     atomic.Pointer[manifest]

	// durable is the position after the last durable batch. Only the writer moves
	// it, after the sync.
	durable atomic.Uint64
	applied atomic.Uint64

	// mu guards the fields in which commits gather. It is never held across a wait.
	mu sync.Mutex
	// tail is the position of the next batch; everything below it is durable, with
	// the writer, or in pending.
	tail struct {
		seq, off uint32
		size     int64 // of segment tail.seq
	}
	// pending holds batches for the writer, in log order.
	pending []*batch
	// queued counts the bytes of batches that are not durable yet.
	queued  int
	free    []*batch
	closing bool
	// readOnly and failed are the reasons for rejecting commits; failed never
	// returns to nil.
	readOnly, failed error
	spaces           []Space // as of the last checkSpace
	watch            chan struct{}
	// ahead holds the salts and sizes of an earlier run's segments that are still
	// written: the tail and the prepared ones. It does not change after Open.
	ahead map[uint32]manifestSegment

	wake        chan struct{} // capacity one: pending is not empty
	completions chan completion
	offers      chan offer
	sealWake    chan struct{}
	spaceWake   chan struct{}

	// openingDue: lack of space has prevented listing this opening so far.
	openingDue atomic.Bool

	// cur is the segment that the writer writes.
	cur *segment
	// endUnnoted: the manifest does not record the end of the segment before cur
	// yet. Only the writer uses this field.
	endUnnoted bool

	// tab guards the table of segments and their sources.
	tab sync.Mutex
	// segments holds all parts of the log, ordered by number.
	segments []*segment
	// spares holds the names of files that may be overwritten.
	spares []string
	// retired holds segment files whose contents are now read from packs. Only the
	// sealer changes it.
	retired []retired

	stopRest   context.CancelFunc
	writerDone sync.WaitGroup // writer, completer
	restDone   sync.WaitGroup // preparer, sealer, keeper
	restCtx    context.Context
	closed     chan struct{}
	closeOnce  sync.Once
	closeErr   error
}

func (o *Options) setDefaults() error {
	if o.FS == nil {
		o.FS = vfs.OS()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	if o.SegmentSize == 0 {
		o.SegmentSize = 64 << 20
	}
	if o.MaxBatchBytes == 0 {
		o.MaxBatchBytes = 4 << 20
	}
	if o.QueueBytes == 0 {
		o.QueueBytes = 64 << 20
	}
	if o.Reserve == 0 {
		o.Reserve = 2 * uint64(o.SegmentSize)
	}
	if o.ReserveHigh == 0 {
		o.ReserveHigh = o.Reserve + uint64(o.SegmentSize)
	}
	if o.CheckInterval == 0 {
		o.CheckInterval = 2 * time.Second
	}
	switch {
	case o.Node == "":
		return errors.New("open log: Node is empty: give this node's name")
	case o.WALDir == "" || o.PackDir == "":
		return errors.New("open log: WALDir and PackDir must both be given")
	case filepath.Clean(o.WALDir) == filepath.Clean(o.PackDir):
		return fmt.Errorf("open log: WALDir and PackDir are both %s: give each its own directory", o.WALDir)
	case o.SegmentSize < 16<<10 || o.SegmentSize >= 1<<32 || o.SegmentSize%4096 != 0:
		return fmt.Errorf("open log: SegmentSize %d: must be a multiple of 4096 from 16 KiB to below 4 GiB", o.SegmentSize)
	case o.MaxBatchBytes < 0 || o.QueueBytes < 0 || o.CheckInterval < 0:
		return errors.New("open log: MaxBatchBytes, QueueBytes and CheckInterval must not be negative")
	case o.ReserveHigh < o.Reserve:
		return fmt.Errorf("open log: ReserveHigh (%d) is below Reserve (%d)", o.ReserveHigh, o.Reserve)
	}
	return nil
}

// Open opens the log in o.WALDir and o.PackDir and creates it if both are
// empty. It recovers from a crash: it sets an unacknowledged tail aside and
// cuts it; it never changes acknowledged bytes.
//
// If only the pack volume is empty, its packs are Missing. If only the WAL
// volume is empty, a new incarnation takes over the packs. In both cases the
// log opens and is not whole.
func Open(o Options) (_ *Log, err error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	l := &Log{
		opts: o, fs: o.FS, log: o.Logger,
		manifestTurn: make(chan struct{}, 1),
		ahead:        map[uint32]manifestSegment{},
		wake:         make(chan struct{}, 1),
		completions:  make(chan completion, 4),
		offers:       make(chan offer),
		sealWake:     make(chan struct{}, 1),
		spaceWake:    make(chan struct{}, 1),
		closed:       make(chan struct{}),
	}
	defer func() {
		if err != nil {
			l.release()
		}
	}()
	if l.metrics, err = newMetrics(l, o.Registerer); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	for _, dir := range []string{o.WALDir, o.PackDir} {
		if err := l.lockDir(dir); err != nil {
			return nil, fmt.Errorf("open log: %w", err)
		}
	}
	begun := time.Now()
	if err := l.recover(); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	l.metrics.recoverySeconds.Observe(time.Since(begun).Seconds())
	l.start()
	return l, nil
}

func (l *Log) lockDir(dir string) error {
	if err := l.fs.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	c, err := l.fs.Lock(filepath.Join(dir, lockName))
	if errors.Is(err, vfs.ErrLocked) {
		return fmt.Errorf("%s is in use by another process: stop it, or give this node its own directory: %w", dir, err)
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", dir, err)
	}
	l.locks = append(l.locks, c)
	return nil
}

func (l *Log) start() {
	l.restCtx, l.stopRest = context.WithCancel(context.Background())
	l.checkSpace()
	l.writerDone.Add(2)
	go l.runCompleter()
	go l.runWriter()
	l.restDone.Add(3)
	go l.runPreparer(l.restCtx)
	go l.runSealer(l.restCtx)
	go l.runKeeper(l.restCtx)
}

// First is the lowest position that an entry can have.
func (l *Log) First() Position {
	l.tab.Lock()
	defer l.tab.Unlock()
	return makePosition(l.segments[0].seq, headerSize)
}

// End is the position after the last durable entry.
func (l *Log) End() Position { return Position(l.durable.Load()) }

// Watch returns a channel that is closed when End moves after the call or when
// the log closes. Take the channel first, then End.
func (l *Log) Watch() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.watch == nil {
		l.watch = make(chan struct{})
		select {
		case <-l.closed:
			close(l.watch)
		default:
		}
	}
	return l.watch
}

// SetApplied reports that the user holds everything below pos elsewhere (the
// index marker). Segments entirely below it are recycled once they are packed.
func (l *Log) SetApplied(pos Position) {
	for {
		old := l.applied.Load()
		if uint64(pos) <= old {
			return
		}
		if l.applied.CompareAndSwap(old, uint64(pos)) {
			sleep.Wake(l.sealWake)
			return
		}
	}
}

// State reports whether the log accepts writes; err is the reason if it does not.
func (l *Log) State() (s State, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.failed != nil:
		return StateFailed, l.failed
	case l.readOnly != nil:
		return StateReadOnly, l.readOnly
	}
	return StateOK, nil
}

// Whole reports whether the log still holds everything that it ever held. It is
// true for a new log. When a pack, a segment, a volume or bytes are found
// missing or damaged, it becomes false, durably, until SetWhole.
func (l *Log) Whole() bool { return l.manifest.Load().Whole }

// SetWhole sets the flag durably. losses is the value of Losses when the caller
// began to repair them. If another loss has been found since then, the log is
// not whole, and SetWhole returns ErrMoreLost.
func (l *Log) SetWhole(losses int) error {
	if l.Whole() {
		return nil
	}
	more := false
	err := l.update(func(m *manifest) {
		more = m.losses() > losses
		if m.Whole = !more; m.Whole {
			m.MadeGood = slices.Concat(m.Lost, m.Damaged)
		}
	})
	if err == nil && more {
		err = ErrMoreLost
	}
	if err != nil {
		return fmt.Errorf("set whole: %w", err)
	}
	return nil
}

// Packs lists the sealed segments on the pack volume, oldest first.
func (l *Log) Packs() []Pack {
	m := l.manifest.Load()
	out := make([]Pack, 0, len(m.Packs))
	for _, p := range m.Packs {
		out = append(out, Pack{p.Seq, makePosition(p.Seq, p.End), p.Bytes, p.Entries, p.Hash})
	}
	return out
}

// Close rejects new commits, makes the queued ones durable, calls their Done
// and releases both directories. If the log has failed, it returns the cause.
func (l *Log) Close() error {
	l.closeOnce.Do(func() { l.closeErr = l.close() })
	return l.closeErr
}

func (l *Log) close() error {
	l.mu.Lock()
	l.closing = true
	l.mu.Unlock()
	sleep.Wake(l.wake)
	l.writerDone.Wait()
	l.stopRest()
	l.restDone.Wait()
	l.mu.Lock()
	err := l.failed
	close(l.closed)
	if l.watch != nil {
		close(l.watch)
	}
	l.mu.Unlock()
	if err == nil {
		// Record the end of the log, so that even its last batch is known to be
		// acknowledged.
		err = l.update(func(*manifest) {})
		if vfs.IsNoSpace(err) {
			err = nil // useful, but no reason to fail
		}
	}
	l.release()
	if err != nil {
		return fmt.Errorf("close log: %w", err)
	}
	return nil
}

// release closes everything that was opened.
func (l *Log) release() {
	l.tab.Lock()
	for _, s := range l.segments {
		if s.src != nil {
			s.src.file.Close()
			s.src = nil
		}
	}
	for _, r := range l.retired {
		r.src.file.Close()
	}
	l.retired = nil
	l.tab.Unlock()
	l.metrics.unregister()
	for _, c := range l.locks {
		c.Close()
	}
	l.locks = nil
}
