package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"

	"github.com/stemedb/stemedb/server/internal/cluster/peerpb"
	"github.com/stemedb/stemedb/server/internal/store"
)

// level brings a set to the state that a quorum read has to see, and returns a
// snapshot to answer from; the caller closes it. The snapshot holds all records
// of the set that enough members hold, and none that is not on a majority. That
// is why the answer comes from a snapshot: a record that arrives after the
// comparison may be on this node alone, and once shown it must not disappear.
func (c *Cluster) level(ctx context.Context, set *store.Set, consistency Consistency) (snap store.Snapshot, err error) {
	if consistency == Local {
		snap, err = c.store.Snapshot()
		if err != nil {
			err = storageError(err)
		}
		return snap, err
	}
	err = c.retryReads(ctx, func(ctx context.Context, p *plan) (err error) {
		if snap != nil {
			snap.Close()
		}
		for again := true; again && err == nil; {
			snap, again, err = c.compare(ctx, p, set)
		}
		return err
	})
	if err != nil && snap != nil {
		snap.Close()
		snap = nil
	}
	return snap, err
}

// compare compares digests and merges the differences. again, instead of a
// snapshot, means that this node now holds more of the set than was compared: a
// content that arrives brings records that were waiting for it into the set of
// its assertion (earlier votes, successors of a successor), and these may be on
// this node alone.
func (c *Cluster) compare(ctx context.Context, p *plan, set *store.Set) (snap store.Snapshot, again bool, err error) {
	before, err := c.store.Snapshot()
	if err != nil {
		return nil, false, storageError(err)
	}
	differing, own, err := c.askDigests(ctx, p, set, before)
	if err == nil && len(differing) == 0 {
		return before, false, nil
	}
	defer before.Close()
	if err != nil {
		return nil, false, err
	}
	c.metrics.readDiffers.Inc()
	brought, content, err := c.merge(ctx, set, before, differing)
	if err != nil {
		return nil, false, err
	}
	if content && set.ID != nil {
		return nil, true, nil
	}
	own.Add(brought)
	after, err := c.store.Snapshot()
	if err != nil {
		return nil, false, storageError(err)
	}
	if err := c.secure(ctx, set, before, after, own); err != nil {
		after.Close()
		return nil, false, err
	}
	return after, false, nil
}

// askDigests returns the digest of a set in the snapshot, and the answers that
// differ from it.
func (c *Cluster) askDigests(ctx context.Context, p *plan, set *store.Set, snap store.Snapshot) (differing []answer[store.Digest], own store.Digest, err error) {
	if p.enough(nil) {
		return nil, own, nil
	}
	own, err = snap.SetDigest(ctx, *set)
	if err != nil {
		return nil, own, setError(ctx, err)
	}
	answers, err := ask(ctx, c, p, func(ctx context.Context, client peerpb.PeerClient) (store.Digest, error) {
		res, err := client.SetDigest(ctx, setRequest(set))
		d := store.Digest{Count: res.GetCount()}
		if err == nil && copy(d.Sum[:], res.Digest) != len(d.Sum) {
			err = errors.New("its digest is too short")
		}
		return d, err
	})
	differing = slices.DeleteFunc(answers, func(a answer[store.Digest]) bool { return a.value == own })
	return differing, own, err
}

// secure brings the records that arrived during the merge to a majority: those of
// the later snapshot that were neither compared nor merged. known is the digest
// of the set without them.
func (c *Cluster) secure(ctx context.Context, set *store.Set, before, after store.Snapshot, known store.Digest) error {
	now, err := after.SetDigest(ctx, *set)
	if err != nil {
		return setError(ctx, err)
	}
	if now == known {
		return nil
	}
	lists := []*list{newList(ownKeys(ctx, before, set)), newList(ownKeys(ctx, after, set))}
	return c.join(ctx, lists, nil, func(k held) (held, bool) {
		k.by >>= 1 // whether it is in the later one, which this node holds
		return k, k.by&1 != 0
	})
}

// setError translates an error of this node's store during a comparison.
func setError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return unavailable(CodeOverloadedComparison, "this node could not process all records of this set in time", err)
	}
	return storageError(err)
}

// holding is a bit set of the members that hold a key: bit 0 is this node, bit
// i+1 the i-th member with a different digest.
type holding = uint64

// held is a key that some of them lack.
type held struct {
	key store.Key
	by  holding
}

// mergeChunk is the number of records that a merge holds in memory.
const mergeChunk = 128

// merge compares key by key with members whose digests differ. All list the set
// in the same order, so it walks the lists in parallel and holds at most the keys of
// one chunk. brought is the digest of the keys that the snapshot lacks;
// content reports whether a content is among them.
func (c *Cluster) merge(ctx context.Context, set *store.Set, own store.Snapshot, others []answer[store.Digest]) (brought store.Digest, content bool, err error) {
	ctx, cancel := context.WithCancel(ctx) // ends the members' lists
	defer cancel()
	lists := make([]*list, 0, 1+len(others))
	lists = append(lists, newList(ownKeys(ctx, own, set)))
	for _, o := range others {
		lists = append(lists, newList(c.keysOf(ctx, o.client, set)))
	}
	err = c.join(ctx, lists, others, func(k held) (held, bool) {
		if k.by&1 == 0 {
			brought.Add(own.KeyDigest(&k.key))
			content = content || k.key.Kind == store.KindContent
		}
		return k, true
	})
	return brought, content, err
}

// join walks lists of one set in parallel and writes back, in chunks, the keys
// that some of them lack and that wanted accepts.
func (c *Cluster) join(ctx context.Context, lists []*list, others []answer[store.Digest], wanted func(held) (held, bool)) error {
	for _, l := range lists {
		defer l.stop()
	}
	all := holding(1)<<len(lists) - 1
	var chunk []held
	for {
		next, more, err := least(lists)
		if err != nil {
			return err
		}
		if more && next.by != all {
			if k, ok := wanted(next); ok {
				chunk = append(chunk, k)
			}
		}
		if len(chunk) == mergeChunk || !more && len(chunk) > 0 {
			if err := c.writeBack(ctx, chunk, others); err != nil {
				return err
			}
			chunk = chunk[:0]
		}
		if !more {
			return nil
		}
	}
}

// list streams one member's keys of a set.
type list struct {
	next func() (store.SetKey, error, bool)
	stop func()
	head store.SetKey
	err  error
	more bool // head is valid
}

func newList(keys iter.Seq2[store.SetKey, error]) *list {
	l := &list{}
	l.next, l.stop = iter.Pull2(keys)
	l.advance()
	return l
}

func (l *list) advance() { l.head, l.err, l.more = l.next() }

// least removes the key with the least place from the lists that have it.
func least(lists []*list) (k held, more bool, err error) {
	var first *list
	for _, l := range lists {
		if l.more && l.err != nil {
			return held{}, false, l.err
		}
		if l.more && (first == nil || bytes.Compare(l.head.Place, first.head.Place) < 0) {
			first = l
		}
	}
	if first == nil {
		return held{}, false, nil
	}
	k.key = first.head.Key
	for i, l := range lists {
		if l.more && bytes.Equal(l.head.Place, first.head.Place) {
			k.by |= holding(1) << i
		}
	}
	for i, l := range lists {
		if k.by&(holding(1)<<i) != 0 {
			l.advance()
		}
	}
	return k, true, nil
}

// ownKeys yields the keys of a set in a snapshot of this node.
func ownKeys(ctx context.Context, snap store.Snapshot, set *store.Set) iter.Seq2[store.SetKey, error] {
	return func(yield func(store.SetKey, error) bool) {
		for k, err := range snap.SetKeys(ctx, *set) {
			if err != nil {
				err = setError(ctx, err)
			}
			if !yield(k, err) {
				return
			}
		}
	}
}

// keysOf yields the keys of a set that a member lists.
func (c *Cluster) keysOf(ctx context.Context, client peerpb.PeerClient, set *store.Set) iter.Seq2[store.SetKey, error] {
	return func(yield func(store.SetKey, error) bool) {
		stream, err := client.SetKeys(ctx, setRequest(set))
		if err != nil {
			yield(store.SetKey{}, err)
			return
		}
		var last []byte
		for {
			res, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return
			}
			for rest := res.GetPlaces(); err == nil && len(rest) > 0; {
				var k store.SetKey
				if k.Place, rest, err = cutPlace(rest); err == nil {
					k.Key, err = set.KeyAt(k.Place)
				}
				if err == nil && bytes.Compare(last, k.Place) >= 0 {
					err = fmt.Errorf("the member's list of a set is not in order at %v", k.Key)
				}
				if err == nil && !yield(k, nil) {
					return
				}
				last = k.Place
			}
			if err != nil {
				yield(store.SetKey{}, err)
				return
			}
		}
	}
}

// writeBack brings keys that some members lack to this node and to a majority.
func (c *Cluster) writeBack(ctx context.Context, chunk []held, others []answer[store.Digest]) error {
	items, err := c.gather(ctx, chunk, others)
	if err != nil {
		return err
	}
	fresh, err := c.write(ctx, items)
	if err != nil {
		return err
	}
	// The majority may not include this node, which answers the read.
	if fresh == nil {
		if err := c.putAndWait(ctx, items); err != nil {
			return storageError(err)
		}
	}
	c.metrics.writtenBack.Add(float64(len(items)))
	return nil
}

// gather reads records from this node if it holds them, otherwise from a member
// that does.
func (c *Cluster) gather(ctx context.Context, chunk []held, others []answer[store.Digest]) ([]store.Item, error) {
	items := make([]store.Item, 0, len(chunk))
	have := make(map[store.Key]bool, len(chunk))
	for _, k := range chunk {
		if k.by&1 == 0 {
			continue
		}
		it, err := c.readHeld(ctx, k.key)
		if err != nil {
			return nil, err
		}
		items, have[k.key] = append(items, it), true
	}
	for i, o := range others {
		var wanted []store.Key
		for _, k := range chunk {
			if !have[k.key] && k.by&(holding(1)<<(i+1)) != 0 {
				wanted = append(wanted, k.key)
			}
		}
		got, _, err := c.fetch(ctx, o.client, wanted, nil)
		if err != nil {
			return nil, err
		}
		for _, it := range got {
			items, have[it.Key] = append(items, it), true
		}
	}
	if missed := len(chunk) - len(have); missed > 0 {
		return nil, unavailable(CodeDamaged, "a member lists records of this set that neither it nor the others can read", nil)
	}
	// Contents precede their signatures and votes.
	slices.SortStableFunc(items, func(a, b store.Item) int { return int(a.Kind) - int(b.Kind) })
	return items, nil
}
