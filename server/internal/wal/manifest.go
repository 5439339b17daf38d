package wal

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/stemedb/stemedb/server/internal/vfs"
)

// The manifest lists what belongs to the log. It lies on the WAL volume, twice:
// the copy is written after the original and read when the original rotted.
//
// Order keeps it true after any crash: a file is there, with its name durable,
// before the manifest lists it, and is given another use only after the
// manifest stopped listing it. So what is listed and not there was lost, and
// what is there and not listed never held anything.
const (
	manifestName = "manifest"
	manifestCopy = "manifest.copy"
	lockName     = "LOCK"
)

type manifest struct {
	Format      int    `json:"format"`
	Node        string `json:"node"`
	Incarnation string `json:"incarnation"`
	// Version grows by one with each replacement.
	Version uint64 `json:"version"`
	// Whole is false from the finding of a loss until SetWhole.
	Whole bool `json:"whole"`
	// Durable is a position below which everything was durable when the
	// manifest was written; after a clean Close it is the end of the log.
	Durable  Position          `json:"durable"`
	Segments []manifestSegment `json:"segments"`
	Packs    []manifestPack    `json:"packs"`
	// Lost and Damaged are the ranges found so far. A range in them does not
	// take the wholeness away a second time.
	Lost    []Range `json:"lost,omitempty"`
	Damaged []Range `json:"damaged,omitempty"`
	// Found counts the findings of Lost and Damaged, those too that were merged
	// into another or taken back.
	Found int `json:"found,omitempty"`
	// MadeGood are those of Lost and Damaged that were known at the latest
	// SetWhole.
	MadeGood []Range `json:"made_good,omitempty"`
	// LastLoss is where the log ended when the latest of them was found: every
	// entry from before that lies below it.
	LastLoss Position `json:"last_loss,omitempty"`
	// Lives are those drawn since the latest SetLife and the one that it set;
	// see life.go. RolledBack is true from the finding of a rollback until then.
	Lives      []string `json:"lives,omitempty"`
	RolledBack bool     `json:"rolled_back,omitempty"`
	// Openings are the latest openings of the log, oldest first, LastOpening the
	// number of the last one (witness.go).
	Openings    []opened `json:"openings,omitempty"`
	LastOpening uint64   `json:"last_opening,omitempty"`
}

// manifestSegment is a segment file on the WAL volume.
type manifestSegment struct {
	Seq  uint32 `json:"seq"`
	Salt uint32 `json:"salt"`
	Size int64  `json:"size"`
	// End is the offset behind the last batch; 0 while batches may follow.
	End     uint32 `json:"end,omitempty"`
	Entries uint64 `json:"entries,omitempty"`
}

// manifestPack is a pack on the pack volume. While a segment of the same
// number is listed too, the pack has not been trusted alone yet.
type manifestPack struct {
	Seq     uint32 `json:"seq"`
	Salt    uint32 `json:"salt"`
	End     uint32 `json:"end"`
	Entries uint64 `json:"entries"`
	Bytes   int64  `json:"bytes"`
	Hash    string `json:"blake3"`
}

func (m *manifest) clone() *manifest {
	c := *m
	c.Segments = slices.Clone(m.Segments)
	c.Packs = slices.Clone(m.Packs)
	c.Lost = slices.Clone(m.Lost)
	c.Damaged = slices.Clone(m.Damaged)
	c.MadeGood = slices.Clone(m.MadeGood)
	c.Lives = slices.Clone(m.Lives)
	c.Openings = slices.Clone(m.Openings)
	return &c
}

func (m *manifest) segment(seq uint32) *manifestSegment {
	for i := range m.Segments {
		if m.Segments[i].Seq == seq {
			return &m.Segments[i]
		}
	}
	return nil
}

func (m *manifest) pack(seq uint32) *manifestPack {
	for i := range m.Packs {
		if m.Packs[i].Seq == seq {
			return &m.Packs[i]
		}
	}
	return nil
}

// loadManifest returns nil when there is neither manifest nor copy.
func loadManifest(o *Options) (*manifest, error) {
	fsys, dir := o.FS, o.WALDir
	main, copied := new(manifest), new(manifest)
	found, err := loadSmall(fsys, filepath.Join(dir, manifestName), main)
	if found && err == nil {
		return main, checkManifest(main, dir)
	}
	if err != nil && !errors.Is(err, errNotChecked) && !found {
		return nil, err
	}
	foundCopy, copyErr := loadSmall(fsys, filepath.Join(dir, manifestCopy), copied)
	switch {
	case foundCopy && copyErr == nil:
		return copied, checkManifest(copied, dir)
	case !found && !foundCopy && copyErr == nil:
		return nil, nil
	}
	return nil, fmt.Errorf("neither %s nor %s in %s can be read (%w); %s",
		manifestName, manifestCopy, dir, errors.Join(err, copyErr), o.remedy("put one of them back from a copy or a snapshot of this volume"))
}

func checkManifest(m *manifest, dir string) error {
	if m.Format != formatVersion {
		return fmt.Errorf("the manifest in %s has format %d, this release reads %d: run the release that wrote it", dir, m.Format, formatVersion)
	}
	return nil
}

// update replaces the manifest by a changed one. Nothing changes in memory
// either when it cannot be written.
func (l *Log) update(change func(m *manifest)) error { return l.replace(change, false) }

// replace is update; always changes it in memory in any case, to be written
// with the next update.
func (l *Log) replace(change func(m *manifest), always bool) error {
	l.manifestTurn <- struct{}{}
	defer func() { <-l.manifestTurn }()
	m := l.manifest.Load().clone()
	change(m)
	m.Version++
	m.Durable = max(m.Durable, l.End())
	err := saveManifest(l.fs, l.opts.WALDir, m)
	if err == nil || always {
		l.manifest.Store(m)
	}
	return err
}

func saveManifest(fsys vfs.FS, dir string, m *manifest) error {
	if err := saveSmall(fsys, filepath.Join(dir, manifestName), m); err != nil {
		return err
	}
	return saveSmall(fsys, filepath.Join(dir, manifestCopy), m)
}
