package wal

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/zeebo/blake3"

	"github.com/stemedb/stemedb/server/internal/vfs"
)

// A full segment becomes a pack: copied under a temporary name, synced,
// renamed, its directory synced, and read back from the disk. From then on it
// is read from there. The segment file is given another use when the user has
// applied it (SetApplied), no reader is left, and the manifest lists it no more.

// retired is a segment file whose pack is trusted.
type retired struct {
	seq, end uint32
	name     string
	src      *source
}

func (l *Log) runSealer(ctx context.Context) {
	defer l.restDone.Done()
	for {
		var retry <-chan time.Time
		err := l.sealAll(ctx)
		if err == nil {
			err = l.recycleRetired()
		}
		if err != nil && ctx.Err() == nil {
			retry = time.After(l.opts.CheckInterval)
			l.sealFailed(err)
		}
		select {
		case <-l.sealWake:
		case <-retry:
		case <-ctx.Done():
			return
		}
	}
}

// sealFailed decides what a failure means. The segment is still there, so
// nothing is lost; the next attempt writes a new file.
func (l *Log) sealFailed(err error) {
	l.metrics.writeError("seal")
	if vfs.IsNoSpace(err) {
		l.mu.Lock()
		l.enterReadOnly(err)
		l.mu.Unlock()
		return
	}
	l.log.Error("a segment could not be sealed; it stays in the WAL volume and is tried again", "error", err)
}

// sealAll makes packs of all rotated segments, oldest first.
func (l *Log) sealAll(ctx context.Context) error {
	for {
		var todo *segment
		l.tab.Lock()
		for _, s := range l.segments {
			if s.rotated && !s.packed && s.src != nil {
				todo = s
				break
			}
		}
		l.tab.Unlock()
		if todo == nil {
			return nil
		}
		if err := l.seal(ctx, todo); err != nil {
			return fmt.Errorf("seal segment %d: %w", todo.seq, err)
		}
	}
}

func (l *Log) seal(ctx context.Context, s *segment) error {
	v, _ := l.acquire(s.seq)
	defer l.releaseView(v)
	name := l.packName(s.seq)
	foot := footer{seq: s.seq, end: s.end, entries: s.entries}
	if err := l.copyToPack(ctx, v.src.file, name, &foot); err != nil {
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
		Seq: s.seq, Salt: s.salt, End: s.end, Entries: s.entries,
		Bytes: int64(s.end) + footerSize, Hash: hex.EncodeToString(foot.hash[:]),
	}
	if err := l.update(func(m *manifest) { m.putPack(p) }); err != nil {
		f.Close()
		return err
	}
	l.tab.Lock()
	s.src.retired = true
	l.retired = append(l.retired, retired{s.seq, s.end, l.segmentName(s.seq), s.src})
	s.src, s.packed = &source{file: f}, true
	l.tab.Unlock()
	l.log.Debug("sealed a segment", "segment", s.seq, "bytes", s.end, "entries", s.entries)
	return nil
}

// putPack adds p, or replaces the pack of that number.
func (m *manifest) putPack(p manifestPack) {
	if old := m.pack(p.Seq); old != nil {
		*old = p
		return
	}
	m.Packs = append(m.Packs, p)
}

// copyToPack copies foot.end bytes, sets foot.hash, and makes the pack durable
// under its name.
func (l *Log) copyToPack(ctx context.Context, from vfs.File, name string, foot *footer) (err error) {
	tmp := name + tmpSuffix
	f, err := l.fs.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			_ = l.fs.Remove(tmp) // the next attempt truncates it anyway
		}
	}()
	hash := blake3.New()
	buf := make([]byte, min(1<<20, int64(foot.end)))
	for off := int64(0); off < int64(foot.end); {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := from.ReadAt(buf[:min(int64(len(buf)), int64(foot.end)-off)], off)
		if err != nil && (!errors.Is(err, io.EOF) || n == 0) {
			return fmt.Errorf("read %s at %d: %w", from.Name(), off, err)
		}
		_, _ = hash.Write(buf[:n]) // never fails
		if _, err := f.WriteAt(buf[:n], off); err != nil {
			return err
		}
		off += int64(n)
	}
	hash.Sum(foot.hash[:0])
	if _, err := f.WriteAt(foot.encode(), int64(foot.end)); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := l.fs.Rename(tmp, name); err != nil {
		return err
	}
	return l.fs.SyncDir(l.opts.PackDir)
}

// readFooter returns the footer of a pack whose size and footer agree.
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

// verifyPack reads the whole pack and compares it with what it should be.
func verifyPack(ctx context.Context, f vfs.File, want footer) error {
	foot, err := readFooter(f)
	if err != nil {
		return err
	}
	if foot != want {
		return errors.New("the footer is not the one that was written")
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
		return errors.New("the bytes do not have the hash that the footer says")
	}
	return nil
}

// recycleRetired gives segment files free that nobody needs any more.
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
		l.addSpare(r.name)
	}
	signal(l.spaceWake)
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
