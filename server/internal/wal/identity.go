package wal

import (
	"encoding/hex"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/stemedb/stemedb/server/internal/vfs"
)

const (
	identityName = "identity"
	volumeWAL    = "wal"
	volumePacks  = "packs"
)

// volume is the identity file of a volume.
type volume struct {
	Format      int    `json:"format"`
	Volume      string `json:"volume"` // volumeWAL or volumePacks
	Node        string `json:"node"`
	Incarnation string `json:"incarnation"`
	Cluster     string `json:"cluster,omitempty"`
	// Shared: the cluster has had other members. It is never reset.
	Shared bool `json:"shared,omitempty"`
	// Replaces is the incarnation whose WAL volume was lost and whose packs
	// this one took over.
	Replaces string `json:"replaces,omitempty"`
}

func (v *volume) String() string {
	return fmt.Sprintf("the %s volume of node %q, incarnation %.8s", v.Volume, v.Node, v.Incarnation)
}

// settled is the combined identity of the two volumes.
type settled struct {
	id  Identity
	inc incarnation
	// manifest is nil if the log has never been used: its creation must be
	// completed.
	manifest *manifest
	// replaces is set if the packs of an earlier incarnation must be taken over.
	replaces string
}

// settle reads the identities of both volumes, rejects volumes that do not belong
// together, and completes files that a crash or a lost volume left incomplete.
func settle(o *Options) (*settled, error) {
	w, p := new(volume), new(volume)
	haveW, err := loadVolume(o, o.WALDir, w)
	if err != nil {
		return nil, err
	}
	haveP, err := loadVolume(o, o.PackDir, p)
	if err != nil {
		return nil, err
	}
	if err := checkVolumes(o, w, p, haveW, haveP); err != nil {
		return nil, err
	}
	m, err := loadManifest(o)
	if err != nil {
		return nil, err
	}
	if err := checkStrays(o, m, haveW, haveP); err != nil {
		return nil, err
	}
	if haveW && haveP && w.Incarnation != p.Incarnation && (m != nil || w.Replaces != p.Incarnation) {
		return nil, fmt.Errorf("%s holds %v, but %s holds %v: they do not belong together; %s",
			o.WALDir, w, o.PackDir, p, o.remedy("mount the volumes of one and the same incarnation"))
	}
	if m != nil && m.Incarnation != w.Incarnation {
		return nil, fmt.Errorf("the manifest in %s is of incarnation %.8s, the volume is %v: %s",
			o.WALDir, m.Incarnation, w, o.remedy("restore the right manifest from a copy or a snapshot of this volume"))
	}
	if !haveW {
		if err := newWALIdentity(o, w, p, haveP); err != nil {
			return nil, err
		}
	}
	if haveP && p.Shared && !w.Shared { // an older state of the WAL volume
		w.Shared = true
		if err := o.complete(o.WALDir, w, true); err != nil {
			return nil, err
		}
	}
	if !haveP || w.Shared != p.Shared || w.Incarnation != p.Incarnation || w.Cluster != p.Cluster {
		if w.Cluster == "" && haveP && w.Incarnation == p.Incarnation {
			w.Cluster = p.Cluster
			if err := o.complete(o.WALDir, w, true); err != nil {
				return nil, err
			}
		}
		later := haveP && w.Incarnation == p.Incarnation
		*p = *w
		p.Volume = volumePacks
		if err := o.complete(o.PackDir, p, later); err != nil {
			return nil, err
		}
	}
	s := &settled{id: Identity{w.Node, w.Incarnation, w.Cluster, w.Shared}, manifest: m, replaces: w.Replaces}
	b, err := hex.DecodeString(w.Incarnation)
	if err != nil || len(b) != len(s.inc) {
		return nil, fmt.Errorf("%s in %s: incarnation %q is not 32 hex digits", identityName, o.WALDir, w.Incarnation)
	}
	copy(s.inc[:], b)
	return s, nil
}

// complete writes an identity that a crash left incomplete. If the volume
// already has this incarnation, a lack of space postpones that until the next
// start: a node on a full volume keeps serving its records.
func (o *Options) complete(dir string, v *volume, later bool) error {
	err := saveSmall(o.FS, filepath.Join(dir, identityName), v)
	if later && vfs.IsNoSpace(err) {
		o.Logger.Warn("a volume is full, so its identity is completed at a later start", "dir", dir, "error", err)
		return nil
	}
	return err
}

// newWALIdentity begins a new incarnation. It writes the WAL volume first: a
// crash in between must not look like a lost WAL volume at the next start.
func newWALIdentity(o *Options, w, p *volume, haveP bool) error {
	var inc incarnation
	if _, err := io.ReadFull(o.Rand, inc[:]); err != nil {
		return fmt.Errorf("draw an incarnation: %w", err)
	}
	*w = volume{Format: formatVersion, Volume: volumeWAL, Node: o.Node, Incarnation: inc.String()}
	if haveP {
		w.Replaces, w.Shared = p.Incarnation, p.Shared
		o.Logger.Warn("the WAL volume is empty, the pack volume is not: beginning a new incarnation that takes over the packs; unsealed entries are lost on this node; if the WAL volume still exists, stop this node and mount it instead",
			"wal_dir", o.WALDir, "pack_dir", o.PackDir, "old_incarnation", p.Incarnation, "incarnation", w.Incarnation)
	}
	return saveSmall(o.FS, filepath.Join(o.WALDir, identityName), w)
}

func loadVolume(o *Options, dir string, v *volume) (found bool, err error) {
	found, err = loadSmall(o.FS, filepath.Join(dir, identityName), v)
	if err != nil {
		return found, fmt.Errorf("%w; %s", err, o.remedy("restore the file from a copy or a snapshot of this volume"))
	}
	if found && v.Format != formatVersion {
		return found, fmt.Errorf("%s in %s has format %d, this release reads %d: run the release that wrote it", identityName, dir, v.Format, formatVersion)
	}
	return found, nil
}

func checkVolumes(o *Options, w, p *volume, haveW, haveP bool) error {
	wrongW, wrongP := haveW && w.Volume != volumeWAL, haveP && p.Volume != volumePacks
	switch {
	case wrongW && wrongP:
		return fmt.Errorf("the volumes are swapped: %s holds %v and %s holds %v; exchange the two mounts", o.WALDir, w, o.PackDir, p)
	case wrongW:
		return fmt.Errorf("%s holds %v, not a WAL volume; mount the WAL volume of node %q there", o.WALDir, w, o.Node)
	case wrongP:
		return fmt.Errorf("%s holds %v, not a pack volume; mount the pack volume of node %q there", o.PackDir, p, o.Node)
	}
	for _, x := range []struct {
		dir  string
		have bool
		v    *volume
	}{{o.WALDir, haveW, w}, {o.PackDir, haveP, p}} {
		if x.have && x.v.Node != o.Node {
			return fmt.Errorf("%s holds %v, but this node is %q; mount the volume of node %q there, or start with the name that the volume carries",
				x.dir, x.v, o.Node, o.Node)
		}
	}
	if haveW && haveP && w.Cluster != "" && p.Cluster != "" && w.Cluster != p.Cluster {
		return fmt.Errorf("%s belongs to cluster %q, %s to cluster %q; mount volumes of the same cluster", o.WALDir, w.Cluster, o.PackDir, p.Cluster)
	}
	return nil
}

// checkStrays refuses to treat a directory as new if it holds parts of a log.
func checkStrays(o *Options, m *manifest, haveW, haveP bool) error {
	segments, err := listNumbered(o.FS, o.WALDir, segmentPrefix, segmentSuffix)
	if err != nil {
		return err
	}
	if (!haveW || m == nil) && len(segments) > 0 || !haveW && m != nil {
		missing := manifestName
		if !haveW {
			missing = identityName
		}
		return fmt.Errorf("%s holds parts of a log but no file %q; %s",
			o.WALDir, missing, o.remedy("restore the file from a copy or a snapshot of this volume"))
	}
	if haveW || haveP {
		return nil
	}
	packs, err := listNumbered(o.FS, o.PackDir, packPrefix, packSuffix)
	if err != nil {
		return err
	}
	if len(packs) > 0 {
		return fmt.Errorf("%s holds %d packs but no file %q that names their owner; %s",
			o.PackDir, len(packs), identityName, o.remedy("restore the file from a copy or a snapshot of this volume"))
	}
	return nil
}

// Identity returns the identity on both volumes.
func (l *Log) Identity() Identity {
	l.idMu.Lock()
	defer l.idMu.Unlock()
	return l.id
}

// SetClusterID writes the cluster's id to both volumes. It refuses an id that
// differs from theirs.
func (l *Log) SetClusterID(id string) error {
	l.manifestTurn <- struct{}{} // its holder alone writes small files
	defer func() { <-l.manifestTurn }()
	now := l.Identity()
	switch {
	case strings.TrimSpace(id) == "":
		return fmt.Errorf("set cluster id: empty")
	case now.Cluster == id:
		return nil
	case now.Cluster != "":
		return fmt.Errorf("set cluster id: the volumes of node %q belong to cluster %q, not to %q; mount this cluster's volumes, and keep these: they are part of the other cluster", now.Node, now.Cluster, id)
	}
	now.Cluster = id
	if err := l.setIdentity(now); err != nil {
		return fmt.Errorf("set cluster id: %w", err)
	}
	return nil
}

// SetShared records on both volumes that the cluster has other members.
func (l *Log) SetShared() error {
	l.manifestTurn <- struct{}{} // its holder alone writes small files
	defer func() { <-l.manifestTurn }()
	now := l.Identity()
	if now.Shared {
		return nil
	}
	now.Shared = true
	if err := l.setIdentity(now); err != nil {
		return fmt.Errorf("record that the cluster has other members: %w", err)
	}
	return nil
}

// setIdentity writes the identity to both volumes; the caller holds manifestTurn.
func (l *Log) setIdentity(id Identity) error {
	for _, v := range []volume{{Volume: volumeWAL}, {Volume: volumePacks}} {
		v.Format, v.Node, v.Incarnation, v.Cluster, v.Shared, v.Replaces = formatVersion, id.Node, id.Incarnation, id.Cluster, id.Shared, l.replaces
		dir := l.opts.WALDir
		if v.Volume == volumePacks {
			dir = l.opts.PackDir
		}
		if err := saveSmall(l.fs, filepath.Join(dir, identityName), &v); err != nil {
			return err
		}
	}
	l.idMu.Lock()
	l.id = id
	l.idMu.Unlock()
	return nil
}
