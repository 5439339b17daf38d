package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
)

// readGuess is the size of Read's first request: most frames fit, and another
// system call costs more than a few copied bytes.
const readGuess = 2048

var readBuffers = sync.Pool{New: func() any { b := make([]byte, readGuess); return &b }}

// Read returns the durable entry at pos. Errors: *DamageError, ErrGone,
// ErrNoEntry, ErrClosed, or that of the file system.
func (l *Log) Read(pos Position) (Entry, error) {
	v, ok := l.acquire(pos.Segment())
	if !ok || pos >= l.End() || pos.Offset() < headerSize || pos%8 != 0 {
		if ok {
			l.releaseView(v)
		}
		return Entry{}, fmt.Errorf("read %v: %w", pos, ErrNoEntry)
	}
	defer l.releaseView(v)
	if v.seg.seq != pos.Segment() || v.src == nil {
		return Entry{}, l.absent(pos)
	}
	if pos.Offset() >= v.end {
		return Entry{}, fmt.Errorf("read %v: %w", pos, ErrNoEntry)
	}
	e, ok, err := readFrame(v, pos)
	if ok {
		if e.Kind == batchKind {
			return Entry{}, fmt.Errorf("read %v: %w", pos, ErrNoEntry)
		}
		return e, nil
	}
	return Entry{}, l.explain(v, pos, err)
}

// readFrame reads the frame at pos; ok reports whether it is valid.
func readFrame(v view, pos Position) (e Entry, ok bool, err error) {
	guess := readBuffers.Get().(*[]byte)
	defer readBuffers.Put(guess)
	off, room := int64(pos.Offset()), int(v.end-pos.Offset())
	b := (*guess)[:min(readGuess, room)]
	n, err := v.src.file.ReadAt(b, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return Entry{}, false, err
	}
	if n < frameHead {
		return Entry{}, false, nil
	}
	word, crc := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
	length := int(word >> 8)
	if uint8(word) == 0 || frameSize(length) > room {
		return Entry{}, false, nil
	}
	payload := make([]byte, length)
	have := copy(payload, b[frameHead:n])
	if have < length {
		n, err := v.src.file.ReadAt(payload[have:], off+int64(frameHead+have))
		if err != nil && (!errors.Is(err, io.EOF) || n < length-have) {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return Entry{}, false, err
		}
	}
	ok = frameCRC(v.seg.salt, pos, word, payload) == crc
	return Entry{Kind: uint8(word), Payload: payload}, ok, nil
}

// absent returns the error for a position whose file is gone.
func (l *Log) absent(pos Position) error {
	select {
	case <-l.closed:
		return fmt.Errorf("read %v: %w", pos, ErrClosed)
	default:
	}
	if slices.ContainsFunc(l.Missing(), func(r Range) bool { return r.From <= pos && pos < r.To }) {
		return fmt.Errorf("read %v: %w", pos, ErrGone)
	}
	return fmt.Errorf("read %v: %w", pos, ErrNoEntry)
}

// explain finds out why there is no valid frame at pos: damage, or no frame
// begins there. It walks the segment, which also finds other damage.
func (l *Log) explain(v view, pos Position, cause error) error {
	find := func() error {
		for _, r := range l.Damage() {
			if r.From <= pos && pos < r.To {
				return fmt.Errorf("read %v: %w", pos, &DamageError{r})
			}
		}
		return nil
	}
	if err := find(); err != nil {
		return err
	}
	w := window{r: v.src.file, salt: v.seg.salt, seq: v.seg.seq, limit: int64(v.end)}
	var found []Range
	w.walk(headerSize, int64(v.end),
		func(int64, frame) bool { return true },
		func(from, to int64) bool {
			found = append(found, damagedRange(v.seg.seq, from, to, w.readErr))
			return true
		})
	if w.readErr != nil && cause != nil && len(found) == 0 {
		return fmt.Errorf("read %v: %w", pos, cause)
	}
	l.noteDamage(found)
	if err := find(); err != nil {
		return err
	}
	if cause != nil {
		return fmt.Errorf("read %v: %w", pos, cause)
	}
	return fmt.Errorf("read %v: %w", pos, ErrNoEntry)
}

// Scan calls fn for durable entries at or after from, in order, until the end,
// until fn returns an error (which Scan returns; next is then that entry) or
// until limitBytes of payload have been read (at least one entry; 0 = no
// limit). next is the position to continue at; next == End() means that
// everything has been read. An unreadable part ends the Scan with a *Gap error
// and next after the gap: continue there. from is 0, a position that the log
// assigned, or a next. e.Payload is valid during the call only.
func (l *Log) Scan(from Position, limitBytes int, fn func(pos Position, e Entry) error) (next Position, err error) {
	left := limitBytes
	if limitBytes <= 0 {
		left = int(^uint(0) >> 1)
	}
	end := l.End()
	buf := scanBuffers.Get().(*[]byte)
	defer scanBuffers.Put(buf)
	next = max(from, l.First())
	for next < end && left > 0 {
		v, ok := l.acquire(next.Segment())
		if !ok {
			return next, fmt.Errorf("scan %v: %w", next, ErrNoEntry)
		}
		next, err = l.scanSegment(v, next, end, buf, &left, fn)
		l.releaseView(v)
		if err != nil {
			return next, err
		}
	}
	return next, nil
}

var scanBuffers = sync.Pool{New: func() any { b := make([]byte, 0, windowChunk); return &b }}

// scanSegment scans the rest of one segment. At the end of a rotated segment,
// next is the beginning of the following one.
func (l *Log) scanSegment(v view, from, end Position, buf *[]byte, left *int, fn func(Position, Entry) error) (Position, error) {
	start := makePosition(v.seg.seq, headerSize)
	if v.seg.seq > from.Segment() {
		if l.overlapsLost(from, start) {
			return start, &Gap{Range{From: from, To: start, Reason: "lost"}, true}
		}
		return start, nil // a number that was never used
	}
	after := makePosition(v.seg.seq+1, headerSize)
	stop := min(makePosition(v.seg.seq, v.end), end)
	if v.src == nil {
		select {
		case <-l.closed:
			return from, fmt.Errorf("scan %v: %w", from, ErrClosed)
		default:
		}
		to := min(after, end)
		return to, &Gap{Range{From: from, To: to, Reason: "lost"}, true}
	}
	if from >= stop {
		return min(after, end), nil
	}
	var fail error
	w := window{r: v.src.file, salt: v.seg.salt, seq: v.seg.seq, limit: int64(stop.Offset()), buf: (*buf)[:0]}
	at := w.walk(int64(max(from, start).Offset()), int64(stop.Offset()),
		func(at int64, f frame) bool {
			if *left <= 0 {
				return false
			}
			fail = fn(makePosition(v.seg.seq, uint32(at)), Entry{f.kind, f.payload})
			*left -= len(f.payload)
			return fail == nil
		},
		func(from, to int64) bool {
			r := damagedRange(v.seg.seq, from, to, w.readErr)
			fail = &Gap{Range: r}
			return false
		})
	*buf = w.buf
	next := makePosition(v.seg.seq, uint32(at))
	var gap *Gap
	if errors.As(fail, &gap) && gap.Range.From == from && from > start {
		// A caller's mistake looks the same and must not be recorded as damage.
		if !l.boundary(v, from) {
			return from, fmt.Errorf("scan %v: %w", from, ErrNoEntry)
		}
	}
	if gap != nil {
		l.noteDamage([]Range{gap.Range})
	}
	if fail == nil && next >= stop && stop < end {
		next = min(after, end)
	}
	return next, fail
}

// boundary reports whether a frame begins at pos or, in view of the damage
// around it, may begin there.
func (l *Log) boundary(v view, pos Position) bool {
	at, end := int64(pos.Offset()), int64(v.end)
	w := window{r: v.src.file, salt: v.seg.salt, seq: v.seg.seq, limit: end}
	for off := int64(headerSize); off < at; {
		f, ok := w.frameAt(off, end)
		switch {
		case !ok:
			off = w.resync(off, end)
		case at < f.next:
			return false
		default:
			off = f.next
		}
	}
	return true
}

func (l *Log) overlapsLost(from, to Position) bool {
	return slices.ContainsFunc(l.Missing(), func(r Range) bool { return r.From < to && from < r.To })
}
