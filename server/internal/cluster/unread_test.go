package cluster

import (
	"bytes"
	"context"
	"fmt"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/vfs/leveldbfs"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// refuseReads makes every read of the node's WAL volume fail.
func (n *node) refuseReads() { n.disk.Fail(memfs.OpRead, "wal/", 0, -1, syscall.EIO) }

// The only copy of a record is on a disk that refuses to read it now: that of a single
// node, or of one of three members whose others hold it damaged. The record is not lost.
func TestARecordThatTheOwnDiskRefusesNowIsNotLost(t *testing.T) {
	for _, members := range []int{1, 3} {
		t.Run(fmt.Sprint(members, " members"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				names := []string{"a", "b", "c"}[:members]
				w := newWorld(t, names...)
				w.startAll()
				w.setMembers(names...)
				w.awaitConnected()
				_, ids := twoClaims(w)
				a := w.nodes["a"]
				for _, name := range names[1:] {
					w.nodes[name].rot("rotten")
				}
				a.refuseReads()
				requireUnavailable(t, a.notice(ids[0]), CodeDamaged)
				a.disk.Heal()
				require.NoError(t, a.notice(ids[0]))
			})
		})
	}
}

// a and c hold a record damaged, and b's disk refuses to read it now. The record
// is not lost: as soon as the disk reads again, b supplies its copy.
func TestARecordThatAMembersDiskRefusesNowIsNotLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		subject, ids := twoClaims(w)
		a, b := w.nodes["a"], w.nodes["b"]
		for _, name := range []string{"a", "c"} {
			w.nodes[name].rot("rotten")
		}
		b.refuseReads()
		key := store.Key{Kind: store.KindContent, Project: "p", ID: ids[0]}
		_, err := a.cluster.findElsewhere(context.Background(), key)
		require.ErrorIs(t, err, errUnread)
		_, err = a.cluster.mendFrom(context.Background(), w.member("b"), []store.Key{key})
		require.ErrorIs(t, err, errUnread)
		requireUnavailable(t, a.notice(ids[0]), CodeDamaged)
		b.disk.Heal()
		w.await("the repair", func() bool {
			readable, omitted, err := a.readClaims(subject, Quorum)
			return err == nil && len(readable) == 2 && len(omitted) == 0
		})
	})
}

// The disk of a single node refuses to read, the loss is accepted, and the disk reads
// again: before the acceptance, or after it.
func TestAClaimThatTheDiskReadsAgainIsNotLeftOut(t *testing.T) {
	for _, early := range []bool{true, false} {
		t.Run(fmt.Sprint("before the acceptance ", early), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, "a")
				w.startAll()
				w.setMembers("a")
				a := w.nodes["a"]
				subject, ids := twoClaims(w)
				a.refuseReads()
				require.Error(t, a.notice(ids[0]))
				w.await("the report of the loss", func() bool {
					me, _ := a.control.State().MemberByID(a.control.id)
					return !me.Whole
				})
				if early {
					a.disk.Heal()
				}
				w.change(func(s *control.State) { s.Members[0].Whole = true })
				time.Sleep(time.Minute)
				if early {
					require.True(t, a.store.Whole(), "there is nothing to give up")
				} else {
					<-a.done
					a.disk.Heal()
					a.shutdown()
					a.start()
				}
				w.await("readiness", func() bool { return a.cluster.Ready() == nil })
				for _, consistency := range []Consistency{Quorum, Local} {
					readable, omitted, err := a.readClaims(subject, consistency)
					require.NoError(t, err)
					require.ElementsMatch(t, ids, readable)
					require.Empty(t, omitted)
				}
				keys, _, gaps, err := a.store.ScanKeys(0, 1<<20)
				require.NoError(t, err)
				require.Zero(t, gaps, "the log is readable for other members too")
				require.NotEmpty(t, keys)
			})
		})
	}
}

// A damaged record cannot be replaced, because the volume is full. The error says
// so, and does not blame the other members, which hold it.
func TestARepairOnAFullVolumeSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t, func(w *world) { w.opts = func(o *store.Options) { o.SegmentSize = 256 << 10 } })
		subject, ids := twoClaims(w)
		a := w.nodes["a"]
		a.disk.SetCapacity("wal", 1<<30)
		free, total, err := a.disk.Free("wal")
		require.NoError(t, err)
		a.disk.SetCapacity("wal", total-free+4096)
		for i := range 200 {
			w.nodes["b"].cluster.Assert(context.Background(), "p", claims("y", 10*i, 10))
		}
		require.Equal(t, store.StateReadOnly, a.store.Health().State)
		a.rotPack("rotten")
		_, err = a.cluster.Get(context.Background(), "p", ids[0], Quorum)
		requireUnavailable(t, err, CodeDamaged)
		require.ErrorIs(t, err, wal.ErrReadOnly)
		require.ErrorContains(t, err, "could not be written here")
		readable, omitted, err := a.readClaims(subject, Local)
		require.NoError(t, err)
		require.Equal(t, ids[1:], readable)
		require.Equal(t, ids[:1], omitted)
	})
}

// lateDone reports the outcome of the next Put when release is closed.
type lateDone struct {
	Store
	release chan struct{}
}

func (s *lateDone) Put(items []store.Item, done func(store.PutResult)) error {
	release := s.release
	if release == nil {
		return s.Store.Put(items, done)
	}
	return s.Store.Put(items, func(res store.PutResult) {
		go func() {
			<-release
			done(res)
		}()
	})
}

// A record is durable on a, is damaged and reported as lost before a counts its own
// acknowledgement. That acknowledgement is from before the loss.
func TestANodeDoesNotCountItsOwnAcknowledgementFromBeforeItsLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		late := &lateDone{}
		w := newWorld(t, "a")
		w.tune = func(c *Config) { late.Store, c.Store = c.Store, late }
		w.startAll()
		w.setMembers("a")
		a := w.nodes["a"]
		a.write(claim("s", 1))
		late.release = make(chan struct{})
		outcome := make(chan error, 1)
		go func() { outcome <- a.try(77) }()
		x := claim("s", 77).ID()
		w.await("the record in the log", func() bool { return a.holds(x) })
		a.rot("value 77")
		require.Error(t, a.notice(x))
		w.await("the report of the loss", func() bool {
			me, _ := a.control.State().MemberByID(a.control.id)
			return !me.Whole
		})
		close(late.release)
		err := <-outcome
		requireUnavailable(t, err, CodeNoQuorum)
		require.ErrorContains(t, err, "durable on 0 of 1 members")
	})
}

// A start rebuilds the index of a single node while the disk refuses to read a
// pack, so the index lacks its records. The disk recovers, and the loss is
// accepted before that is noticed. Another start finds the records.
func TestAnAcceptanceAfterAnOutageDuringAStartHidesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a")
		smallSegments(w)
		w.startAll()
		w.setMembers("a")
		a := w.nodes["a"]
		var ids []record.Hash
		for i := range 40 {
			ids = append(ids, a.write(claims(fmt.Sprint("s", i), 0, 20)...)...)
		}
		time.Sleep(time.Minute)
		a.shutdown()
		require.NoError(t, leveldbfs.RemoveAll(a.disk, "db/index"))
		a.disk.Fail(memfs.OpRead, "pack-00000001.pack", 1, -1, syscall.EIO)
		a.start()
		w.await("the report of the loss", func() bool {
			me, _ := a.control.State().MemberByID(a.control.id)
			return !me.Whole
		})
		a.disk.Heal()
		w.change(func(s *control.State) { s.Members[0].Whole = true })
		<-a.done
		require.ErrorIs(t, a.err, store.ErrIndexLacks)
		a.shutdown()
		a.start()
		w.await("readiness", func() bool { return a.cluster.Ready() == nil })
		require.True(t, a.holds(ids...))
	})
}

// b's entry of a record is another, valid record, as if memory had been corrupted
// between the check of the record and the computation of the checksum. The index
// has the original record, so b is not whole, and gets the record from c.
func TestAnEntryThatIsAnotherRecordIsDamage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		a, b, c := w.nodes["a"], w.nodes["b"], w.nodes["c"]
		x := claim("s", 77)
		b.write(x)
		for _, n := range w.nodes {
			w.await("the record on "+n.name, func() bool { return n.holds(x.ID()) })
		}
		time.Sleep(time.Minute)
		b.shutdown()
		b.spoil("value 77", func(payload []byte) {
			copy(payload[bytes.Index(payload, []byte("value 77")):], "value 87")
			_, err := store.ParseItem(store.KindContent, payload)
			require.NoError(t, err)
		})
		b.start()
		b.control.follow()
		time.Sleep(time.Minute)
		require.NoError(t, b.notice(x.ID()), "another member supplies it")
		require.Equal(t, 1, b.store.Health().Losses, "it is known that b's own log does not hold it")
		time.Sleep(5 * time.Minute)
		require.True(t, b.store.Whole())
		for _, n := range []*node{a, b, c} {
			stored, err := n.cluster.Get(context.Background(), "p", x.ID(), Quorum)
			require.NoError(t, err, n.name)
			require.Equal(t, record.Text("value 77"), stored.Content.Object)
		}
	})
}

// The same, and b crashes: its start reads the tail of its log again, so that the
// index has both records at the position of the entry, and is rebuilt. b still
// reports that it lacks a record.
func TestAnEntryThatIsAnotherRecordIsDamageAfterACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		a, b, c := w.nodes["a"], w.nodes["b"], w.nodes["c"]
		w.net.Isolate("c")
		x := claim("s", 77)
		b.write(x)
		w.await("the record on a", func() bool { return a.holds(x.ID()) })
		time.Sleep(10 * time.Second)
		c.crash(memfs.KillProcess)
		b.crash(memfs.KillProcess)
		b.spoil("value 77", func(payload []byte) {
			copy(payload[bytes.Index(payload, []byte("value 77")):], "value 87")
		})
		w.net.Isolate("a")
		w.net.Heal("b", "c")
		b.start()
		b.control.follow()
		require.Error(t, b.notice(x.ID()))
		require.Equal(t, store.StateIndexFailed, b.store.Health().State)
		b.shutdown()
		b.start()
		b.control.follow()
		c.start()
		c.control.follow()
		time.Sleep(5 * time.Minute)
		_, err := c.cluster.Get(context.Background(), "p", x.ID(), Quorum)
		require.ErrorIs(t, err, ErrUnavailable, "a quorum read misses an acknowledged record")
		w.net.HealAll()
		w.refill("b")
		w.requireRead(x)
	})
}
