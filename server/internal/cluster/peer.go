package cluster

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/stemedb/stemedb/internal/sleep"
	"github.com/stemedb/stemedb/server/internal/cluster/peerpb"
	"github.com/stemedb/stemedb/server/internal/control"
)

// peer sends this node's writes to one other member through one stream. The queue
// of unacknowledged writes is bounded; a write that does not fit is not sent, and
// catch-up delivers its records later.
type peer struct {
	c      *Cluster
	member control.Member
	id     string
	log    *slog.Logger
	wake   chan struct{} // cap 1: something to send

	ackSeconds prometheus.Observer
	queueBytes prometheus.Gauge

	mu sync.Mutex
	// queue holds the unacknowledged writes, oldest first; queue[:sent] was sent on
	// the current stream, each with the seq of its last message.
	queue []queued
	sent  int
	// bytes is the size of the queue on the wire; at most PeerQueueBytes,
	// unless a single write is larger.
	bytes     int64
	connected bool
	// swept is the length of the queue after the last sweep of a peer that is
	// not connected.
	swept int
}

type queued struct {
	w    *write
	seq  uint64
	sent time.Time
	// generation is the generation of its messages. The member acknowledges them
	// only while it has not passed that generation.
	generation uint64
}

func newPeer(c *Cluster, m control.Member) *peer {
	return &peer{
		c: c, member: m, id: m.ID(),
		log:        c.log.With("peer", m.Name),
		wake:       make(chan struct{}, 1),
		ackSeconds: c.metrics.ackSeconds.WithLabelValues(m.Name),
		queueBytes: c.metrics.queueBytes.WithLabelValues(m.Name),
	}
}

// offer queues w, or returns false when the queue is full. It never blocks.
func (p *peer) offer(w *write) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.connected && len(p.queue) >= 2*p.swept+64 {
		p.sweep()
	}
	size := int64(len(w.wire))
	if p.bytes+size > p.c.limits.PeerQueueBytes && p.bytes > 0 {
		if !p.connected {
			p.sweep()
		}
		if p.bytes+size > p.c.limits.PeerQueueBytes && p.bytes > 0 {
			p.c.metrics.dropped.WithLabelValues(p.member.Name).Inc()
			return false
		}
	}
	p.queue = append(p.queue, queued{w: w})
	p.bytes += size
	p.queueBytes.Set(float64(p.bytes))
	sleep.Wake(p.wake)
	return true
}

// sweep drops writes that nobody waits for any longer. Called with mu held while
// there is no stream.
func (p *peer) sweep() {
	kept := p.queue[:0]
	p.bytes = 0
	for _, q := range p.queue {
		if !q.w.settled.Load() {
			kept = append(kept, q)
			p.bytes += int64(len(q.w.wire))
		}
	}
	clear(p.queue[len(kept):])
	p.queue, p.swept = kept, len(kept)
	p.queueBytes.Set(float64(p.bytes))
}

// run keeps a stream to the member until ctx ends.
func (p *peer) run(ctx context.Context) {
	defer p.queueBytes.Set(0)
	retry := pauses{first: p.c.timings.Backoff, most: p.c.timings.MaxBackoff}
	for ctx.Err() == nil {
		acked, err := p.stream(ctx)
		wasConnected := p.disconnect(err)
		if ctx.Err() != nil {
			return
		}
		if acked {
			retry.reset()
		}
		level := slog.LevelDebug // a dead member causes many attempts
		if wasConnected {
			level = slog.LevelWarn
		}
		p.log.Log(ctx, level, "the stream of writes to a member is closed", "error", err)
		if p.c.refresh(ctx, err) {
			continue
		}
		retry.wait(ctx)
	}
}

// disconnect prepares the queue for the next stream.
func (p *peer) disconnect(err error) (wasConnected bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	wasConnected, p.connected = p.connected, false
	if status.Code(err) == codes.InvalidArgument {
		// The member cannot parse the records; a retry would fail as well.
		p.log.Error("a member refuses records as malformed; they are not sent to it again", "writes", p.sent, "error", err)
		clear(p.queue[:p.sent])
		p.queue = p.queue[p.sent:]
	}
	p.sent = 0
	p.sweep()
	return wasConnected
}

// stream opens a stream and serves it until it fails; acked reports whether the
// member acknowledged anything.
func (p *peer) stream(ctx context.Context) (acked bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	conn, err := p.c.control.Conn(p.member)
	if err != nil {
		return false, err
	}
	stream, err := peerpb.NewPeerClient(conn).Replicate(ctx)
	if err != nil {
		return false, err
	}
	// The answer to the first, empty message shows that the member accepts writes.
	if err := stream.Send(&peerpb.ReplicateRequest{Generation: p.c.generation()}); err != nil {
		return false, recvError(stream, err)
	}
	if _, err := stream.Recv(); err != nil {
		return false, err
	}
	p.mu.Lock()
	p.sweep()
	p.connected = true
	p.mu.Unlock()

	var helpers sync.WaitGroup
	helpers.Go(func() {
		for {
			res, err := stream.Recv()
			if err != nil {
				cancel(err)
				return
			}
			p.acked(res.Seq)
			acked = true
		}
	})
	helpers.Go(func() { p.watch(ctx, cancel) })
	if err := p.send(ctx, stream); err != nil && !errors.Is(err, io.EOF) {
		cancel(err)
	}
	// After io.EOF, Recv returns the reason.
	<-ctx.Done()
	helpers.Wait()
	return acked, context.Cause(ctx)
}

// watch ends the stream when the member acknowledges nothing for too long.
func (p *peer) watch(ctx context.Context, cancel context.CancelCauseFunc) {
	ticker := time.NewTicker(p.c.timings.AckTimeout / 4)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if p.overdue() {
				cancel(errors.New("the member has sent no acknowledgement for too long"))
			}
		case <-ctx.Done():
			return
		}
	}
}

// recvError returns the cause of a broken stream: Send only returns io.EOF.
func recvError(stream peerpb.Peer_ReplicateClient, err error) error {
	if !errors.Is(err, io.EOF) {
		return err
	}
	_, err = stream.Recv()
	return err
}

// send sends queued writes on the stream until ctx ends.
func (p *peer) send(ctx context.Context, stream peerpb.Peer_ReplicateClient) error {
	seq := uint64(0)
	var batch []*write
	for {
		generation := p.c.generation()
		batch = p.take(batch[:0], seq, generation)
		if len(batch) == 0 {
			select {
			case <-p.wake:
			case <-ctx.Done():
				return ctx.Err()
			}
			continue
		}
		var err error
		if seq, err = p.sendBatch(stream, batch, seq, generation); err != nil {
			return err
		}
		clear(batch)
	}
}

// take moves unsent writes to the sent part: several that fit into one message,
// or one that needs several messages.
func (p *peer) take(batch []*write, seq, generation uint64) []*write {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dropAbandoned()
	size, now := 0, time.Now()
	for p.sent < len(p.queue) {
		q := &p.queue[p.sent]
		if len(batch) > 0 && size+len(q.w.wire) > p.c.limits.MessageBytes {
			break
		}
		size += len(q.w.wire)
		messages := len(q.w.cuts)
		q.seq, q.sent, q.generation = seq+uint64(messages), now, generation
		batch = append(batch, q.w)
		p.sent++
		if messages > 1 {
			break
		}
	}
	// A write of several messages behind others begins with the message after
	// theirs, so it is sent separately.
	if n := len(batch); n > 1 && len(batch[n-1].cuts) > 1 {
		p.sent--
		batch = batch[:n-1]
	}
	return batch
}

// dropAbandoned removes unsent writes of abandoned requests from the queue.
// Called with mu held.
func (p *peer) dropAbandoned() {
	unsent := slices.DeleteFunc(p.queue[p.sent:], func(q queued) bool {
		if !q.w.abandoned.Load() {
			return false
		}
		p.bytes -= int64(len(q.w.wire))
		return true
	})
	p.queue = p.queue[:p.sent+len(unsent)]
	p.queueBytes.Set(float64(p.bytes))
}

// sendBatch sends one message, or the messages of one large write.
func (p *peer) sendBatch(stream peerpb.Peer_ReplicateClient, batch []*write, seq, generation uint64) (uint64, error) {
	send := func(items []byte) error {
		seq++
		return stream.Send(&peerpb.ReplicateRequest{Seq: seq, Generation: generation, Items: items})
	}
	if len(batch) == 1 {
		w, start := batch[0], 0
		for _, end := range w.cuts {
			if err := send(w.wire[start:end]); err != nil {
				return seq, err
			}
			start = end
		}
		return seq, nil
	}
	size := 0
	for _, w := range batch {
		size += len(w.wire)
	}
	items := make([]byte, 0, size)
	for _, w := range batch {
		items = append(items, w.wire...)
	}
	return seq, send(items)
}

// acked removes the writes that are durable at the member from the queue.
func (p *peer) acked(seq uint64) {
	p.mu.Lock()
	n := 0
	for n < p.sent && p.queue[n].seq <= seq {
		p.bytes -= int64(len(p.queue[n].w.wire))
		n++
	}
	done := append([]queued(nil), p.queue[:n]...)
	clear(p.queue[:n])
	p.queue, p.sent = p.queue[n:], p.sent-n
	p.queueBytes.Set(float64(p.bytes))
	p.mu.Unlock()

	for _, q := range done {
		q.w.ack(p.id, q.generation, p.c.control.State)
	}
	if n > 0 {
		p.ackSeconds.Observe(time.Since(done[0].sent).Seconds())
	}
}

func (p *peer) overdue() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sent > 0 && time.Since(p.queue[0].sent) > p.c.timings.AckTimeout
}

func (p *peer) isConnected() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.connected
}

// pauses implements exponential backoff: each pause is twice as long as the
// previous one.
type pauses struct{ first, most, next time.Duration }

func (b *pauses) reset() { b.next = 0 }

// wait pauses until the time is up or ctx ends.
func (b *pauses) wait(ctx context.Context) {
	b.next = min(max(b.next, b.first), b.most)
	sleep.For(ctx, b.next)
	b.next *= 2
}
