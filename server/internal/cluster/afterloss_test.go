package cluster

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"sync/atomic"
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

// refill acts as the leader for a member that reported a loss: it opens the
// change, notes the ends of the others' logs at its generation, and closes the
// change when the member holds both logs up to there.
func (w *world) refill(name string) {
	w.t.Helper()
	w.await("the report of "+name, func() bool {
		m, _ := w.newest().MemberByID(w.member(name).ID())
		return !m.Whole
	})
	w.change(func(s *control.State) {
		s.Change = &control.Change{
			ID: 1, Kind: control.Refill, Subject: w.member(name).ID(),
			Old: s.Members, New: s.Members, Generation: s.Generation + 1,
		}
	})
	marks := map[string]uint64{}
	for other, n := range w.nodes {
		if other != name {
			marks[n.store.Identity().Incarnation] = uint64(n.store.End())
		}
	}
	w.await("the others' logs at "+name, func() bool {
		held := w.nodes[name].cluster.progress.Cursors()
		for incarnation, mark := range marks {
			if held[incarnation] < mark {
				return false
			}
		}
		return true
	})
	w.setMembers("a", "b", "c")
	n := w.nodes[name]
	w.await("the end of the refill", func() bool { return n.store.Whole() })
	// A member that gives up records ends its process and is restarted.
	time.Sleep(50 * time.Millisecond)
	select {
	case <-n.done:
		n.shutdown()
		n.start()
		n.control.follow()
	default:
	}
}

// b acknowledges a record to the coordinator a, whose own disk hangs for 4.5 s. The
// record rots on b at once, b reports the loss and is refilled from the logs of a and
// c, neither of which holds the record yet. Then a's sync ends, and a counts b's
// acknowledgement from before the loss. Afterwards one member is lost, a.
func TestAnAcknowledgementFromBeforeALossCountsNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// With the default PullWait, b asks a again up to 20 s after the reset of its
		// cursors: the schedule would depend on an earlier pull of b ending just in
		// time.
		w := threeNodes(t, func(w *world) {
			w.tune = func(c *Config) { c.Timings.MendWait, c.Timings.PullWait = -1, 500*time.Millisecond }
		})
		a, b, c := w.nodes["a"], w.nodes["b"], w.nodes["c"]
		before := a.write(claim("before", 1))
		for _, n := range w.nodes {
			w.await("the record on "+n.name, func() bool { return n.holds(before...) })
		}
		time.Sleep(time.Minute)
		w.net.Cut("a", "c")
		time.Sleep(time.Second)
		a.hangSyncs(4500 * time.Millisecond)
		x := claim("s", 77).ID()
		acknowledged := make(chan error, 1)
		began := time.Now()
		go func() { acknowledged <- a.try(77) }()
		w.await("the record on b", func() bool { return b.holds(x) })
		b.rot("value 77")
		_, err := b.cluster.Get(context.Background(), "p", x, Local)
		require.Error(t, err)
		w.refill("b")
		require.Less(t, time.Since(began), 4500*time.Millisecond, "the refill is over before a's own log has the record")
		requireUnavailable(t, <-acknowledged, CodeNoQuorum)
		a.hangSyncs(0)
		w.net.HealAll()
		require.NoError(t, a.try(77), "sent again")
		a.lose()
		time.Sleep(time.Minute)
		_, atB := b.store.Assertion("p", x)
		_, atC := c.store.Assertion("p", x)
		require.True(t, atB == nil || atC == nil, "the loss of one member loses an acknowledged record: b: %v; c: %v", atB, atC)
	})
}

// b alone holds a record that was never acknowledged, and the record rots. b reports
// the loss, is refilled and is whole again. The acknowledged records of the same
// subject, which all three members hold intact, can be read everywhere, after a
// restart of b too.
func TestARecordThatIsLostForGoodHidesNoOtherOneOfItsSubject(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprint("restart ", restart), func(t *testing.T) { readAfterALoss(t, restart) })
	}
}

func readAfterALoss(t *testing.T, restart bool) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		b := w.nodes["b"]
		ids := w.nodes["a"].write(claims("s", 0, 5)...)
		for _, n := range w.nodes {
			w.await("the records on "+n.name, func() bool { return n.holds(ids...) })
		}
		time.Sleep(time.Minute)
		w.net.Isolate("b")
		time.Sleep(time.Minute) // nothing is in flight any longer
		require.Error(t, b.try(77), "it is durable on b only")
		b.rot("value 77")
		w.net.HealAll()
		w.refill("b")
		w.awaitConnected()
		if restart {
			b.shutdown()
			b.start()
			b.control.follow()
		}
		time.Sleep(time.Hour)
		require.True(t, b.store.Whole())
		for _, n := range w.nodes {
			require.NoError(t, n.cluster.Ready())
			failed := 0
			var why error
			for range 10 {
				got, _, err := n.readClaims("s", Quorum)
				if err != nil {
					failed, why = failed+1, err
					continue
				}
				require.Subset(t, got, ids)
			}
			if failed > 0 {
				t.Errorf("restart %v: %d of 10 quorum reads through %s fail: %v", restart, failed, n.name, why)
			}
		}
	})
}

// As above, and then the client sends the lost record again: a and c acknowledge
// it while b is away. b pulls their logs afterwards, and its cursors pass the
// record. So b must be able to read it.
func TestACursorPassesNoRecordThatIsDamagedHere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		a, b := w.nodes["a"], w.nodes["b"]
		a.write(claims("s", 0, 5)...)
		time.Sleep(time.Minute)
		w.net.Isolate("b")
		time.Sleep(time.Minute)
		require.Error(t, b.try(77))
		b.rot("value 77")
		w.net.HealAll()
		w.refill("b")
		w.awaitConnected()
		w.net.Isolate("b")
		time.Sleep(time.Minute)
		require.NoError(t, a.try(77))
		w.net.HealAll()
		w.awaitConnected()
		time.Sleep(time.Hour)
		require.Equal(t, a.store.End(), wal.Position(b.cluster.progress.Cursors()[a.store.Identity().Incarnation]), "b's cursor covers a's log")
		_, err := b.store.Assertion("p", claim("s", 77).ID())
		require.NoError(t, err)
	})
}

// spoil edits the entry that holds text and updates its checksum, as if memory
// had been corrupted between the check of the record and the computation of the
// checksum. The node is down.
func (n *node) spoil(text string, edit func(payload []byte)) {
	t := n.w.t
	entries, err := n.disk.ReadDir("wal")
	require.NoError(t, err)
	for _, e := range entries {
		f, err := n.disk.OpenFile(path.Join("wal", e.Name()), os.O_RDWR, 0)
		require.NoError(t, err)
		size, err := f.Size()
		require.NoError(t, err)
		b := make([]byte, size)
		if _, err := f.ReadAt(b, 0); err != nil {
			require.ErrorIs(t, err, io.EOF)
		}
		at := bytes.Index(b, []byte(text))
		if at < 0 {
			require.NoError(t, f.Close())
			continue
		}
		seq, salt := binary.LittleEndian.Uint32(b[12:]), binary.LittleEndian.Uint32(b[16:])
		sum := func(off int) uint32 {
			word := binary.LittleEndian.Uint32(b[off:])
			head := binary.LittleEndian.AppendUint32(nil, salt)
			head = binary.LittleEndian.AppendUint64(head, uint64(seq)<<32|uint64(off))
			head = binary.LittleEndian.AppendUint32(head, word)
			return crc32.Checksum(append(head, b[off+8:off+8+int(word>>8)]...), crc32.MakeTable(crc32.Castagnoli))
		}
		for off := at &^ 7; off > 0; off -= 8 {
			length := int(binary.LittleEndian.Uint32(b[off:]) >> 8)
			if b[off] != byte(store.KindContent) || off+8+length < at || off+8+length > len(b) || sum(off) != binary.LittleEndian.Uint32(b[off+4:]) {
				continue
			}
			edit(b[off+8 : off+8+length])
			binary.LittleEndian.PutUint32(b[off+4:], sum(off))
			_, err = f.WriteAt(b[off:off+8+length], int64(off))
			require.NoError(t, err)
			require.NoError(t, f.Sync())
			require.NoError(t, f.Close())
			return
		}
	}
	t.Fatalf("no entry holds %q", text)
}

// b and c acknowledge a record while a is away. When b starts again, its entry in
// b's log has a valid checksum and is an invalid record. No quorum read of a and
// b misses the record, which c holds.
func TestAnInvalidEntryHidesNoAcknowledgedRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		a, b, c := w.nodes["a"], w.nodes["b"], w.nodes["c"]
		b.write(claims("s", 0, 5)...)
		time.Sleep(time.Minute)
		w.net.Isolate("a")
		time.Sleep(time.Minute)
		x := claim("s", 77)
		b.write(x)
		b.write(claims("s", 100, 5)...)
		c.crash(memfs.KillProcess)
		b.crash(memfs.LoseAll)
		b.spoil("value 77", func(payload []byte) {
			payload[len(payload)-1] ^= 0xff
			_, err := store.ParseItem(store.KindContent, payload)
			require.Error(t, err)
		})
		w.net.HealAll()
		b.start()
		b.control.follow()
		time.Sleep(5 * time.Minute)
		for _, n := range []*node{a, b} {
			_, err := n.cluster.Get(context.Background(), "p", x.ID(), Quorum)
			requireUnavailable(t, err, map[string]string{"a": CodePeersUnreachable, "b": CodeNotWhole}[n.name])
		}
		c.start()
		c.control.follow()
		w.refill("b")
		w.requireRead(x)
	})
}

// requireRead reads an acknowledged record through every member.
func (w *world) requireRead(a *record.Assertion) {
	w.t.Helper()
	for name, n := range w.nodes {
		w.await("readiness of "+name, func() bool { return n.cluster.Ready() == nil })
		_, err := n.cluster.Get(context.Background(), "p", a.ID(), Quorum)
		require.NoError(w.t, err, name)
	}
}

// rotPack flips a bit of the record that holds text, in a pack.
func (n *node) rotPack(text string) {
	packs, err := n.disk.ReadDir("db/packs")
	require.NoError(n.w.t, err)
	for _, e := range packs {
		name := path.Join("db/packs", e.Name())
		f, err := n.disk.OpenFile(name, os.O_RDONLY, 0)
		require.NoError(n.w.t, err)
		size, err := f.Size()
		require.NoError(n.w.t, err)
		b := make([]byte, size)
		if _, err := f.ReadAt(b, 0); err != nil {
			require.ErrorIs(n.w.t, err, io.EOF)
		}
		require.NoError(n.w.t, f.Close())
		if at := bytes.Index(b, []byte(text)); at >= 0 {
			require.NoError(n.w.t, n.disk.FlipBit(name, int64(at), 1))
			return
		}
	}
	n.w.t.Fatalf("no pack holds %q", text)
}

// a and b acknowledge a record while c is away, and then b goes down. On a the
// index is lost and the record rots. The start that rebuilds the index is
// interrupted, as by a restart of the pod, and the next one continues. No quorum
// read of a and c misses the record, which b holds.
func TestAnInterruptedRebuildHidesNoAcknowledgedRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t, func(w *world) {
			w.opts = func(o *store.Options) { o.SegmentSize, o.MarkerBytes = 1<<20, 256<<10 }
		})
		a, b := w.nodes["a"], w.nodes["b"]
		w.net.Isolate("c")
		time.Sleep(time.Minute)
		x := claim("s", 77)
		a.write(x)
		for i := range 10 {
			many := claims("other", 100*i, 100)
			for _, one := range many {
				one.Object = record.Text(strings.Repeat("x", 4000))
				one.Signatures = nil
				one.Sign(agent)
			}
			for piece := range slices.Chunk(many, 20) {
				a.write(piece...)
			}
		}
		time.Sleep(time.Minute)
		b.crash(memfs.KillProcess)
		a.shutdown()
		a.rotPack("value 77")
		require.NoError(t, leveldbfs.RemoveAll(a.disk, "db/index"))
		ctx, cancel := context.WithCancel(context.Background())
		opts := store.Options{
			FS: a.disk, WALDir: "wal", DBDir: "db", NodeName: "a", SegmentSize: 1 << 20, Reserve: 1, ReserveHigh: 2,
			WriteBuffer: 256 << 10, MarkerBytes: 256 << 10,
			Progress: func(p store.Progress) {
				if p.Done > 3*p.Total/4 {
					cancel()
				}
			},
		}
		_, err := store.Open(ctx, opts)
		require.ErrorIs(t, err, context.Canceled)
		a.start()
		w.net.HealAll()
		a.control.follow()
		time.Sleep(5 * time.Minute)
		for _, n := range []*node{a, w.nodes["c"]} {
			_, err := n.cluster.Get(context.Background(), "p", x.ID(), Quorum)
			requireUnavailable(t, err, map[string]string{"a": CodeNotWhole, "c": CodePeersUnreachable}[n.name])
		}
		b.start()
		b.control.follow()
		w.refill("a")
		w.requireRead(x)
	})
}

// A single node has no other member to ask for a damaged record, and the error
// says so.
func TestARepairThatNobodyCanBeAskedForSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a")
		w.startAll()
		w.setMembers("a")
		a := w.nodes["a"]
		ids := a.write(claim("rotten subject", 1))
		a.rot("rotten subject")
		_, err := a.cluster.Get(context.Background(), "p", ids[0], Local)
		require.Error(t, err)
		require.NotContains(t, err.Error(), "Kind(0) entry: cut short", "the repair has written an item that no member supplied")
	})
}

// slowRepair runs a function before its first repair.
type slowRepair struct {
	Store
	began atomic.Bool
	do    func()
}

func (s *slowRepair) Repair(items []store.Item, done func(store.PutResult)) error {
	if s.began.CompareAndSwap(false, true) {
		s.do()
	}
	return s.Store.Repair(items, done)
}

// A member that is being refilled processes an answer. While it rewrites a
// damaged record, which waits for the disk, it finds another loss and durably
// resets its cursors. The cursor of the answer must not become durable after
// that: the next start would use it.
func TestNoCursorFromBeforeALossBecomesDurableAfterIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := &slowRepair{do: func() {}}
		w := threeNodes(t, func(w *world) {
			w.tune = func(c *Config) {
				c.Timings.MendWait = -1
				if c.Store.Identity().Node == "a" {
					slow.Store, c.Store = c.Store, slow
				}
			}
		})
		a := w.nodes["a"]
		ids := a.write(claim("first rotten", 1), claim("second rotten", 2))
		for _, n := range w.nodes {
			w.await("the records on "+n.name, func() bool { return n.holds(ids...) })
		}
		time.Sleep(time.Hour)
		content := func(i int) store.Key { return store.Key{Kind: store.KindContent, Project: "p", ID: ids[i]} }
		slow.do = func() {
			a.rot("second rotten")
			_, err := a.store.Read(content(1))
			require.Error(t, err)
			_, epoch := a.cluster.progress.at("")
			w.await("the second reset of the cursors", func() bool {
				_, now := a.cluster.progress.at("")
				return now > epoch && onlyZero(a.store.Cursors())
			})
			w.net.Isolate("a")
		}
		a.rot("first rotten")
		_, err := a.store.Read(content(0))
		require.Error(t, err)
		time.Sleep(time.Minute)
		held := a.cluster.progress.Cursors()
		for incarnation, durable := range a.store.Cursors() {
			require.LessOrEqual(t, uint64(durable), held[incarnation], "a durable cursor is ahead of the records read since the loss")
		}
	})
}

func onlyZero(cursors map[string]wal.Position) bool {
	for _, at := range cursors {
		if at > 0 {
			return false
		}
	}
	return true
}
