package wal

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Space describes the free space of a volume.
type Space struct {
	Volume string // "wal" or "packs", as the metrics name it
	Dir    string
	// Bytes. Writes stop below Reserve.
	Free, Total, Reserve uint64
	// NearlyFull becomes true well before that, see nearlyFullBelow.
	NearlyFull bool
}

// A volume is nearly full when less than a tenth of it is free above the
// reserve. On a large volume, 10 GiB give an operator enough time.
const (
	nearlyFullShare = 10
	nearlyFullMost  = 10 << 30
)

// Space describes the volumes as of the last check. It leaves out a volume
// whose free space is unknown.
func (l *Log) Space() []Space {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.spaces)
}

// nearlyFullBelow is the free space below which a volume is nearly full. A
// volume that was nearly full needs an eighth more to leave that state.
func (l *Log) nearlyFullBelow(total uint64, was bool) uint64 {
	below := max(l.opts.ReserveHigh, l.opts.Reserve+min(total/nearlyFullShare, nearlyFullMost))
	if was {
		below += below / 8
	}
	return below
}

// spaceOf compares a volume with its last state and logs a change.
func (l *Log) spaceOf(volume, dir string, free, total uint64) Space {
	was := false
	for _, s := range l.Space() {
		was = was || s.Volume == volume && s.NearlyFull
	}
	now := Space{Volume: volume, Dir: dir, Free: free, Total: total, Reserve: l.opts.Reserve, NearlyFull: free < l.nearlyFullBelow(total, was)}
	switch {
	case now.NearlyFull && !was:
		l.log.Warn("a volume is nearly full; free or add space before writes are refused",
			"volume", volume, "dir", dir, "free_bytes", free, "size_bytes", total, "writes_stop_below_bytes", l.opts.Reserve)
	case was && !now.NearlyFull:
		l.log.Info("a volume is no longer nearly full", "volume", volume, "dir", dir, "free_bytes", free)
	}
	return now
}

// runKeeper checks free space periodically.
func (l *Log) runKeeper(ctx context.Context) {
	defer l.restDone.Done()
	t := time.NewTicker(l.opts.CheckInterval)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-l.spaceWake:
		case <-ctx.Done():
			return
		}
		l.checkSpace()
	}
}

// checkSpace enters and leaves the read-only state. Both volumes count: a full
// pack volume would soon fill the WAL volume.
func (l *Log) checkSpace() {
	var low error
	high := true
	var spaces []Space
	for _, v := range []struct{ name, dir string }{{volumeWAL, l.opts.WALDir}, {volumePacks, l.opts.PackDir}} {
		free, total, err := l.fs.Free(v.dir)
		if err != nil {
			l.log.Warn("free space cannot be determined", "dir", v.dir, "error", err)
			high = false
			continue
		}
		l.metrics.space(v.name, free, total)
		spaces = append(spaces, l.spaceOf(v.name, v.dir, free, total))
		if free < l.opts.Reserve && low == nil {
			low = fmt.Errorf("%s has %d bytes free, below the reserve of %d", v.dir, free, l.opts.Reserve)
		}
		high = high && free >= l.opts.ReserveHigh
	}
	if high {
		if err := l.noteOpening(); err != nil {
			l.log.Warn("the manifest cannot be written yet", "error", err)
			high = false
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spaces = spaces
	switch {
	case low != nil:
		l.enterReadOnly(low)
	case high && l.readOnly != nil:
		l.readOnly = nil
		l.log.Info("the log accepts writes again: there is space")
	}
}
