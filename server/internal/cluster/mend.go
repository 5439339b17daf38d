package cluster

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/stemedb/stemedb/internal/sleep"
	"github.com/stemedb/stemedb/server/internal/cluster/peerpb"
	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// Damage is not yet a loss. As long as the index names the damaged records, this
// node fetches each of them from any member that holds it and writes it again.
// The loss is reported (whole.go) only when some record is found on no member, or
// the members that may hold it do not answer for MendWait. The report is
// withdrawn when all records are readable again.

// mending reports whether this node has found damage and still counts as whole in
// the control table.
func (c *Cluster) mending() bool {
	m, ok := c.self(c.control.State())
	return ok && m.Whole && !c.store.Whole()
}

// mend replaces damaged records until all are readable; it returns false if that
// is impossible.
func (c *Cluster) mend(ctx context.Context) bool {
	if c.timings.MendWait < 0 {
		return false
	}
	began := time.Now()
	wait := pauses{first: c.timings.Backoff, most: c.timings.MaxBackoff}
	for ctx.Err() == nil {
		missing, asked, err := c.mendOnce(ctx)
		switch {
		case errors.Is(err, errNotNamed):
			return false
		case err == nil && len(missing) == 0:
			return true
		case err == nil && asked:
			c.log.Error("no member holds a readable copy of damaged records", "records", len(missing), "first", missing[0].String())
			return false
		case time.Since(began) > c.timings.MendWait:
			c.log.Error("damaged records could not be replaced in time", "records", len(missing), "error", err)
			return false
		}
		wait.wait(ctx)
	}
	return false
}

// errNotNamed: the index does not know which records are damaged.
var errNotNamed = errors.New("the index does not name the damaged records")

// mendPiece is the number of records fetched at a time.
const mendPiece = 512

// mendOnce replaces the damaged records that some member returns. asked is true
// when every other member was asked for the missing ones.
func (c *Cluster) mendOnce(ctx context.Context) (missing []store.Key, asked bool, err error) {
	keys, all, err := c.store.DamagedKeys(ctx)
	if errors.Is(err, store.ErrIndexLacks) {
		c.progress.restart(err)
		<-ctx.Done()
		return nil, false, ctx.Err()
	}
	if err == nil && !all {
		err = errNotNamed
	}
	if err != nil {
		return nil, false, err
	}
	asked = true
	for piece := range slices.Chunk(keys, mendPiece) {
		for _, m := range c.preferred(c.control.State().Everyone()) {
			if len(piece) == 0 {
				break
			}
			rest, err := c.mendFrom(ctx, m, piece)
			if err != nil {
				c.log.Debug("a member that may hold copies of damaged records did not return all of them", "peer", m.Name, "error", err)
				asked = false
			}
			piece = rest
		}
		missing = append(missing, piece...)
	}
	if asked {
		c.lostKeys.Store(&missing)
	}
	return missing, asked, nil
}

// mendFrom replaces the records that a member returns, and returns the rest. An
// error means that the member may return more of them later.
func (c *Cluster) mendFrom(ctx context.Context, m control.Member, keys []store.Key) (rest []store.Key, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.timings.ReadWait)
	defer cancel()
	conn, err := c.control.Conn(m)
	if err != nil {
		return keys, err
	}
	items, unread, err := c.fetch(ctx, peerpb.NewPeerClient(conn), keys, nil)
	if err != nil {
		return keys, err
	}
	for start := 0; start < len(items); {
		end, _ := pieceEnd(start, len(items), func(i int) int { return len(items[i].Payload) })
		if err := c.rewrite(ctx, items[start:end]); err != nil {
			return keys, err
		}
		start = end
	}
	given := make(map[store.Key]bool, len(items))
	for i := range items {
		given[items[i].Key] = true
	}
	if unread > 0 {
		err = errUnread
	}
	return slices.DeleteFunc(slices.Clone(keys), func(k store.Key) bool { return given[k] }), err
}

// verifyLog reads the whole log continuously and slowly, so that damage is found
// while other members still hold the records.
func (c *Cluster) verifyLog(ctx context.Context) {
	if c.timings.VerifyEvery < 0 {
		return
	}
	for ctx.Err() == nil {
		if err := c.readLog(ctx, func() bool { return true }); err != nil && ctx.Err() == nil {
			c.log.Warn("the verification of the log was interrupted", "error", err)
		}
		c.metrics.verifyRounds.Inc()
		sleep.For(ctx, c.timings.VerifyEvery)
	}
}

// readLog reads the log from beginning to end, at VerifyBytesRate, while wanted
// returns true. The store records the damage that it finds.
func (c *Cluster) readLog(ctx context.Context, wanted func() bool) error {
	const piece = 256 << 10
	rest := time.Duration(int64(time.Second) * piece / c.limits.VerifyBytesRate)
	for from, end := wal.Position(0), c.store.End(); from < end && wanted(); {
		_, next, _, err := c.store.ScanKeys(from, piece)
		if err != nil {
			return err
		}
		c.metrics.verified.Add(float64(logBytes(from, next)))
		from = next
		if !sleep.For(ctx, rest) {
			return ctx.Err()
		}
	}
	return nil
}
