package record

import (
	"container/list"
	"crypto/rand"
	"sync"

	"github.com/oasisprotocol/curve25519-voi/primitives/ed25519"
)

// SignedItem is one signature and the id that it is said to cover.
type SignedItem struct {
	Agent AgentID
	Sig   SigBytes
	ID    Hash
	Vote  bool // ID is a vote's, not a content's
}

// AppendSigned appends one item for each signature of a, whose id the caller
// has computed.
func (a *Assertion) AppendSigned(dst []SignedItem, id Hash) []SignedItem {
	for i := range a.Signatures {
		dst = append(dst, SignedItem{Agent: a.Signatures[i].Agent, Sig: a.Signatures[i].Sig, ID: id})
	}
	return dst
}

// Signed is the item of the vote's signature.
func (v *Vote) Signed() SignedItem {
	return SignedItem{Agent: v.Agent, Sig: v.Sig, ID: v.ID(), Vote: true}
}

// Verifier checks signatures by the ZIP-215 rules, alone or in batches: the
// verdict on a signature does not depend on the others in its batch. It caches
// the expanded form of the agents' keys that were used most recently. It is
// safe for concurrent use; one call uses one processor, so callers spread large
// work over several calls.
type Verifier struct {
	keys keyCache
}

// NewVerifier makes a Verifier that keeps at most cachedKeys expanded keys
// (about 1.5 KiB each); at least one is kept.
func NewVerifier(cachedKeys int) *Verifier {
	return &Verifier{keys: keyCache{
		capacity: max(cachedKeys, 1),
		entries:  make(map[AgentID]*list.Element),
	}}
}

const (
	// batchSize is the size above which a larger batch gains little.
	batchSize = 128
	// splitSize bounds the cost of one bad signature: after a batch fails, groups
	// of this size are tried, and only the members of failing groups are checked
	// alone.
	splitSize = 16
)

// zip215 is shared by every call; the library only reads it.
func zip215() *ed25519.Options {
	return &ed25519.Options{Verify: ed25519.VerifyOptionsZIP_215}
}

// Verify reports for each item, in order, whether its signature is valid.
func (v *Verifier) Verify(items []SignedItem) []bool {
	valid := make([]bool, len(items))
	opts := zip215()
	for start := 0; start < len(items); start += batchSize {
		end := min(start+batchSize, len(items))
		v.verifyGroup(items[start:end], valid[start:end], opts)
	}
	return valid
}

// VerifyOne reports whether one signature is valid.
func (v *Verifier) VerifyOne(item *SignedItem) bool {
	key := v.keys.get(item.Agent)
	return key != nil && v.single(key, item, zip215())
}

func (v *Verifier) verifyGroup(items []SignedItem, valid []bool, opts *ed25519.Options) {
	expanded := make([]*ed25519.ExpandedPublicKey, len(items))
	for i := range items {
		expanded[i] = v.keys.get(items[i].Agent)
	}
	if v.tryBatch(items, expanded, valid, opts) {
		return
	}
	for start := 0; start < len(items); start += splitSize {
		end := min(start+splitSize, len(items))
		if len(items) > splitSize && v.tryBatch(items[start:end], expanded[start:end], valid[start:end], opts) {
			continue
		}
		for i := start; i < end; i++ {
			valid[i] = expanded[i] != nil && v.single(expanded[i], &items[i], opts)
		}
	}
}

// tryBatch marks all items valid when they are. A batch of one is left to the
// single check, which is faster.
func (v *Verifier) tryBatch(items []SignedItem, expanded []*ed25519.ExpandedPublicKey, valid []bool, opts *ed25519.Options) bool {
	if len(items) < 2 {
		return false
	}
	batch := ed25519.NewBatchVerifierWithCapacity(len(items))
	var buf [messageSize]byte
	for i := range items {
		if expanded[i] == nil {
			return false
		}
		batch.AddExpandedWithOptions(expanded[i], items[i].message(buf[:0]), items[i].Sig[:], opts)
	}
	if !batch.VerifyBatchOnly(rand.Reader) {
		return false
	}
	for i := range valid {
		valid[i] = true
	}
	return true
}

func (v *Verifier) single(key *ed25519.ExpandedPublicKey, item *SignedItem, opts *ed25519.Options) bool {
	var buf [messageSize]byte
	return ed25519.VerifyExpandedWithOptions(key, item.message(buf[:0]), item.Sig[:], opts)
}

const messageSize = len(votePrefix) + len(Hash{})

func (it *SignedItem) message(dst []byte) []byte {
	if it.Vote {
		return appendMessage(dst, votePrefix, it.ID)
	}
	return appendMessage(dst, contentPrefix, it.ID)
}

// keyCache keeps the expanded keys that were used most recently.
type keyCache struct {
	mu       sync.Mutex
	capacity int
	entries  map[AgentID]*list.Element // of *cachedKey
	recent   list.List                 // most recently used first
}

type cachedKey struct {
	agent AgentID
	key   *ed25519.ExpandedPublicKey
}

// get returns the expanded key, or nil when the agent's id is not a point of
// the curve. Such ids are not cached: refusing them again is cheap.
func (c *keyCache) get(agent AgentID) *ed25519.ExpandedPublicKey {
	c.mu.Lock()
	if e, ok := c.entries[agent]; ok {
		c.recent.MoveToFront(e)
		key := e.Value.(*cachedKey).key
		c.mu.Unlock()
		return key
	}
	c.mu.Unlock()

	// Expanding takes about 20 µs and happens outside the lock. Two callers may
	// expand the same key, with the same result.
	key, err := ed25519.NewExpandedPublicKey(agent[:])
	if err != nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.entries[agent]; ok {
		return key
	}
	c.entries[agent] = c.recent.PushFront(&cachedKey{agent, key})
	if c.recent.Len() > c.capacity {
		oldest := c.recent.Back()
		c.recent.Remove(oldest)
		delete(c.entries, oldest.Value.(*cachedKey).agent)
	}
	return key
}
