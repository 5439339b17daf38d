package wal

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stemedb/stemedb/internal/sleep"
	"github.com/stemedb/stemedb/server/internal/vfs"
)

const (
	segmentPrefix = "wal-"
	segmentSuffix = ".seg"
	spareName     = "spare-new.tmp"
	packPrefix    = "pack-"
	packSuffix    = ".pack"
	tornPrefix    = "tail-"
	tornSuffix    = ".torn"
	tmpSuffix     = ".tmp"
)

func (l *Log) segmentName(seq uint32) string {
	return filepath.Join(l.opts.WALDir, numbered(segmentPrefix, seq, segmentSuffix))
}

func (l *Log) packName(seq uint32) string {
	return filepath.Join(l.opts.PackDir, numbered(packPrefix, seq, packSuffix))
}

func numbered(prefix string, n uint32, suffix string) string {
	return fmt.Sprintf("%s%08d%s", prefix, n, suffix)
}

// listNumbered lists the numbers in the names prefix NUMBER suffix in dir,
// ascending. It skips other names, such as lost+found.
func listNumbered(fsys vfs.FS, dir, prefix, suffix string) ([]uint32, error) {
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	var out []uint32
	for _, e := range entries {
		s, ok := strings.CutPrefix(e.Name(), prefix)
		s, ok2 := strings.CutSuffix(s, suffix)
		n, err := strconv.ParseUint(s, 10, 32)
		if ok && ok2 && err == nil && !e.IsDir() && e.Name() == numbered(prefix, uint32(n), suffix) {
			out = append(out, uint32(n))
		}
	}
	slices.Sort(out)
	return out, nil
}

// segment is one numbered part of the log, wherever its bytes are.
type segment struct {
	seq, salt uint32
	// size is the size of the segment file; batches end below it.
	size int64
	// The fields below are guarded by Log.tab.

	// end is the offset after the last batch. It is set before the durable
	// position leaves the segment; until then the durable position is the end.
	end     uint32
	entries uint64
	// rotated: no more batches will follow.
	rotated bool
	// src is the file that the bytes are read from; nil if they are lost. It
	// changes from the segment file to the pack once, when the pack is trusted.
	src *source
	// packed: src is the pack.
	packed bool

	// refused counts the attempts to seal the segment that the disk refused to
	// read; the next one is due at retryAt. Only the sealer uses them.
	refused int
	retryAt time.Time
}

// source is an open file with the readers that use it. Guarded by Log.tab.
type source struct {
	file vfs.File
	refs int
	// spare is the file's name if it is to be reused as a segment after the last
	// reader; retired is set with it.
	retired bool
}

// find returns the segment seq, or nil and the index where it would be.
// Log.tab must be held.
func (l *Log) find(seq uint32) (*segment, int) {
	i, ok := slices.BinarySearchFunc(l.segments, seq, func(s *segment, seq uint32) int {
		return int(int64(s.seq) - int64(seq))
	})
	if !ok {
		return nil, i
	}
	return l.segments[i], i
}

// view is a reader's reference to a segment.
type view struct {
	seg *segment
	src *source
	// end is the offset after the last durable batch.
	end uint32
}

// acquire pins the source of segment seq until release. If there is no such
// segment, it returns the next existing one, or nil after the last.
func (l *Log) acquire(seq uint32) (v view, ok bool) {
	durable := l.End()
	l.tab.Lock()
	defer l.tab.Unlock()
	s, i := l.find(seq)
	if s == nil {
		if i == len(l.segments) {
			return view{}, false
		}
		s = l.segments[i]
	}
	v = view{seg: s, src: s.src, end: s.end}
	switch {
	case s.seq == durable.Segment():
		v.end = durable.Offset()
	case s.seq > durable.Segment():
		v.end = headerSize
	}
	if v.src != nil {
		v.src.refs++
	}
	return v, true
}

func (l *Log) releaseView(v view) {
	if v.src == nil {
		return
	}
	l.tab.Lock()
	v.src.refs--
	last := v.src.retired && v.src.refs == 0
	l.tab.Unlock()
	if last {
		sleep.Wake(l.sealWake)
	}
}
