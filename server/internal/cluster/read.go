package cluster

import (
	"context"
	"errors"
	"iter"
	"slices"

	"github.com/stemedb/stemedb/server/internal/cluster/peerpb"
	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/record"
)

// Get returns the record of an id, with at most Limits.Voices signatures and votes:
// store.ErrNotFound when its content is not held, *UnavailableError when this node
// cannot be sure.
func (c *Cluster) Get(ctx context.Context, project string, id record.Hash, consistency Consistency) (*store.Stored, error) {
	for {
		var stored *store.Stored
		err := c.level(ctx, &store.Set{Project: project, ID: &id}, consistency)
		if err == nil {
			stored, err = c.store.AssertionWithin(project, id, c.limits.Voices)
		}
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
// node's store, while ctx lasts. With Quorum it has first brought there what
// other members hold of the subject; an error of that comes at once.
func (c *Cluster) Claims(ctx context.Context, q store.ClaimQuery, consistency Consistency) (iter.Seq2[*store.Claim, error], error) {
	set := &store.Set{Project: q.Project, Subject: q.Subject, Predicate: q.Predicate}
	if err := c.level(ctx, set, consistency); err != nil {
		return nil, err
	}
	return c.store.Claims(ctx, q, c.limits.Voices), nil
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
		if err := c.level(ctx, &store.Set{Project: project, Subject: subject}, Quorum); err != nil {
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
