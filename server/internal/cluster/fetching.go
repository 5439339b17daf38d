package cluster

import (
	"context"
	"sync"
	"time"

	"github.com/stemedb/stemedb/server/internal/store"
)

// beingFetched keeps pullers from fetching the same records from different
// members at the same time. A puller claims the records that it is about to
// fetch; another one that lacks them waits for it, for a while.
type beingFetched struct {
	mu sync.Mutex
	by map[store.Key]*fetchClaim
}

// fetchClaim is the set of records that one puller is fetching.
type fetchClaim struct {
	keys []store.Key
	over chan struct{} // closed when the fetch has ended, successfully or not
}

// claim takes those of the keys (by index) that nobody is fetching, and returns
// the claims of others on the rest. The caller ends its claim with release.
func (b *beingFetched) claim(keys []store.Key, which []int) (mine []int, own *fetchClaim, others map[*fetchClaim]struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	own = &fetchClaim{over: make(chan struct{})}
	for _, i := range which {
		if other := b.by[keys[i]]; other != nil && other != own {
			if others == nil {
				others = map[*fetchClaim]struct{}{}
			}
			others[other] = struct{}{}
			continue
		}
		b.by[keys[i]] = own
		own.keys = append(own.keys, keys[i])
		mine = append(mine, i)
	}
	return mine, own, others
}

func (b *beingFetched) release(own *fetchClaim) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, k := range own.keys {
		if b.by[k] == own {
			delete(b.by, k)
		}
	}
	close(own.over)
}

// patience is how long a puller waits for records that another one is fetching.
const patience = 2 * time.Second

// awaitClaims reports whether all of the claims have ended.
func awaitClaims(ctx context.Context, claims map[*fetchClaim]struct{}) bool {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for claim := range claims {
		select {
		case <-claim.over:
		case <-timer.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
	return true
}
