package wal

import (
	"fmt"
	"slices"

	"github.com/stemedb/stemedb/server/internal/remedy"
)

// Lost and damaged ranges: how they are found and reported.

// Damage lists ranges that were durable and are now invalid.
func (l *Log) Damage() []Range { return slices.Clone(l.manifest.Load().Damaged) }

// Damaged reports whether pos is in a range that was found damaged.
func (l *Log) Damaged(pos Position) bool {
	return slices.ContainsFunc(l.manifest.Load().Damaged, func(r Range) bool { return r.From <= pos && pos < r.To })
}

// Missing lists complete losses: packs, segments, a volume.
func (l *Log) Missing() []Range { return slices.Clone(l.manifest.Load().Lost) }

// Outstanding lists those of Missing and Damage that were found since the log
// was last whole. Both are empty if it is whole.
func (l *Log) Outstanding() (lost, damaged []Range) {
	m := l.manifest.Load()
	if m.Whole {
		return nil, nil
	}
	made := func(r Range) bool { return knows(m.MadeGood, r) }
	return slices.DeleteFunc(slices.Clone(m.Lost), made), slices.DeleteFunc(slices.Clone(m.Damaged), made)
}

// LastLoss is the end of the log when the latest of Damage and Missing was
// found: entries below it were written without knowledge of that loss. It is 0
// if nothing was ever lost.
func (l *Log) LastLoss() Position { return l.manifest.Load().LastLoss }

// damage adds the ranges that are not known yet, found when the log ended at
// end, and returns them.
func (m *manifest) damage(found []Range, end Position) (fresh []Range) {
	for _, r := range found {
		if knows(m.Damaged, r) {
			continue
		}
		m.Found = m.losses() + 1
		m.LastLoss = max(m.LastLoss, end)
		m.Whole = false
		if !m.widen(r) {
			fresh = append(fresh, r)
			m.Damaged = append(m.Damaged, r)
		}
	}
	return fresh
}

// widen merges r with an overlapping unread range: while a disk cannot be read,
// each attempt ends at a different place.
func (m *manifest) widen(r Range) bool {
	if !r.Unread {
		return false
	}
	for i := range m.Damaged {
		if k := &m.Damaged[i]; k.Unread && k.From < r.To && r.From < k.To {
			k.From, k.To = min(k.From, r.From), max(k.To, r.To)
			return true
		}
	}
	return false
}

// lose adds a range that is not known yet.
func (m *manifest) lose(r Range) {
	m.Found = m.losses() + 1
	m.Lost = append(m.Lost, r)
}

// losses is the number of findings so far. A manifest of an earlier release
// does not count them.
func (m *manifest) losses() int { return max(m.Found, len(m.Lost)+len(m.Damaged)) }

// Losses is the number of findings of Missing and Damage so far.
func (l *Log) Losses() int { return l.manifest.Load().losses() }

// Recheck reads ranges that the disk refused to read before. Ranges that are valid
// now are no longer damaged: a storage outage is not a loss. That alone does not
// make the log whole again. Recheck returns the ranges that can be read again.
func (l *Log) Recheck() (readable []Range, err error) {
	for _, r := range l.Damage() {
		if r.Unread && l.checks(r) {
			readable = append(readable, r)
		}
	}
	if len(readable) == 0 {
		return nil, nil
	}
	err = l.update(func(m *manifest) {
		m.Found = m.losses()
		m.Damaged = slices.DeleteFunc(m.Damaged, func(r Range) bool { return slices.Contains(readable, r) })
	})
	if err != nil {
		return nil, fmt.Errorf("record the readable ranges: %w", err)
	}
	for _, r := range readable {
		l.log.Info("a part of the log that the disk could not read is readable again; nothing in it is lost", "from", r.From, "to", r.To)
	}
	return readable, nil
}

// checks reports whether every frame of the range is valid.
func (l *Log) checks(r Range) bool {
	v, ok := l.acquire(r.From.Segment())
	if !ok {
		return false
	}
	defer l.releaseView(v)
	if v.src == nil || v.seg.seq != r.From.Segment() {
		return false
	}
	w := window{r: v.src.file, salt: v.seg.salt, seq: v.seg.seq, limit: int64(v.end)}
	whole := true
	at := w.walk(int64(r.From.Offset()), int64(r.To.Offset()),
		func(int64, frame) bool { return true },
		func(int64, int64) bool { whole = false; return false })
	return whole && at == int64(r.To.Offset())
}

// knows reports whether r is inside a range found before.
func knows(known []Range, r Range) bool {
	return slices.ContainsFunc(known, func(k Range) bool { return k.From <= r.From && r.To <= k.To })
}

func damagedRange(seq uint32, from, to int64, readErr error) Range {
	r := Range{From: makePosition(seq, uint32(from)), To: makePosition(seq, uint32(to)), Reason: "checksum"}
	if readErr != nil {
		r.Unread = true
		r.Reason = "the disk could not read it: " + readErr.Error()
	}
	return r
}

// Condemn records an entry whose checksum is right and which is invalid all the
// same, with a payload of that many bytes, as damage: the bytes were wrong when
// they were written.
func (l *Log) Condemn(pos Position, payload int, why error) Range {
	r := Range{From: pos, To: pos + Position(frameSize(payload)), Reason: "invalid: " + why.Error()}
	l.noteDamage([]Range{r})
	return r
}

// noteDamage records invalid ranges and reports them; the log is then not whole.
func (l *Log) noteDamage(found []Range) {
	m := l.manifest.Load()
	if !slices.ContainsFunc(found, func(r Range) bool { return !knows(m.Damaged, r) }) {
		return
	}
	// Even if the write fails, this node must not count as whole.
	err := l.replace(func(m *manifest) { found = m.damage(found, l.End()) }, true)
	l.reportDamage(found)
	if err != nil {
		l.log.Error("damage could not be recorded; the next change of the manifest records it", "error", err)
	}
}

func (l *Log) reportDamage(found []Range) {
	for _, r := range found {
		l.log.Error("the log is damaged: this part was durable and is no longer valid; it is kept unchanged, and the rest stays readable",
			"from", r.From, "to", r.To, "reason", r.Reason)
	}
}

func (r *recovery) lose(x Range) {
	if knows(r.m.Lost, x) {
		return
	}
	r.l.log.Error("a part of the log is lost: this node is not whole",
		"from", x.From, "to", x.To, "reason", x.Reason, "remedy", remedy.Lost(r.l.opts.Members, r.l.opts.Node))
	r.m.lose(x)
	r.m.Whole = false
	r.found = true
}

// regain withdraws the loss of a file that is present again. That alone does
// not make the log whole again.
func (r *recovery) regain(seq uint32) {
	r.m.Found = r.m.losses()
	r.m.Lost = slices.DeleteFunc(r.m.Lost, func(x Range) bool {
		return x.From == makePosition(seq, 0) && x.To == makePosition(seq+1, 0)
	})
}

func (r *recovery) damage(found []Range) {
	fresh := r.m.damage(found, 0)
	r.found = r.found || len(fresh) > 0
	r.l.reportDamage(fresh)
}

// top is a position above every existing entry and below every future one.
func (r *recovery) top() Position {
	top := r.m.Durable
	for _, s := range r.l.segments {
		top = max(top, makePosition(s.seq, s.end))
	}
	for _, x := range r.m.Lost {
		top = max(top, x.To)
	}
	return top
}
