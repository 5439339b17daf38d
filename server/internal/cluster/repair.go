package cluster

import (
	"context"
	"errors"
	"fmt"

	"github.com/stemedb/stemedb/server/internal/cluster/peerpb"
	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/store"
)

// repair fetches a record whose bytes here are damaged from any member that can
// read it, and writes it again. It returns a *LostError when all members answered
// and none has it, and an *UnavailableError when one of them may have it and did
// not return it, or when it cannot be written here.
func (c *Cluster) repair(ctx context.Context, key store.Key) error {
	_, err, _ := c.repairs.Do(key.String(), func() (any, error) {
		it, err := c.findElsewhere(ctx, key)
		var lost *LostError
		if errors.As(err, &lost) {
			if _, own := c.store.Read(key); own != nil && mayPass(own) {
				return nil, unavailable(CodeDamaged, "this node's disk cannot read the record now, and no other member has a copy", err)
			}
			return nil, err
		}
		if err != nil {
			return nil, unavailable(CodeDamaged, "the record's bytes on this node are damaged, and no other member could supply it", err)
		}
		if err := c.rewrite(ctx, []store.Item{it}); err != nil {
			return nil, unavailable(CodeDamaged, "the record's bytes on this node are damaged, and the copy of another member could not be written here", err)
		}
		return nil, nil
	})
	if err != nil {
		return err
	}
	c.log.Warn("a damaged record was replaced by a member's copy", "key", key.String())
	return nil
}

// findElsewhere asks the members for a record, one after the other.
func (c *Cluster) findElsewhere(ctx context.Context, key store.Key) (store.Item, error) {
	var failures []error
	members := c.control.State().Everyone()
	for _, m := range c.preferred(members) {
		conn, err := c.control.Conn(m)
		if err == nil {
			var items []store.Item
			var unread int
			items, unread, err = c.fetch(ctx, peerpb.NewPeerClient(conn), []store.Key{key}, nil)
			if err == nil && len(items) == 1 {
				return items[0], nil
			}
			if err == nil && unread > 0 {
				err = errUnread
			}
		}
		if err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", m.Name, err))
		}
	}
	if len(failures) == 0 {
		return store.Item{}, &LostError{Key: key, Members: len(members)}
	}
	return store.Item{}, errors.Join(failures...)
}

// errUnread: a member holds a record and cannot read it now.
var errUnread = errors.New("the member's disk cannot read the record now")

// rewrite writes records again whose stored bytes are damaged.
func (c *Cluster) rewrite(ctx context.Context, items []store.Item) error {
	done := make(chan error, 1)
	if err := c.store.Repair(items, func(res store.PutResult) { done <- res.Err }); err != nil {
		return err
	}
	select {
	case err := <-done:
		if err == nil {
			c.metrics.repaired.Add(float64(len(items)))
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// rewriteHeld rewrites those of the items that the index lists. While this node
// is being refilled, a listed record is fetched only if it is damaged.
func (c *Cluster) rewriteHeld(ctx context.Context, items []store.Item) error {
	if !c.refilling.Load() {
		return nil
	}
	var records []store.Item
	var keys []store.Key
	for i := range items {
		if items[i].Kind.Record() {
			records, keys = append(records, items[i]), append(keys, items[i].Key)
		}
	}
	has, err := c.store.Has(keys)
	if err != nil {
		return err
	}
	damaged := records[:0]
	for i := range has {
		if has[i] {
			damaged = append(damaged, records[i])
		}
	}
	if len(damaged) == 0 {
		return nil
	}
	return c.rewrite(ctx, damaged)
}

// preferred orders the other members by how likely they answer soon: connected
// ones first, then those that are alive; equals take turns.
func (c *Cluster) preferred(members []control.Member) []control.Member {
	others := make([]control.Member, 0, len(members))
	for _, m := range members {
		if m.ID() != c.id {
			others = append(others, m)
		}
	}
	if len(others) < 2 {
		return others
	}
	first := int(c.turn.Add(1)) % len(others)
	ordered := make([]control.Member, 0, len(others))
	for rank := range 3 {
		for i := range others {
			m := others[(first+i)%len(others)]
			if c.rank(m) == rank {
				ordered = append(ordered, m)
			}
		}
	}
	return ordered
}

func (c *Cluster) rank(m control.Member) int {
	switch {
	case !c.alive(m.Name):
		return 2
	case c.connectedTo(m.ID()):
		return 0
	default:
		return 1
	}
}

func (c *Cluster) connectedTo(id string) bool {
	l, ok := c.linkTo(id)
	return ok && l.peer.isConnected()
}
