package cluster

import (
	"hash/maphash"
	"sync"

	"github.com/stemedb/stemedb/server/internal/store"
)

// recentKeys remembers the keys that became durable here most recently, in two
// generations of a bounded size. Every record written here appears in the logs of
// all peers a moment later; this cache recognises it without a look-up in the
// index.
type recentKeys struct {
	seeds [2]maphash.Seed
	size  int

	mu         sync.Mutex
	young, old map[recentKey]struct{}
}

// recentKey represents a store.Key: 128 bits with random seeds, so that
// collisions are improbable and no sender can construct one.
type recentKey [2]uint64

func newRecentKeys(size int) *recentKeys {
	return &recentKeys{
		seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}, size: size,
		young: map[recentKey]struct{}{},
	}
}

func (r *recentKeys) of(k *store.Key) recentKey {
	return recentKey{maphash.Comparable(r.seeds[0], *k), maphash.Comparable(r.seeds[1], *k)}
}

// add remembers durable items.
func (r *recentKeys) add(items []store.Item) {
	hashes := make([]recentKey, len(items))
	for i := range items {
		hashes[i] = r.of(&items[i].Key)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, h := range hashes {
		if len(r.young) >= r.size {
			r.old, r.young = r.young, make(map[recentKey]struct{}, r.size)
		}
		r.young[h] = struct{}{}
	}
}

// missing returns the indexes of the keys that are not remembered.
func (r *recentKeys) missing(keys []store.Key) []int {
	var missing []int
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range keys {
		k := r.of(&keys[i])
		if _, ok := r.young[k]; ok {
			continue
		}
		if _, ok := r.old[k]; ok {
			continue
		}
		missing = append(missing, i)
	}
	return missing
}

// forget clears the cache: after a loss nothing is known to be held.
func (r *recentKeys) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.young, r.old = map[recentKey]struct{}{}, nil
}
