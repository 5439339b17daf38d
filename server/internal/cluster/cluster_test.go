package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

func TestWriteIsOnEveryMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		ids := w.nodes["a"].write(claims("s", 0, 10)...)
		for name, n := range w.nodes {
			w.await("the records on "+name, func() bool { return n.holds(ids...) })
			w.await("readiness", func() bool { return n.cluster.Ready() == nil })
		}
		again := w.nodes["b"].cluster.Assert(context.Background(), "p", claims("s", 5, 10))
		for i, r := range again {
			require.NoError(t, r.Err)
			require.Equal(t, i >= 5, r.Created, "record %d", i)
		}
	})
}

func TestOneNodeAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a")
		w.startAll()
		a := w.nodes["a"]
		require.ErrorIs(t, a.cluster.Ready(), ErrUnavailable)
		r := a.cluster.Assert(context.Background(), "p", claims("s", 0, 1))[0]
		var u *UnavailableError
		require.ErrorAs(t, r.Err, &u)
		require.Equal(t, CodeNotMember, u.Code)

		w.setMembers("a")
		ids := a.write(claims("s", 0, 3)...)
		require.True(t, a.holds(ids...))
		require.NoError(t, a.cluster.Ready())
		for _, id := range ids {
			_, err := a.cluster.Get(context.Background(), "p", id, Quorum)
			require.NoError(t, err)
		}
	})
}

func TestBadRecordsDoNotSpoilTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		as := claims("s", 0, 300)
		as[1].Signatures[0].Sig[3] ^= 1
		as[150].Signatures[0].Sig[3] ^= 1
		as[299].Timestamp = uint64(time.Now().Add(6 * time.Minute).Unix())
		as[299].Sign(agent)
		results := w.nodes["a"].cluster.Assert(context.Background(), "p", as)
		for i, r := range results {
			require.Equal(t, as[i].ID(), r.ID)
			var field *record.FieldError
			switch i {
			case 1, 150:
				require.ErrorAs(t, r.Err, &field)
				require.Equal(t, CodeInvalidSignature, field.Code)
				require.Equal(t, "signatures[0].signature", field.Field)
			case 299:
				require.ErrorAs(t, r.Err, &field)
				require.Equal(t, "timestamp", field.Field)
			default:
				require.NoError(t, r.Err)
				require.True(t, r.Created)
				require.True(t, w.nodes["a"].holds(r.ID))
			}
		}
		require.False(t, w.nodes["a"].holds(results[1].ID))
	})
}

// A record's timestamp is checked against the cluster's time. While that is
// unknown, the node's clock refuses nothing permanently: another member may know
// better.
func TestRecordsAreJudgedByTheClustersTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		a := w.nodes["a"]
		signed := 0
		assert := func(ahead time.Duration) (failed, voteFailed error) {
			signed++
			as := claims("s", signed, 1)
			as[0].Timestamp = uint64(time.Now().Add(ahead).Unix())
			as[0].Signatures = nil
			as[0].Sign(agent)
			v := &record.Vote{Assertion: as[0].ID(), Weight: 1, Timestamp: as[0].Timestamp}
			record.SignVote(agent, v)
			return a.cluster.Assert(context.Background(), "p", as)[0].Err, a.cluster.Vote(context.Background(), "p", v).Err
		}
		for _, cluster := range []time.Duration{0, time.Hour, -time.Hour} {
			a.control.clock.Set(cluster)
			for _, unsure := range []bool{false, true} {
				a.control.unsure.Store(unsure)
				err, voteErr := assert(cluster + 4*time.Minute)
				require.NoError(t, err)
				require.NoError(t, voteErr)
				err, voteErr = assert(cluster + 6*time.Minute)
				for _, err := range []error{err, voteErr} {
					var field *record.FieldError
					var later *UnavailableError
					if unsure {
						require.ErrorAs(t, err, &later)
						require.Equal(t, CodeClocksApart, later.Code)
						continue
					}
					require.ErrorAs(t, err, &field)
					require.Equal(t, "timestamp", field.Field)
				}
			}
		}
	})
}

func TestVoteIsReplicated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		id := w.nodes["a"].write(claim("s", 1))[0]
		v := &record.Vote{Assertion: id, Weight: -0.5, Timestamp: 7}
		record.SignVote(agent, v)
		require.NoError(t, w.nodes["b"].cluster.Vote(context.Background(), "p", v).Err)
		for name := range w.nodes {
			s, err := w.nodes[name].cluster.Get(context.Background(), "p", id, Quorum)
			require.NoError(t, err)
			require.Len(t, s.Votes, 1)
		}
		v.Sig[0] ^= 1
		var field *record.FieldError
		require.ErrorAs(t, w.nodes["c"].cluster.Vote(context.Background(), "p", v).Err, &field)
		require.Equal(t, "signature", field.Field)
	})
}

// TestEveryAcknowledgedWriteIsRead writes through one node while another is
// down, and reads with any one node down.
func TestEveryAcknowledgedWriteIsRead(t *testing.T) {
	names := []string{"a", "b", "c"}
	for _, downForWrite := range names {
		for _, downForRead := range names {
			t.Run(downForWrite+downForRead, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := threeNodes(t)
					w.nodes[downForWrite].crash(memfs.LoseAll)
					var ids []record.Hash
					for i, name := range names {
						if name != downForWrite {
							ids = append(ids, w.nodes[name].write(claim("s", i))...)
						}
					}
					if downForRead != downForWrite {
						w.nodes[downForRead].crash(memfs.LoseSome)
					}
					w.nodes[downForWrite].start()
					if downForRead == downForWrite {
						w.nodes[downForRead].crash(memfs.LoseSome)
					}
					// A member that has just started waits that long for one that is down.
					time.Sleep(Timings{}.withDefaults().StartWait + time.Second)
					for _, name := range names {
						if name == downForRead {
							continue
						}
						for _, id := range ids {
							s, err := w.nodes[name].cluster.Get(context.Background(), "p", id, Quorum)
							require.NoError(t, err, "%s reads", name)
							require.Len(t, s.Signatures, 1)
							require.True(t, w.nodes[name].holds(id), "written back")
						}
						found, err := w.nodes[name].cluster.Claims(context.Background(), store.ClaimQuery{Project: "p", Subject: "s"}, Quorum)
						require.NoError(t, err)
						count := 0
						for _, err := range found(nil) {
							require.NoError(t, err)
							count++
						}
						require.Equal(t, len(ids), count)
					}
				})
			})
		}
	}
}

func TestReadWritesBackToAMajority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// Catch-up must not do the work of the read.
		w := threeNodes(t, func(w *world) { w.tune = func(c *Config) { c.Timings.TailLinger = time.Hour } })
		a, b, c := w.nodes["a"], w.nodes["b"], w.nodes["c"]
		// Only c has it, as after a failed write.
		as := claim("only c", 1)
		item := store.NewContent("p", as.ID(), &as.Content)
		require.NoError(t, c.cluster.putAndWait(context.Background(), []store.Item{item, store.NewSignature("p", as.ID(), as.Signatures[0])}))
		require.False(t, a.holds(as.ID()))

		// A read through a may or may not hear c; with b gone it must.
		b.crash(memfs.LoseAll)
		subjects, err := a.cluster.Subjects(context.Background(), "p", "", "", 10, Quorum)
		require.NoError(t, err)
		require.Equal(t, []string{"only c"}, subjects)
		require.True(t, a.holds(as.ID()))
		require.EqualValues(t, 1, a.metric("read_differences_total"))
		require.EqualValues(t, 2, a.metric("read_written_back_total"))
	})
}

// TestQuorumReadWaitsForItsOwnDisk: a majority without this node acknowledges
// while this node's disk is still writing. A quorum read here sees the write all
// the same: records that are written back must also be here before the read
// continues with this node's store.
func TestQuorumReadWaitsForItsOwnDisk(t *testing.T) {
	for name, read := range map[string]func(*node, record.Hash) bool{
		"get": func(n *node, id record.Hash) bool {
			s, err := n.cluster.Get(context.Background(), "p", id, Quorum)
			return err == nil && len(s.Signatures) == 1
		},
		"claims": func(n *node, id record.Hash) bool {
			seq, err := n.cluster.Claims(context.Background(), store.ClaimQuery{Project: "p", Subject: "s"}, Quorum)
			require.NoError(n.w.t, err)
			for c, err := range seq(nil) {
				require.NoError(n.w.t, err)
				if c.ID == id {
					return true
				}
			}
			return false
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := threeNodes(t)
				a := w.nodes["a"]
				a.disk.SetLatency(func(op memfs.Op) time.Duration {
					if op.Kind == memfs.OpSync {
						return 500 * time.Millisecond
					}
					return 0
				})
				ids := a.write(claim("s", 1))
				require.False(t, a.holds(ids...), "the test needs a write that is not here yet")
				require.True(t, read(a, ids[0]))
			})
		})
	}
}

func TestNoMajorityIsSaidInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		a := w.nodes["a"]
		w.await("readiness", func() bool { return a.cluster.Ready() == nil })
		w.nodes["b"].crash(memfs.LoseAll)
		w.nodes["c"].crash(memfs.LoseAll)
		began := time.Now()
		r := a.cluster.Assert(context.Background(), "p", claims("s", 0, 1))[0]
		var u *UnavailableError
		require.ErrorAs(t, r.Err, &u)
		require.Equal(t, CodeNoQuorum, u.Code)
		require.GreaterOrEqual(t, u.RetryAfter, time.Second)
		require.Equal(t, 5*time.Second, time.Since(began))

		_, err := a.cluster.Get(context.Background(), "p", r.ID, Quorum)
		require.ErrorAs(t, err, &u)
		require.Equal(t, CodePeersUnreachable, u.Code)
		require.True(t, a.holds(r.ID), "a local read still works")
		require.NoError(t, a.cluster.Ready(), "loss of the majority alone does not make a node unready")

		// A waiting write succeeds as soon as there is a majority again.
		done := make(chan WriteResult, 1)
		go func() { done <- a.cluster.Assert(context.Background(), "p", claims("s", 1, 1))[0] }()
		time.Sleep(time.Second)
		w.nodes["b"].start()
		require.NoError(t, (<-done).Err)
	})
}

func TestContextEndsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		w.net.Isolate("a")
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		began := time.Now()
		require.ErrorIs(t, w.nodes["a"].cluster.Assert(ctx, "p", claims("s", 0, 1))[0].Err, ErrUnavailable)
		_, err := w.nodes["a"].cluster.Subjects(ctx, "p", "", "", 1, Quorum)
		require.ErrorIs(t, err, ErrUnavailable)
		require.Equal(t, 100*time.Millisecond, time.Since(began))
	})
}

func TestCatchUpOfTenThousand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		c := w.nodes["c"]
		c.crash(memfs.LoseAll)
		var ids []record.Hash
		for i := range 20 {
			ids = append(ids, w.nodes["a"].write(claims(fmt.Sprint("s", i), 0, 500)...)...)
		}
		c.start()
		require.ErrorIs(t, c.cluster.Ready(), ErrUnavailable, "not before it has caught up")
		w.await("readiness", func() bool { return c.cluster.Ready() == nil })
		require.Zero(t, c.metric("catchup_gaps_total"))
		for i, id := range ids {
			require.True(t, c.holds(id), "record %d", i)
		}

		// It continues from the durable cursors and fetches nothing twice.
		fetched := c.metric("catchup_records_total")
		require.EqualValues(t, 20_000, fetched)
		c.crash(memfs.LoseAll)
		more := w.nodes["b"].write(claims("more", 0, 10)...)
		c.start()
		w.await("the rest", func() bool { return c.holds(more...) })
		require.EqualValues(t, 20, c.metric("catchup_records_total"))
		require.True(t, c.holds(ids...))
	})
}

// TestDeadCoordinatorsWriteSpreads: records that reached only one other member
// before their coordinator lost everything reach the third one.
func TestLostVolumesAreRefilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		a, b, c := w.nodes["a"], w.nodes["b"], w.nodes["c"]
		b.crash(memfs.LoseAll)
		ids := a.write(claims("s", 0, 100)...)
		old := w.member("a")
		a.lose()
		b.start()
		a.start()
		fresh := w.member("a")
		require.NotEqual(t, old.Incarnation, fresh.Incarnation)
		fresh.Whole = false
		w.change(func(s *control.State) {
			o := append([]control.Member(nil), s.Members...)
			n := append([]control.Member(nil), s.Members...)
			n[0] = fresh
			s.Change = &control.Change{Kind: control.Replace, Subject: fresh.ID(), Old: o, New: n}
		})
		require.ErrorIs(t, a.cluster.Ready(), ErrUnavailable)
		_, err := a.cluster.Get(context.Background(), "p", ids[0], Quorum)
		var u *UnavailableError
		require.ErrorAs(t, err, &u)
		require.Equal(t, CodeNotWhole, u.Code)

		// Writes need a majority of the old and of the new members.
		ids = append(ids, b.write(claim("during the change", 1))...)

		end := uint64(c.store.End())
		w.await("the cursor for the change", func() bool {
			return a.cluster.progress.Cursors()[w.member("c").Incarnation] >= end
		})
		w.setMembers("a", "b", "c")
		w.await("readiness", func() bool { return a.cluster.Ready() == nil })
		for _, n := range w.nodes {
			w.await("all records on "+n.name, func() bool { return n.holds(ids...) })
		}
	})
}

func TestWriteWaitsForBothMajorities(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		w.startAll()
		w.setMembers("a")
		a := w.nodes["a"]
		a.write(claim("s", 0))
		w.nodes["b"].shutdown()
		w.nodes["b"].start()
		joiner := w.member("b")
		joiner.Whole = false
		old := w.members("a")
		w.nodes["b"].crash(memfs.KeepAll)
		w.change(func(s *control.State) {
			s.Change = &control.Change{Kind: control.Join, Subject: joiner.ID(), Old: old, New: []control.Member{old[0], joiner}}
		})
		done := make(chan WriteResult, 1)
		go func() { done <- a.cluster.Assert(context.Background(), "p", claims("s", 1, 1))[0] }()
		time.Sleep(time.Second)
		synctest.Wait()
		require.Empty(t, done, "b has not acknowledged")

		// When a change closes without b, the write succeeds without another ack.
		w.setMembers("a")
		require.NoError(t, (<-done).Err)
	})
}

// TestNewMemberIsOfferedWhatWaits: a write began before the node was a member.
func TestNewMemberIsOfferedWhatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		w.startAll()
		w.setMembers("a", "b")
		w.awaitConnected()
		w.nodes["b"].crash(memfs.LoseAll)
		done := make(chan WriteResult, 1)
		go func() { done <- w.nodes["a"].cluster.Assert(context.Background(), "p", claims("s", 1, 1))[0] }()
		time.Sleep(time.Second)
		require.Empty(t, done)
		w.setMembers("a", "c")
		require.NoError(t, (<-done).Err)
		w.await("the record on c", func() bool { return w.nodes["c"].holds(claim("s", 1).ID()) })
	})
}

// TestStaleCoordinatorIsRefused: a coordinator that does not know of a change
// gets no ack from a member that does, and succeeds once it knows of the change.
func TestStaleCoordinatorIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		a := w.nodes["a"]
		a.control.lag(true)
		w.change(func(*control.State) {})
		done := make(chan WriteResult, 1)
		go func() { done <- a.cluster.Assert(context.Background(), "p", claims("s", 1, 1))[0] }()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		require.Empty(t, done)
		_, err := a.cluster.Subjects(context.Background(), "p", "", "", 10, Quorum)
		require.ErrorIs(t, err, ErrUnavailable)
		go func() { done <- a.cluster.Assert(context.Background(), "p", claims("s", 1, 1))[0] }()
		time.Sleep(time.Second)
		a.control.lag(false)
		// The first write has timed out by now; the second one succeeds.
		first, second := <-done, <-done
		require.True(t, (first.Err == nil) != (second.Err == nil))
	})
}

func TestSlowPeerHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t, func(w *world) {
			w.tune = func(c *Config) { c.Limits.PeerQueueBytes, c.Limits.StreamBytes = 64<<10, 64<<10 }
		})
		w.net.SetDelayBetween("a", "c", 10*time.Second, 10*time.Second)
		a := w.nodes["a"]
		began := time.Now()
		var ids []record.Hash
		for i := range 50 {
			ids = append(ids, a.write(claims(fmt.Sprint("s", i), 0, 50)...)...)
		}
		require.Less(t, time.Since(began), 5*time.Second)
		l, ok := a.cluster.linkTo(w.member("c").ID())
		require.True(t, ok)
		l.peer.mu.Lock()
		require.LessOrEqual(t, l.peer.bytes, int64(64<<10))
		l.peer.mu.Unlock()
		require.Positive(t, a.metric("replication_dropped_total"))
		w.net.SetDelayBetween("a", "c", time.Millisecond, time.Millisecond)
		w.await("catch-up of c", func() bool { return w.nodes["c"].holds(ids...) })
	})
}

func TestDuplicateStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		var wg sync.WaitGroup
		var mu sync.Mutex
		created := map[string]int{}
		for name, n := range w.nodes {
			for range 30 {
				wg.Go(func() {
					for _, r := range n.cluster.Assert(context.Background(), "p", claims("storm", 0, 5)) {
						if !errors.Is(r.Err, nil) {
							t.Error(r.Err)
						}
						if r.Created {
							mu.Lock()
							created[name]++
							mu.Unlock()
						}
					}
				})
			}
		}
		wg.Wait()
		for name, n := range w.nodes {
			w.await("all on "+name, func() bool { return n.holds(claim("storm", 0).ID(), claim("storm", 4).ID()) })
			require.LessOrEqual(t, created[name], 5)
			digest, err := n.store.SetDigest(t.Context(), store.Set{Project: "p", Subject: "storm"})
			require.NoError(t, err)
			require.EqualValues(t, 10, digest.Count)
		}
	})
}
