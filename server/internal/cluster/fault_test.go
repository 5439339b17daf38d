package cluster

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/cluster/peerpb"
	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// rot flips a bit of the record that holds text, in the node's log.
func (n *node) rot(text string) {
	t := n.w.t
	entries, err := n.disk.ReadDir("wal")
	require.NoError(t, err)
	for _, e := range entries {
		name := path.Join("wal", e.Name())
		f, err := n.disk.OpenFile(name, os.O_RDONLY, 0)
		require.NoError(t, err)
		size, err := f.Size()
		require.NoError(t, err)
		b := make([]byte, size)
		_, err = f.ReadAt(b, 0)
		if err != nil {
			require.ErrorIs(t, err, io.EOF)
		}
		require.NoError(t, f.Close())
		if at := bytes.Index(b, []byte(text)); at >= 0 {
			require.NoError(t, n.disk.FlipBit(name, int64(at), 1))
			return
		}
	}
	t.Fatalf("no record holds %q", text)
}

func TestDamagedRecordIsRepaired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		a := w.nodes["a"]
		ids := a.write(claim("before", 1), claim("rotten subject", 2), claim("after", 3))
		for _, n := range w.nodes {
			w.await("the records on "+n.name, func() bool { return n.holds(ids...) })
		}
		a.rot("rotten subject")
		s, err := a.cluster.Get(context.Background(), "p", ids[1], Local)
		require.NoError(t, err)
		require.Equal(t, "rotten subject", s.Content.Subject)
		require.EqualValues(t, 1, a.metric("records_repaired_total"))
		s, err = a.store.Assertion("p", ids[1])
		require.NoError(t, err, "the store holds it again")
		require.Len(t, s.Signatures, 1)

		// The log recorded the damage, and nothing is lost.
		require.False(t, a.store.Whole())
		w.await("readiness", func() bool { return a.cluster.Ready() == nil && a.store.Whole() })
		a.control.mu.Lock()
		defer a.control.mu.Unlock()
		require.Zero(t, a.control.reported)
	})
}

// TestRefillMendsWhatNobodyRead: a loss was found in one record; the refill finds
// another damaged one.
func TestRefillMendsWhatNobodyRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		a := w.nodes["a"]
		ids := a.write(claim("first rotten", 1), claim("second rotten", 2))
		for _, n := range w.nodes {
			w.await("the records on "+n.name, func() bool { return n.holds(ids...) })
		}
		a.rot("first rotten")
		a.rot("second rotten")
		_, err := a.cluster.Get(context.Background(), "p", ids[0], Local)
		require.NoError(t, err)
		w.await("the repair of both", func() bool { return a.metric("records_repaired_total") >= 2 })
		_, err = a.store.Assertion("p", ids[1])
		require.NoError(t, err)
	})
}

func TestDamageThatNobodyCanMend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a")
		w.startAll()
		w.setMembers("a")
		a := w.nodes["a"]
		ids := a.write(claim("rotten subject", 1), claim("fine", 2))
		a.rot("rotten subject")
		_, err := a.cluster.Get(context.Background(), "p", ids[0], Local)
		var lost *LostError
		require.ErrorAs(t, err, &lost)
		require.Equal(t, 1, lost.Members)
		require.True(t, a.holds(ids[1]))
	})
}

func TestScrubFindsAndFetches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t, func(w *world) { w.tune = func(c *Config) { c.Timings.ScrubEvery = time.Hour } })
		a, c := w.nodes["a"], w.nodes["c"]
		ids := a.write(claims("s", 0, 200)...)
		w.await("the records on c", func() bool { return c.holds(ids...) })
		time.Sleep(90 * time.Minute)
		require.Positive(t, c.metric("scrub_rounds_total"))
		require.Zero(t, c.metric("scrub_differences_total"), "nothing is found where nothing is wrong")

		// A missed record: a has it, and c's cursor is behind it.
		lost := claim("slipped", 1)
		end := a.store.End()
		l, _ := c.cluster.linkTo(w.member("a").ID())
		l.stop()
		require.NoError(t, a.cluster.putAndWait(context.Background(), []store.Item{store.NewContent("p", lost.ID(), &lost.Content)}))
		require.Greater(t, a.store.End(), end)
		c.cluster.mu.Lock()
		delete(c.cluster.links, w.member("a").ID())
		c.cluster.mu.Unlock()
		_, epoch := c.cluster.progress.at(w.member("a").Incarnation)
		c.cluster.progress.set(w.member("a").Incarnation, a.store.End(), epoch)
		// b gets it only from a, later than c compares.
		w.nodes["b"].crash(memfs.LoseAll)
		w.change(func(*control.State) {})
		time.Sleep(90 * time.Minute)
		require.EqualValues(t, 1, c.metric("scrub_differences_total"))
		_, err := c.store.Read(store.Key{Kind: store.KindContent, Project: "p", ID: lost.ID()})
		require.NoError(t, err)
	})
}

// TestIdleClusterIsSilent: cursors are entries of the log that the others pull;
// they must not cause each other forever.
func TestIdleClusterIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		w.nodes["a"].write(claims("s", 0, 100)...)
		time.Sleep(10 * time.Minute)
		ends := map[string]any{}
		for name, n := range w.nodes {
			ends[name] = n.store.End()
			require.NotEmpty(t, n.store.Cursors(), "progress is durable")
		}
		time.Sleep(24 * time.Hour)
		for name, n := range w.nodes {
			require.Equal(t, ends[name], n.store.End())
		}
	})
}

func TestCatchUpKeepsToItsRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t, func(w *world) {
			w.tune = func(c *Config) { c.Limits.CatchUpBytesRate, c.Limits.PullBytes = 20_000, 20_000 }
		})
		c := w.nodes["c"]
		c.crash(memfs.LoseAll)
		ids := w.nodes["a"].write(claims("s", 0, 800)...) // some 200 KB
		c.start()
		began := time.Now()
		w.await("catch-up", func() bool { return c.holds(ids...) })
		require.Greater(t, time.Since(began), 3*time.Second)
	})
}

// TestNonsenseEndsTheStreamOnly sends messages that no member would send.
func TestNonsenseEndsTheStreamOnly(t *testing.T) {
	good := claim("s", 1)
	content := store.NewContent("p", good.ID(), &good.Content)
	items := func(its ...store.Item) []byte {
		var b []byte
		for i := range its {
			b = store.AppendRecord(b, its[i].Kind, its[i].Payload)
		}
		return b
	}
	cut := items(content)
	cut = cut[:len(cut)-1]
	forged := bytes.Clone(items(content))
	forged[len(forged)-1] ^= 0xff
	for name, messages := range map[string][]*peerpb.ReplicateRequest{
		"no hello":     {{Seq: 1, Generation: 9, Items: items(content)}},
		"a gap":        {{Generation: 9}, {Seq: 2, Generation: 9, Items: items(content)}},
		"a repetition": {{Generation: 9}, {Generation: 9}},
		"empty":        {{Generation: 9}, {Seq: 1, Generation: 9}},
		"cut":          {{Generation: 9}, {Seq: 1, Generation: 9, Items: cut}},
		"not a record": {{Generation: 9}, {Seq: 1, Generation: 9, Items: forged}},
		"a cursor":     {{Generation: 9}, {Seq: 1, Generation: 9, Items: items(store.NewCursor("x", 1))}},
		"old":          {{Generation: 0}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := threeNodes(t)
				a, b := w.nodes["a"], w.nodes["b"]
				conn, err := a.control.Conn(w.member("b"))
				require.NoError(t, err)
				stream, err := peerpb.NewPeerClient(conn).Replicate(context.Background())
				require.NoError(t, err)
				for _, m := range messages {
					if err := stream.Send(m); err != nil {
						require.ErrorIs(t, err, io.EOF)
					}
				}
				for err == nil {
					_, err = stream.Recv()
				}
				want := codes.InvalidArgument
				if name == "old" {
					want = codes.FailedPrecondition
				}
				require.Equal(t, want, status.Code(err), "%v", err)
				require.Zero(t, b.store.Stats().Assertions)
				a.write(claim("still works", 1))
			})
		})
	}
}

func TestUnaryNonsenseIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		conn, err := w.nodes["a"].control.Conn(w.member("b"))
		require.NoError(t, err)
		client, ctx := peerpb.NewPeerClient(conn), context.Background()
		_, err = client.Fetch(ctx, &peerpb.FetchRequest{Keys: []byte{1, 2, 3}})
		require.Equal(t, codes.InvalidArgument, status.Code(err))
		_, err = client.Fetch(ctx, &peerpb.FetchRequest{Positions: []uint64{1}})
		require.Equal(t, codes.InvalidArgument, status.Code(err))
		_, err = client.SetDigest(ctx, &peerpb.SetRequest{Id: []byte("short")})
		require.Equal(t, codes.InvalidArgument, status.Code(err))
		_, err = client.Buckets(ctx, &peerpb.BucketsRequest{Prefix: make([]byte, 31)})
		require.Equal(t, codes.InvalidArgument, status.Code(err))
		stream, err := client.Pull(ctx)
		require.NoError(t, err)
		require.NoError(t, stream.Send(&peerpb.PullRequest{From: 1 << 62}))
		_, err = stream.Recv()
		require.Equal(t, codes.OutOfRange, status.Code(err))

		// A call for another incarnation is refused.
		other := w.member("b")
		other.Incarnation = "gone"
		conn, err = w.nodes["a"].control.Conn(other)
		require.NoError(t, err)
		_, err = peerpb.NewPeerClient(conn).SetDigest(ctx, &peerpb.SetRequest{})
		require.Equal(t, codes.FailedPrecondition, status.Code(err))
	})
}

// TestCutAndHeal writes during network partitions; in the end every acknowledged
// write is on every member.
func TestCutAndHeal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		names := []string{"a", "b", "c"}
		var acked []record.Hash
		for round := range 12 {
			victim := names[round%3]
			switch round % 4 {
			case 0:
				w.net.Isolate(victim)
			case 1:
				w.net.CutOneWay(victim, names[(round+1)%3])
			case 2:
				w.nodes[victim].crash(memfs.LoseSome)
			}
			for i := range 9 {
				n := w.nodes[names[i%3]]
				if n.cluster == nil {
					continue
				}
				r := n.cluster.Assert(context.Background(), "p", claims(fmt.Sprintf("r%d-%d", round, i), 0, 5))
				for _, one := range r {
					if one.Err == nil {
						acked = append(acked, one.ID)
					}
				}
			}
			w.net.HealAll()
			if w.nodes[victim].cluster == nil {
				w.nodes[victim].start()
			}
		}
		require.Greater(t, len(acked), 250)
		for _, n := range w.nodes {
			w.await("all acknowledged records on "+n.name, func() bool { return n.holds(acked...) })
		}
	})
}

// Readers get ErrNotFound, damage, or an *UnavailableError that lets a gateway
// ask another member; no other error of a store reaches them.
func TestAReadThatTheStorageFailsIsUnavailable(t *testing.T) {
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	eio := fmt.Errorf("read the log: %w", syscall.EIO)
	for _, c := range []struct {
		ctx  context.Context
		err  error
		code string // of the *UnavailableError; empty: the error is returned unchanged
	}{
		{t.Context(), nil, ""},
		{t.Context(), store.ErrNotFound, ""},
		{t.Context(), &store.DamageError{Err: eio}, ""},
		{gone, context.Canceled, ""},
		{t.Context(), eio, CodeStorageFailed},
		{t.Context(), fmt.Errorf("read the index: %w", store.ErrIndexFailed), CodeStorageFailed},
		{t.Context(), store.ErrClosed, CodeClosed},
	} {
		err := readError(c.ctx, c.err)
		if c.code == "" {
			require.Equal(t, c.err, err)
			continue
		}
		var u *UnavailableError
		require.ErrorAs(t, err, &u, "%v", c.err)
		require.Equal(t, c.code, u.Code)
		require.ErrorIs(t, err, c.err)
	}
}
