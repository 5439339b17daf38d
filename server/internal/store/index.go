package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/zeebo/blake3"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/lens"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// The entries of goleveldb. Every entry follows from the records alone, and
// writing it is idempotent. Integers are big-endian; ^x is x with all bits
// inverted, so that the newest comes first; "project" and "peer" are a length
// byte followed by that many bytes.
//
// By id, one group per (id, project), ids in order, for look-ups and scrub:
//
//	'i' id project 0                    → position 8                     the content
//	'i' id project 1 agent              → position 8                     a signature
//	'i' id project 2 agent ^time ^vote  → position 8, weight 8           a vote
//	'i' id project 3 ^time ^child       → lifecycle 1, claim group 16    an assertion with this parent
//
// By subject, one group per claim, newest first, with all that a lens needs:
//
//	'q' project subject 0 predicate 0 ^time ^id 0                   → facts (below)
//	'q' project subject 0 predicate 0 ^time ^id 1 agent             → empty    a signature
//	'q' project subject 0 predicate 0 ^time ^id 2 agent ^time ^vote → weight 8 a vote
//	'q' project subject 0 predicate 0 ^time ^id 3                   → empty    it has children
//
// (names of subjects and predicates hold no zero byte.)
//
//	'd' project subject → empty        the dictionary of subjects
//	'o' id project      → empty        orphans: a signature, vote or child is here, its content is not
//	'k' peer            → as in the log (codec.go): cursors
//	'm' name            → …            the marker and similar notes (apply.go)
//	'z' position 8 round 1 → empty     the last barrier (apply.go); after all others
//	'l' id project      → empty        in memory only: the groups 'i' and 'q' of this id
//	                                   do not agree yet, 'i' is right
//
// A signature or vote is written into the group of its claim once its content
// is known; until then, 'o' records that this is still to be done.
const (
	spaceID      = 'i'
	spaceClaim   = 'q'
	spaceSubject = 'd'
	spaceOrphan  = 'o'
	spaceCursor  = 'k'
	spaceMeta    = 'm'
	spaceLoose   = 'l'
	spaceBarrier = 'z'

	tagContent   = 0
	tagSignature = 1
	tagVote      = 2
	tagChild     = 3
)

// owner is the identity of an assertion: its group in the id space.
type owner struct {
	id      record.Hash
	project string
}

func (o owner) append(dst []byte, space byte) []byte {
	dst = append(dst, space)
	dst = append(dst, o.id[:]...)
	return appendName(dst, o.project)
}

// appendIDKey appends the key of an item in the id space. A vote's key also
// depends on its time.
func appendIDKey(dst []byte, it *Item) []byte {
	dst = owner{it.Key.ID, it.Key.Project}.append(dst, spaceID)
	switch it.Kind {
	case KindContent:
		return append(dst, tagContent)
	case KindSignature:
		return append(append(dst, tagSignature), it.Key.Agent[:]...)
	default:
		dst = append(append(dst, tagVote), it.Key.Agent[:]...)
		return appendNewest(dst, it.vote.Timestamp, it.Key.Vote)
	}
}

// appendNewest appends ^time ^id.
func appendNewest(dst []byte, time uint64, id record.Hash) []byte {
	dst = binary.BigEndian.AppendUint64(dst, ^time)
	for _, b := range id {
		dst = append(dst, ^b)
	}
	return dst
}

func readNewest(b []byte) (time uint64, id record.Hash) {
	time = ^binary.BigEndian.Uint64(b)
	for i := range id {
		id[i] = ^b[8+i]
	}
	return time, id
}

const newestSize = 8 + 32

// appendSubject appends the prefix of all claims of a subject, and of one
// predicate when that is not "".
func appendSubject(dst []byte, project, subject, predicate string) []byte {
	dst = appendName(append(dst, spaceClaim), project)
	dst = append(append(dst, subject...), 0)
	if predicate != "" {
		dst = append(append(dst, predicate...), 0)
	}
	return dst
}

// appendClaim appends the prefix of the group of one claim.
func appendClaim(dst []byte, project string, id record.Hash, c *record.Content) []byte {
	return appendNewest(appendSubject(dst, project, c.Subject, c.Predicate), c.Timestamp, id)
}

// claimGroup represents (subject, predicate) where only equality matters: a
// child replaces its parent's lifecycle if both have the same.
type claimGroup [16]byte

func groupOf(subject, predicate string) claimGroup {
	return groupOfNames([]byte(subject + "\x00" + predicate))
}

// groupOfNames hashes subject 0 predicate.
func groupOfNames(names []byte) claimGroup {
	sum := blake3.Sum256(names)
	return claimGroup(sum[:16])
}

// valueOf is the hash of type byte and value bytes of an object.
func valueOf(o *record.Object) lens.ValueHash {
	var buf [512]byte
	b := append(buf[:0], byte(o.Type))
	switch o.Type {
	case record.TypeNumber:
		b = binary.BigEndian.AppendUint64(b, math.Float64bits(o.Num+0))
	case record.TypeBoolean:
		if o.Bool {
			b = append(b, 1)
		} else {
			b = append(b, 0)
		}
	default:
		b = append(b, o.Str...)
	}
	sum := blake3.Sum256(b)
	return lens.ValueHash(sum[:16])
}

// Facts of a claim: position 8 | confidence 8 | source class 1 | lifecycle 1 |
// value hash 16 | parent id 32 when there is one.
const factsSize = 8 + 8 + 1 + 1 + 16

func appendFacts(dst []byte, pos wal.Position, c *record.Content) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(pos))
	dst = appendFloat(dst, c.Confidence)
	dst = append(dst, byte(c.SourceClass), byte(c.Lifecycle))
	v := valueOf(&c.Object)
	dst = append(dst, v[:]...)
	if c.ParentHash != nil {
		dst = append(dst, c.ParentHash[:]...)
	}
	return dst
}

var errIndexEntry = errors.New("index entry of the wrong size")

func readFacts(b []byte, c *Claim) error {
	if len(b) != factsSize && len(b) != factsSize+32 {
		return fmt.Errorf("facts of %d bytes: %w", len(b), errIndexEntry)
	}
	c.Position = wal.Position(binary.BigEndian.Uint64(b))
	c.Confidence = readFloat(b[8:])
	c.Class = record.SourceClass(b[16])
	c.Own = record.Lifecycle(b[17])
	c.Lifecycle = c.Own
	c.Value = lens.ValueHash(b[18:])
	if len(b) > factsSize {
		parent := record.Hash(b[factsSize:])
		c.Parent = &parent
	}
	return nil
}

func readPosition(b []byte) (wal.Position, error) {
	if len(b) < 8 {
		return 0, fmt.Errorf("position of %d bytes: %w", len(b), errIndexEntry)
	}
	return wal.Position(binary.BigEndian.Uint64(b)), nil
}

// cutOwner reads "id project" after the space byte and returns the rest.
func cutOwner(key []byte) (o owner, rest []byte, err error) {
	if len(key) < 1+32+1 {
		return o, nil, errIndexEntry
	}
	copy(o.id[:], key[1:])
	o.project, rest, err = cutName(key[33:])
	return o, rest, err
}

// readIDKey turns a key of the id space into the key of its item; ok is false
// for derived entries (children).
func readIDKey(key []byte) (k Key, ok bool, err error) {
	o, rest, err := cutOwner(key)
	if err != nil || len(rest) == 0 {
		return k, false, fmt.Errorf("index key %x: %w", key, errIndexEntry)
	}
	k = Key{Project: o.project, ID: o.id}
	tag, rest := rest[0], rest[1:]
	switch {
	case tag == tagContent && len(rest) == 0:
		k.Kind = KindContent
	case tag == tagSignature && len(rest) == 32:
		k.Kind, k.Agent = KindSignature, record.AgentID(rest)
	case tag == tagVote && len(rest) == 32+newestSize:
		k.Kind, k.Agent = KindVote, record.AgentID(rest)
		_, k.Vote = readNewest(rest[32:])
	case tag == tagChild && len(rest) == newestSize:
		return k, false, nil
	default:
		return k, false, fmt.Errorf("index key %x: %w", key, errIndexEntry)
	}
	return k, true, nil
}

// after is the first key that does not begin with prefix, nil if there is none.
func after(prefix []byte) []byte {
	end := bytes.Clone(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] != 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return nil
}
