package wal

import (
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
)

// window reads a segment or pack piece by piece. Bytes that the disk refuses to
// read become zeros, which are never a frame, and are remembered: a bad sector
// costs only its own contents.
type window struct {
	r    io.ReaderAt
	salt uint32
	seq  uint32
	// limit is the offset that no frame may pass.
	limit int64

	buf []byte
	off int64 // of buf[0]
	// unreadable lists the pages that returned an error, readErr the last error.
	unreadable []int64
	readErr    error
}

const (
	windowChunk = 256 << 10
	readPage    = 4096
)

// bytes returns n bytes at off, or fewer at the end of the file. They are valid
// until the next call.
func (w *window) bytes(off int64, n int) []byte {
	if off >= w.off && off+int64(n) <= w.off+int64(len(w.buf)) {
		at := off - w.off
		return w.buf[at : at+int64(n)]
	}
	want := int64(max(n, windowChunk))
	want = max(min(want, w.limit-off), int64(n))
	if int64(cap(w.buf)) < want {
		w.buf = make([]byte, want)
	}
	w.buf, w.off = w.buf[:want], off
	got, err := w.r.ReadAt(w.buf, off)
	if err != nil && !errors.Is(err, io.EOF) {
		got = w.readPages(got)
	}
	w.buf = w.buf[:got]
	return w.buf[:min(n, got)]
}

// readPages fills the buffer page by page from position got on.
func (w *window) readPages(got int) int {
	for got < len(w.buf) {
		at := w.off + int64(got)
		n := min(int(readPage-at%readPage), len(w.buf)-got)
		m, err := w.r.ReadAt(w.buf[got:got+n], at)
		switch {
		case errors.Is(err, io.EOF):
			return got + m
		case err != nil:
			clear(w.buf[got : got+n])
			w.unreadable = append(w.unreadable, at)
			w.readErr = err
			if errors.Is(err, fs.ErrClosed) {
				return got
			}
		}
		got += n
	}
	return got
}

// frame is a frame with a valid checksum.
type frame struct {
	kind    uint8
	payload []byte
	// next is the offset after it.
	next int64
}

// frameAt returns the frame at off. ok is false if there is no valid frame
// there that ends at or before end.
func (w *window) frameAt(off, end int64) (f frame, ok bool) {
	head := w.bytes(off, frameHead)
	if len(head) < frameHead || off+frameHead > end {
		return frame{}, false
	}
	word, crc := binary.LittleEndian.Uint32(head), binary.LittleEndian.Uint32(head[4:])
	kind, length := uint8(word), int(word>>8)
	f.next = off + int64(frameSize(length))
	if kind == 0 || f.next > end || kind == batchKind && length != batchPayload {
		return frame{}, false
	}
	b := w.bytes(off, frameHead+length)
	if len(b) < frameHead+length {
		return frame{}, false
	}
	f.kind, f.payload = kind, b[frameHead:]
	return f, frameCRC(w.salt, makePosition(w.seq, uint32(off)), word, f.payload) == crc
}

// batchAt returns the head of the batch at off if its frame is valid.
func (w *window) batchAt(off, end int64) (batchHead, bool) {
	f, ok := w.frameAt(off, end)
	if !ok || f.kind != batchKind {
		return batchHead{}, false
	}
	return parseBatchHead(f.payload, makePosition(w.seq, uint32(off)))
}

// wholeBatch reports whether all entries of the batch at off are valid.
func (w *window) wholeBatch(off int64, h batchHead, end int64) bool {
	stop := off + int64(h.bytes)
	if stop > end {
		return false
	}
	at := off + batchFrame
	for range h.entries {
		f, ok := w.frameAt(at, stop)
		if !ok || f.kind == batchKind {
			return false
		}
		at = f.next
	}
	return at == stop
}

// resync returns the next valid frame after off and before end, or end if there
// is none. First it trusts the length of the bad frame, because usually the
// payload is damaged. Then it tries every eighth byte; the number of bytes
// checked is bounded, because garbage has long lengths.
func (w *window) resync(off, end int64) int64 {
	if head := w.bytes(off, frameHead); len(head) == frameHead {
		next := off + int64(frameSize(int(binary.LittleEndian.Uint32(head)>>8)))
		if next < end {
			if _, ok := w.frameAt(next, end); ok {
				return next
			}
		}
	}
	budget := 16*(end-off) + 1<<20
	for at := off + 8; at < end; at += 8 {
		head := w.bytes(at, frameHead)
		if len(head) < frameHead {
			return end
		}
		word := binary.LittleEndian.Uint32(head)
		if word == 0 || budget < 0 && word != batchWord {
			continue
		}
		if int64(word>>8) < end-at {
			budget -= int64(word >> 8)
		}
		if _, ok := w.frameAt(at, end); ok {
			return at
		}
	}
	return end
}

// nextBatch looks for the next valid batch frame at or after off.
func (w *window) nextBatch(off, end int64) (int64, batchHead, bool) {
	for at := off; at+batchFrame <= end; at += 8 {
		b := w.bytes(at, 4)
		if len(b) < 4 {
			break
		}
		if binary.LittleEndian.Uint32(b) != batchWord {
			continue
		}
		if h, ok := w.batchAt(at, end); ok {
			return at, h, true
		}
	}
	return end, batchHead{}, false
}

// walk calls entry for each valid entry in [off, end), all of which was once
// durable, and bad for each invalid part. Either may stop it by returning
// false; the returned offset is then that of the entry, or the one after the
// bad part.
func (w *window) walk(off, end int64, entry func(at int64, f frame) bool, bad func(from, to int64) bool) int64 {
	for off < end {
		f, ok := w.frameAt(off, end)
		if !ok {
			next := w.resync(off, end)
			if !bad(off, next) {
				return next
			}
			off = next
			continue
		}
		if f.kind != batchKind && !entry(off, f) {
			return off
		}
		off = f.next
	}
	return off
}
