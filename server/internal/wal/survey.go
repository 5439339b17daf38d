package wal

import (
	"cmp"
	"slices"
)

// Torn or damaged
//
// A batch is written after the sync of the previous one, and its frame says so:
// everything below its durable position was durable. So after a crash at most
// the last batch can be torn, and nothing proves it durable. Invalid bytes at X
// are damage if a valid batch frame, or the manifest, has a durable position
// beyond X. Otherwise they are an unacknowledged tail, in whatever order its
// pages arrived. The bytes' appearance is no evidence.

// survey is the result of reading a segment file.
type survey struct {
	// clean is the offset after the intact batches that follow the header, entries
	// their number of entries.
	clean   int64
	entries uint64
	// seen is the offset after the last batch with a valid frame, even after
	// invalid bytes, as far as it is within the file; 0 if there is none.
	seen int64
	// top is the highest durable position in a valid batch frame.
	top Position
	// before is the end of the log before this segment's first batch; 0 if that
	// batch's frame is invalid.
	before Position
}

// surveySegment reads the whole file.
func surveySegment(w *window) survey {
	s := survey{clean: headerSize}
	contiguous := true
	for off := int64(headerSize); off < w.limit; {
		h, ok := w.batchAt(off, w.limit)
		if !ok {
			contiguous = false
			if off, h, ok = w.nextBatch(off+8, w.limit); !ok {
				break
			}
		}
		s.top = max(s.top, h.durable)
		s.seen = max(s.seen, min(off+int64(h.bytes), w.limit))
		if h.durable.Segment() < w.seq {
			s.before = h.durable
		}
		if !w.wholeBatch(off, h, w.limit) {
			contiguous = false
			off += batchFrame
			continue
		}
		off += int64(h.bytes)
		if contiguous {
			s.clean = off
			s.entries += uint64(h.entries)
		}
	}
	return s
}

// part is a segment file under recovery.
type part struct {
	listed manifestSegment
	seg    *segment
	head   header
	headOK bool
	survey survey
	win    *window
}

// verdict is the decision of recovery about the unsealed part of the log.
type verdict struct {
	// tail is the part in which the log continues; nil if all are full, lost or
	// missing: then the log continues in a new segment.
	tail *part
	// proven is the offset in tail below which everything was certainly durable,
	// end the offset after the last complete batch.
	proven, end int64
	// full holds the parts before the tail, ahead the empty parts after it.
	full, ahead []*part
	damaged     []Range
}

// judge finds the end of the log in parts, which are ordered by number. known
// is a position below which everything is known to have been durable.
func judge(parts []*part, known Position) verdict {
	ends := map[uint32]uint32{}
	top := known
	var last uint32 // the last segment that holds something
	for _, p := range parts {
		if p.listed.End > 0 {
			ends[p.listed.Seq] = p.listed.End
			top = max(top, makePosition(p.listed.Seq, p.listed.End))
		}
		top = max(top, p.survey.top)
		if p.survey.before > 0 {
			ends[p.survey.before.Segment()] = p.survey.before.Offset()
		}
		if p.survey.seen > 0 {
			last = max(last, p.listed.Seq)
		}
	}
	last = max(last, top.Segment())
	var v verdict
	for _, p := range parts {
		switch seq := p.listed.Seq; {
		case seq < last || seq == last && p.listed.End > 0:
			end, ok := ends[seq]
			if !ok {
				// Only the first frame of the next segment or the manifest could show the
				// end; both are gone.
				end = uint32(max(p.survey.clean, p.survey.seen))
			}
			p.seg.end = end
			v.full = append(v.full, p)
			v.damaged = append(v.damaged, p.settle(int64(end))...)
		case v.tail == nil && p.survey.seen == 0 && seq > last, seq == last:
			v.tail = p
			v.proven = headerSize
			if top.Segment() == seq {
				v.proven = int64(top.Offset())
			}
			v.damaged = append(v.damaged, p.settle(v.proven)...)
			v.end = p.extend(v.proven)
		default:
			v.ahead = append(v.ahead, p)
		}
	}
	slices.SortFunc(v.damaged, func(a, b Range) int { return cmp.Compare(a.From, b.From) })
	return v
}

// endTail makes the tail a full part: a later segment was lost and may have
// held entries, so the log continues after that one.
func (v *verdict) endTail() {
	v.tail.seg.end = uint32(v.end)
	v.full = append(v.full, v.tail)
	v.tail = nil
}

// settle returns the invalid ranges below end, all of which was durable, and
// counts the valid entries.
func (p *part) settle(end int64) (damaged []Range) {
	if p.survey.clean >= end {
		p.seg.entries = p.survey.entries
		return nil
	}
	p.win.walk(headerSize, end,
		func(int64, frame) bool { p.seg.entries++; return true },
		func(from, to int64) bool {
			damaged = append(damaged, damagedRange(p.listed.Seq, from, to, p.win.readErr))
			return true
		})
	return damaged
}

// extend returns the offset after the last complete batch from proven on: it
// keeps complete batches although nothing has acknowledged them yet.
func (p *part) extend(proven int64) int64 {
	if p.survey.clean >= proven {
		return p.survey.clean
	}
	end := proven
	for {
		h, ok := p.win.batchAt(end, p.win.limit)
		if !ok || !p.win.wholeBatch(end, h, p.win.limit) {
			return end
		}
		end += int64(h.bytes)
		p.seg.entries += uint64(h.entries)
	}
}
