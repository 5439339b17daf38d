package backup

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/zeebo/blake3"

	"github.com/stemedb/stemedb/client"
)

// format is the version of the layout. A manifest of a later one is refused.
const format = 1

// Manifest is one backup.
type Manifest struct {
	Format  int       `json:"format"`
	TakenAt time.Time `json:"taken_at"`
	// Point is the backup point that the server gave, with all keys by their hashes.
	Point client.BackupPoint `json:"point"`
	// Chunks are the records, in the order of the log.
	Chunks []Chunk `json:"chunks"`

	name string // of the object
}

// ID is the name by which a user refers to the backup.
func (m *Manifest) ID() string {
	return strings.TrimSuffix(strings.TrimPrefix(m.name, manifests), ".json")
}

// Bytes is the size of all chunks.
func (m *Manifest) Bytes() (total int64) {
	for _, c := range m.Chunks {
		total += c.Bytes
	}
	return total
}

// Chunk is one object with records of a log.
type Chunk struct {
	Incarnation string `json:"incarnation"`
	From        string `json:"from"`
	To          string `json:"to"`
	Bytes       int64  `json:"bytes"`
	Hash        string `json:"blake3"`
}

const (
	chunks    = "chunks/"
	manifests = "manifests/"
	timeForm  = "20060102T150405.000000Z"
)

// Name is the chunk's object.
func (c *Chunk) Name() string {
	return fmt.Sprintf("%s%s/%s-%s-%d-%s", chunks, c.Incarnation, c.From, c.To, c.Bytes, c.Hash)
}

// parseChunk reads the name of a chunk's object.
func parseChunk(name string) (Chunk, bool) {
	incarnation, rest, found := strings.Cut(strings.TrimPrefix(name, chunks), "/")
	parts := strings.Split(rest, "-")
	if !found || len(parts) != 4 {
		return Chunk{}, false
	}
	size, err := strconv.ParseInt(parts[2], 10, 64)
	c := Chunk{Incarnation: incarnation, From: parts[0], To: parts[1], Bytes: size, Hash: parts[3]}
	return c, err == nil && c.Name() == name
}

func hashOf(b []byte) string {
	sum := blake3.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// encode returns the manifest's object.
func (m *Manifest) encode() (name string, b []byte, err error) {
	if b, err = json.MarshalIndent(m, "", " "); err != nil {
		return "", nil, fmt.Errorf("encode the manifest: %w", err)
	}
	return manifests + m.TakenAt.UTC().Format(timeForm) + "-" + hashOf(b) + ".json", b, nil
}

// readManifest reads and checks one. Errors are *DamageError, or that of the remote.
func readManifest(ctx context.Context, r Remote, name string) (*Manifest, error) {
	b, err := r.Get(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &DamageError{Name: name, Reason: "is missing"}
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if _, hash, _ := strings.Cut(strings.TrimSuffix(name, ".json"), "-"); hash != hashOf(b) {
		return nil, &DamageError{Name: name, Reason: "does not match the hash in its name"}
	}
	m := &Manifest{name: name}
	if err := json.Unmarshal(b, m); err != nil {
		return nil, &DamageError{Name: name, Reason: "is no manifest: " + err.Error()}
	}
	if m.Format != format {
		return nil, fmt.Errorf("%s has format %d, this release reads format %d: use the release that wrote it, or a later one", name, m.Format, format)
	}
	return m, nil
}

// newestFirst yields the backups, the newest first. A manifest that cannot be read is
// yielded as a *DamageError; any other error is the last.
func newestFirst(ctx context.Context, r Remote) iter.Seq2[*Manifest, error] {
	return func(yield func(*Manifest, error) bool) {
		objects, err := r.List(ctx, manifests)
		if err != nil {
			yield(nil, fmt.Errorf("list the backups: %w", err))
			return
		}
		slices.SortFunc(objects, func(a, b Object) int { return cmp.Compare(b.Name, a.Name) })
		for _, o := range objects {
			m, err := readManifest(ctx, r, o.Name)
			var d *DamageError
			if !yield(m, err) || err != nil && !errors.As(err, &d) {
				return
			}
		}
	}
}

// List returns all backups, oldest first. damaged are the manifests that cannot be
// read; they do not end the list.
func List(ctx context.Context, r Remote) (all []*Manifest, damaged []*DamageError, err error) {
	for m, err := range newestFirst(ctx, r) {
		var d *DamageError
		switch {
		case errors.As(err, &d):
			damaged = append(damaged, d)
		case err != nil:
			return nil, nil, err
		default:
			all = append(all, m)
		}
	}
	slices.Reverse(all)
	return all, damaged, nil
}

// Find returns the backup with an id, or with an unambiguous beginning of one, such as
// its time; "latest" is the newest.
func Find(ctx context.Context, r Remote, id string) (*Manifest, error) {
	all, damaged, err := List(ctx, r)
	if err != nil {
		return nil, err
	}
	var found []*Manifest
	for _, m := range all {
		if strings.HasPrefix(m.ID(), id) {
			found = append(found, m)
		}
	}
	switch {
	case id == Latest && len(all) > 0:
		return all[len(all)-1], nil
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return nil, fmt.Errorf("%d backups begin with %q; give more of the id", len(found), id)
	}
	for _, d := range damaged {
		if strings.HasPrefix(d.Name, manifests+id) || id == Latest {
			return nil, d
		}
	}
	return nil, fmt.Errorf("there is no backup %q; list shows all of them", id)
}

// Latest names the newest backup.
const Latest = "latest"
