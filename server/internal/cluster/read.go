package cluster

import (
	"context"
	"errors"
	"io"
	"iter"
	"slices"

	"github.com/stemedb/stemedb/server/internal/cluster/peerpb"
	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/record"
)

// Get returns what is held about an id: store.ErrNotFound without content,
// *UnavailableError when that cannot be told.
func (c *Cluster) Get(ctx context.Context, project string, id record.Hash, consistency Consistency) (*store.Stored, error) {
	if err := c.level(ctx, &setRef{project: project, id: &id}, consistency); err != nil {
		return nil, err
	}
	for {
		stored, err := c.store.Assertion(project, id)
		var damage *store.DamageError
		if !errors.As(err, &damage) {
			return stored, err
		}
		if err := c.repair(ctx, damage.Key); err != nil {
			return nil, err
		}
	}
}

// Claims yields the claims of a subject as store.Store.Claims does, from this
// node's store. With Quorum it has first brought there what other members hold
// of the subject; an error of that comes at once.
func (c *Cluster) Claims(ctx context.Context, q store.ClaimQuery, consistency Consistency) (iter.Seq2[*store.Claim, error], error) {
	set := &setRef{project: q.Project, subject: q.Subject, predicate: q.Predicate}
	if err := c.level(ctx, set, consistency); err != nil {
		return nil, err
	}
	return c.store.Claims(q), nil
}

// Content reads the content that a claim stands for, mending it from a peer
// when its bytes here are damaged.
func (c *Cluster) Content(ctx context.Context, claim *store.Claim) (*record.Content, error) {
	key := store.Key{Kind: store.KindContent, Project: claim.Project, ID: claim.ID}
	it, err := c.store.ReadAt(claim.Position)
	if err != nil || it.Key != key {
		it, err = c.readHeld(ctx, key)
	}
	if err != nil {
		return nil, err
	}
	return it.Content(), nil
}

// readHeld reads a record through the index and mends it when it is damaged.
func (c *Cluster) readHeld(ctx context.Context, key store.Key) (store.Item, error) {
	it, err := c.store.Read(key)
	var damage *store.DamageError
	if !errors.As(err, &damage) {
		return it, err
	}
	if err := c.repair(ctx, key); err != nil {
		return store.Item{}, err
	}
	return c.store.Read(key)
}

// Subjects lists subjects that begin with prefix, in order of their bytes,
// those behind after, at most limit.
func (c *Cluster) Subjects(ctx context.Context, project, prefix, after string, limit int, consistency Consistency) ([]string, error) {
	limit = min(limit, maxSubjects)
	own, err := c.store.Subjects(project, prefix, after, limit)
	if err != nil || consistency == Local {
		return own, err
	}
	var all []string
	err = c.retryReads(ctx, func(ctx context.Context, p *plan) error {
		req := &peerpb.SubjectsRequest{Project: project, Prefix: prefix, After: after, Limit: uint32(max(limit, 1))}
		answers, err := ask(ctx, c, p, func(ctx context.Context, client peerpb.PeerClient) ([]string, error) {
			res, err := client.Subjects(ctx, req)
			return res.GetSubjects(), err
		})
		if err != nil {
			return err
		}
		// A name that comes late in one list and is in no other would be cut
		// off by the limit in both: nothing before it is missed.
		all = slices.Clone(own)
		for _, a := range answers {
			all = append(all, a.value...)
		}
		slices.Sort(all)
		all = slices.Compact(all)
		all = all[:min(len(all), limit)]
		return nil
	})
	if err != nil {
		return nil, err
	}
	// What only some hold has to be on a majority before it is shown.
	for _, subject := range all {
		if _, held := slices.BinarySearch(own, subject); held {
			continue
		}
		if err := c.level(ctx, &setRef{project: project, subject: subject}, Quorum); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// retryReads plans and tries a read until the members do not change under it.
func (c *Cluster) retryReads(ctx context.Context, try func(context.Context, *plan) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.timings.ReadWait)
	defer cancel()
	var err error
	for range c.limits.ReadTries {
		var p *plan
		if p, err = c.planRead(); err == nil {
			err = try(ctx, p)
		}
		if err == nil {
			return nil
		}
		if _, stale := control.StaleGeneration(err); !stale {
			break
		}
		if !c.refresh(ctx, err) {
			err = unavailable(CodePeersUnreachable, "the members have changed and this node does not follow the control table", err)
			break
		}
	}
	var u *UnavailableError
	if !errors.As(err, &u) {
		u = unavailable(CodePeersUnreachable, "the members could not be compared", err)
	}
	c.metrics.readFailures.WithLabelValues(u.Code).Inc()
	return u
}

// level brings a set to the state that a quorum read has to see: this node then
// holds what enough members hold of it, and whatever only some of them held is
// on a majority.
func (c *Cluster) level(ctx context.Context, set *setRef, consistency Consistency) error {
	if consistency == Local {
		return nil
	}
	return c.retryReads(ctx, func(ctx context.Context, p *plan) error {
		if p.enough(nil) {
			return nil
		}
		own, err := c.setDigest(set)
		if err != nil {
			return storageError(err)
		}
		answers, err := ask(ctx, c, p, func(ctx context.Context, client peerpb.PeerClient) (store.Digest, error) {
			res, err := client.SetDigest(ctx, set.request())
			d := store.Digest{Count: res.GetCount()}
			if err == nil && copy(d.Sum[:], res.Digest) != len(d.Sum) {
				err = errors.New("its digest is cut short")
			}
			return d, err
		})
		if err != nil {
			return err
		}
		differing := slices.DeleteFunc(answers, func(a answer[store.Digest]) bool { return a.value == own })
		if len(differing) == 0 {
			return nil
		}
		c.metrics.readDiffers.Inc()
		return c.merge(ctx, set, differing)
	})
}

// holding is which of the members that a read has heard hold a key: bit 0 is
// this node, bit i+1 the i-th of the members that differ.
type holding = uint64

// merge compares key by key with members whose digests differ.
func (c *Cluster) merge(ctx context.Context, set *setRef, others []answer[store.Digest]) error {
	own, err := c.setKeys(set)
	if err != nil {
		return storageError(err)
	}
	holders := make(map[store.Key]holding, len(own))
	for _, k := range own {
		holders[k] = 1
	}
	all := holding(1)
	for i, o := range others {
		bit := holding(1) << (i + 1)
		all |= bit
		keys, err := c.keysOf(ctx, o.client, set)
		if err != nil {
			return err
		}
		for _, k := range keys {
			holders[k] |= bit
		}
	}
	var partial []store.Key
	for k, held := range holders {
		if held != all {
			partial = append(partial, k)
		}
	}
	// Contents before what signs or votes on them.
	slices.SortFunc(partial, func(a, b store.Key) int { return int(a.Kind) - int(b.Kind) })
	for chunk := range slices.Chunk(partial, mergeChunk) {
		items, err := c.gather(ctx, chunk, holders, others)
		if err != nil {
			return err
		}
		fresh, err := c.write(ctx, items)
		if err != nil {
			return err
		}
		// The others may have been the majority; the read goes on here.
		if fresh == nil {
			if err := c.putAndWait(ctx, items); err != nil {
				return storageError(err)
			}
		}
		c.metrics.writtenBack.Add(float64(len(items)))
	}
	return nil
}

// mergeChunk bounds what a merge holds in memory, in records.
const mergeChunk = 1000

func (c *Cluster) keysOf(ctx context.Context, client peerpb.PeerClient, set *setRef) ([]store.Key, error) {
	stream, err := client.SetKeys(ctx, set.request())
	if err != nil {
		return nil, err
	}
	return receiveKeys(stream.Recv)
}

func receiveKeys(recv func() (*peerpb.SetKeysResponse, error)) ([]store.Key, error) {
	var all []store.Key
	for {
		res, err := recv()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		keys, err := parseKeys(res.Keys)
		if err != nil {
			return nil, err
		}
		all = append(all, keys...)
	}
}

// gather reads records from this node where it holds them, otherwise from one
// of the members that do.
func (c *Cluster) gather(ctx context.Context, keys []store.Key, holders map[store.Key]holding, others []answer[store.Digest]) ([]store.Item, error) {
	items := make([]store.Item, 0, len(keys))
	have := make(map[store.Key]bool, len(keys))
	for _, k := range keys {
		if holders[k]&1 == 0 {
			continue
		}
		it, err := c.readHeld(ctx, k)
		if err != nil {
			return nil, err
		}
		items, have[k] = append(items, it), true
	}
	for i, o := range others {
		var wanted []store.Key
		for _, k := range keys {
			if !have[k] && holders[k]&(holding(1)<<(i+1)) != 0 {
				wanted = append(wanted, k)
			}
		}
		got, err := c.fetch(ctx, o.client, wanted, nil)
		if err != nil {
			return nil, err
		}
		for _, it := range got {
			items, have[it.Key] = append(items, it), true
		}
	}
	if missed := len(keys) - len(have); missed > 0 {
		return nil, unavailable(CodeDamaged, "a member lists records of this set that neither it nor the others can read", nil)
	}
	slices.SortStableFunc(items, func(a, b store.Item) int { return int(a.Kind) - int(b.Kind) })
	return items, nil
}
