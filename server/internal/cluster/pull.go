package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/stemedb/stemedb/internal/sleep"
	"github.com/stemedb/stemedb/server/internal/cluster/peerpb"
	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// puller copies the whole log of one other member: it lists the records, then
// fetches those that this node lacks. Its progress is a cursor, which becomes
// durable in the same commit as the records before it.
type puller struct {
	c      *Cluster
	member control.Member
	log    *slog.Logger

	// Only run's goroutine uses these.
	noted wal.Position // the durable cursor
	// notedOpening is the opening of the member's log in the durable cursor.
	notedOpening   wal.Opening
	notedAt        time.Time
	unnotedBytes   int64 // of records seen since then
	unnotedRecords int
	hole           hole
	full           bool // the last note found the volume full; retried after CursorEvery
	epoch          int  // of the cursor that hole belongs to

	mu sync.Mutex
	// heard is the time of the member's last answer; connected, whether the stream
	// is open.
	heard     time.Time
	connected bool
	// startEnd is the end of the member's log in its first answer; caughtUp means
	// that everything before it is held.
	startEnd wal.Position
	caughtUp bool
	behind   int64
	// asked is when the request of the latest processed answer was sent, end the end
	// of the member's log in that answer, and read how far the log has been processed.
	asked     time.Time
	end, read wal.Position
}

func newPuller(c *Cluster, m control.Member) *puller {
	return &puller{c: c, member: m, log: c.log.With("peer", m.Name)}
}

// run pulls until ctx ends, and then makes its progress durable.
func (p *puller) run(ctx context.Context) {
	p.noted, _ = p.c.progress.at(p.member.Incarnation)
	p.hole, p.epoch = p.c.progress.hole(p.member.Incarnation)
	p.notedOpening = p.c.store.Witnesses()[p.member.Incarnation].Opening
	p.notedAt = time.Now()
	retry := pauses{first: p.c.timings.Backoff, most: p.c.timings.MaxBackoff}
	for ctx.Err() == nil {
		moved, err := p.session(ctx)
		p.disconnected()
		if ctx.Err() != nil {
			break
		}
		if moved {
			retry.reset()
		}
		p.log.Debug("pulling from a member was interrupted", "error", err)
		if p.c.refresh(ctx, err) {
			continue
		}
		retry.wait(ctx)
	}
	if p.unnotedRecords > 0 {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		at, epoch := p.c.progress.at(p.member.Incarnation)
		if err := p.note(last, at, epoch); err != nil {
			p.log.Debug("the last cursor was not made durable; its records will be checked again", "error", err)
		}
	}
}

// session pulls through one stream; moved reports whether there was any progress.
func (p *puller) session(ctx context.Context) (moved bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := p.c.control.Conn(p.member)
	if err != nil {
		return false, err
	}
	client := peerpb.NewPeerClient(conn)
	stream, err := client.Pull(ctx)
	if err != nil {
		return false, err
	}
	// The first answer comes at once: it shows how much is left.
	wait := time.Duration(0)
	for {
		cursor, epoch := p.c.progress.at(p.member.Incarnation)
		if err := p.noteIfDue(ctx, cursor, epoch); err != nil {
			return moved, err
		}
		if epoch != p.epoch { // all cursors were reset
			p.epoch, p.hole = epoch, hole{}
		}
		from := p.hole.next(cursor)
		if err := stream.Send(p.request(from, wait)); err != nil {
			_, err = stream.Recv()
			return moved, err
		}
		began := time.Now()
		res, err := stream.Recv()
		if status.Code(err) == codes.OutOfRange {
			// The log was replaced or restored to an older state, and the member has
			// recorded that. Reading everything again misses nothing.
			p.log.Warn("a member's log was replaced or restored to an older state; it is read again from the beginning", "error", err)
			p.hole = hole{}
			p.c.progress.setHole(p.member.Incarnation, p.hole, epoch)
			return true, p.rewind(ctx, epoch)
		}
		if err != nil {
			return moved, err
		}
		p.hears()
		next := wal.Position(res.Next)
		if next < from || res.End < res.Next {
			return moved, fmt.Errorf("the member went back from %v to %v in a log that ends at %v", from, next, wal.Position(res.End))
		}
		p.saw(res) // before take, which makes it durable with the cursor
		fetched, err := p.take(ctx, client, res)
		if err != nil {
			return moved, err
		}
		moved = true
		passed := p.hole.pass(cursor, next, res)
		p.c.progress.setHole(p.member.Incarnation, p.hole, epoch)
		if err := p.reached(ctx, passed, epoch, began, res); err != nil {
			return moved, err
		}
		wait = p.waitFor()
		p.hold(ctx, fetched, began)
		if p.hole.unsettled() {
			sleep.For(ctx, p.c.timings.Backoff) // the member's disk may take long to recover
		}
	}
}

// request asks for the log from a position on. It carries the witness of the log:
// no less than this node has pulled.
func (p *puller) request(from wal.Position, wait time.Duration) *peerpb.PullRequest {
	w := p.c.progress.witness(p.member.Incarnation)
	return &peerpb.PullRequest{
		From: uint64(from), LimitBytes: uint32(p.c.limits.PullBytes), WaitMs: uint32(wait.Milliseconds()),
		Member: p.c.id, OpeningNumber: w.Opening.Number, OpeningId: w.Opening.ID, SeenEnd: uint64(max(w.End, from)),
	}
}

// waitFor is how long the member may wait for new records: at most until progress
// has to be made durable.
func (p *puller) waitFor() time.Duration {
	if p.unnotedRecords == 0 {
		return p.c.timings.PullWait
	}
	due := time.Until(p.notedAt.Add(p.c.timings.CursorEvery))
	return min(max(due, 10*time.Millisecond), p.c.timings.PullWait)
}

// take fetches the records of an answer that this node lacks, and returns their
// size.
func (p *puller) take(ctx context.Context, client peerpb.PeerClient, res *peerpb.PullResponse) (fetched int64, err error) {
	keys, err := parseKeys(res.Keys)
	if err != nil || len(keys) != len(res.Positions) || len(keys) != len(res.Sizes) {
		p.c.metrics.malformed.Inc()
		return 0, fmt.Errorf("the member's answer is malformed: %d keys, %d positions, %d sizes: %w",
			len(keys), len(res.Positions), len(res.Sizes), errors.Join(err))
	}
	if res.Gaps > 0 {
		p.hole.found()
		p.c.metrics.gaps.WithLabelValues(p.member.Name).Add(float64(res.Gaps))
		p.log.Warn("a member cannot read a part of its log; other members may have those records", "gaps", res.Gaps, "before", wal.Position(res.Next))
	}
	for _, size := range res.Sizes {
		p.unnotedBytes += int64(size)
	}
	p.unnotedRecords += len(keys)
	patient := true
	for {
		lacking, err := p.c.lacking(keys)
		if err != nil {
			return fetched, fmt.Errorf("looking up the records held: %w", err)
		}
		mine, claim, others := p.c.fetching.claim(keys, lacking)
		if !patient {
			mine, others = lacking, nil
		}
		n, err := p.bringAll(ctx, client, keys, res, mine, len(others) == 0)
		p.c.fetching.release(claim)
		fetched += n
		if err != nil || len(others) == 0 {
			return fetched, err
		}
		patient = awaitClaims(ctx, others)
		if ctx.Err() != nil {
			return fetched, ctx.Err()
		}
	}
}

// bringAll fetches the records of which in pieces of a bounded size; the last
// piece includes the cursor.
func (p *puller) bringAll(ctx context.Context, client peerpb.PeerClient, keys []store.Key, res *peerpb.PullResponse, which []int, last bool) (fetched int64, err error) {
	for start := 0; start < len(which); {
		end, size := pieceEnd(start, len(which), func(i int) int { return int(res.Sizes[which[i]]) })
		if err := p.bring(ctx, client, keys, res, which[start:end], last && end == len(which)); err != nil {
			return fetched, err
		}
		fetched += int64(size)
		start = end
	}
	return fetched, nil
}

// pieceEnd returns the end and the size of a piece that begins at start: at most
// fetchBytes, or a single element.
func pieceEnd(start, count int, sizeOf func(i int) int) (end, size int) {
	for end = start; end < count && (end == start || size+sizeOf(end) <= fetchBytes); end++ {
		size += sizeOf(end)
	}
	return end, size
}

// lacking returns the indexes of the keys that are not durable here, or, while
// this node is being refilled, are damaged.
func (c *Cluster) lacking(keys []store.Key) ([]int, error) {
	if c.refilling.Load() {
		return c.unreadable(keys)
	}
	maybe := c.recent.missing(keys)
	if len(maybe) == 0 {
		return nil, nil
	}
	ask := make([]store.Key, len(maybe))
	for i, k := range maybe {
		ask[i] = keys[k]
	}
	has, err := c.store.Has(ask)
	if err != nil {
		return nil, err
	}
	lacking := maybe[:0]
	for i, k := range maybe {
		if !has[i] {
			lacking = append(lacking, k)
		}
	}
	return lacking, nil
}

// unreadable returns the indexes of the keys whose records cannot be read here.
// It reads every byte, since the index alone does not show damage.
func (c *Cluster) unreadable(keys []store.Key) ([]int, error) {
	var bad []int
	for i, k := range keys {
		_, err := c.store.Read(k)
		var damage *store.DamageError
		switch {
		case err == nil:
		case errors.Is(err, store.ErrNotFound), errors.As(err, &damage):
			bad = append(bad, i)
		default:
			return nil, err
		}
	}
	return bad, nil
}

// bring fetches records and makes them durable, the last ones together with the
// cursor behind them.
func (p *puller) bring(ctx context.Context, client peerpb.PeerClient, keys []store.Key, res *peerpb.PullResponse, which []int, last bool) error {
	wanted := make([]store.Key, len(which))
	positions := make([]uint64, len(which))
	for i, k := range which {
		wanted[i], positions[i] = keys[k], res.Positions[k]
	}
	items, _, err := p.c.fetch(ctx, client, wanted, positions)
	if err != nil {
		return fmt.Errorf("fetching %d records: %w", len(wanted), err)
	}
	if missed := len(wanted) - len(items); missed > 0 {
		p.hole.missed()
		p.c.metrics.gaps.WithLabelValues(p.member.Name).Add(float64(missed))
		p.log.Warn("a member did not return records of its log; other members may have them", "records", missed)
	}
	if len(items) > 0 {
		if err := p.c.rewriteHeld(ctx, items); err != nil {
			return fmt.Errorf("replacing damaged records: %w", err)
		}
	}
	if err := p.keep(ctx, items, wal.Position(res.Next), last && !p.hole.open()); err != nil {
		return fmt.Errorf("storing %d records: %w", len(items), err)
	}
	p.c.recent.add(items)
	p.c.metrics.caughtUp.WithLabelValues(p.member.Name).Add(float64(len(items)))
	return nil
}

// keep makes records durable, the last ones of an answer together with the cursor
// behind them, unless all cursors were reset meanwhile.
func (p *puller) keep(ctx context.Context, records []store.Item, cursor wal.Position, last bool) error {
	if last {
		stale, err := p.c.progress.keep(ctx, p.epoch, func() error {
			return p.c.putAndWait(ctx, append(slices.Clip(records), p.c.progress.cursor(p.member.Incarnation, cursor)))
		})
		if err == nil && !stale {
			p.notedNow(cursor)
		}
		if err != nil || !stale {
			return err
		}
	}
	if len(records) == 0 {
		return nil
	}
	return p.c.putAndWait(ctx, records)
}

// putAndWait makes items durable here; it waits while the store is busy.
func (c *Cluster) putAndWait(ctx context.Context, items []store.Item) error {
	done := make(chan error, 1)
	if err := putPatiently(ctx, c.store, items, func(res store.PutResult) { done <- res.Err }); err != nil {
		return err
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// fetch asks a member for records until it has processed all keys, and returns
// those that it has, in order.
func (c *Cluster) fetch(ctx context.Context, client peerpb.PeerClient, keys []store.Key, positions []uint64) (items []store.Item, unread int, err error) {
	for len(keys) > 0 {
		n := min(len(keys), fetchKeys)
		b, err := appendKeys(nil, keys[:n]...)
		if err != nil {
			return nil, 0, err
		}
		req := &peerpb.FetchRequest{Keys: b}
		if len(positions) > 0 {
			req.Positions = positions[:n]
		}
		res, err := client.Fetch(ctx, req)
		if err != nil {
			return nil, 0, err
		}
		looked := int(res.LookedAt)
		if looked == 0 || looked > n {
			return nil, 0, fmt.Errorf("the member processed %d of %d keys", looked, n)
		}
		if items, err = c.appendFetched(items, res.Items, keys[:looked]); err != nil {
			return nil, 0, err
		}
		unread += int(res.Unread)
		keys = keys[looked:]
		if len(positions) > 0 {
			positions = positions[looked:]
		}
	}
	return items, unread, nil
}

// fetchKeys is the maximum number of keys in one request.
const fetchKeys = 4096

// appendFetched appends the items in b, which are some of those requested, in the
// same order. An item that cannot be parsed counts as missing: it must not block
// the others.
func (c *Cluster) appendFetched(items []store.Item, b []byte, asked []store.Key) ([]store.Item, error) {
	for len(b) > 0 {
		kind, payload, rest, err := store.CutRecord(b)
		if err != nil {
			return nil, err
		}
		b = rest
		it, err := store.ParseRecord(kind, payload)
		if err != nil {
			c.metrics.malformed.Inc()
			c.log.Error("a member sent an invalid record; it is skipped", "error", err)
			continue
		}
		for len(asked) > 0 && asked[0] != it.Key {
			asked = asked[1:]
		}
		if len(asked) == 0 {
			return nil, fmt.Errorf("the member sent %v, which was not requested", it.Key)
		}
		asked = asked[1:]
		items = append(items, it)
	}
	return items, nil
}

// noteIfDue makes progress without new records durable. Only records count as
// progress: a cursor is itself an entry in the log that the others pull, so
// counting cursors would never end.
func (p *puller) noteIfDue(ctx context.Context, at wal.Position, epoch int) error {
	if p.unnotedRecords == 0 || at == p.noted {
		return nil
	}
	if (p.full || p.unnotedBytes < noteBytes) && time.Since(p.notedAt) < p.c.timings.CursorEvery {
		return nil
	}
	return p.note(ctx, at, epoch)
}

// noteBytes is the maximum amount that is checked again after a crash.
const noteBytes = 64 << 20

// note makes progress durable. On a full volume this is deferred and pulling
// continues: each pull compares the witness with the member's log, and without
// that comparison no read could count a full member together with one that has
// restarted.
func (p *puller) note(ctx context.Context, at wal.Position, epoch int) error {
	stale, err := p.c.progress.keep(ctx, epoch, func() error {
		return p.c.putAndWait(ctx, []store.Item{p.c.progress.cursor(p.member.Incarnation, at)})
	})
	switch {
	case stale:
		return nil
	case errors.Is(err, wal.ErrReadOnly):
		p.notedAt, p.full = time.Now(), true
		return nil
	case err != nil:
		return fmt.Errorf("making the cursor durable: %w", err)
	}
	p.notedNow(at)
	return nil
}

func (p *puller) notedNow(at wal.Position) {
	p.noted, p.notedAt, p.unnotedBytes, p.unnotedRecords, p.full = at, time.Now(), 0, 0, false
	p.notedOpening = p.c.progress.witness(p.member.Incarnation).Opening
}

// rewind restarts at the beginning of the member's log.
func (p *puller) rewind(ctx context.Context, epoch int) error {
	p.c.progress.set(p.member.Incarnation, 0, epoch)
	p.c.progress.saw(p.member.Incarnation, wal.Witness{})
	return p.note(ctx, 0, epoch)
}

// saw records the end of the member's log from an answer; by then, the member has
// compared its log with the earlier witness.
func (p *puller) saw(res *peerpb.PullResponse) {
	opening := wal.Opening{Number: res.OpeningNumber, ID: res.OpeningId}
	p.c.progress.saw(p.member.Incarnation, wal.Witness{Opening: opening, End: wal.Position(res.End)})
}

// reached publishes this puller's progress. A new opening is made durable at
// once: the member's log is compared with it after its next start.
func (p *puller) reached(ctx context.Context, next wal.Position, epoch int, asked time.Time, res *peerpb.PullResponse) error {
	p.advance(next, epoch, asked, res)
	tooSoon := p.full && time.Since(p.notedAt) < p.c.timings.CursorEvery
	if tooSoon || p.c.progress.witness(p.member.Incarnation).Opening == p.notedOpening {
		return nil
	}
	at, epoch := p.c.progress.at(p.member.Incarnation)
	return p.note(ctx, at, epoch)
}

func (p *puller) advance(next wal.Position, epoch int, asked time.Time, res *peerpb.PullResponse) {
	p.c.progress.set(p.member.Incarnation, next, epoch)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.startEnd == 0 {
		p.startEnd = wal.Position(res.End)
	}
	p.behind = int64(res.BehindBytes) + logBytes(next, wal.Position(res.Next))
	p.caughtUp = p.caughtUp || next >= p.startEnd
	p.asked, p.end, p.read = asked, wal.Position(res.End), wal.Position(res.Next)
	p.c.metrics.lagBytes.WithLabelValues(p.member.Name).Set(float64(p.behind))
}

// hears records that the member answers, even if its answer cannot be processed
// here.
func (p *puller) hears() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.heard, p.connected = time.Now(), true
}

func (p *puller) disconnected() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.connected = false
}

// hold enforces the rate limit of catch-up.
func (p *puller) hold(ctx context.Context, fetched int64, began time.Time) {
	rate := p.c.limits.CatchUpBytesRate
	if rate <= 0 || fetched == 0 {
		return
	}
	due := began.Add(time.Duration(float64(fetched) / float64(rate) * float64(time.Second)))
	if wait := time.Until(due); wait > 0 {
		sleep.For(ctx, wait)
	}
}

// logBytes estimates the amount of log between two positions.
func logBytes(from, to wal.Position) int64 {
	const segment = 64 << 20 // the usual size; the result is an estimate
	if from.Segment() == 0 {
		from = 1 << 32
	}
	return max(int64(to.Segment())-int64(from.Segment()), 0)*segment + int64(to.Offset()) - int64(from.Offset())
}
