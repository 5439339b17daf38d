package store

import (
	"context"
	"iter"

	"github.com/stemedb/stemedb/record"
)

// Snapshot is the store at one moment. It does not contain later records, so a
// digest and the answer to a query from one snapshot are about the same
// records.
type Snapshot interface {
	// SetDigest, SetKeys, Claims and AssertionWithin are those of Store.
	SetDigest(ctx context.Context, set Set) (Digest, error)
	SetKeys(ctx context.Context, set Set) iter.Seq2[SetKey, error]
	Claims(ctx context.Context, q ClaimQuery, voices int) iter.Seq2[*Claim, error]
	AssertionWithin(project record.ProjectName, id record.Hash, voices int, without ...Key) (*Stored, error)
	// KeyDigest is the part of a key in SetDigest.
	KeyDigest(key *Key) Digest
	// Close lets goleveldb collect data that only this snapshot still sees. The
	// snapshot must not be read afterwards.
	Close()
}

// Snapshot takes a snapshot, which must be closed.
func (s *Store) Snapshot() (Snapshot, error) {
	v, err := s.view()
	if err != nil {
		return nil, err
	}
	return v, nil
}

// Close implements Snapshot.
func (v *view) Close() { v.snap.Release() }

// once runs an iteration on a separate snapshot.
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
