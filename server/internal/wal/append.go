package wal

import (
	"errors"
	"fmt"
	"time"

	"github.com/stemedb/stemedb/internal/sleep"
	"github.com/stemedb/stemedb/server/internal/vfs"
)

// How a commit becomes durable: Append encodes it on the caller's goroutine,
// after the commits that already wait (tail, pending). The writer takes the
// first batch, writes it and syncs it, while later commits gather in the next
// batch. The completer calls Done while the writer works on the next batch.
// There is no timer: the slower the disk, the larger the batches.

// batch holds the commits that one write and one sync make durable.
type batch struct {
	seq, off, salt uint32
	// buf begins with space for the batch frame, which the writer fills in.
	buf     []byte
	entries uint32
	commits []*Commit
	begun   time.Time
}

type completion struct {
	b   *batch
	err error
}

// Append hands c to the log and returns immediately; c.Done reports the outcome.
// If Append returns an error (ErrFailed, ErrReadOnly, ErrBusy, ErrClosed,
// ErrTooLarge, ErrInvalid), it has accepted nothing and never calls Done.
func (l *Log) Append(c *Commit) error {
	size, err := l.checkCommit(c)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closing:
		return ErrClosed
	case l.failed != nil:
		return l.failed
	case l.readOnly != nil:
		return l.readOnly
	case l.queued > 0 && l.queued+size > l.opts.QueueBytes:
		return ErrBusy
	}
	b := l.batchFor(size)
	c.Positions = c.Positions[:0]
	for _, e := range c.Entries {
		pos := makePosition(b.seq, b.off+uint32(len(b.buf)))
		b.buf = appendFrame(b.buf, b.salt, pos, e)
		c.Positions = append(c.Positions, pos)
	}
	b.entries += uint32(len(c.Entries))
	b.commits = append(b.commits, c)
	l.tail.off = b.off + uint32(len(b.buf))
	l.queued += size
	sleep.Wake(l.wake)
	return nil
}

// checkCommit validates c and returns the size of its frames in bytes.
func (l *Log) checkCommit(c *Commit) (size int, err error) {
	if len(c.Entries) == 0 {
		return 0, fmt.Errorf("%w: no entries", ErrInvalid)
	}
	for i := range c.Entries {
		e := &c.Entries[i]
		if e.Kind < MinKind || e.Kind > MaxKind {
			return 0, fmt.Errorf("%w: entry %d has kind %d, must be %d to %d", ErrInvalid, i, e.Kind, MinKind, MaxKind)
		}
		if len(e.Payload) > MaxPayload {
			return 0, fmt.Errorf("%w: entry %d has %d bytes, at most %d", ErrTooLarge, i, len(e.Payload), MaxPayload)
		}
		size += frameSize(len(e.Payload))
	}
	if room := l.opts.SegmentSize - headerSize - batchFrame; int64(size) > room {
		return 0, fmt.Errorf("%w: the commit takes %d bytes, a segment has room for %d", ErrTooLarge, size, room)
	}
	return size, nil
}

// batchFor returns the batch for size more bytes: the last pending one or a new
// one. l.mu must be held.
func (l *Log) batchFor(size int) *batch {
	if n := len(l.pending); n > 0 {
		b := l.pending[n-1]
		if len(b.buf)+size <= l.opts.MaxBatchBytes && int64(b.off)+int64(len(b.buf)+size) <= l.tail.size {
			return b
		}
	}
	for int64(l.tail.off)+int64(batchFrame+size) > l.tail.size {
		l.tail.seq++
		l.tail.off = headerSize
		l.tail.size = l.sizeFor(l.tail.seq)
	}
	b := l.newBatch()
	b.seq, b.off, b.salt = l.tail.seq, l.tail.off, l.saltFor(l.tail.seq)
	b.begun = time.Now()
	l.queued += batchFrame
	l.pending = append(l.pending, b)
	return b
}

var zeroFrame [batchFrame]byte

func (l *Log) newBatch() *batch {
	var b *batch
	if n := len(l.free); n > 0 {
		b, l.free = l.free[n-1], l.free[:n-1]
	} else {
		b = new(batch)
	}
	b.buf = append(b.buf[:0], zeroFrame[:]...)
	b.commits, b.entries = b.commits[:0], 0
	return b
}

// recycleBatch keeps a few buffers of ordinary size for reuse.
func (l *Log) recycleBatch(b *batch) {
	clear(b.commits)
	if cap(b.buf) > 2*l.opts.MaxBatchBytes {
		return
	}
	l.mu.Lock()
	if len(l.free) < 4 {
		l.free = append(l.free, b)
	}
	l.mu.Unlock()
}

// saltFor and sizeFor describe a segment before it exists, so that commits can
// be encoded for it. l.ahead does not change after Open.
func (l *Log) saltFor(seq uint32) uint32 {
	if s, ok := l.ahead[seq]; ok {
		return s.Salt
	}
	// splitmix64 of a key drawn at Open.
	z := l.saltKey + uint64(seq)*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return uint32((z ^ z>>31) >> 16)
}

func (l *Log) sizeFor(seq uint32) int64 {
	if s, ok := l.ahead[seq]; ok {
		return s.Size
	}
	return l.opts.SegmentSize
}

func (l *Log) runWriter() {
	defer l.writerDone.Done()
	defer close(l.completions)
	for {
		b, ok := l.next()
		if !ok {
			return
		}
		if err := l.write(b); err != nil {
			l.refuse(b, err)
			continue
		}
		l.advance(b)
		l.completions <- completion{b, nil}
	}
}

// next returns the first pending batch, or false when the log is closing and no
// batch is left.
func (l *Log) next() (*batch, bool) {
	for {
		l.mu.Lock()
		if len(l.pending) > 0 {
			b := l.pending[0]
			l.pending = append(l.pending[:0], l.pending[1:]...)
			l.mu.Unlock()
			return b, true
		}
		closing := l.closing
		l.mu.Unlock()
		if closing {
			return nil, false
		}
		<-l.wake
	}
}

// errSegmentCut: the batch did not fit on the disk, and its segment now ends before it.
var errSegmentCut = errors.New("no space inside the segment")

// write makes b durable.
func (l *Log) write(b *batch) error {
	if err := l.rotateTo(b.seq); err != nil {
		return err
	}
	batchHead{
		start:   makePosition(b.seq, b.off),
		durable: l.End(),
		bytes:   uint32(len(b.buf)),
		entries: b.entries,
	}.put(b.buf, b.salt)
	if _, err := l.cur.src.file.WriteAt(b.buf, int64(b.off)); err != nil {
		l.metrics.writeError("write")
		if vfs.IsNoSpace(err) {
			return l.cutForSpace(b, err)
		}
		return fmt.Errorf("write %s at %d: %w", l.cur.src.file.Name(), b.off, err)
	}
	begun := time.Now()
	if err := l.cur.src.file.Sync(); err != nil {
		l.metrics.writeError("sync")
		return fmt.Errorf("sync %s: %w", l.cur.src.file.Name(), err)
	}
	l.metrics.syncSeconds.Observe(time.Since(begun).Seconds())
	return nil
}

// cutForSpace handles a disk that is full although the segment was preallocated
// (on a file system that writes to a new place each time). The partly written
// batch must not reappear at the next start, so it is cut off and the segment
// ends there.
func (l *Log) cutForSpace(b *batch, cause error) error {
	f := l.cur.src.file
	if err := f.Truncate(int64(b.off)); err != nil {
		return fmt.Errorf("cut %s at %d after %w: %w", f.Name(), b.off, cause, err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync %s after %w: %w", f.Name(), cause, err)
	}
	l.cur.size = int64(b.off)
	return fmt.Errorf("%w: %w", errSegmentCut, cause)
}

// advance moves the end of the log past b.
func (l *Log) advance(b *batch) {
	l.tab.Lock()
	l.cur.entries += uint64(b.entries)
	l.tab.Unlock()
	l.durable.Store(uint64(makePosition(b.seq, b.off+uint32(len(b.buf)))))
	l.mu.Lock()
	l.queued -= len(b.buf)
	if l.watch != nil {
		close(l.watch)
		l.watch = nil
	}
	l.mu.Unlock()
	l.metrics.batch(b)
}

// refuse fails b and every later batch after an error of write. A full disk
// makes the log read-only; any other error fails it permanently.
func (l *Log) refuse(b *batch, cause error) {
	full := errors.Is(cause, errSegmentCut) || errors.Is(cause, errNoSegment)
	l.mu.Lock()
	var err error
	if full {
		l.enterReadOnly(cause)
		err = l.readOnly
	} else {
		l.enterFailed(cause)
		err = l.failed
	}
	rest := append([]*batch{b}, l.pending...)
	l.pending = l.pending[:0]
	l.queued = 0
	// The next commit, if any, starts at the durable end.
	end := l.End()
	l.tail.seq, l.tail.off, l.tail.size = l.cur.seq, headerSize, l.cur.size
	if end.Segment() == l.cur.seq {
		l.tail.off = end.Offset()
	}
	l.mu.Unlock()
	for _, b := range rest {
		l.completions <- completion{b, err}
	}
}

// enterFailed and enterReadOnly change the state, unless the log is already in
// it. l.mu must be held.
func (l *Log) enterFailed(cause error) {
	if l.failed == nil {
		l.failed = fmt.Errorf("%w; check the disk, then restart: %w", ErrFailed, cause)
		l.log.Error("the log failed: it stays readable and rejects writes until a restart", "error", cause)
	}
}

func (l *Log) enterReadOnly(cause error) {
	if l.readOnly == nil {
		l.readOnly = fmt.Errorf("%w: %w", ErrReadOnly, cause)
		l.log.Warn("the log is read-only until there is more space", "error", cause,
			"reserve_bytes", l.opts.Reserve, "writes_again_at_bytes", l.opts.ReserveHigh)
	}
}

// fail handles errors of the WAL volume outside the writer.
func (l *Log) fail(cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.enterFailed(cause)
}

// runCompleter calls Done.
func (l *Log) runCompleter() {
	defer l.writerDone.Done()
	for c := range l.completions {
		for _, commit := range c.b.commits {
			if commit.Done != nil {
				commit.Done(c.err)
			}
		}
		l.recycleBatch(c.b)
	}
}
