package wal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/stemedb/stemedb/internal/sleep"
	"github.com/stemedb/stemedb/server/internal/vfs"
)

// Segments are prepared in the background, one ahead of the writer, so that a
// rotation costs nothing. Every byte of the file has been written before (as
// zeros or in an earlier use), because a sync that has to convert or allocate
// extents takes twice as long.

// errNoSegment: there is no space for the next segment.
var errNoSegment = errors.New("no space for the next segment")

// maxSpares bounds the files kept for reuse; any more are removed.
const maxSpares = 2

// syncChunk is the number of bytes written in the background between two syncs:
// more would delay the writer's sync.
const syncChunk = 4 << 20

// offer passes a segment, or an error, from the preparer to the writer.
type offer struct {
	seg *segment
	err error
}

// rotateTo makes segment seq the current one. Only the writer calls it. It
// records the end of the previous segment in the manifest before seq takes a
// batch. So a missing segment after one without a known end never held anything.
func (l *Log) rotateTo(seq uint32) error {
	if err := l.moveTo(seq); err != nil || !l.endUnnoted {
		return err
	}
	if err := l.update(l.listEnds); err != nil {
		if vfs.IsNoSpace(err) {
			err = fmt.Errorf("%w: %w", errNoSegment, err)
		}
		return fmt.Errorf("record the end of the segment before %d: %w", seq, err)
	}
	l.endUnnoted = false
	return nil
}

func (l *Log) moveTo(seq uint32) error {
	for l.cur.seq != seq {
		o := <-l.offers
		if o.err != nil {
			return o.err
		}
		l.tab.Lock()
		l.endSegment(l.cur)
		l.segments = append(l.segments, o.seg)
		l.tab.Unlock()
		l.cur, l.endUnnoted = o.seg, true
		l.metrics.rotations.Inc()
		sleep.Wake(l.sealWake)
	}
	return nil
}

// endSegment sets the end of s. Log.tab must be held.
func (l *Log) endSegment(s *segment) {
	s.end = headerSize
	if d := l.End(); d.Segment() == s.seq {
		s.end = d.Offset()
	}
	s.rotated = true
}

func (l *Log) runPreparer(ctx context.Context) {
	defer l.restDone.Done()
	for seq := l.cur.seq + 1; ; {
		seg, err := l.prepare(ctx, seq, l.opts.Reserve)
		var retry <-chan time.Time
		switch {
		case err == nil:
			seq++
		case ctx.Err() != nil:
			return
		case vfs.IsNoSpace(err) || errors.Is(err, errNoSegment):
			err = fmt.Errorf("%w: %w", errNoSegment, err)
			l.mu.Lock()
			l.enterReadOnly(err)
			l.mu.Unlock()
			retry = time.After(l.opts.CheckInterval)
		default:
			l.fail(err)
		}
		for again := true; again; {
			select {
			case l.offers <- offer{seg, err}:
				// A failed log rejects everything after its segment.
				again = err != nil && retry == nil
			case <-retry:
				again = false
			case <-ctx.Done():
				if seg != nil {
					seg.src.file.Close()
				}
				return
			}
		}
	}
}

// prepare makes segment seq ready: durable, listed, open. It creates a new file
// only if reserve bytes are free.
func (l *Log) prepare(ctx context.Context, seq uint32, reserve uint64) (_ *segment, err error) {
	name := l.segmentName(seq)
	s := &segment{seq: seq, salt: l.saltFor(seq), size: l.sizeFor(seq)}
	_, ahead := l.ahead[seq]
	if !ahead {
		if err := l.makeSegment(ctx, s, name, reserve); err != nil {
			return nil, fmt.Errorf("prepare %s: %w", name, err)
		}
	}
	f, err := l.fs.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("prepare %s: %w", name, err)
	}
	s.src = &source{file: f}
	err = l.update(func(m *manifest) {
		if m.segment(seq) == nil {
			m.Segments = append(m.Segments, manifestSegment{Seq: seq, Salt: s.salt, Size: s.size})
		}
		l.listEnds(m)
	})
	if err != nil {
		f.Close()
		if !ahead {
			l.addSpare(name)
		}
		return nil, fmt.Errorf("list %s: %w", name, err)
	}
	return s, nil
}

// listEnds records the ends of the segments that are closed to further batches.
func (l *Log) listEnds(m *manifest) {
	l.tab.Lock()
	defer l.tab.Unlock()
	for i := range m.Segments {
		if s, _ := l.find(m.Segments[i].Seq); s != nil && s.rotated {
			m.Segments[i].End, m.Segments[i].Entries = s.end, s.entries
		}
	}
}

// makeSegment creates the file of s under its name.
func (l *Log) makeSegment(ctx context.Context, s *segment, name string, reserve uint64) (err error) {
	from, recycled := l.takeSpare()
	if !recycled {
		from = filepath.Join(l.opts.WALDir, spareName)
		free, _, err := l.fs.Free(l.opts.WALDir)
		if err != nil {
			return err
		}
		if free < max(reserve, uint64(s.size)) {
			return fmt.Errorf("%w: %d bytes are free", errNoSegment, free)
		}
	}
	f, err := l.fs.OpenFile(from, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		f.Close()
		if err != nil {
			_ = l.fs.Remove(from) // it holds nothing
		}
	}()
	if !recycled {
		if err := zeroFill(ctx, f, s.size); err != nil {
			return err
		}
	}
	head := make([]byte, headerSize)
	header{seq: s.seq, salt: s.salt, recycled: recycled, inc: l.inc}.encode(head)
	if _, err := f.WriteAt(head, 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := l.fs.Rename(from, name); err != nil {
		return err
	}
	return l.fs.SyncDir(l.opts.WALDir)
}

// zeroFill writes zeros over the whole file, which may be left over from an
// earlier attempt.
func zeroFill(ctx context.Context, f vfs.File, size int64) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	zeros := make([]byte, min(size, 1<<20))
	for off, synced := int64(0), int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := f.WriteAt(zeros[:min(int64(len(zeros)), size-off)], off)
		if err != nil {
			return err
		}
		off += int64(n)
		if off-synced >= syncChunk {
			if err := f.Sync(); err != nil {
				return err
			}
			synced = off
		}
	}
	return nil
}

func (l *Log) takeSpare() (name string, ok bool) {
	l.tab.Lock()
	defer l.tab.Unlock()
	if n := len(l.spares); n > 0 {
		name, l.spares = l.spares[n-1], l.spares[:n-1]
		return name, true
	}
	return "", false
}

// addSpare keeps the file for reuse, or removes it if there are enough. The
// manifest must no longer list it.
func (l *Log) addSpare(name string) {
	st, err := l.fs.Stat(name)
	l.tab.Lock()
	keep := err == nil && st.Size() == l.opts.SegmentSize && len(l.spares) < maxSpares
	if keep {
		l.spares = append(l.spares, name)
	}
	l.tab.Unlock()
	if !keep {
		l.removeSegment(name)
	}
}

// removeSegment removes a file that the manifest no longer lists. If that
// fails, the next start removes it.
func (l *Log) removeSegment(name string) {
	if err := l.fs.Remove(name); err != nil {
		l.log.Warn("a segment that is no longer needed could not be removed", "file", name, "error", err)
	}
}
