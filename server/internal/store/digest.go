package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/bits"
	"time"

	"github.com/zeebo/blake3"

	"github.com/stemedb/stemedb/server/record"
)

// Digest stands for a set of keys, in whatever order they came: the sum, modulo
// 2^256, of the keyed BLAKE3-256 of each key's bytes, and their number.
//
// Why this is sound: the key of the hash is a secret of the cluster, so to
// whoever chooses records the hashes are independent uniform numbers that they
// can neither see nor predict (against a known key, sums of this size can be
// forged). Two different sets then have equal sums with a chance of 2^-256. It
// is a sum and not an exclusive or, because a key counted twice by mistake
// would vanish from the latter; each key stands in the index once, so what is
// summed is a set.
type Digest struct {
	Sum   [32]byte // little-endian
	Count uint64
}

// Add joins a disjoint set.
func (d *Digest) Add(o Digest) {
	var carry uint64
	for i := 0; i < 32; i += 8 {
		var v uint64
		v, carry = bits.Add64(binary.LittleEndian.Uint64(d.Sum[i:]), binary.LittleEndian.Uint64(o.Sum[i:]), carry)
		binary.LittleEndian.PutUint64(d.Sum[i:], v)
	}
	d.Count += o.Count
}

// digester sums keys with the store's digest key.
type digester struct {
	h   *blake3.Hasher
	buf []byte
}

func (s *Store) newDigester() *digester {
	h, err := blake3.NewKeyed(s.digestKey.Load()[:])
	if err != nil { // a key of another size than 32, which the type rules out
		h = blake3.New()
	}
	return &digester{h: h}
}

func (d *digester) of(k *Key) Digest {
	d.buf = k.append(d.buf[:0])
	d.h.Reset()
	_, _ = d.h.Write(d.buf) // never fails
	one := Digest{Count: 1}
	d.h.Sum(one.Sum[:0])
	return one
}

// SetDigestKey sets the key of all digests. Digests made with different keys
// say nothing about each other.
func (s *Store) SetDigestKey(key [32]byte) { s.digestKey.Store(&key) }

// SetDigest is the digest of the keys (contents, signatures and votes) of a
// subject, of one predicate or (predicate "") of all. It reads all of them in
// the index: its time is proportional to their number.
func (s *Store) SetDigest(project record.ProjectName, subject, predicate string) (Digest, error) {
	var sum Digest
	d := s.newDigester()
	err := s.eachKeyOf(project, subject, predicate, func(k Key) { sum.Add(d.of(&k)) })
	return sum, err
}

// KeysOf lists the keys that SetDigest is made of.
func (s *Store) KeysOf(project record.ProjectName, subject, predicate string) ([]Key, error) {
	var keys []Key
	err := s.eachKeyOf(project, subject, predicate, func(k Key) { keys = append(keys, k) })
	return keys, err
}

func (s *Store) eachKeyOf(project record.ProjectName, subject, predicate string, fn func(Key)) error {
	q := ClaimQuery{Project: project, Subject: subject, Predicate: predicate}
	return s.eachGroup(q, func(g *group) (bool, error) { return true, g.eachKey(fn) })
}

// AssertionDigest is the digest of the keys held under one id, also when the
// content is not among them.
func (s *Store) AssertionDigest(project record.ProjectName, id record.Hash) (Digest, error) {
	keys, err := s.AssertionKeys(project, id)
	var sum Digest
	d := s.newDigester()
	for i := range keys {
		sum.Add(d.of(&keys[i]))
	}
	return sum, err
}

// AssertionKeys lists the keys held under one id.
func (s *Store) AssertionKeys(project record.ProjectName, id record.Hash) ([]Key, error) {
	v, err := s.view()
	if err != nil {
		return nil, err
	}
	defer v.release()
	m := v.prefix(owner{id, project}.append(nil, spaceID))
	defer m.release()
	var keys []Key
	for m.next() {
		k, ok, err := readIDKey(m.key)
		if err != nil {
			return nil, s.indexError("list the keys of an assertion", err)
		}
		if ok {
			keys = append(keys, k)
		}
	}
	return keys, m.err
}

// scrubSlice is how many entries a pass over the id space looks at before it
// rests; also how long it holds a snapshot.
const scrubSlice = 2048

// BucketDigests returns the digests of the 256 buckets of ids that begin with
// prefix (0..31 bytes): bucket i holds the keys whose id continues with the
// byte i, of all projects. It rests in between (Options.ScrubRate), so what is
// written meanwhile may be counted or not.
func (s *Store) BucketDigests(ctx context.Context, prefix []byte) (*[256]Digest, error) {
	if len(prefix) > 31 {
		return nil, fmt.Errorf("bucket prefix of %d bytes: 0 to 31 are possible", len(prefix))
	}
	var buckets [256]Digest
	d := s.newDigester()
	err := s.eachID(ctx, prefix, func(k *Key) bool {
		buckets[k.ID[len(prefix)]].Add(d.of(k))
		return true
	})
	return &buckets, err
}

// BucketKeys lists the keys whose id begins with prefix (0..32 bytes), at most
// limit; more says that there are others.
func (s *Store) BucketKeys(ctx context.Context, prefix []byte, limit int) (keys []Key, more bool, err error) {
	if len(prefix) > 32 {
		return nil, false, fmt.Errorf("bucket prefix of %d bytes: 0 to 32 are possible", len(prefix))
	}
	err = s.eachID(ctx, prefix, func(k *Key) bool {
		if len(keys) >= limit {
			more = true
			return false
		}
		keys = append(keys, *k)
		return true
	})
	return keys, more, err
}

// eachID passes over the id space in slices, each with a view of its own.
func (s *Store) eachID(ctx context.Context, prefix []byte, fn func(*Key) bool) error {
	start := append([]byte{spaceID}, prefix...)
	end := after(start)
	for start != nil {
		if err := ctx.Err(); err != nil {
			return err
		}
		var err error
		began := time.Now()
		if start, err = s.idSlice(start, end, fn); err != nil {
			return err
		}
		if rate := s.opts.ScrubRate; rate > 0 && start != nil {
			if err := rest(ctx, time.Duration(scrubSlice)*time.Second/time.Duration(rate)-time.Since(began)); err != nil {
				return err
			}
		}
	}
	return nil
}

func rest(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// idSlice returns where to go on, nil at the end.
func (s *Store) idSlice(start, end []byte, fn func(*Key) bool) ([]byte, error) {
	v, err := s.view()
	if err != nil {
		return nil, err
	}
	defer v.release()
	m := v.iterate(start, end, true)
	defer m.release()
	for n := 0; m.next(); n++ {
		if n == scrubSlice {
			return bytes.Clone(m.key), nil
		}
		k, ok, err := readIDKey(m.key)
		if err != nil {
			return nil, s.indexError("pass over the index", err)
		}
		if ok && !fn(&k) {
			return nil, nil
		}
	}
	return nil, m.err
}
