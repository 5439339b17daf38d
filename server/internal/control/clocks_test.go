package control_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/keys"
)

// knowsTime waits until every running node is sure of the time.
func (w *world) knowsTime() {
	w.t.Helper()
	w.eventually(30*time.Second, func() bool {
		for _, n := range w.node {
			if n.control != nil {
				if _, sure := n.control.Now(); !sure {
					return false
				}
			}
		}
		return true
	}, "the time is known")
}

// onTime requires the correct time on every running node; in a bubble, package
// time has it.
func (w *world) onTime(within time.Duration) {
	w.t.Helper()
	for name, n := range w.node {
		if n.control == nil {
			continue
		}
		at, sure := n.control.Now()
		require.True(w.t, sure, name)
		require.WithinDuration(w.t, time.Now(), at, within, name)
	}
}

// check checks a key on a node like the API.
func (n *node) check(h keys.Hash) keys.Reason {
	k, ok := n.control.GetKey(h)
	require.True(n.w.t, ok, n.name)
	at, sure := n.control.Now()
	if !sure {
		at = time.Time{}
	}
	return k.Check(at)
}

// allSay waits until all running nodes give the same answer for a key.
func (w *world) allSay(h keys.Hash, want keys.Reason) {
	w.t.Helper()
	w.eventually(3*time.Second, func() bool {
		for _, n := range w.node {
			if _, held := n.control.GetKey(h); !held || n.check(h) != want {
				return false
			}
		}
		return true
	}, "the key is %q everywhere", want)
}

// wrongClocks runs a test with each member's clock wrong in each way, the
// leader's among them.
func wrongClocks(t *testing.T, f func(t *testing.T, w *world, wrong *node)) {
	t.Helper()
	for _, by := range []time.Duration{time.Hour, -time.Hour, 20 * 365 * 24 * time.Hour, -20 * 365 * 24 * time.Hour} {
		for _, who := range []string{"leader", "another"} {
			t.Run(who+"'s by "+by.String(), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					w := newWorld(t, "a", "b", "c")
					defer w.close()
					w.start()
					w.settled(3)
					wrong := w.leader()
					if who == "another" {
						wrong = w.node["a"]
						if wrong == w.leader() {
							wrong = w.node["b"]
						}
					}
					wrong.clock.Set(by)
					time.Sleep(5 * time.Second)
					f(t, w, wrong)
				})
			})
		}
	}
}

func TestKeysEndOnTimeWhicheverClockIsWrong(t *testing.T) {
	wrongClocks(t, func(t *testing.T, w *world, wrong *node) {
		w.knowsTime()
		for name, n := range w.node {
			now := time.Now().Unix()
			expiring := key("expires " + name)
			expiring.ExpiresAt = now + 60
			made := map[string]keys.Key{}
			for kind, k := range map[string]keys.Key{"expires": expiring, "grace": key("grace " + name), "no grace": key("no grace " + name)} {
				k.CreatedAt = 12345 // set by the leader
				created, _, err := n.control.CreateKey(t.Context(), k)
				require.NoError(t, err)
				require.InDelta(t, now, created.CreatedAt, 2, "created through %s", name)
				made[kind] = created
			}
			_, _, err := n.control.RotateKey(t.Context(), made["grace"].Hash, keys.HashOf("s1"+name), 60)
			require.NoError(t, err)
			old, _, err := n.control.RotateKey(t.Context(), made["no grace"].Hash, keys.HashOf("s2"+name), 0)
			require.NoError(t, err)
			require.Zero(t, old.GraceUntil)

			w.allSay(made["no grace"].Hash, keys.Rotated)
			w.allSay(made["grace"].Hash, keys.Usable)
			w.allSay(made["expires"].Hash, keys.Usable)
			time.Sleep(50 * time.Second)
			w.allSay(made["grace"].Hash, keys.Usable)
			w.allSay(made["expires"].Hash, keys.Usable)
			time.Sleep(15 * time.Second)
			w.allSay(made["grace"].Hash, keys.Rotated)
			w.allSay(made["expires"].Hash, keys.Expired)
			w.allSay(made["no grace"].Hash, keys.Rotated)

			revoked, err := n.control.RevokeKey(t.Context(), keys.HashOf("s1"+name))
			require.NoError(t, err)
			require.InDelta(t, time.Now().Unix(), revoked.RevokedAt, 2)
		}
	})
}

// The table's time stays correct whatever happens to one clock, to the leader and
// to the processes.
func TestTheTableKnowsTheTimeWhicheverClockIsWrong(t *testing.T) {
	wrongClocks(t, func(t *testing.T, w *world, wrong *node) {
		w.knowsTime()
		w.onTime(time.Second)
		skew, known := wrong.control.ClockSkew(wrong.id())
		require.True(t, known)
		for _, n := range w.node {
			seen, known := n.control.ClockSkew(wrong.id())
			require.True(t, known, n.name)
			require.InDelta(t, skew.Seconds(), seen.Seconds(), 1, "%s sees which clock is wrong", n.name)
			own, _ := n.control.ClockSkew(n.id())
			require.Equal(t, n == wrong, own.Abs() > time.Minute, n.name)
			require.InDelta(t, own.Seconds(), n.gauge("stemedb_clock_skew_seconds"), 1)
			require.EqualValues(t, 1, n.gauge("stemedb_control_time_sure"))
		}

		// Its clock is corrected, and another one set wrong.
		wrong.clock.Set(0)
		next := w.node["c"]
		if next == wrong {
			next = w.node["b"]
		}
		next.clock.Set(-3 * time.Hour)
		for range 100 {
			time.Sleep(100 * time.Millisecond)
			for _, n := range w.node {
				if at, sure := n.control.Now(); sure {
					require.WithinDuration(t, time.Now(), at, time.Second, n.name)
				}
			}
		}
		w.onTime(time.Second)

		for _, n := range w.node {
			n.kill()
		}
		w.start()
		w.knowsTime()
		w.onTime(time.Second)
	})
}

// The time continues without a gap when the leader dies: its successor keeps it
// until the others have reported their clocks.
func TestTheTimeOutlivesTheLeader(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		w.knowsTime()
		w.leader().kill()
		for range 600 {
			time.Sleep(100 * time.Millisecond)
			w.onTime(time.Second)
		}
	})
}

// When no majority of clocks agrees, the time is unknown: only requests that
// depend on it are refused.
func TestWithoutAMajorityOfClocksWhatNeedsTheTimeIsRefused(t *testing.T) {
	for name, shift := range map[string]map[string]time.Duration{
		"three apart":              {"a": time.Hour, "b": -time.Hour},
		"one down, one of two off": {"a": time.Hour, "c": 0},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, "a", "b", "c")
				defer w.close()
				w.start()
				w.settled(3)
				w.knowsTime()
				limited, free := key("limited"), key("free")
				limited.ExpiresAt = time.Now().Unix() + 3600*24*365
				for _, k := range []keys.Key{limited, free} {
					_, _, err := w.node["a"].control.CreateKey(t.Context(), k)
					require.NoError(t, err)
				}
				for who, by := range shift {
					if w.node[who].clock.Set(by); by == 0 {
						w.node[who].kill()
					}
				}
				time.Sleep(100 * time.Second) // reports and the previous time are valid for 30 s, at the leader and here
				for who, n := range w.node {
					if n.control == nil {
						continue
					}
					_, sure := n.control.Now()
					require.False(t, sure, who)
					confirmed, _ := n.control.Confirmed()
					require.True(t, confirmed, "%s: the table is not affected", who)
					require.Equal(t, keys.Undecided, n.check(limited.Hash), who)
					require.Equal(t, keys.Usable, n.check(free.Hash), who)
					_, _, err := n.control.RotateKey(t.Context(), free.Hash, keys.HashOf("next"), 60)
					require.ErrorIs(t, err, keys.ErrNoTime, who)
				}
				b := w.node["b"].control
				_, _, err := b.RotateKey(t.Context(), limited.Hash, keys.HashOf("next"), 0)
				require.NoError(t, err, "a rotation without grace needs no time")
				_, err = b.RevokeKey(t.Context(), free.Hash)
				require.NoError(t, err, "nor does a revocation")

				for who := range shift {
					w.node[who].clock.Set(0)
				}
				w.knowsTime()
				w.onTime(time.Second)
			})
		})
	}
}

// After a suspension, the wall clock is ahead of the monotonic clock: however
// little time the latter shows, the copy counts as unconfirmed. So does a copy
// after the clock was set, since the two cannot be distinguished.
func TestAMachineThatSleptIsUnconfirmed(t *testing.T) {
	for _, slept := range []time.Duration{10 * time.Minute, -10 * time.Minute} {
		bubble(t, func(t *testing.T) {
			w := newWorld(t, "a", "b", "c")
			defer w.close()
			w.start()
			w.settled(3)
			w.knowsTime()
			n := w.node["a"]
			w.net.Isolate(host("a"))
			time.Sleep(time.Second)
			confirmed, _ := n.control.Confirmed()
			require.True(t, confirmed)
			n.clock.Set(slept)
			confirmed, _ = n.control.Confirmed()
			require.False(t, confirmed)
			_, sure := n.control.Now()
			require.False(t, sure)
			w.net.HealAll()
			w.settled(3)
			w.knowsTime()
			w.onTime(time.Second)
		})
	}
	// A short suspension makes the confirmation older.
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		n := w.node["a"]
		w.net.Isolate(host("a"))
		_, at := n.control.Confirmed()
		n.clock.Set(4 * time.Second)
		_, earlier := n.control.Confirmed()
		require.Equal(t, 4*time.Second, at.Sub(earlier))
		time.Sleep(25 * time.Second)
		for confirmed, _ := n.control.Confirmed(); confirmed; confirmed, _ = n.control.Confirmed() {
			time.Sleep(10 * time.Millisecond)
		}
		require.Less(t, time.Since(at), 27*time.Second)
	})
}

// However slow the calls are, the time is correct to within a round trip, and
// slow calls alone make no clock look wrong.
func TestTheTimeIsRightOnASlowNetwork(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		for _, n := range w.node {
			n.timings = control.Timings{Heartbeat: 5 * time.Second}
		}
		w.start()
		w.settled(3)
		w.net.SetDelay(0, 500*time.Millisecond)
		for range 100 {
			time.Sleep(time.Second)
			for _, n := range w.node {
				at, sure := n.control.Now()
				require.True(t, sure)
				require.WithinDuration(t, time.Now(), at, 2*time.Second)
			}
		}
	})
}

// A single node is a majority.
func TestALoneNodeHasItsOwnClock(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a")
		defer w.close()
		w.node["a"].clock.Set(time.Hour)
		w.start()
		w.settled(1)
		w.knowsTime()
		at, _ := w.node["a"].control.Now()
		require.WithinDuration(t, time.Now().Add(time.Hour), at, time.Second)
		skew, known := w.node["a"].control.ClockSkew(w.node["a"].id())
		require.True(t, known)
		require.Less(t, skew.Abs(), time.Second)
	})
}
