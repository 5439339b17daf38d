package control_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/keys"
)

// A copy is confirmed as of the moment of the question. Keys that are revoked
// between the question and the answer may not be covered by it.
func TestConfirmationCountsFromTheQuestion(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		leader := w.leader()
		var far *node
		for _, n := range w.node {
			if n != leader {
				far = n
			}
		}
		const way = 300 * time.Millisecond
		w.net.SetDelayBetween(host(leader.name), host(far.name), way, way)
		type revoked struct {
			hash keys.Hash
			at   time.Time
		}
		var all []revoked
		covered := 0
		for i := range 200 {
			k, _, err := leader.control.CreateKey(t.Context(), key(fmt.Sprint(i)))
			require.NoError(t, err)
			_, err = leader.control.RevokeKey(t.Context(), k.Hash)
			require.NoError(t, err)
			all = append(all, revoked{k.Hash, time.Now()})
			for range 4 {
				time.Sleep(way / 20)
				_, at := far.control.Confirmed()
				for _, r := range all {
					if !r.at.Before(at) {
						continue
					}
					covered++
					held, ok := far.control.GetKey(r.hash)
					require.True(t, ok && held.Check(time.Now()) == keys.Revoked,
						"a key that was revoked %v before the copy was confirmed works on it", at.Sub(r.at))
				}
			}
		}
		require.Same(t, leader, w.leader(), "the delay is no reason for an election")
		require.Positive(t, covered)
	})
}

// A leader that is cut off notices it only after its lease. Until then it may
// have been replaced, so it confirms nothing without a majority.
func TestLeaderConfirmsNothingWithoutAMajority(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		leader := w.leader()
		ok, _ := leader.control.Confirmed()
		require.True(t, ok)
		w.net.Isolate(host(leader.name))
		cut := time.Now()
		time.Sleep(50 * time.Millisecond) // messages in flight have arrived
		require.True(t, leader.control.IsLeader(), "the test needs a leader that has not noticed yet")
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, _, err := leader.control.LookupAtLeader(ctx, keys.HashOf("unknown")) // asks at once
		require.Error(t, err)
		for range 100 {
			_, at := leader.control.Confirmed()
			require.False(t, at.After(cut.Add(10*time.Millisecond)), "it confirmed itself %v after it was cut off", at.Sub(cut))
			time.Sleep(50 * time.Millisecond)
		}
	})
}
