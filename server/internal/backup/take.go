package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/stemedb/stemedb/client"
)

// Server is the part of client.Client that backups need.
type Server interface {
	BackupPoint(ctx context.Context, node string) (*client.BackupPoint, error)
	BackupRecords(ctx context.Context, p *client.BackupPoint, from, to string) (records []byte, next string, err error)
	Restore(ctx context.Context, records []byte) (client.Restored, error)
}

// smallRun is how many small chunks in a row are copied again as one.
const smallRun = 64

// Options of Take.
type Options struct {
	// Now is the time of the backup.
	Now time.Time
	// ChunkBytes is the size from which on a chunk is complete, 32 MiB when 0. One chunk
	// is held in memory.
	ChunkBytes int64
	// Progress, if not nil, is called after each piece with the bytes read so far.
	Progress func(read int64)
}

// Taken describes what a backup did.
type Taken struct {
	Manifest *Manifest
	// Full: nothing of earlier backups could be used. Why says so in words.
	Full bool
	Why  string
	// Copied and Bytes are the chunks that were written now.
	Copied int
	Bytes  int64
}

// Take makes a backup.
func Take(ctx context.Context, s Server, r Remote, o Options) (*Taken, error) {
	if o.ChunkBytes == 0 {
		o.ChunkBytes = 32 << 20
	}
	if o.Progress == nil {
		o.Progress = func(int64) {}
	}
	point, last, why, err := choose(ctx, s, r)
	if err != nil {
		return nil, err
	}
	t := &taking{server: s, remote: r, point: point, options: o}
	var kept []Chunk
	if last != nil {
		kept = withoutSmallRun(last.Chunks, o.ChunkBytes/2)
	}
	if err := t.findLeft(ctx); err != nil {
		return nil, err
	}
	m := &Manifest{Format: format, TakenAt: o.Now.UTC().Truncate(time.Microsecond), Point: *point, Chunks: kept}
	at := point.First
	if len(kept) > 0 {
		at = kept[len(kept)-1].To
	}
	for at < point.End {
		c, err := t.chunk(ctx, at)
		if err != nil {
			return nil, err
		}
		m.Chunks = append(m.Chunks, c)
		at = c.To
	}
	name, b, err := m.encode()
	if err != nil {
		return nil, err
	}
	if err := r.Put(ctx, name, b); err != nil {
		return nil, fmt.Errorf("write %s: %w", name, err)
	}
	m.name = name
	return &Taken{Manifest: m, Full: last == nil, Why: why, Copied: t.copied, Bytes: t.bytes}, nil
}

// choose asks the node of the newest backup for a backup point, or any other one. last
// is the newest backup whose chunks belong to the point's log, nil if there is none, and
// why says why.
func choose(ctx context.Context, s Server, r Remote) (point *client.BackupPoint, last *Manifest, why string, err error) {
	for m, err := range newestFirst(ctx, r) {
		var d *DamageError
		if errors.As(err, &d) {
			continue
		}
		if err != nil {
			return nil, nil, "", err
		}
		if point == nil {
			if point, why, err = pointNear(ctx, s, m); err != nil {
				return nil, nil, "", err
			}
		}
		if m.Point.Incarnation == point.Incarnation && m.Point.End <= point.End {
			return point, m, "", nil
		}
	}
	if point == nil {
		point, err = s.BackupPoint(ctx, "")
		return point, nil, "there is no earlier backup", err
	}
	return point, nil, why, nil
}

// pointNear asks the node of a backup for a backup point, or, when it cannot be asked,
// any other one.
func pointNear(ctx context.Context, s Server, newest *Manifest) (point *client.BackupPoint, why string, err error) {
	point, err = s.BackupPoint(ctx, newest.Point.Node)
	if err != nil {
		why = fmt.Sprintf("node %s, from which the newest backup is, cannot be asked (%v)", newest.Point.Node, err)
		if point, err = s.BackupPoint(ctx, ""); err != nil {
			return nil, "", err
		}
	} else {
		why = fmt.Sprintf("the volumes of node %s were replaced since the newest backup", point.Node)
	}
	if point.ClusterID != newest.Point.ClusterID {
		return nil, "", fmt.Errorf("the backups here are of cluster %s, the server belongs to cluster %s: back it up into another folder",
			newest.Point.ClusterID, point.ClusterID)
	}
	return point, why, nil
}

// withoutSmallRun returns the chunks without a long run of small ones at their end.
func withoutSmallRun(all []Chunk, small int64) []Chunk {
	first := len(all)
	for first > 0 && all[first-1].Bytes < small {
		first--
	}
	if len(all)-first < smallRun {
		return slices.Clone(all)
	}
	return slices.Clone(all[:first])
}

// taking is one backup in progress.
type taking struct {
	server  Server
	remote  Remote
	point   *client.BackupPoint
	options Options
	left    map[string]Chunk // by From: complete chunks of an interrupted backup
	copied  int
	bytes   int64
	read    int64
}

// findLeft looks for chunks that an interrupted backup left, and that no pruning removes
// meanwhile. Of two with the same beginning the longer one counts.
func (t *taking) findLeft(ctx context.Context) error {
	objects, err := t.remote.List(ctx, chunks+t.point.Incarnation+"/")
	if err != nil {
		return fmt.Errorf("list the chunks: %w", err)
	}
	t.left = map[string]Chunk{}
	for _, o := range objects {
		c, ok := parseChunk(o.Name)
		safe := t.options.Now.Sub(o.Time) < grace/2
		if ok && safe && c.Bytes == o.Size && c.Bytes >= t.options.ChunkBytes && c.To <= t.point.End && c.To > t.left[c.From].To {
			t.left[c.From] = c
		}
	}
	return nil
}

// chunk copies the part of the log that begins at a position.
func (t *taking) chunk(ctx context.Context, from string) (Chunk, error) {
	if c, ok := t.left[from]; ok {
		return c, nil
	}
	var content []byte
	at := from
	for at < t.point.End && int64(len(content)) < t.options.ChunkBytes {
		records, next, err := t.server.BackupRecords(ctx, t.point, at, t.point.End)
		if err != nil {
			return Chunk{}, err
		}
		content, at = append(content, records...), next
		t.read += int64(len(records))
		t.options.Progress(t.read)
	}
	c := Chunk{Incarnation: t.point.Incarnation, From: from, To: at, Bytes: int64(len(content)), Hash: hashOf(content)}
	if err := t.remote.Put(ctx, c.Name(), content); err != nil {
		return Chunk{}, fmt.Errorf("write %s: %w", c.Name(), err)
	}
	t.copied++
	t.bytes += c.Bytes
	return c, nil
}
