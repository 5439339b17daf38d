package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sync/errgroup"

	"github.com/stemedb/stemedb/client"
	"github.com/stemedb/stemedb/server/internal/store"
)

const (
	// pieceBytes is about how much one request of a restore carries.
	pieceBytes = 1 << 20
	// atOnce is how many requests of a restore are on their way at a time.
	atOnce = 4
)

// read reads and checks a chunk. Errors are *DamageError, or that of the remote.
func (c *Chunk) read(ctx context.Context, r Remote) ([]byte, error) {
	b, err := r.Get(ctx, c.Name())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, &DamageError{Name: c.Name(), Reason: "is missing"}
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", c.Name(), err)
	case int64(len(b)) != c.Bytes:
		return nil, &DamageError{Name: c.Name(), Reason: fmt.Sprintf("has %d bytes", len(b))}
	case hashOf(b) != c.Hash:
		return nil, &DamageError{Name: c.Name(), Reason: "does not match the hash in its name"}
	}
	return b, nil
}

// Checked is the result of Verify.
type Checked struct {
	Records int64
	Damaged []*DamageError
}

// Verify reads all of a backup. It goes on behind damage, which is in the result; an
// error is that of the remote.
func Verify(ctx context.Context, r Remote, m *Manifest, progress func(read int64)) (*Checked, error) {
	res, read := &Checked{}, int64(0)
	at := m.Point.First
	for i := range m.Chunks {
		c := &m.Chunks[i]
		if c.From != at {
			res.Damaged = append(res.Damaged, &DamageError{Name: m.name, Reason: fmt.Sprintf("lacks the records from %s to %s", at, c.From)})
		}
		at = c.To
		b, err := c.read(ctx, r)
		var d *DamageError
		if errors.As(err, &d) {
			res.Damaged = append(res.Damaged, d)
			continue
		}
		if err != nil {
			return nil, err
		}
		for rest := b; len(rest) > 0; res.Records++ {
			if _, _, rest, err = store.CutRecord(rest); err != nil {
				res.Damaged = append(res.Damaged, &DamageError{Name: c.Name(), Reason: "is no sequence of records: " + err.Error()})
				break
			}
		}
		read += c.Bytes
		progress(read)
	}
	if at != m.Point.End {
		res.Damaged = append(res.Damaged, &DamageError{Name: m.name, Reason: fmt.Sprintf("lacks the records from %s to %s", at, m.Point.End)})
	}
	return res, nil
}

// Restore sends the records of a backup to a server. It stops at the first damaged
// chunk; everything before it is restored, and a later Restore goes on from there,
// since records that are held already are not written again.
func Restore(ctx context.Context, s Server, r Remote, m *Manifest, progress func(read int64)) (total client.Restored, err error) {
	read := int64(0)
	for i := range m.Chunks {
		b, err := m.Chunks[i].read(ctx, r)
		if err != nil {
			return total, err
		}
		pieces, err := split(b)
		if err != nil {
			return total, &DamageError{Name: m.Chunks[i].Name(), Reason: "is no sequence of records: " + err.Error()}
		}
		results := make([]client.Restored, len(pieces))
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(atOnce)
		for j, piece := range pieces {
			group.Go(func() (err error) {
				results[j], err = s.Restore(ctx, piece)
				return err
			})
		}
		err = group.Wait()
		for _, done := range results {
			total.Created += done.Created
			total.Existing += done.Existing
			total.Invalid += done.Invalid
		}
		if err != nil {
			return total, err
		}
		read += m.Chunks[i].Bytes
		progress(read)
	}
	return total, nil
}

// split cuts records into pieces of about pieceBytes.
func split(b []byte) (pieces [][]byte, err error) {
	for len(b) > 0 {
		rest := b
		for len(rest) > 0 && len(b)-len(rest) < pieceBytes {
			if _, _, rest, err = store.CutRecord(rest); err != nil {
				return nil, err
			}
		}
		pieces, b = append(pieces, b[:len(b)-len(rest)]), rest
	}
	return pieces, nil
}
