package sim

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/cluster"
	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/store"
)

// readSubject reads all claims of a subject with a quorum, with their contents,
// and returns their number.
func (m *machine) readSubject(subject string) (count int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	claims, err := m.node.Cluster().Claims(ctx, store.ClaimQuery{Project: simProject, Subject: subject}, cluster.Quorum)
	if err != nil {
		return 0, err
	}
	for c, err := range claims(nil) {
		if err != nil {
			return 0, err
		}
		if _, err := m.node.Cluster().Content(ctx, c); err != nil {
			return 0, err
		}
		count++
	}
	return count, nil
}

// A record of a single node is lost, and its operator accepts that. The other
// records of the subject stay readable, also after a restart and after the
// cluster has grown.
func TestAnAcceptedLossHidesNoOtherRecordOfItsSubject(t *testing.T) {
	scenario(t, 1, control.Timings{}, func(w *world) {
		n0 := w.machines[0]
		for i := range 5 {
			require.NoError(t, n0.put(claim("code://x", fmt.Sprint("fine ", i))))
		}
		lost := claim("code://x", "rotten record")
		require.NoError(t, n0.put(lost))
		require.NoError(t, n0.put(claim("code://y", "later")))
		time.Sleep(time.Minute)
		n0.rot("rotten record")
		require.Error(t, n0.read(lost, cluster.Local))
		time.Sleep(2 * time.Minute)
		require.NoError(t, n0.node.Control().AcceptLoss(context.Background(), n0.name))
		for range 60 {
			time.Sleep(time.Second)
			w.restartEnded()
		}
		w.settle()
		check := func(when string) {
			for _, m := range w.machines {
				count, err := m.readSubject("code://x")
				if err != nil || count < 5 {
					t.Errorf("%s: %s reads %d of the 5 intact records of the subject: %v", when, m.name, count, err)
				}
			}
		}
		check("after the loss was accepted")
		w.stopMachine(n0)
		w.startMachine(n0)
		w.settle()
		check("after a restart")
		w.addMachine(1).start()
		w.settleWithin(10 * time.Minute)
		time.Sleep(time.Minute)
		check("after the cluster has grown")
	})
}

// A joining node reaches the others but is unreachable, because it announces an
// address that does not exist. Its join is abandoned, or cancelled by the
// operator, and is not opened again within seconds.
func TestAJoinOfANodeThatNobodyReachesStaysGivenUp(t *testing.T) {
	for _, cancelled := range []bool{false, true} {
		t.Run(fmt.Sprint("cancelled ", cancelled), func(t *testing.T) {
			scenario(t, 1, control.Timings{GiveUpAfter: time.Minute}, func(w *world) {
				n0 := w.machines[0]
				x := claim("code://x", "x")
				require.NoError(t, n0.put(x))
				n1 := w.addMachine(1)
				n1.advertised = "nowhere"
				n1.start()
				state := func() *control.State { return n0.node.Control().State() }
				await := func(what string, holds func() bool) {
					for i := 0; !holds(); i++ {
						require.Less(t, i, 3000, what)
						time.Sleep(100 * time.Millisecond)
					}
				}
				await("the join is open", func() bool { return state().Change != nil })
				if cancelled {
					require.NoError(t, n0.node.Control().CancelChange(context.Background(), state().Change.ID))
				}
				await("the join is over", func() bool { return state().Change == nil })
				acknowledged, read := 0, 0
				for i := range 10 {
					time.Sleep(5 * time.Second)
					if n0.put(claim("code://x", fmt.Sprint(i))) == nil {
						acknowledged++
					}
					if n0.get(x) == nil {
						read++
					}
				}
				require.EqualValues(t, 1, state().LastChange, "%s", fmt.Sprintf("the join was opened again within a minute, %d of 10 writes were acknowledged, and %d of 10 reads were answered", acknowledged, read))
			})
		})
	}
}
