package control_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/keys"
)

func TestLeaderKilled(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		for i := range 5 {
			leader := w.leader()
			leader.kill()
			start := time.Now()
			k, _, err := w.running().control.CreateKey(t.Context(), key(fmt.Sprint(i)))
			require.NoError(t, err)
			require.Less(t, time.Since(start), 10*time.Second)
			leader.start()
			w.settled(3)
			_, ok := leader.control.GetKey(k.Hash)
			require.True(t, ok)
		}
	})
}

// A leader that is stopped first hands over, so that nobody waits for an election
// time-out.
func TestLeaderStoppedHandsOver(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		leader := w.leader()
		leader.stop()
		start := time.Now()
		w.eventually(time.Second, func() bool { return w.leader() != nil }, "another leader")
		_, _, err := w.running().control.CreateKey(t.Context(), key("k"))
		require.NoError(t, err)
		require.Less(t, time.Since(start), 500*time.Millisecond)
		leader.start()
		w.settled(3)
	})
}

// A lone member leads without waiting for a heartbeat that nobody sends.
func TestAloneAndLeadingAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a")
		defer w.close()
		w.start()
		w.settled(1)
		w.node["a"].stop()
		began := time.Now()
		w.node["a"].start()
		w.settled(1)
		require.Less(t, time.Since(began), 2*time.Second, "the heartbeat's time-out is 2 s")
	})
}

func TestAllRestartedAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		k, _, err := w.node["a"].control.CreateKey(t.Context(), key("k"))
		require.NoError(t, err)
		id := w.node["a"].control.State().ClusterID
		for range 3 {
			for _, n := range w.node {
				n.kill()
			}
			time.Sleep(time.Minute)
			w.start()
			w.settled(3)
			require.Equal(t, id, w.node["a"].control.State().ClusterID)
			for _, n := range w.node {
				held, ok := n.control.GetKey(k.Hash)
				require.True(t, ok)
				require.Equal(t, k, held)
			}
		}
	})
}

// A newcomer and a node that was down for long get a snapshot instead of the log.
func TestSnapshots(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		for _, n := range w.node {
			n.timings = control.Timings{SnapshotAfter: 20, SnapshotEvery: 5 * time.Second}
		}
		w.start()
		w.settled(3)
		away := w.node["c"]
		if away == w.leader() {
			away = w.node["b"]
		}
		away.kill()
		for i := range 200 {
			_, _, err := w.running().control.CreateKey(t.Context(), key(fmt.Sprint(i)))
			require.NoError(t, err)
		}
		time.Sleep(time.Minute)
		for _, n := range w.node {
			if n.control != nil {
				require.NotZero(t, n.disk.Snapshot(), "it took a snapshot")
			}
		}
		away.start()
		w.settled(3)
		require.Len(t, away.control.ListKeys(), 200)
		w.add("d").start()
		w.settled(4)
		require.Equal(t, w.node["a"].control.ListKeys(), w.node["d"].control.ListKeys())
		for _, n := range w.node {
			n.kill()
		}
		w.start()
		w.settled(4)
		require.Len(t, w.node["d"].control.ListKeys(), 200)
	})
}

func TestSecretIsRotated(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		for _, secrets := range [][]string{{secretA, secretB}, {secretB, secretA}, {secretB}} {
			for _, name := range []string{"a", "b", "c"} {
				w.node[name].stop()
				w.node[name].secrets = secrets
				w.node[name].start()
				w.settled(3)
			}
		}
	})
}

func TestWrongSecretStaysOutside(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		stranger := w.add("d")
		stranger.secrets = []string{secretB}
		stranger.start()
		time.Sleep(time.Minute)
		require.False(t, stranger.control.State().Formed())
		require.Len(t, w.node["a"].control.State().Members, 3)
		require.Nil(t, w.node["a"].control.State().Change)
		require.Contains(t, stranger.control.Phase(), "does not answer")
		stranger.stop()
		stranger.secrets = []string{secretA}
		stranger.start()
		w.settled(4)
	})
}

// Kills, cuts, wiped nodes, failing storage and flipped bits by seed (ten minutes
// each; STEMEDB_TEST_LONG=1 makes it twenty hours in all). Meanwhile keys are
// created and revoked; nothing acknowledged may be lost, and no key may work 30 s
// after its revocation.
func TestFaults(t *testing.T) {
	seeds, length := uint64(3), 10*time.Minute
	if hours := os.Getenv("STEMEDB_TEST_LONG"); hours != "" {
		seeds, length = 20, time.Hour
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble(t, func(t *testing.T) { faults(t, seed, length) })
		})
	}
}

func faults(t *testing.T, seed uint64, length time.Duration) {
	t.Helper()
	w := newWorld(t, "a", "b", "c")
	defer w.close()
	w.start()
	w.settled(3)
	rng := rand.New(rand.NewPCG(seed, 1))
	names := []string{"a", "b", "c"}
	var mu sync.Mutex // guards the two maps
	created := map[keys.Hash]bool{}
	revoked := map[keys.Hash]time.Time{}
	ctx, cancel := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	for _, name := range names {
		rng := rand.New(rand.NewPCG(seed, uint64(name[0])))
		writers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				time.Sleep(time.Duration(rng.IntN(5000)) * time.Millisecond)
				c := w.live(name)
				if c == nil {
					continue
				}
				call, done := context.WithTimeout(ctx, 10*time.Second)
				k, _, err := c.CreateKey(call, key(fmt.Sprint(name, i)))
				if err == nil {
					mu.Lock()
					created[k.Hash] = true
					mu.Unlock()
					if _, err := c.RevokeKey(call, k.Hash); err == nil {
						mu.Lock()
						revoked[k.Hash] = time.Now()
						mu.Unlock()
					}
				}
				done()
			}
		})
		writers.Go(func() { // the guard
			for ctx.Err() == nil {
				time.Sleep(time.Second)
				c := w.live(name)
				if c == nil {
					continue
				}
				mu.Lock()
				for h, at := range revoked {
					k, there := c.State().Keys[h]
					ok, _ := c.Confirmed()
					if ok && (!there || k.RevokedAt == 0) && time.Since(at) >= 30*time.Second {
						t.Errorf("%s trusts a key %v after its revocation", name, time.Since(at))
					}
				}
				mu.Unlock()
			}
		})
	}
	for start := time.Now(); time.Since(start) < length; {
		time.Sleep(time.Duration(rng.IntN(60)) * time.Second)
		w.sync()
		victim := names[rng.IntN(3)]
		n := w.node[victim]
		switch rng.IntN(8) {
		case 0:
			w.net.Isolate(host(victim))
		case 1:
			w.net.CutOneWay(host(victim), host(names[rng.IntN(3)]))
		case 2, 3:
			wipe := rng.IntN(3) == 0
			if wipe {
				w.net.HealAll()
				w.settled(3) // no second loss before that
				n.kill()
				n.wipe()
			} else {
				n.kill()
			}
			time.Sleep(time.Duration(rng.IntN(20)) * time.Second)
			n.start()
			if wipe {
				w.settled(3)
			}
		case 4:
			w.net.HealAll()
		case 5:
			n.disk.Fail(errors.New("the disk is gone"))
			time.Sleep(time.Duration(rng.IntN(30)) * time.Second)
			n.disk.Fail(nil)
		case 6:
			n.disk.RotWrites(func(*raft.Log) bool { return true })
			time.Sleep(time.Duration(rng.IntN(20)) * time.Second)
			n.disk.RotWrites(nil)
			w.net.HealAll() // damage on one member is repaired from the others
			w.settled(3)
		case 7:
			w.net.HealAll()
			w.settled(3)
			n.kill()
			_, err := n.disk.RotLog(func(*raft.Log) bool { return rng.IntN(10) == 0 })
			require.NoError(w.t, err)
			n.start()
			w.settled(3)
		}
	}
	w.net.HealAll()
	w.settled(3)
	cancel()
	writers.Wait()
	w.settled(3)
	require.Greater(t, len(created), 30)
	for _, n := range w.node {
		// A copy may be some milliseconds behind, so the keys are checked like the API
		// does.
		_, _, err := n.control.LookupAtLeader(t.Context(), keys.Hash{})
		require.NoError(t, err)
		for h := range created {
			_, ok := n.control.GetKey(h)
			require.True(t, ok)
		}
		for h := range revoked {
			k, _ := n.control.GetKey(h)
			require.NotZero(t, k.RevokedAt)
		}
		// A revocation that its caller abandoned may still be applied.
		w.eventually(time.Minute, func() bool {
			return reflect.DeepEqual(w.node["a"].control.State().Keys, n.control.State().Keys)
		}, "the same keys on a and %s", n.name)
	}
}
