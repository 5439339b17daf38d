package wal

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/stemedb/stemedb/server/internal/vfs"
)

// The manifest lists the files of the log. The WAL volume holds it twice: the
// copy is written after the original and read if the original is damaged.
//
// The order of writes keeps it true after any crash: a file and its name are
// durable before the manifest lists the file, and the file is reused only after
// the manifest no longer lists it. So a listed file that is missing was lost,
// and a present file that is not listed never held anything.
const (
	manifestName = "manifest"
	manifestCopy = "manifest.copy"
	lockName     = "LOCK"
)

type manifest struct {
	Format      int    `json:"format"`
	Node        string `json:"node"`
	Incarnation string `json:"incarnation"`
	// Version increases by one with each replacement.
	Version uint64 `json:"version"`
	// Whole is false from the discovery of a loss until SetWhole.
	Whole bool `json:"whole"`
	// Durable is a position below which everything was durable when the
	// manifest was written; after a clean Close it is the end of the log.
	Durable  Position          `json:"durable"`
	Segments []manifestSegment `json:"segments"`
	Packs    []manifestPack    `json:"packs"`
	// Lost and Damaged are the ranges found so far. A range in them does not clear
	// Whole a second time.
	Lost    []Range `json:"lost,omitempty"`
	Damaged []Range `json:"damaged,omitempty"`
	// Found counts the findings of Lost and Damaged, including those that were
	// merged into another or withdrawn.
	Found int `json:"found,omitempty"`
	// MadeGood lists those of Lost and Damaged that were known at the latest
	// SetWhole.
	MadeGood []Range `json:"made_good,omitempty"`
	// LastLoss is the end of the log when the latest of them was found: every
	// earlier entry is below it.
	LastLoss Position `json:"last_loss,omitempty"`
	// Lives lists the lives drawn since the latest SetLife and the one that it set;
	// see life.go. RolledBack is true from the discovery of a rollback until SetLife.
	Lives      []string `json:"lives,omitempty"`
	RolledBack bool     `json:"rolled_back,omitempty"`
	// Openings lists the latest openings of the log, oldest first; LastOpening is
	// the number of the last one (witness.go).
	Openings    []opened `json:"openings,omitempty"`
	LastOpening uint64   `json:"last_opening,omitempty"`
}

// manifestSegment is a segment file on the WAL volume.
type manifestSegment struct {
	Seq  uint32 `json:"seq"`
	Salt uint32 `json:"salt"`
	Size int64  `json:"size"`
	// End is the offset after the last batch; 0 while more batches may follow.
	End     uint32 `json:"end,omitempty"`
	Entries uint64 `json:"entries,omitempty"`
}

// manifestPack is a pack on the pack volume. While a segment with the same
// number is also listed, the pack alone is not trusted yet.
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

// loadManifest returns nil if neither the manifest nor its copy exists.
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
		manifestName, manifestCopy, dir, errors.Join(err, copyErr), o.remedy("restore one of them from a copy or a snapshot of this volume"))
}

func checkManifest(m *manifest, dir string) error {
	if m.Format != formatVersion {
		return fmt.Errorf("the manifest in %s has format %d, this release reads %d: run the release that wrote it", dir, m.Format, formatVersion)
	}
	return nil
}

// update replaces the manifest with a changed one. If it cannot be written,
// nothing changes in memory either.
func (l *Log) update(change func(m *manifest)) error { return l.replace(change, false) }

// replace is update, except that always changes the manifest in memory even if
// the write fails; the next update then writes it.
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
