package control

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"github.com/zeebo/blake3"

	"github.com/stemedb/stemedb/server/internal/keys"
)

// The digest of a table is BLAKE3 over its State as CBOR without the keys and the
// index, the number of keys, and the sum of the keys' digests (keySum). The sum
// is independent of the order, so that the cost of a command does not grow with
// the number of keys: it subtracts the digest of the replaced key and adds that
// of the new one. Equal tables have equal digests, whether a copy was built from
// commands or from a snapshot.
type digest [32]byte

// keySum is the sum of the digests of all entries of State.Keys, as four numbers.
type keySum [4]uint64

type keyEntry struct {
	Hash keys.Hash `cbor:"hash"` // under which the key is found
	Key  keys.Key  `cbor:"key"`
}

func (s *keySum) add(e keyEntry)      { s.fold(e, func(a, b uint64) uint64 { return a + b }) }
func (s *keySum) subtract(e keyEntry) { s.fold(e, func(a, b uint64) uint64 { return a - b }) }

func (s *keySum) fold(e keyEntry, f func(a, b uint64) uint64) {
	d := digestOf(e)
	for i := range s {
		s[i] = f(s[i], binary.BigEndian.Uint64(d[8*i:]))
	}
}

func digestOf(v any) digest {
	b, err := marshal(v)
	if err != nil { // does not happen: CBOR can encode every field of State
		b = []byte(err.Error())
	}
	return blake3.Sum256(b)
}

// setKey writes a key; commands write keys in no other way.
func (s *State) setKey(k keys.Key) {
	if old, ok := s.Keys[k.Hash]; ok {
		s.keySum.subtract(keyEntry{k.Hash, old})
	}
	s.keySum.add(keyEntry{k.Hash, k})
	s.Keys[k.Hash] = k
}

// sealDigest stores the digest of s, whose keySum must be correct.
func (s *State) sealDigest() {
	rest := *s
	rest.Keys, rest.Index = nil, 0
	d := digestOf(&rest)
	b := binary.BigEndian.AppendUint64(slices.Clone(d[:]), uint64(len(s.Keys)))
	for _, n := range s.keySum {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	s.digest = blake3.Sum256(b)
}

// recount recomputes the digest from the content of s.
func (s *State) recount() {
	s.keySum = keySum{}
	for hash, k := range s.Keys {
		s.keySum.add(keyEntry{hash, k})
	}
	s.sealDigest()
}

// verify returns an error if s no longer matches its digest.
func (s *State) verify() error {
	again := *s
	if again.recount(); again.digest != s.digest {
		return fmt.Errorf("the table at %d in this node's memory %w", s.Index, errDamaged)
	}
	return nil
}

// history remembers the digests after the last commands, so that copies can be
// compared at the same command although they apply it at different times.
type history struct {
	mu   sync.Mutex
	seen []dated // ordered by index
}

type dated struct {
	index  uint64
	digest digest
}

// rememberedDigests covers some minutes of frequent changes; copies that are
// further apart are compared later.
const rememberedDigests = 1024

func (h *history) add(index uint64, d digest) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seen = append(h.seen, dated{index, d})
	if extra := len(h.seen) - rememberedDigests; extra > 0 {
		h.seen = slices.Delete(h.seen, 0, extra)
	}
}

func (h *history) reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seen = nil
}

// reaches reports whether this copy has reached index.
func (h *history) reaches(index uint64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.seen) > 0 && h.seen[len(h.seen)-1].index >= index
}

// at returns the digest at index; known is false when this copy has not reached
// it yet or no longer remembers it.
func (h *history) at(index uint64) (d digest, known bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.seen) == 0 || index > h.seen[len(h.seen)-1].index {
		return digest{}, false
	}
	for i := len(h.seen) - 1; i >= 0; i-- {
		if h.seen[i].index <= index {
			return h.seen[i].digest, true
		}
	}
	return digest{}, false
}
