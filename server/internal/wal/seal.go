package wal

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/zeebo/blake3"

	"github.com/stemedb/stemedb/internal/sleep"
	"github.com/stemedb/stemedb/server/internal/vfs"
)

// A full segment becomes a pack: copied under a temporary name, synced, renamed,
// its directory synced, and read back from the disk. From then on, reads use the
// pack. The segment file is reused once the user has applied it (SetApplied), no
// reader is left, and the manifest no longer lists it. A file that the disk
// refused to read, or that this run has not read, is removed instead: to write
// part of a page the disk has to read it, and the log would fail.
//
// Parts of a segment that the disk cannot read become ordinary damage: reported,
// not whole, the rest readable. But a disk may recover, and a hole in a pack is
// permanent. So sealing is retried a number of times, at long intervals. The
// manifest records the damage in the same write that makes the pack count, and
// that write fails if the whole volume is gone. A segment without a readable page
// is unavailable, not damaged, and waits as long as that lasts.
const (
	readTries = 6
	readPause = 10 * time.Second
)

// errUnreadable: the segment may be readable later.
var errUnreadable = errors.New("the segment cannot be read")

// retired is a segment file whose pack is trusted.
type retired struct {
	seq, end uint32
	name     string
	src      *source
	// readable: this run read all of it, at the first attempt.
	readable bool
}

func (l *Log) runSealer(ctx context.Context) {
	defer l.restDone.Done()
	retry := time.NewTicker(l.opts.CheckInterval)
	defer retry.Stop()
	for {
		err := errors.Join(l.sealAll(ctx), l.recycleRetired())
		if err != nil && ctx.Err() == nil {
			l.sealFailed(err)
		}
		select {
		case <-l.sealWake:
		case <-retry.C:
		case <-ctx.Done():
			return
		}
	}
}

// sealFailed handles a failure to seal. The segment still exists, so nothing is
// lost; the next attempt writes a new file.
func (l *Log) sealFailed(err error) {
	l.metrics.writeError("seal")
	if vfs.IsNoSpace(err) {
		l.mu.Lock()
		l.enterReadOnly(err)
		l.mu.Unlock()
		return
	}
	l.log.Error("a segment could not be sealed; it stays on the WAL volume, and sealing is retried", "error", err)
}

// sealAll makes packs of all rotated segments, oldest first. One that fails
// does not hold up the later ones, unless it fails for lack of space: then the
// others would fail too.
func (l *Log) sealAll(ctx context.Context) error {
	var first error
	failed := 0
	for _, s := range l.unsealed() {
		if time.Now().Before(s.retryAt) {
			continue
		}
		err := l.seal(ctx, s)
		if err == nil {
			continue
		}
		err = fmt.Errorf("seal segment %d: %w", s.seq, err)
		if ctx.Err() != nil || vfs.IsNoSpace(err) {
			return err
		}
		if failed++; first == nil {
			first = err
		}
	}
	if failed > 1 {
		first = fmt.Errorf("%w; and %d more segments", first, failed-1)
	}
	return first
}

func (l *Log) unsealed() (todo []*segment) {
	l.tab.Lock()
	defer l.tab.Unlock()
	for _, s := range l.segments {
		if s.rotated && !s.packed && s.src != nil {
			todo = append(todo, s)
		}
	}
	return todo
}

func (l *Log) seal(ctx context.Context, s *segment) error {
	v, _ := l.acquire(s.seq)
	defer l.releaseView(v)
	name := l.packName(s.seq)
	foot := footer{seq: s.seq, end: s.end, entries: s.entries}
	damaged, err := l.copyToPack(ctx, v, name, &foot)
	if errors.Is(err, errUnreadable) {
		s.refused++
		s.retryAt = time.Now().Add(readPause)
	}
	if err != nil {
		return err
	}
	f, err := l.fs.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	if err := verifyPack(ctx, f, foot); err != nil {
		f.Close()
		return fmt.Errorf("read back %s: %w", name, err)
	}
	p := manifestPack{
		Seq: s.seq, Salt: s.salt, End: s.end, Entries: foot.entries,
		Bytes: int64(s.end) + footerSize, Hash: hex.EncodeToString(foot.hash[:]),
	}
	err = l.update(func(m *manifest) {
		m.putPack(p)
		damaged = m.damage(damaged, l.End())
		// An older segment may still wait, and only this one showed its end so far.
		l.listEnds(m)
	})
	if err != nil {
		f.Close()
		return err
	}
	l.reportDamage(damaged)
	l.tab.Lock()
	s.entries = foot.entries
	s.src.retired = true
	l.retired = append(l.retired, retired{s.seq, s.end, l.segmentName(s.seq), s.src, s.refused == 0})
	s.src, s.packed = &source{file: f}, true
	l.tab.Unlock()
	l.log.Debug("sealed a segment", "segment", s.seq, "bytes", s.end, "entries", s.entries)
	return nil
}

// putPack adds p in its place, or replaces the pack of that number.
func (m *manifest) putPack(p manifestPack) {
	i, there := slices.BinarySearchFunc(m.Packs, p.Seq, func(p manifestPack, seq uint32) int { return cmp.Compare(p.Seq, seq) })
	if there {
		m.Packs[i] = p
		return
	}
	m.Packs = slices.Insert(m.Packs, i, p)
}

// copyToPack copies v, completes foot, and makes the pack durable under its
// name. It returns the invalid ranges of the pack, caused by unreadable parts
// of the segment.
func (l *Log) copyToPack(ctx context.Context, v view, name string, foot *footer) (damaged []Range, err error) {
	tmp := name + tmpSuffix
	f, err := l.fs.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
			_ = l.fs.Remove(tmp) // the next attempt truncates it anyway
		}
	}()
	readErr, err := l.copySegment(ctx, f, v, foot)
	if err != nil {
		return nil, err
	}
	if readErr != nil {
		if damaged, err = surveyCopy(f, v.seg, foot, readErr); err != nil {
			return nil, err
		}
	}
	if _, err := f.WriteAt(foot.encode(), int64(foot.end)); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	if err := l.fs.Rename(tmp, name); err != nil {
		return nil, err
	}
	return damaged, l.fs.SyncDir(l.opts.PackDir)
}

// copySegment copies foot.end bytes and sets foot.hash. An unreadable part
// gives errUnreadable as long as it may recover; after that it is copied as
// zeros, and readErr is the cause.
func (l *Log) copySegment(ctx context.Context, to vfs.File, v view, foot *footer) (readErr, err error) {
	hash := blake3.New()
	w := window{r: v.src.file, salt: v.seg.salt, seq: v.seg.seq, limit: int64(foot.end)}
	buf := make([]byte, min(1<<20, int64(foot.end)))
	for off := int64(0); off < int64(foot.end); {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		b := buf[:min(int64(len(buf)), int64(foot.end)-off)]
		n := copy(b, w.bytes(off, len(b)))
		if n < len(b) && w.readErr == nil {
			w.readErr = io.ErrUnexpectedEOF
		}
		clear(b[n:])
		if w.readErr != nil && v.seg.refused < readTries-1 {
			return nil, fmt.Errorf("%w: %w", errUnreadable, w.readErr)
		}
		if off == 0 && w.readErr != nil {
			// The pack should be verifiable without a manifest.
			if _, err := decodeHeader(b); err != nil {
				header{seq: v.seg.seq, salt: v.seg.salt, recycled: true, inc: l.inc}.encode(b)
			}
		}
		_, _ = hash.Write(b) // never fails
		if _, err := to.WriteAt(b, off); err != nil {
			return nil, err
		}
		off += int64(len(b))
		if off%syncChunk == 0 {
			if err := to.Sync(); err != nil {
				return nil, err
			}
		}
	}
	if pages := (int64(foot.end) + readPage - 1) / readPage; int64(len(w.unreadable)) >= pages {
		return nil, fmt.Errorf("%w, not a page of it: %w", errUnreadable, w.readErr)
	}
	hash.Sum(foot.hash[:0])
	return w.readErr, nil
}

// surveyCopy finds the invalid ranges in the copy of a segment that could not
// be read completely, and counts the valid entries.
func surveyCopy(f vfs.File, s *segment, foot *footer, readErr error) (damaged []Range, err error) {
	w := window{r: f, salt: s.salt, seq: s.seq, limit: int64(foot.end)}
	foot.entries = 0
	w.walk(headerSize, int64(foot.end),
		func(int64, frame) bool { foot.entries++; return true },
		func(from, to int64) bool {
			damaged = append(damaged, damagedRange(s.seq, from, to, readErr))
			return true
		})
	return damaged, w.readErr
}

// readFooter returns the footer of a pack if the pack's size matches it.
func readFooter(f vfs.File) (footer, error) {
	size, err := f.Size()
	if err != nil {
		return footer{}, err
	}
	if size < headerSize+footerSize {
		return footer{}, fmt.Errorf("%d bytes are too few for a pack", size)
	}
	b := make([]byte, footerSize)
	if _, err := f.ReadAt(b, size-footerSize); err != nil && !errors.Is(err, io.EOF) {
		return footer{}, err
	}
	foot, err := decodeFooter(b)
	if err == nil && int64(foot.end) != size-footerSize {
		err = fmt.Errorf("the footer says %d bytes, the file has %d before it", foot.end, size-footerSize)
	}
	return foot, err
}

// verifyPack reads the whole pack and compares it with want.
func verifyPack(ctx context.Context, f vfs.File, want footer) error {
	foot, err := readFooter(f)
	if err != nil {
		return err
	}
	if foot != want {
		return errors.New("the footer differs from the written one")
	}
	hash := blake3.New()
	buf := make([]byte, min(1<<20, int64(want.end)))
	for off := int64(0); off < int64(want.end); {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := f.ReadAt(buf[:min(int64(len(buf)), int64(want.end)-off)], off)
		if err != nil && (!errors.Is(err, io.EOF) || n == 0) {
			return err
		}
		_, _ = hash.Write(buf[:n]) // never fails
		off += int64(n)
	}
	var got [32]byte
	hash.Sum(got[:0])
	if got != want.hash {
		return errors.New("the hash of the contents differs from that in the footer")
	}
	return nil
}

// recycleRetired releases segment files that are no longer needed.
func (l *Log) recycleRetired() error {
	applied := Position(l.applied.Load())
	var ready, rest []retired
	l.tab.Lock()
	for _, r := range l.retired {
		if makePosition(r.seq, r.end) <= applied && r.src.refs == 0 {
			ready = append(ready, r)
		} else {
			rest = append(rest, r)
		}
	}
	l.tab.Unlock()
	if len(ready) == 0 {
		return nil
	}
	err := l.update(func(m *manifest) {
		for _, r := range ready {
			m.Segments = deleteSegment(m.Segments, r.seq)
		}
	})
	if err != nil {
		return fmt.Errorf("recycle segments: %w", err)
	}
	l.tab.Lock()
	l.retired = rest
	l.tab.Unlock()
	for _, r := range ready {
		r.src.file.Close()
		if r.readable {
			l.addSpare(r.name)
		} else {
			l.removeSegment(r.name)
		}
	}
	sleep.Wake(l.spaceWake)
	return nil
}

func deleteSegment(s []manifestSegment, seq uint32) []manifestSegment {
	out := s[:0]
	for _, e := range s {
		if e.Seq != seq {
			out = append(out, e)
		}
	}
	return out
}
