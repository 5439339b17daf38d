package wal

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

const (
	// maxTorn bounds the size of a file with a torn tail, keepTorn the number of
	// such files: people may want to inspect them.
	maxTorn  = 4 << 20
	keepTorn = 4
)

// cutTail makes the end of the log clean. It sets the bytes after the end aside
// and overwrites them with zeros: an unacknowledged batch must not reappear
// after later ones. It rewrites complete batches that are not proven durable,
// because they may be only in the page cache, even marked clean there after a
// failed sync.
func (r *recovery) cutTail(v verdict) error {
	p := v.tail
	f := p.seg.src.file
	for _, page := range p.win.unreadable {
		if page+readPage > v.end {
			return fmt.Errorf("%s cannot be read at %d, after the last position that is known to be durable: "+
				"the bytes there may have been acknowledged, so nothing is cut; check the disk: %w", f.Name(), page, p.win.readErr)
		}
	}
	p.win.unreadable = nil
	to := r.tornEnd(p, v.end)
	if to > v.end {
		if err := r.setAside(p, v.end, to); err != nil {
			return err
		}
	}
	if to == v.end && v.proven == v.end {
		return nil
	}
	for off := v.proven; off < v.end; {
		b := p.win.bytes(off, int(min(v.end-off, windowChunk)))
		if len(b) == 0 {
			return fmt.Errorf("%s ended while its tail was read", f.Name())
		}
		if _, err := f.WriteAt(b, off); err != nil {
			return fmt.Errorf("write the tail of %s again: %w", f.Name(), err)
		}
		off += int64(len(b))
	}
	zeros := make([]byte, min(to-v.end, 1<<20))
	for off := v.end; off < to; off += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), to-off)], off); err != nil {
			return fmt.Errorf("cut the tail of %s: %w", f.Name(), err)
		}
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", f.Name(), err)
	}
	return nil
}

// tornEnd returns the offset after the bytes to cut, or end if there are none.
// In a file that was never reused, everything but zeros counts. Otherwise only
// bytes that a batch frame of the file's current use announces can be
// distinguished from stale bytes, and stale bytes are never used.
func (r *recovery) tornEnd(p *part, end int64) int64 {
	to := max(end, p.survey.seen)
	if !p.headOK || p.head.recycled {
		return to
	}
	for off := end; off < p.win.limit; {
		b := p.win.bytes(off, int(min(p.win.limit-off, windowChunk)))
		if len(b) == 0 {
			break
		}
		for i, c := range b {
			if c != 0 {
				to = max(to, off+int64(i)+1)
			}
		}
		off += int64(len(b))
	}
	return (to + 7) &^ 7
}

func (r *recovery) setAside(p *part, from, to int64) error {
	l := r.l
	name := filepath.Join(l.opts.WALDir, fmt.Sprintf("%s%08d-%010d%s", tornPrefix, p.listed.Seq, from, tornSuffix))
	l.metrics.tornTails.Inc()
	l.log.Warn("the log ended in a batch that was never acknowledged; it is set aside and cut",
		"segment", p.listed.Seq, "offset", from, "bytes", to-from, "file", name)
	b := slices.Clone(p.win.bytes(from, int(min(to-from, maxTorn))))
	if err := writeWhole(l.fs, name, b); err != nil {
		// The tail is kept for inspection only; a full disk must not keep the node down.
		l.log.Warn("the torn tail could not be set aside", "file", name, "error", err)
	}
	entries, err := l.fs.ReadDir(l.opts.WALDir)
	if err != nil {
		return err
	}
	var old []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tornPrefix) && strings.HasSuffix(e.Name(), tornSuffix) {
			old = append(old, e.Name())
		}
	}
	for len(old) > keepTorn {
		if err := l.fs.Remove(filepath.Join(l.opts.WALDir, old[0])); err != nil {
			return fmt.Errorf("remove %s: %w", old[0], err)
		}
		old = old[1:]
	}
	return l.fs.SyncDir(l.opts.WALDir)
}
