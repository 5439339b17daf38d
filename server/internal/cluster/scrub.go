package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/stemedb/stemedb/internal/sleep"
	"github.com/stemedb/stemedb/server/internal/cluster/peerpb"
	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// Scrubbing narrows down differences by buckets of id prefixes, one byte at a
// time.
const (
	// maxPrefix bounds the depth; 2^32 buckets hold one record each.
	maxPrefix = 4
	// bucketLimit is the largest bucket that is listed instead of being narrowed
	// down further.
	bucketLimit = 4096
	// suspectLimit bounds the keys of one round; the next round continues.
	suspectLimit = 10_000
)

// scrub continuously compares all records with one member after the other. It
// finds records that replication and catch-up should have delivered and did not,
// because of a bug or of undetected damage on a disk.
func (c *Cluster) scrub(ctx context.Context) {
	if c.timings.ScrubEvery < 0 {
		return
	}
	for {
		if !sleep.For(ctx, c.timings.ScrubEvery) {
			return
		}
		for _, m := range c.control.State().Everyone() {
			if m.ID() == c.id || !m.Whole {
				continue
			}
			if err := c.scrubWith(ctx, m); err != nil && ctx.Err() == nil {
				c.log.Info("comparing records with a member was interrupted", "peer", m.Name, "error", err)
			}
		}
	}
}

// scrubWith compares with one member and fetches the records that this node
// lacks; the other member's scrub covers the other direction.
func (c *Cluster) scrubWith(ctx context.Context, m control.Member) error {
	if err := c.followsTail(m); err != nil {
		return err
	}
	conn, err := c.control.Conn(m)
	if err != nil {
		return err
	}
	client := peerpb.NewPeerClient(conn)
	s := &comparison{c: c, client: client}
	if err := s.narrow(ctx, nil); err != nil {
		return err
	}
	if len(s.suspects) > 0 {
		listed := time.Now()
		// Records in transit arrive in the meantime.
		if !sleep.For(ctx, c.timings.ScrubSettle) {
			return ctx.Err()
		}
		if err := c.awaitLogOf(ctx, m, listed); err != nil {
			return err
		}
		if err := c.fetchDifferences(ctx, m, client, s.suspects); err != nil {
			return err
		}
	}
	c.metrics.scrubRounds.Inc()
	return nil
}

// followsTail returns an error while catch-up is still running.
func (c *Cluster) followsTail(m control.Member) error {
	l, ok := c.linkTo(m.ID())
	if !ok {
		return fmt.Errorf("%s is no longer a member", m.Name)
	}
	l.puller.mu.Lock()
	defer l.puller.mu.Unlock()
	if !l.puller.connected || l.puller.behind > tailBytes {
		return fmt.Errorf("this node has not caught up with %s", m.Name)
	}
	return nil
}

// awaitLogOf waits until this node has processed all that a member's log held at a
// moment. It returns an error if that takes too long: the process may have been paused,
// or the network slow, and then nothing can be said about records that are lacking.
func (c *Cluster) awaitLogOf(ctx context.Context, m control.Member, moment time.Time) error {
	var end wal.Position
	for deadline := time.Now().Add(2 * c.timings.PullWait); ; {
		l, ok := c.linkTo(m.ID())
		if !ok {
			return fmt.Errorf("%s is no longer a member", m.Name)
		}
		asked, latest, read := l.puller.processed()
		if end == 0 && asked.After(moment) {
			end = latest
		}
		if end > 0 && read >= end {
			return c.followsTail(m)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("this node has not caught up with %s", m.Name)
		}
		if !sleep.For(ctx, c.timings.Backoff) {
			return ctx.Err()
		}
	}
}

func (p *puller) processed() (asked time.Time, end, read wal.Position) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked, p.end, p.read
}

func (c *Cluster) fetchDifferences(ctx context.Context, m control.Member, client peerpb.PeerClient, suspects []store.Key) error {
	lacking, err := c.lacking(suspects)
	if err != nil || len(lacking) == 0 {
		return err
	}
	keys := make([]store.Key, len(lacking))
	for i, k := range lacking {
		keys[i] = suspects[k]
	}
	c.metrics.scrubFound.WithLabelValues(m.Name).Add(float64(len(keys)))
	c.log.Error("this node lacked records although it had caught up; fetching them now", "peer", m.Name, "records", len(keys), "first", keys[0].String())
	items, _, err := c.fetch(ctx, client, keys, nil)
	if err != nil || len(items) == 0 {
		return err
	}
	return c.putAndWait(ctx, items)
}

// comparison is one comparison of the buckets of this node and another one.
type comparison struct {
	c        *Cluster
	client   peerpb.PeerClient
	suspects []store.Key // held by the member and not by this node
}

// narrow compares the 256 buckets below a prefix and descends into those that
// differ.
func (s *comparison) narrow(ctx context.Context, prefix []byte) error {
	own, err := s.c.store.BucketDigests(ctx, prefix)
	if err != nil {
		return err
	}
	theirs, err := s.client.Buckets(ctx, &peerpb.BucketsRequest{Prefix: prefix})
	if err != nil {
		return err
	}
	if len(theirs.Digests) != 256*32 || len(theirs.Counts) != 256 {
		return fmt.Errorf("the member sent %d bytes of digests and %d counts", len(theirs.Digests), len(theirs.Counts))
	}
	for i := range own {
		if bytes.Equal(own[i].Sum[:], theirs.Digests[32*i:32*i+32]) || theirs.Counts[i] == 0 {
			continue
		}
		bucket := append(bytes.Clone(prefix), byte(i))
		if max(own[i].Count, theirs.Counts[i]) <= bucketLimit || len(bucket) == maxPrefix {
			err = s.list(ctx, bucket)
		} else {
			err = s.narrow(ctx, bucket)
		}
		if err != nil || len(s.suspects) >= suspectLimit {
			return err
		}
	}
	return nil
}

// receiveKeys reads the keys of a small bucket.
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

// list compares one bucket key by key.
func (s *comparison) list(ctx context.Context, bucket []byte) error {
	stream, err := s.client.BucketKeys(ctx, &peerpb.BucketKeysRequest{Prefix: bucket})
	if err != nil {
		return err
	}
	keys, err := receiveKeys(stream.Recv)
	if err != nil {
		return err
	}
	lacking, err := s.c.lacking(keys)
	if err != nil {
		return err
	}
	for _, k := range lacking {
		s.suspects = append(s.suspects, keys[k])
	}
	return nil
}
