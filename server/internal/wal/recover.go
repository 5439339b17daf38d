package wal

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/stemedb/stemedb/server/internal/vfs"
)

// recover brings the log to the state that the disk proves. It changes no
// acknowledged bytes and is idempotent: the next start repeats it after a crash.
func (l *Log) recover() error {
	l.metrics.recoveries.Inc()
	s, err := settle(&l.opts)
	if err != nil {
		return err
	}
	l.id, l.inc, l.replaces = s.id, s.inc, s.replaces
	var key [8]byte
	if _, err := io.ReadFull(l.opts.Rand, key[:]); err != nil {
		return fmt.Errorf("draw the salts of segments: %w", err)
	}
	l.saltKey = binary.LittleEndian.Uint64(key[:])

	r := &recovery{l: l, m: s.manifest}
	if r.m == nil {
		if r.m, err = l.firstManifest(s); err != nil {
			return err
		}
		if err := saveManifest(l.fs, l.opts.WALDir, r.m); err != nil {
			return err
		}
	}
	if err := r.run(); err != nil {
		r.close()
		return err
	}
	return nil
}

// firstManifest returns the manifest of a new log, or of one that takes over packs.
func (l *Log) firstManifest(s *settled) (*manifest, error) {
	m := &manifest{Format: formatVersion, Node: s.id.Node, Incarnation: s.id.Incarnation, Whole: true}
	if s.replaces == "" {
		return m, nil
	}
	numbers, err := listNumbered(l.fs, l.opts.PackDir, packPrefix, packSuffix)
	if err != nil {
		return nil, err
	}
	m.Whole = false
	next := uint32(1)
	lose := func(to uint32, why string) {
		m.lose(Range{From: makePosition(next, 0), To: makePosition(to, 0), Reason: why})
	}
	for _, seq := range numbers {
		p, err := l.adoptPack(seq)
		if err != nil {
			l.log.Error("a pack of the earlier incarnation cannot be taken over", "file", l.packName(seq), "error", err)
			continue
		}
		if seq > next {
			lose(seq, "this pack was missing when a new incarnation took over")
		}
		m.Packs = append(m.Packs, p)
		next = seq + 1
	}
	lose(next+1, "the WAL volume was lost, and with it the unsealed entries")
	return m, nil
}

func (l *Log) adoptPack(seq uint32) (manifestPack, error) {
	f, err := l.fs.OpenFile(l.packName(seq), os.O_RDONLY, 0)
	if err != nil {
		return manifestPack{}, err
	}
	defer f.Close()
	foot, err := readFooter(f)
	if err != nil {
		return manifestPack{}, err
	}
	b := make([]byte, 64)
	if _, err := f.ReadAt(b, 0); err != nil {
		return manifestPack{}, err
	}
	h, err := decodeHeader(b)
	if err != nil {
		return manifestPack{}, err
	}
	if h.seq != seq || foot.seq != seq {
		return manifestPack{}, fmt.Errorf("its contents are segment %d (%d)", h.seq, foot.seq)
	}
	return manifestPack{
		Seq: seq, Salt: h.salt, End: foot.end, Entries: foot.entries,
		Bytes: int64(foot.end) + footerSize, Hash: hex.EncodeToString(foot.hash[:]),
	}, nil
}

// recovery is the state of one Open.
type recovery struct {
	l     *Log
	m     *manifest
	parts []*part
	files []vfs.File
	// found: a loss or damage that was not known.
	found bool
}

func (r *recovery) close() {
	for _, f := range r.files {
		f.Close()
	}
}

func (r *recovery) run() error {
	l := r.l
	// Names that a crash left only in the page cache must become durable first.
	for _, dir := range []string{l.opts.WALDir, l.opts.PackDir} {
		if err := l.fs.SyncDir(dir); err != nil {
			return err
		}
	}
	if err := r.adoptUnlisted(); err != nil {
		return err
	}
	if err := r.openPacks(); err != nil {
		return err
	}
	if err := r.openSegments(); err != nil {
		return err
	}
	v := judge(r.parts, r.m.Durable)
	r.damage(v.damaged)
	if v.tail != nil {
		if err := r.cutTail(v); err != nil {
			return err
		}
		if err := r.mendHeader(v.tail); err != nil {
			return err
		}
		if r.lostBehind(v.tail.listed.Seq) {
			v.endTail()
		}
	}
	r.assemble(v)
	if err := r.draw(); err != nil {
		return err
	}
	if err := r.beginOpening(); err != nil {
		return err
	}
	err := saveManifest(l.fs, l.opts.WALDir, r.bump())
	if vfs.IsNoSpace(err) {
		// The next start finds the same losses again; a full disk must not keep the
		// node from serving reads.
		l.enterReadOnly(err)
		r.m.Lives = r.m.Lives[:len(r.m.Lives)-1] // it is not recorded
		r.m.Openings = r.m.Openings[:len(r.m.Openings)-1]
		r.m.LastOpening--
		l.openingDue.Store(true)
	} else if err != nil {
		return err
	}
	l.manifest.Store(r.m)
	if err := r.tidy(); err != nil {
		return err
	}
	if l.cur == nil {
		return r.newTail()
	}
	return nil
}

// lostBehind reports whether entries may have followed a segment.
func (r *recovery) lostBehind(seq uint32) bool {
	return slices.ContainsFunc(r.l.segments, func(s *segment) bool { return s.seq > seq }) ||
		slices.ContainsFunc(r.m.Lost, func(x Range) bool { return x.To > makePosition(seq+1, 0) })
}

func (r *recovery) bump() *manifest {
	r.m.Version++
	r.m.Durable = max(r.m.Durable, r.l.End())
	if unnoted := r.m.LastLoss == 0 && len(r.m.Lost)+len(r.m.Damaged) > 0; r.found || unnoted {
		r.m.LastLoss = r.top()
	}
	return r.m
}

// adoptUnlisted lists segments that are newer than the manifest. They exist if
// the manifest was read from its copy, which may be one version old. A segment
// that was prepared and not listed yet looks the same, and is empty.
func (r *recovery) adoptUnlisted() error {
	l := r.l
	numbers, err := listNumbered(l.fs, l.opts.WALDir, segmentPrefix, segmentSuffix)
	if err != nil {
		return err
	}
	var last uint32
	for _, s := range r.m.Segments {
		last = max(last, s.Seq)
	}
	for _, seq := range numbers {
		if seq <= last || len(r.m.Segments) == 0 || r.m.pack(seq) != nil {
			continue
		}
		h, size, err := l.readHeader(l.segmentName(seq))
		if err != nil || h.seq != seq || h.inc != l.inc {
			continue
		}
		r.m.Segments = append(r.m.Segments, manifestSegment{Seq: seq, Salt: h.salt, Size: size})
	}
	return nil
}

func (l *Log) readHeader(name string) (header, int64, error) {
	f, err := l.fs.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return header{}, 0, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return header{}, 0, err
	}
	b := make([]byte, 64)
	if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return header{}, 0, err
	}
	h, err := decodeHeader(b)
	return h, size, err
}

func (r *recovery) open(name string, flag int) (vfs.File, error) {
	f, err := r.l.fs.OpenFile(name, flag, 0)
	if err == nil {
		r.files = append(r.files, f)
	}
	return f, err
}

// openPacks opens the packs that the manifest lists. If the segment file still
// exists, the pack is verified; an invalid pack is copied again.
func (r *recovery) openPacks() error {
	l := r.l
	kept := make([]manifestPack, 0, len(r.m.Packs))
	slices.SortFunc(r.m.Packs, func(a, b manifestPack) int { return cmp.Compare(a.Seq, b.Seq) })
	for _, p := range r.m.Packs {
		s := &segment{seq: p.Seq, salt: p.Salt, end: p.End, entries: p.Entries, rotated: true, packed: true}
		f, err := r.open(l.packName(p.Seq), os.O_RDONLY)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("open pack %d: %w", p.Seq, err)
		}
		if r.m.segment(p.Seq) != nil {
			if err == nil {
				err = r.verifyListed(f, p)
			}
			if err != nil {
				l.log.Warn("a pack is incomplete; it is copied again from its segment", "segment", p.Seq, "error", err)
				m := r.m.segment(p.Seq)
				m.End, m.Entries = p.End, p.Entries
				continue
			}
		}
		kept = append(kept, p)
		if f != nil {
			s.src = &source{file: f}
			r.regain(p.Seq)
			if err := r.checkPack(f, p); err != nil {
				return fmt.Errorf("check pack %d: %w", p.Seq, err)
			}
		} else {
			r.lose(Range{From: makePosition(p.Seq, 0), To: makePosition(p.Seq+1, 0), Reason: "the pack is missing"})
		}
		l.segments = append(l.segments, s)
	}
	r.m.Packs = kept
	return nil
}

func (r *recovery) verifyListed(f vfs.File, p manifestPack) error {
	want := footer{seq: p.Seq, end: p.End, entries: p.Entries}
	if b, err := hex.DecodeString(p.Hash); err == nil {
		copy(want.hash[:], b)
	}
	return verifyPack(context.Background(), f, want)
}

// checkPack finds truncated packs. Other damage shows when the pack is read.
func (r *recovery) checkPack(f vfs.File, p manifestPack) error {
	size, err := f.Size()
	if err != nil {
		return err
	}
	if size < int64(p.End) {
		from := uint32(size) &^ 7
		r.damage([]Range{{From: makePosition(p.Seq, from), To: makePosition(p.Seq, p.End), Reason: "the pack is truncated"}})
	}
	return nil
}

// openSegments opens and surveys the segment files that the manifest lists.
func (r *recovery) openSegments() error {
	l := r.l
	kept := make([]manifestSegment, 0, len(r.m.Segments))
	slices.SortFunc(r.m.Segments, func(a, b manifestSegment) int { return int(int64(a.Seq) - int64(b.Seq)) })
	for _, m := range r.m.Segments {
		name := l.segmentName(m.Seq)
		f, err := r.open(name, os.O_RDWR)
		packed := r.m.pack(m.Seq)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			switch {
			case packed != nil:
			case r.neverUsed(m):
				l.log.Info("a segment that was prepared and never used is missing", "segment", m.Seq)
			default:
				r.lose(Range{From: makePosition(m.Seq, 0), To: makePosition(m.Seq+1, 0), Reason: "the segment is missing"})
				l.segments = append(l.segments, &segment{seq: m.Seq, salt: m.Salt, end: max(m.End, headerSize), rotated: true})
			}
			continue
		case err != nil:
			return fmt.Errorf("open segment %d: %w", m.Seq, err)
		}
		kept = append(kept, m)
		r.regain(m.Seq)
		if packed != nil {
			l.retired = append(l.retired, retired{m.Seq, packed.End, name, &source{file: f, retired: true}, false})
			continue
		}
		p, err := r.survey(m, f)
		if err != nil {
			return fmt.Errorf("segment %s: %w", name, err)
		}
		r.parts = append(r.parts, p)
	}
	r.m.Segments = kept
	return nil
}

// neverUsed reports whether no batch was ever written to a segment: the
// previous segment is listed without its end, which the writer records before
// it continues (see rotateTo).
func (r *recovery) neverUsed(m manifestSegment) bool {
	before := r.m.segment(m.Seq - 1)
	return m.End == 0 && m.Seq > r.m.Durable.Segment() && before != nil && before.End == 0 && r.m.pack(m.Seq-1) == nil
}

func (r *recovery) survey(m manifestSegment, f vfs.File) (*part, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	m.Size = min(m.Size, size&^7)
	b := make([]byte, 64)
	if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		if m.End == 0 {
			return nil, err
		}
		// The segment is full: the manifest knows the fields of the header, and the
		// entries may still be readable.
		r.l.log.Warn("the header of a segment cannot be read", "segment", m.Seq, "error", err)
	}
	p := &part{listed: m, seg: &segment{seq: m.Seq, salt: m.Salt, size: m.Size, src: &source{file: f}}}
	p.head, err = decodeHeader(b)
	p.headOK = err == nil && p.head.seq == m.Seq && p.head.salt == m.Salt
	if err == nil && p.headOK && p.head.inc != r.l.inc {
		return nil, fmt.Errorf("it belongs to incarnation %.8s, the volume to %.8s; %s",
			p.head.inc, r.l.inc, r.l.opts.remedy("restore the file that belongs here from a copy or a snapshot of this volume"))
	}
	p.win = &window{r: f, salt: m.Salt, seq: m.Seq, limit: m.Size}
	p.survey = surveySegment(p.win)
	if !p.headOK && p.survey.seen > 0 {
		r.l.log.Warn("the header of a segment is damaged; its entries are still readable", "segment", m.Seq, "error", err)
	}
	return p, nil
}

// mendHeader rewrites a damaged header of the tail. The manifest knows its
// fields, and the pack that the tail becomes should be verifiable without a
// manifest.
func (r *recovery) mendHeader(p *part) error {
	if p.headOK || p.listed.Size < headerSize {
		return nil
	}
	b := make([]byte, headerSize)
	header{seq: p.listed.Seq, salt: p.listed.Salt, recycled: true, inc: r.l.inc}.encode(b)
	f := p.seg.src.file
	if _, err := f.WriteAt(b, 0); err != nil {
		return fmt.Errorf("rewrite the header of %s: %w", f.Name(), err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", f.Name(), err)
	}
	return nil
}

// assemble builds the log in memory from the recovered parts.
func (r *recovery) assemble(v verdict) {
	l := r.l
	for _, p := range v.full {
		p.seg.rotated = true
		l.segments = append(l.segments, p.seg)
		m := r.m.segment(p.listed.Seq)
		m.End, m.Entries = p.seg.end, p.seg.entries
	}
	for _, p := range v.ahead {
		if p.headOK && p.listed.Size >= 16<<10 && p.survey.seen == 0 {
			l.ahead[p.listed.Seq] = p.listed
		} else {
			r.m.Segments = deleteSegment(r.m.Segments, p.listed.Seq)
		}
		p.seg.src.file.Close() // the preparer opens it again
	}
	if p := v.tail; p != nil {
		l.segments = append(l.segments, p.seg)
		l.cur = p.seg
		l.setTail(p.seg, uint32(v.end))
	}
	slices.SortFunc(l.segments, func(a, b *segment) int { return int(int64(a.seq) - int64(b.seq)) })
}

func (l *Log) setTail(s *segment, end uint32) {
	l.durable.Store(uint64(makePosition(s.seq, end)))
	l.tail.seq, l.tail.off, l.tail.size = s.seq, end, s.size
	l.ahead[s.seq] = manifestSegment{Seq: s.seq, Salt: s.salt, Size: s.size}
}

// newTail begins a segment after everything that ever existed.
func (r *recovery) newTail() error {
	l := r.l
	seq := uint32(1)
	for _, s := range l.segments {
		seq = max(seq, s.seq+1)
	}
	for _, x := range r.m.Lost {
		seq = max(seq, x.To.Segment())
	}
	seq = max(seq, r.m.Durable.Segment()+1)
	reserve := l.opts.Reserve
	if len(l.segments) > 0 || len(r.m.Lost) > 0 {
		// A log that lost its end must be readable on a nearly full disk like any
		// other; the reserve exists for that.
		reserve = 0
	}
	s, err := l.prepare(context.Background(), seq, reserve)
	if err != nil {
		return err
	}
	r.files = append(r.files, s.src.file)
	l.cur = s
	l.segments = append(l.segments, s)
	l.setTail(s, headerSize)
	return nil
}

// tidy removes files that are not listed: leftovers of interrupted operations,
// and segments, which could be spares if it were known that the disk can read
// them. Files with other names stay.
func (r *recovery) tidy() error {
	l := r.l
	numbers, err := listNumbered(l.fs, l.opts.WALDir, segmentPrefix, segmentSuffix)
	if err != nil {
		return err
	}
	for _, seq := range numbers {
		if r.m.segment(seq) == nil {
			l.removeSegment(l.segmentName(seq))
		}
	}
	for _, name := range []string{spareName, manifestName + tmpSuffix, manifestCopy + tmpSuffix, identityName + tmpSuffix} {
		err := l.fs.Remove(filepath.Join(l.opts.WALDir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove a leftover file: %w", err)
		}
	}
	return r.tidyPacks()
}

func (r *recovery) tidyPacks() error {
	l := r.l
	numbers, err := listNumbered(l.fs, l.opts.PackDir, packPrefix, packSuffix+tmpSuffix)
	if err != nil {
		return err
	}
	left := []string{filepath.Join(l.opts.PackDir, identityName+tmpSuffix)}
	for _, seq := range numbers {
		left = append(left, l.packName(seq)+tmpSuffix)
	}
	for _, name := range left {
		if err := l.fs.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove a leftover file: %w", err)
		}
	}
	return nil
}
