package control_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/keys"
)

func key(name string) keys.Key {
	return keys.Key{Hash: keys.HashOf(name), Project: "demo", Role: keys.WriteAgent, Label: name, Enabled: true, CreatedAt: time.Now().Unix()}
}

func TestKeysFromAnyNode(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		w.eventually(10*time.Second, func() bool {
			leader := w.leader()
			if leader == nil {
				return false
			}
			_, sure := leader.control.Now()
			return sure
		}, "the leader has heard the others' clocks, which a grace needs")
		ctx := t.Context()
		for name, n := range w.node {
			c := n.control
			k, created, err := c.CreateKey(ctx, key(name))
			require.NoError(t, err)
			require.True(t, created)
			held, ok := c.GetKey(k.Hash)
			require.True(t, ok, "its writer reads it")
			require.Equal(t, k, held)
			_, created, err = c.CreateKey(ctx, key(name))
			require.NoError(t, err)
			require.False(t, created)
			other := key(name)
			other.Project = "elsewhere"
			_, _, err = c.CreateKey(ctx, other)
			require.ErrorIs(t, err, keys.ErrExists)

			label := "new"
			patched, err := c.PatchKey(ctx, k.Hash, keys.Patch{Version: 1, Label: &label})
			require.NoError(t, err)
			require.Equal(t, uint64(2), patched.Version)
			_, err = c.PatchKey(ctx, k.Hash, keys.Patch{Version: 1, Label: &label})
			require.ErrorIs(t, err, keys.ErrVersion)

			successor := keys.HashOf(name + "2")
			old, fresh, err := c.RotateKey(ctx, k.Hash, successor, 3600)
			require.NoError(t, err)
			require.Equal(t, "new", fresh.Label)
			// Times are whole seconds, and one may have passed since.
			require.Equal(t, keys.Usable, old.Check(time.Now().Add(3598*time.Second)))
			require.Equal(t, keys.Rotated, old.Check(time.Now().Add(3601*time.Second)))
			_, _, err = c.RotateKey(ctx, k.Hash, keys.HashOf("third"), 0)
			require.ErrorIs(t, err, keys.ErrRotated)
			_, _, err = c.RotateKey(ctx, successor, k.Hash, 0)
			require.ErrorIs(t, err, keys.ErrExists)

			revoked, err := c.RevokeKey(ctx, successor)
			require.NoError(t, err)
			require.NotZero(t, revoked.RevokedAt)
			_, err = c.RevokeKey(ctx, successor)
			require.NoError(t, err)
			_, _, err = c.CreateKey(ctx, keys.Key{Hash: successor, Project: "demo", Role: keys.WriteAgent, Enabled: true})
			require.ErrorIs(t, err, keys.ErrRevoked)
			_, err = c.RevokeKey(ctx, keys.HashOf("nothing"))
			require.ErrorIs(t, err, keys.ErrNotFound)
		}
		require.Len(t, w.node["a"].control.ListKeys(), 6)
	})
}

func TestConcurrentPatchesOneWins(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		k, _, err := w.node["a"].control.CreateKey(t.Context(), key("k"))
		require.NoError(t, err)
		var won, lost int
		var mu sync.Mutex
		var all sync.WaitGroup
		for _, n := range w.node {
			for i := range 5 {
				all.Go(func() {
					label := fmt.Sprint(n.name, i)
					_, err := n.control.PatchKey(t.Context(), k.Hash, keys.Patch{Version: 1, Label: &label})
					mu.Lock()
					defer mu.Unlock()
					switch {
					case err == nil:
						won++
					case errors.Is(err, keys.ErrVersion):
						lost++
					}
				})
			}
		}
		all.Wait()
		require.Equal(t, 1, won)
		require.Equal(t, 14, lost)
	})
}

// Whatever is cut off, a key that was revoked works nowhere 30 s later: a node
// either has the revocation or is not confirmed.
func TestRevocationReachesEveryoneOrIsUnconfirmed(t *testing.T) {
	for _, cut := range []string{"a", "b", "c", "leader"} {
		t.Run(cut, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, "a", "b", "c")
				defer w.close()
				w.start()
				w.settled(3)
				k, _, err := w.node["a"].control.CreateKey(t.Context(), key("k"))
				require.NoError(t, err)
				time.Sleep(10 * time.Second)
				victim := w.node[cut]
				if victim == nil {
					victim = w.leader()
				}
				w.net.Isolate(host(victim.name))
				var rest *node
				for _, n := range w.node {
					if n != victim {
						rest = n
					}
				}
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				_, err = rest.control.RevokeKey(ctx, k.Hash)
				require.NoError(t, err)
				revoked := time.Now()
				usable := func(n *node) bool {
					ok, _ := n.control.Confirmed()
					held, _ := n.control.GetKey(k.Hash)
					return ok && held.Check(time.Now()) == keys.Usable
				}
				require.True(t, usable(victim) || time.Since(revoked) > 25*time.Second, "it does not know yet: otherwise the test proves nothing")
				for time.Since(revoked) < 5*time.Minute {
					time.Sleep(500 * time.Millisecond)
					if time.Since(revoked) >= 30*time.Second {
						require.False(t, usable(victim))
					}
					require.False(t, usable(rest))
				}
				ok, _ := victim.control.Confirmed()
				require.False(t, ok)
				ok, _ = rest.control.Confirmed()
				require.True(t, ok, "the majority continues")
				_, _, err = victim.control.LookupAtLeader(t.Context(), k.Hash)
				require.Error(t, err)
				w.net.HealAll()
				w.settled(3)
				held, _ := victim.control.GetKey(k.Hash)
				require.Equal(t, keys.Revoked, held.Check(time.Now()))
			})
		})
	}
}

// With two of three gone nobody is confirmed, and nothing is acknowledged.
func TestNoMajority(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		w.node["b"].kill()
		w.node["c"].kill()
		time.Sleep(31 * time.Second)
		ok, _ := w.node["a"].control.Confirmed()
		require.False(t, ok)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		start := time.Now()
		_, _, err := w.node["a"].control.CreateKey(ctx, key("k"))
		require.ErrorIs(t, err, control.ErrNoLeader)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Less(t, time.Since(start), 10*time.Second)
		w.node["b"].start()
		_, _, err = w.node["b"].control.CreateKey(t.Context(), key("k"))
		require.NoError(t, err)
		w.node["c"].start()
		w.settled(3)
	})
}

func TestUnknownKeyIsFoundAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		follower := w.node["a"]
		if follower == w.leader() {
			follower = w.node["b"]
		}
		k, _, err := w.leader().control.CreateKey(t.Context(), key("k"))
		require.NoError(t, err)
		start := time.Now()
		_, found, err := follower.control.LookupAtLeader(t.Context(), k.Hash)
		require.NoError(t, err)
		require.True(t, found)
		require.Less(t, time.Since(start), 500*time.Millisecond)
		// A thousand unknown keys at once are a few questions.
		start = time.Now()
		var all sync.WaitGroup
		for i := range 1000 {
			all.Go(func() {
				_, found, err := follower.control.LookupAtLeader(t.Context(), keys.HashOf(fmt.Sprint(i)))
				require.NoError(t, err)
				require.False(t, found)
			})
		}
		all.Wait()
		require.Less(t, time.Since(start), 500*time.Millisecond)
	})
}

func TestRootKey(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		root := keys.HashOf("root")
		// Seeding begins before there is a cluster, on every node.
		var all sync.WaitGroup
		for _, n := range w.node {
			n.start()
			all.Go(func() {
				revoked, err := n.control.EnsureRootKey(t.Context(), root)
				require.NoError(t, err)
				require.False(t, revoked)
			})
		}
		all.Wait()
		w.settled(3)
		require.Len(t, w.node["a"].control.ListKeys(), 1)
		k, _ := w.node["a"].control.GetKey(root)
		require.True(t, k.Root)
		require.Equal(t, keys.Admin, k.Role)
		_, err := w.node["b"].control.RevokeKey(t.Context(), root)
		require.NoError(t, err)
		for _, n := range w.node {
			n.stop()
			n.start()
		}
		w.settled(3)
		revoked, err := w.node["c"].control.EnsureRootKey(t.Context(), root)
		require.NoError(t, err)
		require.True(t, revoked, "a restart does not restore it")
	})
}
