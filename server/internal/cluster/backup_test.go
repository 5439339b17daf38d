package cluster

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// export returns what a backup of the node from a position on holds, and its end.
func (n *node) export(from wal.Position) (items []store.Item, end wal.Position, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	point, err := n.cluster.BackupPoint(ctx)
	if err != nil {
		return nil, 0, err
	}
	for at := max(from, point.First); at < point.End; {
		at, err = n.cluster.Export(at, point.End, 1000, func(kind store.Kind, payload []byte) error {
			it, err := store.ParseRecord(kind, slices.Clone(payload))
			items = append(items, it)
			return err
		})
		if err != nil {
			return nil, 0, err
		}
	}
	return items, point.End, nil
}

func idsOf(items []store.Item) (ids []record.Hash) {
	for i := range items {
		if items[i].Kind == store.KindContent {
			ids = append(ids, items[i].Key.ID)
		}
	}
	return ids
}

// b and c acknowledge while a is away. A backup of a, right after a is back, holds what
// they acknowledged: a takes it in first. While a is away there is no backup of it.
func TestABackupHoldsEverythingThatWasAcknowledgedBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		a, b := w.nodes["a"], w.nodes["b"]
		first := a.write(claims("s", 0, 5)...)
		items, end, err := a.export(0)
		require.NoError(t, err)
		require.ElementsMatch(t, first, idsOf(items))

		w.net.Isolate("a")
		time.Sleep(time.Minute)
		second := b.write(claims("s", 5, 50)...)
		_, _, err = a.export(end)
		requireUnavailable(t, err, CodePeersUnreachable)
		w.net.HealAll()
		w.await("a backup of a", func() bool { items, _, err = a.export(end); return err == nil })
		require.ElementsMatch(t, second, idsOf(items), "the second backup begins where the first one ended")
	})
}

// A record rots on a. A backup that meets it fails, rather than lack it; once another
// member's copy has replaced it, the backup holds it.
func TestABackupLacksNoDamagedRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		_, ids := twoClaims(w)
		a := w.nodes["a"]
		a.rot("rotten")
		_, _, err := a.export(0)
		requireUnavailable(t, err, CodeNotWhole)
		var items []store.Item
		w.await("a backup of a", func() bool { items, _, err = a.export(0); return err == nil })
		require.ElementsMatch(t, ids, idsOf(items))
	})
}

// A node that lost records for good, and is the only member, is not backed up as if
// nothing were missing.
func TestANodeWithALossIsNotBackedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a")
		w.startAll()
		w.setMembers("a")
		a := w.nodes["a"]
		_, ids := twoClaims(w)
		a.rot("rotten")
		require.Error(t, a.notice(ids[0]))
		_, _, err := a.export(0)
		requireUnavailable(t, err, CodeNotWhole)
	})
}

// A backup goes into an empty cluster, and everything is there after a crash. A
// signature that its agent did not make stays out.
func TestAnImportIsDurableAndChecksSignatures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		from := newWorld(t, "a")
		from.startAll()
		from.setMembers("a")
		ids := from.nodes["a"].write(claims("s", 0, 30)...)
		items, _, err := from.nodes["a"].export(0)
		require.NoError(t, err)

		forged := items[slices.IndexFunc(items, func(it store.Item) bool { return it.Kind == store.KindSignature })]
		forged.Payload = slices.Clone(forged.Payload)
		forged.Payload[len(forged.Payload)-1] ^= 1
		forged, err = store.ParseRecord(forged.Kind, forged.Payload)
		require.NoError(t, err)

		into := threeNodes(t)
		b := into.nodes["b"]
		done, err := b.cluster.Import(context.Background(), []store.Item{forged})
		require.NoError(t, err)
		require.Equal(t, Imported{Invalid: 1}, done)
		done, err = b.cluster.Import(context.Background(), items)
		require.NoError(t, err)
		require.Equal(t, Imported{Created: 60}, done)
		done, err = b.cluster.Import(context.Background(), items)
		require.NoError(t, err)
		require.Equal(t, Imported{Existing: 60}, done)
		for _, n := range into.nodes {
			into.await("the records on "+n.name, func() bool { return n.holds(ids...) })
			n.crash(memfs.LoseAll)
			n.start()
			n.control.follow()
		}
		for _, n := range into.nodes {
			require.True(t, n.holds(ids...), n.name)
			stored, err := n.store.Assertion("p", ids[0])
			require.NoError(t, err)
			require.Len(t, stored.Signatures, 1)
		}
	})
}
