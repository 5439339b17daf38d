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

	// manifestTurn has one place: its holder may write the small files.
	manifestTurn chan struct{}
	manifest     atomic.Pointer[manifest]

	// durable is the position behind the last durable batch. Only the writer
	// moves it, after the sync.
	durable atomic.Uint64
	applied atomic.Uint64

	// mu guards what commits are gathered in. It is never held across a wait.
	mu sync.Mutex
	// tail is where the next batch goes; everything below it is durable, with
	// the writer, or in pending.
	tail struct {
		seq, off uint32
		size     int64 // of segment tail.seq
	}
	// pending are batches for the writer, in log order.
	pending []*batch
	// queued counts the bytes of batches that are not durable yet.
	queued  int
	free    []*batch
	closing bool
	// readOnly and failed say why no commit is taken; failed never goes back
	// to nil.
	readOnly, failed error
	spaces           []Space // as of the last checkSpace
	watch            chan struct{}
	// ahead are the salts and sizes of the segments of an earlier run that are
	// still written to: the tail and those prepared. Not changed after Open.
	ahead map[uint32]manifestSegment

	wake        chan struct{} // one place: pending has something for the writer
	completions chan completion
	offers      chan offer
	sealWake    chan struct{}
	spaceWake   chan struct{}

	// openingDue: there was no space yet to list this opening.
	openingDue atomic.Bool

	// cur is the segment that the writer writes to.
	cur *segment
	// endUnnoted: the manifest does not tell yet where the segment before cur
	// ends. Only the writer uses it.
	endUnnoted bool

	// tab guards the table of segments and their sources.
	tab sync.Mutex
	// segments are all parts of the log, ordered by number.
	segments []*segment
	// spares are names of files that may be overwritten.
	spares []string
	// retired are segment files that are read as packs now. Only the sealer
	// changes it.
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
		return fmt.Errorf("open log: WALDir and PackDir are both %s: give each a directory of its own", o.WALDir)
	case o.SegmentSize < 16<<10 || o.SegmentSize >= 1<<32 || o.SegmentSize%4096 != 0:
		return fmt.Errorf("open log: SegmentSize %d: must be a multiple of 4096 from 16 KiB to below 4 GiB", o.SegmentSize)
	case o.MaxBatchBytes < 0 || o.QueueBytes < 0 || o.CheckInterval < 0:
		return errors.New("open log: MaxBatchBytes, QueueBytes and CheckInterval must not be negative")
	case o.ReserveHigh < o.Reserve:
		return fmt.Errorf("open log: ReserveHigh (%d) is below Reserve (%d)", o.ReserveHigh, o.Reserve)
	}
	return nil
}

// Open opens the log in o.WALDir and o.PackDir, creating it when both are
// empty, and recovers what a crash left: an unacknowledged tail is set aside
// and cut, acknowledged bytes are never touched.
//
// When only the pack volume is empty, its packs are Missing. When only the WAL
// volume is empty, a new incarnation takes over the packs. Either way the log
// opens, not whole.
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
		return fmt.Errorf("%s is in use by another process: stop it, or give this node a directory of its own: %w", dir, err)
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

// End is the position behind the last durable entry.
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

// SetApplied says that the user has everything below pos elsewhere (the index
// marker). Segments wholly below it are recycled once they are packed.
func (l *Log) SetApplied(pos Position) {
	for {
		old := l.applied.Load()
		if uint64(pos) <= old {
			return
		}
		if l.applied.CompareAndSwap(old, uint64(pos)) {
			signal(l.sealWake)
			return
		}
	}
}

// State tells whether the log takes writes; err says why it does not.
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

// Whole tells whether everything that this log ever held is still there: true
// for a new log, durably false from the moment that a pack, a segment, a
// volume or bytes were found missing or damaged, until SetWhole.
func (l *Log) Whole() bool { return l.manifest.Load().Whole }

// SetWhole sets the flag durably. losses is what Losses was
// when the caller began to make good for them: if one more was found since, the
// log is not whole, and SetWhole returns ErrMoreLost.
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

// Close refuses new commits, makes those in the queue durable, calls their Done
// and lets go of both directories. It returns why the log had failed, if it
// had.
func (l *Log) Close() error {
	l.closeOnce.Do(func() { l.closeErr = l.close() })
	return l.closeErr
}

func (l *Log) close() error {
	l.mu.Lock()
	l.closing = true
	l.mu.Unlock()
	signal(l.wake)
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
		// The end of the log, so that even its last batch is known to have
		// been acknowledged.
		err = l.update(func(*manifest) {})
		if vfs.IsNoSpace(err) {
			err = nil // worth having, not worth failing for
		}
	}
	l.release()
	if err != nil {
		return fmt.Errorf("close log: %w", err)
	}
	return nil
}

// release gives back everything that was opened.
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

// signal puts a token into a channel of one place.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
