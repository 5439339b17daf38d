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
// index, the number of keys, and the sum of their own digests (keySum). The sum does not
// depend on an order, so that a command costs the same with ten keys and with
// ten thousand: it subtracts the digest of the key that it replaces and adds
// that of the new one. Equal tables have equal digests, however each copy came
// to its State: by commands or from a snapshot.
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
	if err != nil { // no State has a field that CBOR cannot hold
		b = []byte(err.Error())
	}
	return blake3.Sum256(b)
}

// setKey is the only way in which a command writes a key.
func (s *State) setKey(k keys.Key) {
	if old, ok := s.Keys[k.Hash]; ok {
		s.keySum.subtract(keyEntry{k.Hash, old})
	}
	s.keySum.add(keyEntry{k.Hash, k})
	s.Keys[k.Hash] = k
}

// sealDigest notes the digest of s, whose keySum is right.
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

// recount makes the digest anew from what s holds.
func (s *State) recount() {
	s.keySum = keySum{}
	for hash, k := range s.Keys {
		s.keySum.add(keyEntry{hash, k})
	}
	s.sealDigest()
}

// verify finds out whether s still holds what its digest was made of.
func (s *State) verify() error {
	again := *s
	if again.recount(); again.digest != s.digest {
		return fmt.Errorf("the table at %d in this node's memory %w", s.Index, errDamaged)
	}
	return nil
}

// history remembers the digests of the last commands, so that copies are
// compared at the same command although they are not at it at the same time.
type history struct {
	mu   sync.Mutex
	seen []dated // ordered by index
}

type dated struct {
	index  uint64
	digest digest
}

// rememberedDigests is some minutes of busy changes; copies that are further
// apart are compared once they are not.
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

// reaches tells whether this copy has got to index.
func (h *history) reaches(index uint64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.seen) > 0 && h.seen[len(h.seen)-1].index >= index
}

// at returns the digest that held at index; known is false when this copy is
// not there yet or has forgotten.
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
