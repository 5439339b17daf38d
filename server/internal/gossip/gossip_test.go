package gossip_test

import (
	"context"
	"io"
	"log/slog"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/gossip"
	"github.com/stemedb/stemedb/server/internal/network/memnet"
)

const (
	secretA = "0123456789abcdef0123456789abcdef"
	secretB = "fedcba9876543210fedcba9876543210"
)

type world struct {
	t     *testing.T
	net   *memnet.Net
	procs map[string]*memnet.Proc
	run   map[string]*gossip.Gossip
	peers []string
}

func newWorld(t *testing.T, names ...string) *world {
	t.Helper()
	w := &world{t: t, net: memnet.New(1), procs: map[string]*memnet.Proc{}, run: map[string]*gossip.Gossip{}}
	w.net.SetDelay(time.Millisecond, 10*time.Millisecond)
	w.net.SetLoss(0.05)
	for _, name := range names {
		w.peers = append(w.peers, name+":18183")
	}
	return w
}

func (w *world) start(name string, secrets ...string) {
	if len(secrets) == 0 {
		secrets = []string{secretA}
	}
	p := w.net.Host(name).Start()
	out := io.Discard
	if os.Getenv("GOSSIP_TEST_LOG") != "" {
		out = os.Stderr
	}
	g, err := gossip.Start(gossip.Config{
		Network: p, Name: name, Incarnation: "i1", APIAddr: name + ":18180", BindAddr: ":18183", AdvertiseHost: name,
		Peers: func() []string { return w.peers }, Secrets: secrets, Registerer: prometheus.NewRegistry(),
		Logger: slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug})).With("at", name),
	})
	require.NoError(w.t, err)
	w.procs[name], w.run[name] = p, g
}

// kill ends a process without a goodbye.
func (w *world) kill(name string) {
	w.procs[name].Kill()
	w.run[name].Close(context.Background())
	delete(w.run, name)
}

func (w *world) close() {
	for _, g := range w.run {
		g.Close(context.Background())
	}
}

// see waits until every running node sees the node in that state.
func (w *world) see(within time.Duration, name string, state gossip.State) {
	w.t.Helper()
	for deadline := time.Now().Add(within); ; time.Sleep(100 * time.Millisecond) {
		all := true
		for _, g := range w.run {
			n := member(g, name)
			all = all && n.State == state
		}
		if all {
			return
		}
		if time.Now().After(deadline) {
			for who, g := range w.run {
				w.t.Logf("%s sees %+v", who, g.Members())
			}
			w.t.Fatalf("not every node sees %s %s within %v", name, state, within)
		}
	}
}

func (w *world) seeAll(within time.Duration) {
	w.t.Helper()
	for name := range w.run {
		w.see(within, name, gossip.Alive)
	}
}

// member returns g's view of the node of that name.
func member(g *gossip.Gossip, name string) gossip.Node {
	for _, n := range g.Members() {
		if n.Name == name {
			return n
		}
	}
	return gossip.Node{}
}

func TestDeathReturnAndGoodbye(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		for _, name := range []string{"a", "b", "c"} {
			w.start(name)
			time.Sleep(7 * time.Second)
		}
		w.seeAll(15 * time.Second)
		require.True(t, w.run["a"].Alive("b"))
		n := member(w.run["a"], "b")
		require.Equal(t, "b:18180", n.APIAddr)
		require.Equal(t, "i1", n.Incarnation)

		w.kill("b")
		w.see(20*time.Second, "b", gossip.Dead)
		// It comes back at another address, as a pod does.
		w.net.Host("b").Move()
		w.start("b")
		w.see(15*time.Second, "b", gossip.Alive)

		// The restart is so fast that no node noticed the death.
		w.kill("c")
		w.net.Host("c").Move()
		w.start("c")
		time.Sleep(time.Minute)
		w.seeAll(time.Second)

		w.run["c"].Close(t.Context())
		delete(w.run, "c")
		w.see(5*time.Second, "c", gossip.Left)
	})
}

// A node that is repeatedly killed and restarted at its old address stays alive
// for the others, and a node that gets the address of a dead node is not mistaken
// for it.
func TestRestartsAtOneAddressAndAddressesUsedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		for _, name := range []string{"a", "b", "c"} {
			w.start(name)
		}
		w.seeAll(15 * time.Second)
		for _, pause := range []time.Duration{0, time.Second, 3 * time.Second, 20 * time.Second} {
			w.kill("b")
			time.Sleep(pause) // alive, suspected, dead
			w.start("b")
			w.see(15*time.Second, "b", gossip.Alive)
			for range 60 {
				time.Sleep(time.Second)
				require.True(t, w.run["a"].Alive("b"), "after a pause of %v", pause)
				require.True(t, w.run["c"].Alive("b"), "after a pause of %v", pause)
			}
		}

		w.kill("b")
		w.kill("c")
		w.net.Host("b").Exchange(w.net.Host("c"))
		w.start("c")
		w.see(20*time.Second, "c", gossip.Alive)
		time.Sleep(20 * time.Second)
		require.False(t, w.run["a"].Alive("b"), "c answers at the address, b is gone")
		w.start("b")
		w.seeAll(20 * time.Second)
	})
}

func TestReadiness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a", "b")
		defer w.close()
		w.start("a")
		w.run["a"].SetReady(true) // before any node listens
		w.start("b")
		w.seeAll(15 * time.Second)
		require.True(t, member(w.run["b"], "a").Ready)
		w.run["a"].SetReady(false)
		time.Sleep(5 * time.Second)
		require.False(t, member(w.run["b"], "a").Ready)
		require.False(t, member(w.run["a"], "a").Ready)
	})
}

func TestPartitionHealsAfterLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		for _, name := range []string{"a", "b", "c"} {
			w.start(name)
		}
		w.seeAll(15 * time.Second)
		w.net.Isolate("c")
		time.Sleep(time.Hour)
		require.False(t, w.run["a"].Alive("c"))
		require.False(t, w.run["c"].Alive("a"))
		require.True(t, w.run["a"].Alive("b"))
		w.net.HealAll()
		w.seeAll(20 * time.Second)
	})
}

// With one direction left, a node stays alive through the others' indirect
// probes.
func TestOneWayCutBetweenTwo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		for _, name := range []string{"a", "b", "c"} {
			w.start(name)
		}
		w.seeAll(15 * time.Second)
		w.net.CutOneWay("a", "b")
		time.Sleep(2 * time.Minute)
		require.True(t, w.run["c"].Alive("a"))
		require.True(t, w.run["c"].Alive("b"))
		w.net.HealAll()
		w.seeAll(30 * time.Second)
	})
}

func TestFullOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		for range 3 {
			for _, name := range []string{"a", "b", "c"} {
				w.start(name)
			}
			w.seeAll(15 * time.Second)
			for _, name := range []string{"a", "b", "c"} {
				w.kill(name)
				w.net.Host(name).Move()
			}
			time.Sleep(10 * time.Minute)
		}
	})
}

func TestSecrets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c", "x")
		defer w.close()
		w.start("x", "another secret of thirty-two byte")
		for _, name := range []string{"a", "b", "c"} {
			w.start(name, secretA)
		}
		time.Sleep(time.Minute)
		require.False(t, w.run["a"].Alive("x"), "packets of a stranger are ignored")
		require.False(t, w.run["x"].Alive("a"))
		w.run["x"].Close(t.Context())
		delete(w.run, "x")
		w.seeAll(time.Second)
		// Rotation: all accept the new secret, then use it, then drop the old one.
		for _, secrets := range [][]string{{secretA, secretB}, {secretB, secretA}, {secretB}} {
			for _, name := range []string{"a", "b", "c"} {
				w.run[name].Close(t.Context())
				w.start(name, secrets...)
				w.seeAll(20 * time.Second)
			}
		}
	})
}
