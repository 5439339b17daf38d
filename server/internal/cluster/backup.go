package cluster

import (
	"context"
	"fmt"
	"time"

	"github.com/stemedb/stemedb/internal/sleep"
	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/cluster/peerpb"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// A backup copies the log of one whole member. BackupPoint returns a position of that
// log below which it holds every record that was acknowledged before the call: the
// member asks so many others for the ends of their logs that every acknowledged write
// is in one of them or in its own (as a quorum read does), takes in their logs up to
// there, and then notes its own end. The log only grows, so the part of it that an
// earlier backup copied need not be copied again.

// BackupPoint is a position of a member's log.
type BackupPoint struct {
	ClusterID, Node, Incarnation string
	// First is where the log begins and End where the backup ends.
	First, End wal.Position
	// Assertions is the number of assertions that the member holds.
	Assertions int64
}

// logEnd is the end of a peer's log.
type logEnd struct {
	incarnation string
	position    wal.Position
}

// BackupPoint waits until this member holds everything that was acknowledged before
// the call, as long as ctx allows. Errors are *UnavailableError.
func (c *Cluster) BackupPoint(ctx context.Context) (BackupPoint, error) {
	p, err := c.planRead()
	if err != nil {
		return BackupPoint{}, err
	}
	if why := c.Incomplete(); why != "" {
		return BackupPoint{}, unavailable(CodeNotWhole, "a backup of this node would lack records: "+why, nil)
	}
	answers, err := ask(ctx, c, p, func(ctx context.Context, client peerpb.PeerClient) (logEnd, error) {
		res, err := client.LogEnd(ctx, &peerpb.LogEndRequest{})
		return logEnd{res.GetIncarnation(), wal.Position(res.GetEnd())}, err
	})
	if err != nil {
		return BackupPoint{}, err
	}
	for _, a := range answers {
		if err := c.awaitCursor(ctx, a.member.Name, a.value); err != nil {
			return BackupPoint{}, err
		}
	}
	if err := c.control.CheckGeneration(p.state.Generation); err != nil {
		return BackupPoint{}, unavailable(CodePeersUnreachable, "the members have changed meanwhile", err)
	}
	identity := c.store.Identity()
	return BackupPoint{
		ClusterID: p.state.ClusterID, Node: identity.Node, Incarnation: identity.Incarnation,
		First: c.store.First(), End: c.store.End(), Assertions: c.store.Stats().Assertions,
	}, nil
}

// cursorPoll is the time between two looks at the cursors.
const cursorPoll = 20 * time.Millisecond

// awaitCursor waits until this node holds a member's log up to its end.
func (c *Cluster) awaitCursor(ctx context.Context, member string, end logEnd) error {
	for {
		if at := wal.Position(c.progress.Cursors()[end.incarnation]); at >= end.position {
			return nil
		}
		if !sleep.For(ctx, cursorPoll) {
			return unavailable(CodeCatchingUp, fmt.Sprintf("this node does not hold all of the log of %s yet, which a backup needs", member), ctx.Err())
		}
	}
}

// LogEnd returns the end of this node's log.
func (s *service) LogEnd(ctx context.Context, _ *peerpb.LogEndRequest) (*peerpb.LogEndResponse, error) {
	if err := s.countsInReads(ctx); err != nil {
		return nil, err
	}
	res := &peerpb.LogEndResponse{Incarnation: s.c.store.Identity().Incarnation, End: uint64(s.c.store.End())}
	if err := s.c.control.CheckCaller(ctx); err != nil {
		return nil, err
	}
	return res, nil
}

// Export calls fn for the records of this member's log; see store.Store.Export. Errors
// are that of fn, wal.ErrNoEntry and *UnavailableError; after an error, what fn was
// given may lack records.
func (c *Cluster) Export(from, to wal.Position, limitBytes int, fn func(kind store.Kind, payload []byte) error) (next wal.Position, err error) {
	before := lossOf(c.store)
	if next, err = c.store.Export(from, to, limitBytes, fn); err != nil {
		return next, err
	}
	if !before.whole || lossOf(c.store) != before {
		return next, unavailable(CodeNotWhole, "this node lost records, so a backup of it would lack them", nil)
	}
	return next, nil
}

// Imported counts the records of one import.
type Imported struct {
	// Created were not held before, Existing were. Invalid have a signature that is
	// not that of their agent; they are left out.
	Created, Existing, Invalid int
}

// Import makes records of a backup durable on a majority: contents, signatures and
// votes, in any order. Records that are held already are left as they are. Errors are
// those of write.
func (c *Cluster) Import(ctx context.Context, items []store.Item) (Imported, error) {
	valid, err := c.validItems(ctx, items)
	if err != nil {
		return Imported{}, err
	}
	res := Imported{Invalid: len(items) - len(valid)}
	for start := 0; start < len(valid); {
		end, _ := pieceEnd(start, len(valid), func(i int) int { return len(valid[i].Payload) })
		fresh, err := c.write(ctx, valid[start:end])
		if err != nil {
			return Imported{}, err
		}
		for i := range valid[start:end] {
			if fresh == nil || fresh[i] {
				res.Created++
			} else {
				res.Existing++
			}
		}
		start = end
	}
	return res, nil
}

// validItems returns the items without signatures and votes that were not made by
// their agent.
func (c *Cluster) validItems(ctx context.Context, items []store.Item) ([]store.Item, error) {
	if c.skipSignatures {
		return items, nil
	}
	signed := make([]record.SignedItem, 0, len(items))
	for i := range items {
		if it, ok := items[i].Signed(); ok {
			signed = append(signed, it)
		}
	}
	verdicts, err := c.signatures.check(ctx, signed)
	if err != nil {
		return nil, unavailable(CodeOverloadedSignatures, "the signatures could not be checked in time", err)
	}
	valid := make([]store.Item, 0, len(items))
	for i := range items {
		if _, ok := items[i].Signed(); ok {
			good := verdicts[0]
			verdicts = verdicts[1:]
			if !good {
				continue
			}
		}
		valid = append(valid, items[i])
	}
	return valid, nil
}

// Incarnation identifies this node's log.
func (c *Cluster) Incarnation() string { return c.store.Identity().Incarnation }
