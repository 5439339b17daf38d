package control_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/keys"
)

const kindRevoke = 8

func isRevocation(e *raft.Log) bool { return e.Type == raft.LogCommand && e.Data[1] == kindRevoke }

// rot flips a bit in each revocation of a node's log.
func (n *node) rot() {
	n.w.t.Helper()
	rotten, err := n.disk.RotLog(isRevocation)
	require.NoError(n.w.t, err)
	require.NotZero(n.w.t, rotten)
}

// metric is a counter or gauge of the node.
func (n *node) metric(name, kind string) float64 {
	n.w.t.Helper()
	families, err := n.reg.Gather()
	require.NoError(n.w.t, err)
	for _, f := range families {
		for _, m := range f.Metric {
			if f.GetName() == "stemedb_control_"+name && (kind == "" || m.Label[0].GetValue() == kind) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	n.w.t.Fatalf("%s has no metric %s", n.name, name)
	return 0
}

// revokedKey creates a key and revokes it.
func (w *world) revokedKey(label string) keys.Hash {
	w.t.Helper()
	k, _, err := w.running().control.CreateKey(w.t.Context(), key(label))
	require.NoError(w.t, err)
	_, err = w.running().control.RevokeKey(w.t.Context(), k.Hash)
	require.NoError(w.t, err)
	time.Sleep(time.Second) // until it has reached every copy
	return k.Hash
}

// trusts reports whether the node would accept a key.
func (n *node) trusts(h keys.Hash) bool {
	ok, _ := n.control.Confirmed()
	k, there := n.control.GetKey(h)
	return ok && there && k.Check(time.Now()) == keys.Usable
}

// follower is a node that does not lead.
func (w *world) follower() *node {
	for _, name := range []string{"a", "b", "c"} {
		if n := w.node[name]; n.control != nil && n != w.leader() {
			return n
		}
	}
	w.t.Fatal("no follower runs")
	return nil
}

// watchKey fails the test when a node trusts a revoked key while f runs.
func (w *world) watchKey(h keys.Hash, within time.Duration, done func() bool, what string) {
	w.t.Helper()
	w.eventually(within, func() bool {
		for _, n := range w.node {
			if n.control != nil {
				require.False(w.t, n.trusts(h), "a revoked key works on %s", n.name)
			}
		}
		return done()
	}, "%s", what)
}

func TestARottenRevocationIsNeverApplied(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		revoked := w.revokedKey("k")
		c := w.node["c"]
		c.stop()
		c.rot()
		c.start()
		w.watchKey(revoked, time.Minute, func() bool {
			ok, _ := c.control.Confirmed()
			return ok && c.control.Err() == nil
		}, "c has a table that it trusts")
		held, ok := c.control.GetKey(revoked)
		require.True(t, ok)
		require.NotZero(t, held.RevokedAt)
		require.Positive(t, c.metric("failures_total", "damage"))
		require.Positive(t, c.metric("restarts_total", ""))
		w.settled(3)
		// The data that c stored suffices for another start, even alone.
		c.kill()
		c.start()
		w.watchKey(revoked, time.Minute, func() bool { ok, _ := c.control.Confirmed(); return ok }, "c starts from its own storage")
		require.Zero(t, c.metric("failures_total", "damage"))
	})
}

// Two members cannot elect a leader while one has a damaged log: the other one's
// entries repair it. The same holds for three members of which one is down.
func TestARottenEntryIsMendedWithoutALeader(t *testing.T) {
	for _, names := range [][]string{{"a", "b"}, {"a", "b", "c"}} {
		t.Run(fmt.Sprint(len(names)), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, names...)
				defer w.close()
				w.start()
				w.settled(len(names))
				revoked := w.revokedKey("k")
				// Both have every entry, and leadership is not transferred, which would add
				// one: a could not supply an entry that only b and the absent member have.
				time.Sleep(5 * time.Second)
				for _, n := range w.node {
					n.kill()
				}
				a, b := w.node["a"], w.node["b"]
				rotten, err := b.disk.RotLog(func(e *raft.Log) bool { return e.Index%2 == 0 })
				require.NoError(t, err)
				require.Greater(t, rotten, 2)
				a.start()
				b.start()
				w.watchKey(revoked, 2*time.Minute, func() bool {
					one, _ := a.control.Confirmed()
					other, _ := b.control.Confirmed()
					return one && other
				}, "both are confirmed")
				require.Positive(t, b.metric("failures_total", "damage"))
				held, _ := b.control.GetKey(revoked)
				require.NotZero(t, held.RevokedAt)
			})
		})
	}
}

// A member whose log cannot be repaired by entries gets the leader's table.
func TestALogWithoutItsBeginningIsReplacedByTheLeadersTable(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		revoked := w.revokedKey("k")
		n := w.follower()
		n.stop()
		require.NoError(t, n.disk.Open().Logs().DeleteRange(1, 4))
		n.start()
		w.settled(3)
		require.Positive(t, n.disk.Snapshot(), "it has the leader's snapshot")
		held, _ := n.control.GetKey(revoked)
		require.NotZero(t, held.RevokedAt)
		// An entry that was acknowledged before is still there after the loss of
		// another member: the snapshot covers it.
		for _, other := range w.node {
			if other != n && other.control != nil && other != w.leader() {
				other.kill()
				break
			}
		}
		_, _, err := w.running().control.CreateKey(t.Context(), key("another"))
		require.NoError(t, err)
	})
}

// The leader finds a damaged entry in its log while it updates a follower: it
// does not send the entry, and another member takes over.
func TestALeaderNeverSendsARottenEntry(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		away := w.follower()
		away.stop()
		revoked := w.revokedKey("k")
		leader := w.leader()
		leader.rot()
		away.start()
		w.watchKey(revoked, time.Minute, func() bool { return leader.metric("failures_total", "damage") > 0 }, "the leader notices")
		w.settled(3)
		for _, n := range w.node {
			require.NoError(t, n.control.Err())
			held, _ := n.control.GetKey(revoked)
			require.NotZero(t, held.RevokedAt, "at %s", n.name)
		}
	})
}

// The only copy: it is not trusted, the remedy is named, and it works again when
// the disk returns the right bytes again.
func TestASingleNodeWithARottenEntrySaysSo(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a")
		defer w.close()
		w.start()
		w.settled(1)
		revoked := w.revokedKey("k")
		a := w.node["a"]
		a.stop()
		a.rot()
		a.start()
		w.watchKey(revoked, 10*time.Minute, func() bool { return a.metric("failures_total", "damage") > 10 }, "it keeps trying")
		require.ErrorContains(t, a.control.Err(), "does not match its checksum")
		require.ErrorContains(t, a.control.Err(), "do not empty the volumes, nobody could refill them")
		_, _, err := a.control.LookupAtLeader(t.Context(), revoked)
		require.Error(t, err)
		a.rot() // a second flip: the bits are correct again
		w.watchKey(revoked, 2*time.Minute, func() bool { ok, _ := a.control.Confirmed(); return ok }, "it works again")
		require.NoError(t, a.control.Err())
	})
}

func TestARottenSnapshotIsMadeAnew(t *testing.T) {
	timings := control.Timings{SnapshotAfter: 20, SnapshotEvery: 5 * time.Second}
	grown := func(t *testing.T, names ...string) (w *world, revoked keys.Hash) {
		w = newWorld(t, names...)
		for _, n := range w.node {
			n.timings = timings
		}
		w.start()
		w.settled(len(names))
		revoked = w.revokedKey("k")
		for i := range 100 {
			_, _, err := w.running().control.CreateKey(t.Context(), key(fmt.Sprint(i)))
			require.NoError(t, err)
			time.Sleep(time.Second)
		}
		return w, revoked
	}
	intact := func(t *testing.T, n *node, revoked keys.Hash) {
		held, _ := n.control.GetKey(revoked)
		require.NotZero(t, held.RevokedAt)
		require.Len(t, n.control.ListKeys(), 101)
	}
	t.Run("the newest one of a single node", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			w, revoked := grown(t, "a")
			defer w.close()
			a := w.node["a"]
			for range 3 {
				a.stop()
				a.disk.RotSnapshot(0)
				before := a.disk.Snapshot()
				a.start()
				w.settled(1)
				w.eventually(time.Minute, func() bool { return a.disk.Snapshot() >= before }, "another snapshot")
				intact(t, a, revoked)
			}
		})
	})
	t.Run("both of a member", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			w, revoked := grown(t, "a", "b", "c")
			defer w.close()
			n := w.follower()
			n.stop()
			n.disk.RotSnapshot(0)
			n.disk.RotSnapshot(1)
			n.start()
			w.eventually(time.Minute, func() bool { return n.metric("restarts_total", "") == 1 }, "the table is fetched")
			w.settled(3)
			intact(t, n, revoked)
		})
	})
	t.Run("that a leader wants to send", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			w, revoked := grown(t, "a", "b", "c")
			defer w.close()
			leader := w.leader()
			leader.disk.RotSnapshot(0)
			d := w.add("d")
			d.timings = timings
			d.start()
			w.settled(4)
			intact(t, d, revoked)
		})
	})
}

// Without its term and vote a member might vote twice in a term.
func TestARottenTermKeepsTheMemberOut(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		c := w.node["c"]
		c.stop()
		require.NoError(t, c.disk.RotTerm())
		c.start()
		time.Sleep(10 * time.Minute)
		require.ErrorContains(t, c.control.Err(), "empty both volumes")
		ok, _ := c.control.Confirmed()
		require.False(t, ok)
		w.sync()
		c.stop()
		c.wipe()
		c.start()
		w.settled(3)
	})
}

// A write that fails ends this instance of Raft, not the process: the node
// reports it and restarts that part.
func TestAFailedStorageIsOpenedAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		for _, who := range []string{"leader", "follower"} {
			n := w.leader()
			if who == "follower" {
				n = w.follower()
			}
			restarts := n.metric("restarts_total", "")
			n.disk.Fail(errors.New("the disk is gone"))
			for _, other := range w.node {
				if other != n {
					_, _, err := other.control.CreateKey(t.Context(), key(who))
					require.NoError(t, err)
				}
			}
			w.eventually(time.Minute, func() bool { return n.control.Err() != nil }, "it notices")
			for range 60 {
				time.Sleep(10 * time.Second)
				require.ErrorContains(t, n.control.Err(), "the disk is gone")
				require.ErrorContains(t, n.control.Err(), "repair the WAL volume")
				ok, _ := n.control.Confirmed()
				require.False(t, ok)
			}
			require.Equal(t, restarts, n.metric("restarts_total", ""))
			tries := n.metric("failures_total", "storage")
			require.Greater(t, tries, 5.0, "it keeps trying")
			require.Less(t, tries, 30.0, "with pauses")
			n.disk.Fail(nil)
			w.eventually(2*time.Minute, func() bool { return n.control.Err() == nil }, "it restarts")
			w.settled(3)
			require.Equal(t, restarts+1, n.metric("restarts_total", ""))
			held, ok := n.control.GetKey(key(who).Hash)
			require.True(t, ok)
			require.Equal(t, keys.Usable, held.Check(time.Now()))
		}
		// A term that cannot be written: Raft itself would panic.
		n := w.follower()
		n.disk.Fail(errors.New("the disk is gone"))
		leader := w.leader()
		leader.kill()
		w.eventually(time.Minute, func() bool { return n.control.Err() != nil }, "it notices")
		n.disk.Fail(nil)
		w.eventually(2*time.Minute, func() bool { return w.leader() != nil }, "the remaining two elect a leader")
		leader.start()
		w.settled(3)
	})
}

// Values that members rely on never decrease while Raft replays in a running
// process.
func TestTheTableNeverGoesBackInAProcess(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		w.revokedKey("k")
		n := w.follower()
		before := n.control.State()
		n.disk.Fail(errors.New("the disk is gone"))
		w.eventually(time.Minute, func() bool {
			_, _, err := w.leader().control.CreateKey(t.Context(), key(fmt.Sprint(time.Now())))
			return err == nil && n.control.Err() != nil
		}, "it notices")
		w.net.Isolate(host(n.name)) // so that it does not learn the commit index
		n.disk.Fail(nil)
		w.eventually(2*time.Minute, func() bool {
			now := n.control.State()
			require.GreaterOrEqual(t, now.Index, before.Index)
			require.GreaterOrEqual(t, now.Generation, before.Generation)
			return n.metric("restarts_total", "") == 1
		}, "it restarts")
		ok, _ := n.control.Confirmed()
		require.False(t, ok, "it reaches no other node")
		w.net.Rejoin(host(n.name))
		w.settled(3)
	})
}

// A disk that silently stores wrong bytes: entries are verified after reading and
// before they are applied.
func TestAnEntryThatIsStoredWronglyIsNotApplied(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		for range 5 {
			n := w.follower()
			before := n.metric("failures_total", "damage")
			n.disk.RotWrites(isRevocation)
			revoked := w.revokedKey(fmt.Sprint(time.Now().UnixNano()))
			w.watchKey(revoked, time.Minute, func() bool { return n.metric("failures_total", "damage") > before }, "it notices")
			n.disk.RotWrites(nil)
			time.Sleep(2 * time.Minute)
			w.settled(3)
			held, _ := n.control.GetKey(revoked)
			require.NotZero(t, held.RevokedAt)
		}
	})
}

// A failed snapshot is counted and retried later; the copy continues.
func TestASnapshotThatCannotBeWrittenIsTriedAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a")
		defer w.close()
		a := w.node["a"]
		a.timings = control.Timings{SnapshotAfter: 20, SnapshotEvery: 5 * time.Second}
		a.start()
		w.settled(1)
		a.disk.FailSnapshots(errors.New("no space left"))
		for i := range 40 {
			_, _, err := a.control.CreateKey(t.Context(), key(fmt.Sprint(i)))
			require.NoError(t, err)
		}
		time.Sleep(time.Minute)
		require.Positive(t, a.metric("failures_total", "snapshot"))
		require.NoError(t, a.control.Err())
		require.Zero(t, a.disk.Snapshot())
		a.disk.FailSnapshots(nil)
		w.eventually(time.Minute, func() bool { return a.disk.Snapshot() > 0 }, "a snapshot")
	})
}

// Raft's leader steps back when a follower refuses entries. A follower whose log
// begins right behind its snapshot still catches up.
func TestAFollowerWhoseLogBeginsAtItsSnapshotIsFollowedUp(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		w.revokedKey("k")
		n := w.follower()
		n.stop()
		n.diverge() // it fetches a snapshot
		n.start()
		w.eventually(time.Minute, func() bool { return n.disk.Snapshot() > 0 }, "it has the leader's snapshot")
		w.settled(3)
		n.stop()
		for i := range 3 {
			n.stop()
			require.NoError(t, n.disk.Open().Logs().DeleteRange(1, 1000))
			for j := range 3 {
				_, _, err := w.leader().control.CreateKey(t.Context(), key(fmt.Sprint(i, j)))
				require.NoError(t, err)
			}
			n.disk.RotWrites(func(*raft.Log) bool { return true })
			n.start()
			w.eventually(time.Minute, func() bool { return n.metric("failures_total", "damage") > 0 }, "it notices")
			n.disk.RotWrites(nil)
			w.settled(3)
		}
	})
}
