package store

import (
	"context"
	"iter"

	"github.com/stemedb/stemedb/record"
)

// Snapshot is the store at one moment. What comes later is not in it, so a
// digest and the answer to a query that are taken from one snapshot are about
// the same records.
type Snapshot interface {
	// SetDigest, SetKeys, Claims and AssertionWithin are those of Store.
	SetDigest(ctx context.Context, set Set) (Digest, error)
	SetKeys(ctx context.Context, set Set) iter.Seq2[SetKey, error]
	Claims(ctx context.Context, q ClaimQuery, voices int) iter.Seq2[*Claim, error]
	AssertionWithin(project record.ProjectName, id record.Hash, voices int, without ...Key) (*Stored, error)
	// KeyDigest is what SetDigest adds for a key.
	KeyDigest(key *Key) Digest
	// Close lets goleveldb collect what only this snapshot still sees. Nothing
	// is read from the snapshot afterwards.
	Close()
}

// Snapshot takes a snapshot, which has to be closed.
func (s *Store) Snapshot() (Snapshot, error) {
	v, err := s.view()
	if err != nil {
		return nil, err
	}
	return v, nil
}

// Close implements Snapshot.
func (v *view) Close() { v.snap.Release() }

// once runs an iteration on a snapshot of its own.
func once[K, V any](s *Store, failed func(error) (K, V), run func(*view) iter.Seq2[K, V]) iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		v, err := s.view()
		if err != nil {
			yield(failed(err))
			return
		}
		defer v.Close()
		run(v)(yield)
	}
}
