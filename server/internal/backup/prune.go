package backup

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Retention says which backups are kept: the newest Last ones, and those that are not
// older than Within. The newest backup is always kept.
type Retention struct {
	Last   int
	Within time.Duration
}

// Pruned is the result of Prune.
type Pruned struct {
	Manifests, Chunks int
	Bytes             int64
}

// grace is the age below which a chunk that no manifest names may belong to a backup
// that is being taken.
const grace = 24 * time.Hour

// Prune removes the backups that are not to be kept, and the chunks that only they
// need. A damaged manifest stays, and while there is one no chunk is removed: it may
// need any of them.
func Prune(ctx context.Context, r Remote, keep Retention, now time.Time) (Pruned, error) {
	var done Pruned
	all, damaged, err := List(ctx, r)
	if err != nil {
		return done, err
	}
	needed := map[string]bool{}
	for i, m := range all {
		newer := len(all) - 1 - i
		if newer < max(keep.Last, 1) || now.Sub(m.TakenAt) <= keep.Within {
			for j := range m.Chunks {
				needed[m.Chunks[j].Name()] = true
			}
			continue
		}
		if err := r.Delete(ctx, m.name); err != nil {
			return done, fmt.Errorf("delete %s: %w", m.name, err)
		}
		done.Manifests++
	}
	if len(damaged) > 0 {
		return done, nil
	}
	objects, err := r.List(ctx, chunks)
	if err != nil {
		return done, fmt.Errorf("list the chunks: %w", err)
	}
	objects = slices.DeleteFunc(objects, func(o Object) bool { return needed[o.Name] || now.Sub(o.Time) < grace })
	for _, o := range objects {
		if err := r.Delete(ctx, o.Name); err != nil {
			return done, fmt.Errorf("delete %s: %w", o.Name, err)
		}
		done.Chunks++
		done.Bytes += o.Size
	}
	return done, nil
}
