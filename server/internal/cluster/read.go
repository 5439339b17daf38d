package cluster

import (
	"context"
	"errors"
	"iter"
	"slices"
	"sync"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/cluster/peerpb"
	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/store"
)

// Get returns the record of an id, with at most Limits.Voices signatures and
// votes: store.ErrNotFound when its content is not held, *LostError when no
// member can read the content, *UnavailableError when this node cannot be
// certain. Unreadable signatures and votes are omitted, and the record is
// partial.
func (c *Cluster) Get(ctx context.Context, project string, id record.Hash, consistency Consistency) (*store.Stored, error) {
	var without []store.Key
	for {
		var stored *store.Stored
		snap, err := c.level(ctx, &store.Set{Project: project, ID: &id}, consistency)
		if err == nil {
			stored, err = snap.AssertionWithin(project, id, c.limits.Voices, without...)
			err = readError(ctx, err)
			snap.Close()
		}
		var damage *store.DamageError
		if !errors.As(err, &damage) {
			return stored, err
		}
		err = c.repair(ctx, damage.Key)
		if damage.Key.Kind != store.KindContent && MayOmit(err, consistency) {
			without = append(without, damage.Key)
			continue
		}
		if err != nil {
			return nil, err
		}
	}
}

// MayOmit reports whether a read continues without a damaged record that could
// not be repaired (and marks its answer): when no member holds the record, or
// when only this node's records are requested.
func MayOmit(err error, consistency Consistency) bool {
	var lost *LostError
	return errors.As(err, &lost) || consistency == Local && IsDamage(err)
}

// IsDamage reports whether err means that a record is damaged here and was not
// repaired.
func IsDamage(err error) bool {
	var lost *LostError
	var u *UnavailableError
	return errors.As(err, &lost) || errors.As(err, &u) && u.Code == CodeDamaged
}

// Claims opens the claims of a subject at this moment; they can be read until ctx
// ends. With Quorum it first fetches the records of the subject that other
// members hold; an error of that is returned at once.
func (c *Cluster) Claims(ctx context.Context, q store.ClaimQuery, consistency Consistency) (ClaimSource, error) {
	set := &store.Set{Project: q.Project, Subject: q.Subject, Predicate: q.Predicate}
	snap, err := c.level(ctx, set, consistency)
	if err != nil {
		return nil, err
	}
	claims := &claimsAt{c: c, ctx: ctx, query: q, consistency: consistency, snap: snap}
	context.AfterFunc(ctx, claims.close)
	return claims.behind, nil
}

// ClaimSource yields the claims of a query as of its opening, in the order of
// store.Snapshot.Claims, starting behind after. It may be called several times. A
// claim with damaged content is repaired first, or yielded as Unreadable.
type ClaimSource = func(after *store.ClaimCursor) iter.Seq2[*store.Claim, error]

// claimsAt are the claims of a subject at one moment.
type claimsAt struct {
	c           *Cluster
	ctx         context.Context
	query       store.ClaimQuery
	consistency Consistency

	reading sync.RWMutex // read-locked while snap is read
	snap    store.Snapshot
}

func (cs *claimsAt) behind(after *store.ClaimCursor) iter.Seq2[*store.Claim, error] {
	return func(yield func(*store.Claim, error) bool) {
		cs.reading.RLock()
		defer cs.reading.RUnlock()
		if cs.snap == nil {
			yield(nil, cs.ctx.Err())
			return
		}
		q := cs.query
		q.After = after
		for claim, err := range cs.snap.Claims(cs.ctx, q, cs.c.limits.Voices) {
			if err = readError(cs.ctx, err); err == nil && cs.c.damaged(claim) {
				err = cs.c.repair(cs.ctx, contentKey(claim))
				if claim.Unreadable = MayOmit(err, cs.consistency); claim.Unreadable {
					err = nil
				}
			}
			if !yield(claim, err) || err != nil {
				return
			}
		}
	}
}

// damaged reports whether the content of a claim was found damaged and is still
// unreadable: a disk may recover a range that it refused to read.
func (c *Cluster) damaged(claim *store.Claim) bool {
	if !c.store.Damaged(claim.Position) {
		return false
	}
	it, err := c.store.ReadAt(claim.Position)
	return err != nil || it.Key != contentKey(claim)
}

func contentKey(claim *store.Claim) store.Key {
	return store.Key{Kind: store.KindContent, Project: claim.Project, ID: claim.ID}
}

func (cs *claimsAt) close() {
	cs.reading.Lock()
	defer cs.reading.Unlock()
	cs.snap.Close()
	cs.snap = nil
}

// Content reads the content of a claim and repairs it from a peer when its bytes
// here are damaged. If that fails, the error is a *LostError or an
// *UnavailableError with CodeDamaged, and a ClaimSource that is opened later
// knows of the damage.
func (c *Cluster) Content(ctx context.Context, claim *store.Claim) (*record.Content, error) {
	key := contentKey(claim)
	it, err := c.store.ReadAt(claim.Position)
	if err != nil || it.Key != key {
		it, err = c.readHeld(ctx, key)
	}
	if err != nil {
		return nil, err
	}
	return it.Content(), nil
}

// readHeld reads a record through the index and repairs it when it is damaged.
func (c *Cluster) readHeld(ctx context.Context, key store.Key) (store.Item, error) {
	it, err := c.store.Read(key)
	var damage *store.DamageError
	if !errors.As(err, &damage) {
		return it, readError(ctx, err)
	}
	if err := c.repair(ctx, key); err != nil {
		return store.Item{}, err
	}
	it, err = c.store.Read(key)
	return it, readError(ctx, err)
}

// readError translates an error of this node's store for a reader: the record is
// not held, it is damaged, or this node's storage failed and another member can
// answer.
func readError(ctx context.Context, err error) error {
	var damage *store.DamageError
	if err == nil || ctx.Err() != nil || errors.Is(err, store.ErrNotFound) || errors.As(err, &damage) {
		return err
	}
	return storageError(err)
}

// Subjects lists at most limit subjects that begin with prefix and follow after,
// in byte order.
func (c *Cluster) Subjects(ctx context.Context, project, prefix, after string, limit int, consistency Consistency) ([]string, error) {
	limit = min(limit, maxSubjects)
	if consistency == Local {
		own, err := c.store.Subjects(project, prefix, after, limit)
		return own, readError(ctx, err)
	}
	var all []string
	var unsure map[string]bool
	err := c.retryReads(ctx, func(ctx context.Context, p *plan) error {
		own, err := c.store.Subjects(project, prefix, after, limit)
		if err != nil {
			return storageError(err)
		}
		req := &peerpb.SubjectsRequest{Project: project, Prefix: prefix, After: after, Limit: uint32(max(limit, 1))}
		answers, err := ask(ctx, c, p, func(ctx context.Context, client peerpb.PeerClient) ([]string, error) {
			res, err := client.Subjects(ctx, req)
			return res.GetSubjects(), err
		})
		if err != nil {
			return err
		}
		// Each list is cut off at the limit; the first limit names of the union are
		// complete all the same.
		all = slices.Clone(own)
		heldBy := map[string]int{}
		for _, a := range answers {
			all = append(all, a.value...)
		}
		for _, subject := range all {
			heldBy[subject]++
		}
		slices.Sort(all)
		all = slices.Compact(all)
		all = all[:min(len(all), limit)]
		unsure = map[string]bool{}
		for _, subject := range all {
			unsure[subject] = heldBy[subject] <= len(answers)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	// A subject that only some members hold has to be on a majority before it is
	// shown.
	for _, subject := range all {
		if !unsure[subject] {
			continue
		}
		snap, err := c.level(ctx, &store.Set{Project: project, Subject: subject}, Quorum)
		if err != nil {
			return nil, err
		}
		snap.Close()
	}
	return all, nil
}

// retryReads plans and tries a read until the members do not change during it.
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
			// This node's records count by the rule of that generation only if it has not
			// passed to a newer one since.
			err = c.control.CheckGeneration(p.state.Generation)
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
