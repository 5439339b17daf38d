package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"math/bits"
	"slices"
	"time"

	"github.com/zeebo/blake3"

	"github.com/stemedb/stemedb/internal/sleep"
	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// Digest represents a set of keys, in any order: the sum, modulo 2^256, of the
// keyed BLAKE3-256 of each key's bytes, and their number.
//
// Why this is sound: the key of the hash is a secret of the cluster. Anyone who
// chooses records therefore faces independent uniform numbers that cannot be
// seen or predicted (against a known key, sums of this size can be forged). Two
// different sets then have equal sums with a probability of 2^-256. It is a sum
// and not an exclusive or, because a key counted twice by mistake would vanish
// from the latter; each key is in the index once, so the sum covers a set.
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
// cannot be compared.
func (s *Store) SetDigestKey(key [32]byte) { s.digestKey.Store(&key) }

// Set names records that are compared together: all records about a subject,
// with one predicate or (Predicate "") with any, or, with an ID, one assertion.
//
// An assertion's set contains everything held under its id, even without its
// content, and the contents that determine its lifecycle: its newest child, the
// newest child of that one, and so on. A reader that compared only the records
// under the id would miss an acknowledged successor.
type Set struct {
	Project            record.ProjectName
	ID                 *record.Hash
	Subject, Predicate string
}

// SetKey is a key of a set.
type SetKey struct {
	// Place is the position of the key in the set. Every node lists a set by
	// ascending places (in the order of bytes.Compare), and a key has the same
	// place on all of them. Valid until the next key.
	Place []byte
	Key   Key
}

// SetDigest is the digest of the keys (contents, signatures and votes) of a
// set. It reads all of them in the index: its time is proportional to their
// number, its memory is not.
func (s *Store) SetDigest(ctx context.Context, set Set) (Digest, error) {
	v, err := s.view()
	if err != nil {
		return Digest{}, err
	}
	defer v.Close()
	return v.SetDigest(ctx, set)
}

// SetDigest implements Snapshot.
func (v *view) SetDigest(ctx context.Context, set Set) (Digest, error) {
	var sum Digest
	d := v.s.newDigester()
	for k, err := range v.SetKeys(ctx, set) {
		if err != nil {
			return Digest{}, err
		}
		sum.Add(d.of(&k.Key))
	}
	return sum, nil
}

// KeyDigest implements Snapshot.
func (v *view) KeyDigest(key *Key) Digest { return v.s.newDigester().of(key) }

// SetKeys yields the keys that SetDigest covers, by ascending places. An error
// is yielded last. The iteration sees the store as of its beginning; a long one
// delays goleveldb's garbage collection.
func (s *Store) SetKeys(ctx context.Context, set Set) iter.Seq2[SetKey, error] {
	return once(s, noKey, func(v *view) iter.Seq2[SetKey, error] { return v.SetKeys(ctx, set) })
}

func noKey(err error) (SetKey, error) { return SetKey{}, err }

// SetKeys implements Snapshot.
func (v *view) SetKeys(ctx context.Context, set Set) iter.Seq2[SetKey, error] {
	return func(yield func(SetKey, error) bool) {
		give := func(place []byte) (bool, error) {
			k, err := set.KeyAt(place)
			if err != nil {
				return false, v.s.indexError("list the keys of a set", err)
			}
			return yield(SetKey{place, k}, nil), nil
		}
		var err error
		if set.ID != nil {
			err = v.eachPlaceOfID(ctx, &set, give)
		} else {
			q := ClaimQuery{Project: set.Project, Subject: set.Subject, Predicate: set.Predicate}
			err = v.eachEntry(ctx, &q, func(e *claimEntry) (bool, error) {
				if e.tag() == tagChild {
					return true, nil
				}
				return give(e.place)
			})
		}
		if err != nil {
			yield(SetKey{}, err)
		}
	}
}

// KeyAt parses a place of the set, which may come from another node:
//
//	of a subject    predicate 0 ^time ^id tag rest     as in the index
//	of an id        tag rest                           as in the index
//	                3 time id                          a content of its lineage
func (set *Set) KeyAt(place []byte) (Key, error) {
	k := Key{Kind: KindContent, Project: set.Project}
	var tag byte
	rest := place
	if set.ID == nil {
		e, err := readClaimPlace(place)
		if err != nil {
			return Key{}, err
		}
		k.ID, tag, rest = e.id, e.tag(), e.rest()
	} else if len(place) > 0 {
		k.ID, tag, rest = *set.ID, place[0], place[1:]
	}
	size, known := restSize(tag)
	switch {
	case set.ID != nil && tag == tagChild && len(rest) == 8+32:
		k.ID = record.Hash(rest[8:])
	case len(place) == 0, !known, len(rest) != size, tag == tagChild:
		return Key{}, fmt.Errorf("place %x in a set: %w", place, errIndexEntry)
	case tag == tagSignature:
		k.Kind, k.Agent = KindSignature, record.AgentID(rest)
	case tag == tagVote:
		k.Kind, k.Agent = KindVote, record.AgentID(rest)
		_, k.Vote = readNewest(rest[32:])
	}
	return k, nil
}

// eachPlaceOfID calls fn for the places of an assertion's set, in order.
func (v *view) eachPlaceOfID(ctx context.Context, set *Set, fn func(place []byte) (bool, error)) error {
	o := owner{*set.ID, set.Project}
	prefix := o.append(nil, spaceID)
	m := v.prefix(prefix)
	defer m.release()
	p := pace{ctx: ctx}
	var content wal.Position
	for m.next() {
		if err := p.step(); err != nil {
			return err
		}
		place := m.key[len(prefix):]
		switch {
		case len(place) == 0:
			return v.s.indexError("list the keys of an assertion", errIndexEntry)
		case place[0] == tagContent:
			var err error
			if content, err = readPosition(m.value); err != nil {
				return v.s.indexError("list the keys of an assertion", err)
			}
		case place[0] == tagChild && content == 0:
			return nil // without the content no child counts
		case place[0] == tagChild:
			return v.eachPlaceOfLineage(ctx, o, content, fn)
		}
		if more, err := fn(place); err != nil || !more {
			return err
		}
	}
	return m.err
}

// eachPlaceOfLineage goes from child to child, and so forward in time; contents
// signed in the same second are sorted first.
func (v *view) eachPlaceOfLineage(ctx context.Context, o owner, at wal.Position, fn func(place []byte) (bool, error)) error {
	it, err := v.s.readAt(Key{Kind: KindContent, Project: o.project, ID: o.id}, at)
	if err != nil {
		return err
	}
	d := descent{v: v, pace: pace{ctx: ctx}}
	group, time := groupOf(it.content.Subject, it.content.Predicate), it.content.Timestamp
	var second [][]byte
	flush := func() (more bool, err error) {
		slices.SortFunc(second, bytes.Compare)
		for _, place := range second {
			if more, err := fn(place); err != nil || !more {
				return false, err
			}
		}
		second = second[:0]
		return true, nil
	}
	for {
		c, err := d.newestChild(o, time, group, 0)
		if err != nil {
			return err
		}
		if c == nil || c.time != time {
			if more, err := flush(); err != nil || !more {
				return err
			}
		}
		if c == nil {
			return nil
		}
		place := binary.BigEndian.AppendUint64([]byte{tagChild}, c.time)
		second = append(second, append(place, c.id[:]...))
		o.id, time = c.id, c.time
	}
}

// scrubSlice is the number of entries that a pass over the id space reads
// before it rests, and for which it holds a snapshot.
const scrubSlice = 2048

// BucketDigests returns the digests of the 256 buckets of ids that begin with
// prefix (0..31 bytes): bucket i holds the keys whose id continues with the
// byte i, of all projects. It rests in between (Options.ScrubRate), so
// concurrent writes may be counted or not.
func (s *Store) BucketDigests(ctx context.Context, prefix []byte) (*[256]Digest, error) {
	if len(prefix) > 31 {
		return nil, fmt.Errorf("bucket prefix of %d bytes: 0 to 31 are allowed", len(prefix))
	}
	var buckets [256]Digest
	d := s.newDigester()
	err := s.eachID(ctx, prefix, func(k *Key, _ []byte) bool {
		buckets[k.ID[len(prefix)]].Add(d.of(k))
		return true
	})
	return &buckets, err
}

// BucketKeys lists at most limit keys whose id begins with prefix (0..32
// bytes); more reports whether there are others.
func (s *Store) BucketKeys(ctx context.Context, prefix []byte, limit int) (keys []Key, more bool, err error) {
	if len(prefix) > 32 {
		return nil, false, fmt.Errorf("bucket prefix of %d bytes: 0 to 32 are allowed", len(prefix))
	}
	err = s.eachID(ctx, prefix, func(k *Key, _ []byte) bool {
		if len(keys) >= limit {
			more = true
			return false
		}
		keys = append(keys, *k)
		return true
	})
	return keys, more, err
}

// eachID passes over the id space in slices, each with a separate view.
func (s *Store) eachID(ctx context.Context, prefix []byte, fn func(key *Key, position []byte) bool) error {
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
			// The loop finds out whether ctx has ended.
			sleep.For(ctx, time.Duration(scrubSlice)*time.Second/time.Duration(rate)-time.Since(began))
		}
	}
	return nil
}

// idSlice returns the key to continue at, nil at the end.
func (s *Store) idSlice(start, end []byte, fn func(key *Key, position []byte) bool) ([]byte, error) {
	v, err := s.view()
	if err != nil {
		return nil, err
	}
	defer v.Close()
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
		if ok && !fn(&k, m.value) {
			return nil, nil
		}
	}
	return nil, m.err
}
