package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/cluster/peerpb"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// counted is a store that counts its calls.
type counted struct {
	Store
	mu sync.Mutex
	// listed is the number of listed keys of sets, before the number of those listed
	// before the first Put; largest, the maximum number of items in one Put.
	listed, before, largest int
	// digests, when set, blocks SetDigest until its caller goes away.
	digests chan error
}

func (s *counted) SetKeys(ctx context.Context, set store.Set) iter.Seq2[store.SetKey, error] {
	return s.count(s.Store.SetKeys(ctx, set))
}

func (s *counted) count(keys iter.Seq2[store.SetKey, error]) iter.Seq2[store.SetKey, error] {
	return func(yield func(store.SetKey, error) bool) {
		for k, err := range keys {
			s.mu.Lock()
			s.listed++
			s.mu.Unlock()
			if !yield(k, err) {
				return
			}
		}
	}
}

func (s *counted) SetDigest(ctx context.Context, set store.Set) (store.Digest, error) {
	if s.digests == nil {
		return s.Store.SetDigest(ctx, set)
	}
	return s.holdUp(ctx)
}

// Snapshot also counts reads from the snapshot.
func (s *counted) Snapshot() (store.Snapshot, error) {
	snap, err := s.Store.Snapshot()
	return countedSnapshot{snap, s}, err
}

type countedSnapshot struct {
	store.Snapshot
	s *counted
}

func (c countedSnapshot) SetKeys(ctx context.Context, set store.Set) iter.Seq2[store.SetKey, error] {
	return c.s.count(c.Snapshot.SetKeys(ctx, set))
}

func (c countedSnapshot) SetDigest(ctx context.Context, set store.Set) (store.Digest, error) {
	if c.s.digests == nil {
		return c.Snapshot.SetDigest(ctx, set)
	}
	return c.s.holdUp(ctx)
}

func (s *counted) holdUp(ctx context.Context) (store.Digest, error) {
	<-ctx.Done()
	s.digests <- ctx.Err()
	return store.Digest{}, ctx.Err()
}

func (s *counted) Put(items []store.Item, done func(store.PutResult)) error {
	s.mu.Lock()
	if s.largest == 0 {
		s.before = s.listed
	}
	s.largest = max(s.largest, len(items))
	s.mu.Unlock()
	return s.Store.Put(items, done)
}

func (s *counted) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listed, s.before, s.largest = 0, 0, 0
}

// countedNodes are three nodes that exchange records only through reads.
func countedNodes(t *testing.T) (*world, map[string]*counted) {
	t.Helper()
	stores := map[string]*counted{}
	w := threeNodes(t, noCatchUp, func(w *world) {
		quiet := w.tune
		w.tune = func(c *Config) {
			quiet(c)
			s := &counted{Store: c.Store}
			stores[c.Store.Identity().Node] = s
			c.Store = s
		}
	})
	return w, stores
}

// contents of one subject, newest first, which is the order of a set.
func contents(count int, predicate string) []store.Item {
	items := make([]store.Item, count)
	for i := range items {
		c := &record.Content{
			Subject: "hot", Predicate: predicate, Object: record.Number(float64(i)), SourceClass: record.Expert, Timestamp: uint64(count - i),
		}
		items[i] = store.NewContent("p", c.ID(), c)
	}
	return items
}

func (n *node) put(items []store.Item) {
	for ; len(items) > 0; items = items[min(500, len(items)):] {
		require.NoError(n.w.t, n.cluster.putAndWait(context.Background(), items[:min(500, len(items))]))
	}
}

// TestMergeGoesThroughChunks: two nodes differ in about as many records as one
// chunk holds, on either side, at both ends of the set.
func TestMergeGoesThroughChunks(t *testing.T) {
	for _, differing := range []int{1, mergeChunk - 1, mergeChunk, mergeChunk + 1, 3 * mergeChunk} {
		t.Run(fmt.Sprint(differing), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, stores := countedNodes(t)
				a, c := w.nodes["a"], w.nodes["c"]
				all := contents(2*differing+2*mergeChunk, "is")
				var onA, onC []store.Item
				first, last := differing/2, differing-differing/2
				for i, it := range all {
					odd := i < first || i >= len(all)-last
					if !odd || i%2 == 0 {
						onA = append(onA, it)
					}
					if !odd || i%2 == 1 {
						onC = append(onC, it)
					}
				}
				a.put(onA)
				c.put(onC)
				for _, n := range []*node{a, c} {
					require.Less(t, logBytes(0, n.store.End()), int64(tailBytes), "more would be caught up with at once")
				}
				w.nodes["b"].crash(memfs.LoseAll)
				stores["a"].clear()
				found := 0
				seq, err := a.cluster.Claims(context.Background(), store.ClaimQuery{Project: "p", Subject: "hot"}, Quorum)
				require.NoError(t, err)
				for _, err := range seq(nil) {
					require.NoError(t, err)
					found++
				}
				require.Equal(t, len(all), found)
				set := store.Set{Project: "p", Subject: "hot"}
				mine, err := a.store.SetDigest(t.Context(), set)
				require.NoError(t, err)
				theirs, err := c.store.SetDigest(t.Context(), set)
				require.NoError(t, err)
				require.Equal(t, mine, theirs)
				require.EqualValues(t, differing, a.metric("read_written_back_total"))
				require.LessOrEqual(t, stores["a"].largest, mergeChunk)
				if differing == 3*mergeChunk {
					require.Less(t, stores["a"].before, 2*mergeChunk, "it writes back before it has read its whole list")
				}
			})
		})
	}
}

// reader is the caller of SetKeys; taken processes a message.
type reader struct {
	grpc.ServerStream
	ctx   context.Context
	taken func() error
}

func (r *reader) Context() context.Context { return r.ctx }

func (r *reader) Send(*peerpb.SetKeysResponse) error { return r.taken() }

// TestListEndsWithItsReader: a member lists only as much as is read, and stops
// when the reader has gone.
func TestListEndsWithItsReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, stores := countedNodes(t)
		c, s := w.nodes["c"], stores["c"]
		all := contents(5000, strings.Repeat("long", 60)) // some 1.4 MB of places
		c.put(all)
		const perMessage = placesPerMessage/(4*60+43) + 1
		ctx, cancel := context.WithCancel(metadata.NewIncomingContext(context.Background(), metadata.Pairs("generation", "1")))
		defer cancel()
		broken := errors.New("broken")
		messages := 0
		for _, row := range []struct {
			taken func() error
			most  int
		}{
			{func() error { return broken }, perMessage},
			{func() error { messages++; require.LessOrEqual(t, s.listed, messages*perMessage); return nil }, len(all)},
			{func() error { cancel(); return nil }, perMessage + 256},
		} {
			s.clear()
			err := (&service{c: c.cluster}).SetKeys(&peerpb.SetRequest{Project: "p", Subject: "hot"}, &reader{ctx: ctx, taken: row.taken})
			require.Equal(t, row.most == len(all), err == nil, "%v", err)
			require.LessOrEqual(t, s.listed, row.most)
			require.GreaterOrEqual(t, s.listed, perMessage/2)
		}
		require.Greater(t, messages, 8)
	})
}

// TestDigestEndsWithItsCaller: a member stops computing the digest of a large
// subject when nobody waits for it any longer.
func TestDigestEndsWithItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, stores := countedNodes(t)
		w.nodes["b"].crash(memfs.LoseAll)
		stores["c"].digests = make(chan error, 8)
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		_, err := w.nodes["a"].cluster.Claims(ctx, store.ClaimQuery{Project: "p", Subject: "hot"}, Quorum)
		require.ErrorIs(t, err, ErrUnavailable)
		require.Error(t, <-stores["c"].digests)

		// So does this node.
		stores["a"].digests = make(chan error, 8)
		ctx, cancel = context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		_, err = w.nodes["a"].cluster.Claims(ctx, store.ClaimQuery{Project: "p", Subject: "hot"}, Quorum)
		var u *UnavailableError
		require.ErrorAs(t, err, &u)
		require.Equal(t, CodeOverloadedComparison, u.Code)
		require.Error(t, <-stores["a"].digests)
	})
}

// lister answers SetKeys with these messages.
type lister struct {
	peerpb.PeerClient
	grpc.ClientStream
	messages [][]byte
}

func (l *lister) SetKeys(context.Context, *peerpb.SetRequest, ...grpc.CallOption) (peerpb.Peer_SetKeysClient, error) {
	return l, nil
}

func (l *lister) Recv() (*peerpb.SetKeysResponse, error) {
	if len(l.messages) == 0 {
		return nil, io.EOF
	}
	m := l.messages[0]
	l.messages = l.messages[1:]
	return &peerpb.SetKeysResponse{Places: m}, nil
}

// FuzzPlaces lists arbitrary bytes: accepted places are in order.
func FuzzPlaces(f *testing.F) {
	id := record.Hash{1}
	signature := append([]byte{1}, make([]byte, 32)...)
	f.Add(appendPlace(appendPlace(nil, []byte{0}), signature), []byte{}, true)
	f.Add(appendPlace(nil, signature), appendPlace(nil, []byte{0}), true)
	f.Add(appendPlace(nil, append([]byte("is\x00"), make([]byte, 41)...)), []byte{200, 1}, false)
	f.Fuzz(func(t *testing.T, one, two []byte, assertion bool) {
		set := &store.Set{Project: "p", Subject: "s"}
		if assertion {
			set = &store.Set{Project: "p", ID: &id}
		}
		c := &Cluster{}
		last := ""
		for k, err := range c.keysOf(context.Background(), &lister{messages: [][]byte{one, two}}, set) {
			if err != nil {
				return
			}
			require.Less(t, last, string(k.Place))
			require.True(t, k.Key.Kind.Record())
			last = string(k.Place)
		}
	})
}

// TestPartialClaimIsTheSameOnAllNodes: after a quorum read every node cuts a
// claim with too many agents in the same way, wherever its signatures were
// written.
func TestPartialClaimIsTheSameOnAllNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t, func(w *world) {
			w.tune = func(c *Config) { c.Limits.Voices = 3 }
		})
		a := claim("s", 1)
		for i, majority := range []string{"ab", "ca", "bc", "ac", "ab", "bc"} {
			items := []store.Item{
				store.NewContent("p", a.ID(), &a.Content),
				store.NewSignature("p", a.ID(), record.Signature{Agent: record.AgentID{byte(10 - i)}}),
			}
			for name := range strings.SplitSeq(majority, "") {
				require.NoError(t, w.nodes[name].cluster.putAndWait(t.Context(), items))
			}
		}
		for _, name := range []string{"a", "b", "c"} {
			claims, err := w.nodes[name].cluster.Claims(t.Context(), store.ClaimQuery{Project: "p", Subject: "s"}, Quorum)
			require.NoError(t, err)
			seen := 0
			for c, err := range claims(nil) {
				require.NoError(t, err)
				require.True(t, c.Partial)
				require.Equal(t, []record.AgentID{{5}, {6}, {7}}, c.Agents, "at %s", name)
				seen++
			}
			require.Equal(t, 1, seen)
			stored, err := w.nodes[name].cluster.Get(t.Context(), "p", a.ID(), Quorum)
			require.NoError(t, err)
			require.True(t, stored.Partial)
			require.Len(t, stored.Signatures, 3)
		}
	})
}
