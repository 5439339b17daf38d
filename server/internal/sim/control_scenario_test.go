package sim

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/keys"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// createKey makes an acknowledged change of the control table through this
// machine.
func (m *machine) createKey(label string) keys.Hash {
	m.w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	k, _, err := m.node.Control().CreateKey(ctx, keys.Key{Hash: keys.HashOf(label), Project: "p", Role: keys.Admin, Enabled: true})
	require.NoError(m.w.t, err)
	return k.Hash
}

// The control table's storage fails once on one member. That member becomes
// unready with a reason and recovers automatically, and a member that is lost
// afterwards is replaced.
func TestControlStorageThatFailsOnceIsStartedAgain(t *testing.T) {
	for _, who := range []string{"leader", "follower"} {
		t.Run(who, func(t *testing.T) {
			scenario(t, 3, control.Timings{}, func(w *world) {
				leader, followers := w.leader()
				failing, witness := leader, followers[0]
				if who == "follower" {
					failing, witness = followers[0], leader
				}
				failing.failRaft(errors.New("EIO"))
				witness.createKey("k")
				time.Sleep(10 * time.Second)
				require.ErrorContains(t, failing.node.Ready(), "EIO")
				require.ErrorContains(t, failing.node.Ready(), "repair the WAL volume")
				require.NoError(t, failing.node.Err(), "the process continues")
				kept := claim("code://x", "written meanwhile")
				require.NoError(t, witness.put(kept))
				failing.failRaft(nil)
				w.settle()
				lost := followers[1]
				w.crash(lost, memfs.LoseAll, true)
				lost.wipeBoth()
				time.Sleep(5 * time.Second)
				w.startMachine(lost)
				w.settle()
				for _, m := range w.machines {
					requireSeenOrUnavailable(t, m, kept)
				}
			})
		})
	}
}

// A full volume for an hour: the member keeps retrying, and the others serve.
func TestControlStorageThatKeepsFailingIsTriedAgain(t *testing.T) {
	scenario(t, 3, control.Timings{}, func(w *world) {
		_, followers := w.leader()
		failing, other := followers[0], followers[1]
		failing.failRaft(errors.New("ENOSPC"))
		other.createKey("k")
		for range 60 {
			time.Sleep(time.Minute)
			require.ErrorContains(t, failing.node.Ready(), "ENOSPC")
			require.NoError(t, other.node.Ready())
		}
		failing.failRaft(nil)
		w.settle()
	})
}

// One flipped bit in a member's Raft log: the member does not serve with the rest
// of the table, and recovers the whole table automatically.
func TestARottenRaftLogIsReplaced(t *testing.T) {
	scenario(t, 3, control.Timings{}, func(w *world) {
		_, followers := w.leader()
		m := followers[0]
		h := followers[1].createKey("k")
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, err := followers[1].node.Control().RevokeKey(ctx, h)
		require.NoError(t, err)
		time.Sleep(5 * time.Second)
		w.stopMachine(m)
		for _, disk := range m.raft {
			rotten, err := disk.RotLog(func(e *raft.Log) bool { return e.Type == raft.LogCommand && e.Index > 2 })
			require.NoError(t, err)
			require.Positive(t, rotten)
		}
		w.startMachine(m)
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			if !m.up() {
				continue
			}
			k, there := m.node.Control().GetKey(h)
			confirmed, _ := m.node.Control().Confirmed()
			require.False(t, confirmed && there && k.RevokedAt == 0, "a revoked key works")
		}
		w.settle()
		k, there := m.node.Control().GetKey(h)
		require.True(t, there)
		require.NotZero(t, k.RevokedAt)
	})
}
