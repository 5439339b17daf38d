package sim

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/cluster"
	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/keys"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// snapshotsSoon makes Raft take a snapshot of the table after a few commands.
var snapshotsSoon = control.Timings{SnapshotAfter: 20, SnapshotEvery: 5 * time.Second}

// fillTable registers keys until Raft has a snapshot of the table.
func (w *world) fillTable() {
	w.t.Helper()
	leader, _ := w.leader()
	for i := range 60 {
		_, _, err := leader.node.Control().CreateKey(context.Background(), keys.Key{
			Hash: keys.HashOf(fmt.Sprint(i)), Project: "p", Role: keys.Admin, Enabled: true,
		})
		require.NoError(w.t, err)
	}
	time.Sleep(30 * time.Second)
}

// A node's newest snapshot of the table may be older than the growth of the
// cluster. If the node starts from it while cut off, its table says that the
// cluster has one member, or two.
func TestNodeThatRestartsCutOffDoesNotGoByAnOldTable(t *testing.T) {
	for _, before := range []int{1, 2} {
		t.Run(fmt.Sprintf("grown from %d to 3", before), func(t *testing.T) {
			scenario(t, before, snapshotsSoon, func(w *world) {
				w.fillTable()
				for len(w.machines) < 3 {
					w.addMachine(1).start()
					w.settle()
				}
				n0, n1 := w.machines[0], w.machines[1]
				w.crash(n0, memfs.KillProcess, false)
				time.Sleep(5 * time.Second)
				missed := claim("code://x", "acknowledged by n1 and n2")
				require.NoError(t, n1.put(missed))
				w.net.Isolate(n0.name)
				w.startMachine(n0)
				time.Sleep(40 * time.Second)

				require.ErrorIs(t, n0.get(missed), cluster.ErrUnavailable)
				require.ErrorIs(t, n0.put(claim("code://y", "for n0 alone")), cluster.ErrUnavailable)
				require.ErrorIs(t, n0.node.Ready(), control.ErrNotConfirmedYet)

				w.net.HealAll()
				w.settle()
				require.NoError(t, n0.get(missed))
			})
		})
	}
}

// Three members grow to five while n1 is cut off and does not notice. n2 is
// restarted and reaches only n1: it must not give n1 the second of three
// acknowledgements, for a record that the other three would never see.
func TestNodeThatHasJustStartedAcknowledgesForNobodyBeforeItKnowsTheMembers(t *testing.T) {
	scenario(t, 3, control.Timings{}, func(w *world) {
		leader, others := w.leader()
		n1, n2 := others[0], others[1]
		// n1 is not whole, so a change does not need any proof from it. This is retried
		// until n1 is cut off before it withdraws the report and before the leader,
		// which refills only a member that answers, opens a change for it.
		w.instantDisks()
		for tries, reported := 0, false; !reported; tries++ {
			require.Less(t, tries, 20)
			w.net.HealAll()
			w.settle()
			require.NoError(t, n1.node.Control().ReportNotWhole(context.Background()))
			w.net.Isolate(n1.name)
			time.Sleep(10 * time.Second)
			s := leader.node.Control().State()
			m, _ := s.MemberByID(n1.node.Control().ID())
			reported = !m.Whole && s.Change == nil
		}
		for len(w.machines) < 5 {
			n := w.addMachine(1)
			for _, m := range w.machines[3:] {
				w.net.Cut(m.name, n1.name)
			}
			n.start()
			for i := 0; len(leader.node.Control().State().Members) != len(w.machines) || leader.node.Control().State().Change != nil; i++ {
				require.Less(t, i, 6000, "%s does not join: %v", n.name, leader.node.Control().ChangeWaitsFor())
				time.Sleep(10 * time.Millisecond)
			}
		}
		w.net.Isolate(n2.name)
		w.crash(n2, memfs.KillProcess, false)
		w.net.Rejoin(n2.name)
		for _, m := range w.machines {
			if m != n1 && m != n2 {
				w.net.Cut(n2.name, m.name)
			}
		}
		w.startMachine(n2)
		acked := claim("code://w", "by n1 and n2")
		for range 10 {
			if n1.put(acked) == nil {
				requireSeenOrUnavailable(t, leader, acked)
				break
			}
			time.Sleep(time.Second)
		}
	})
}

// Half of the members are cut off from the other half, and one of them reads a
// record that was never acknowledged. Once shown, every later read has to show
// it.
func TestRecordThatAQuorumReadHasShownIsSeenByLaterReads(t *testing.T) {
	for _, n := range []int{2, 3, 4, 5} {
		t.Run(fmt.Sprint(n, " members"), func(t *testing.T) {
			scenario(t, n, control.Timings{}, func(w *world) {
				half := n / 2
				for i := range half {
					for j := half; j < n; j++ {
						w.net.Cut(w.machines[i].name, w.machines[j].name)
					}
				}
				x := claim("code://x", "never acknowledged")
				require.Error(t, w.machines[0].put(x))
				if w.machines[0].get(x) == nil {
					requireSeenOrUnavailable(t, w.machines[n-1], x)
				}
				w.net.HealAll()
				w.settle()
				require.NoError(t, w.machines[0].get(x))
				require.NoError(t, w.machines[n-1].get(x))
			})
		})
	}
}

// A fourth node begins to join and never returns. The three others continue
// without it, even when one of them is lost later.
func TestJoinThatNeverReturnsIsGivenUp(t *testing.T) {
	scenario(t, 3, control.Timings{}, func(w *world) {
		leader, others := w.leader()
		for i := range 20 {
			require.NoError(t, leader.put(claim("code://other", fmt.Sprint(i))))
		}
		n3 := w.addMachine(1)
		// It reaches only the leader, so it cannot get all records.
		for _, m := range others {
			w.net.Cut(m.name, n3.name)
		}
		n3.start()
		time.Sleep(20 * time.Second)
		change := leader.node.Control().State().Change
		require.NotNil(t, change)
		require.Equal(t, control.Join, change.Kind)
		w.crash(n3, memfs.LoseAll, true)
		w.machines = w.machines[:3] // scaled down again, its volume claims deleted
		w.net.HealAll()
		w.settleWithin(10 * time.Minute)
		require.NoError(t, leader.put(claim("code://a", "all up")))

		lost := others[1]
		w.crash(lost, memfs.LoseAll, true)
		time.Sleep(time.Minute)
		require.NoError(t, leader.put(claim("code://a", "one down")))
		lost.wipeBoth()
		w.startMachine(lost)
		w.settle()
		require.NoError(t, leader.put(claim("code://a", "one emptied")))
	})
}

// A node that joins has no vote, so its absence takes no majority away from the
// control table, and an operator can cancel its join at once.
func TestJoinCanBeCancelledWhileAMemberIsDown(t *testing.T) {
	scenario(t, 3, control.Timings{}, func(w *world) {
		leader, others := w.leader()
		n3 := w.addMachine(1)
		for _, m := range others {
			w.net.Cut(m.name, n3.name)
		}
		n3.start()
		time.Sleep(20 * time.Second)
		w.crash(n3, memfs.LoseAll, true)
		w.machines = w.machines[:3]
		w.net.HealAll()
		w.crash(others[1], memfs.KillProcess, true)
		time.Sleep(time.Minute)
		require.Error(t, leader.put(claim("code://a", "two of four")), "a majority of the four is needed while the join is open")
		change := leader.node.Control().State().Change
		require.NotNil(t, change)
		require.NoError(t, others[0].node.Control().CancelChange(context.Background(), change.ID))
		require.ErrorIs(t, leader.node.Control().CancelChange(context.Background(), change.ID), control.ErrNoSuchChange)
		require.NoError(t, leader.put(claim("code://a", "two of three")))
		w.startMachine(others[1])
		w.settle()
	})
}

// A node whose join was abandoned joins when it is back.
func TestJoinThatWasGivenUpBeginsAgain(t *testing.T) {
	scenario(t, 3, control.Timings{GiveUpAfter: 30 * time.Second}, func(w *world) {
		leader, others := w.leader()
		n3 := w.addMachine(1)
		for _, m := range others {
			w.net.Cut(m.name, n3.name)
		}
		n3.start()
		time.Sleep(20 * time.Second)
		require.NotNil(t, leader.node.Control().State().Change)
		w.crash(n3, memfs.KillProcess, true)
		time.Sleep(time.Minute)
		require.Nil(t, leader.node.Control().State().Change)
		require.Len(t, leader.node.Control().State().Members, 3)
		w.net.HealAll()
		w.startMachine(n3)
		w.settle()
		require.Len(t, leader.node.Control().State().Members, 4)
	})
}

// Of five members one is being replaced and does not answer. Another one that
// loses its volumes does not have to wait for it.
func TestSilentReplacementDoesNotHoldUpAnother(t *testing.T) {
	scenario(t, 5, control.Timings{GiveUpAfter: 30 * time.Second}, func(w *world) {
		leader, others := w.leader()
		x := claim("code://x", "x")
		require.NoError(t, leader.put(x))
		time.Sleep(5 * time.Second)
		silent, lost := others[0], others[1]
		w.crash(silent, memfs.LoseAll, true)
		silent.wipeBoth()
		for _, m := range others[1:] {
			w.net.Cut(m.name, silent.name)
		}
		w.startMachine(silent)
		time.Sleep(10 * time.Second)
		change := leader.node.Control().State().Change
		require.NotNil(t, change)
		require.Equal(t, control.Replace, change.Kind)
		w.crash(silent, memfs.KillProcess, true)
		w.net.HealAll()

		w.crash(lost, memfs.LoseAll, true)
		lost.wipeBoth()
		w.startMachine(lost)
		for i := 0; lost.node.Ready() != nil; i++ {
			require.Less(t, i, 300, "the second one waits for the first: %v", leader.node.Control().ChangeWaitsFor())
			time.Sleep(time.Second)
		}
		require.NoError(t, lost.get(x))
		w.startMachine(silent)
		w.settle()
	})
}

// The nodes restart with their volumes under other host names: another namespace,
// another headless Service, another cluster domain.
func TestNodesThatMoveToOtherHostNamesFindEachOther(t *testing.T) {
	for _, timings := range []control.Timings{{}, snapshotsSoon} {
		for _, count := range []int{1, 2, 3} {
			t.Run(fmt.Sprintf("%d of 3, snapshots after %d", count, timings.SnapshotAfter), func(t *testing.T) {
				scenario(t, 3, timings, func(w *world) {
					x := claim("code://x", "x")
					require.NoError(t, w.machines[0].put(x))
					w.fillTable()
					moved := w.machines[3-count:]
					for range 2 { // and once more
						for _, m := range moved {
							w.stopMachine(m)
						}
						for _, m := range moved {
							m.advertised = "moved-" + m.address()
							m.host = w.net.Host(m.advertised)
						}
						for _, m := range moved {
							w.startMachine(m)
						}
						w.settle()
						for _, m := range w.machines {
							require.NoError(t, m.get(x))
						}
						require.Eventually(t, func() bool {
							held, _ := w.machines[0].node.Control().State().Member(moved[0].name)
							return held.PeerAddr == moved[0].address()+":18182"
						}, time.Minute, time.Second, "the table has the new addresses")
					}
				})
			})
		}
	}
}

// A record that arrives at the reading node between the comparison with another
// member and the answer may be on this node alone. It must not be shown unless it
// is on a majority by then.
func TestRecordThatArrivesDuringAReadIsNotShownUnlessOthersHoldIt(t *testing.T) {
	reads := map[string]func(m *machine, a *record.Assertion) (shown bool){
		"by id": func(m *machine, a *record.Assertion) bool { return m.get(a) == nil },
		"claims": func(m *machine, a *record.Assertion) (shown bool) {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			claims, err := m.node.Cluster().Claims(ctx, store.ClaimQuery{Project: simProject, Subject: a.Subject, Predicate: a.Predicate}, cluster.Quorum)
			if err != nil {
				return false
			}
			for c, err := range claims(nil) {
				shown = shown || err == nil && c.ID == a.ID()
			}
			return shown
		},
	}
	for name, read := range reads {
		// A difference causes a merge, during which records may arrive too.
		for _, differs := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, members differ %v", name, differs), func(t *testing.T) {
				scenario(t, 3, control.Timings{}, func(w *world) {
					reader, others := w.machines[0], w.machines[1:]
					require.NoError(t, reader.put(claim("code://x", "of all")))
					time.Sleep(time.Second)
					for _, m := range others {
						w.net.SetDelayBetween(reader.name, m.name, 100*time.Millisecond, 100*time.Millisecond)
						w.net.SetDelayBetween(m.name, reader.name, 100*time.Millisecond, 100*time.Millisecond)
					}
					if differs {
						reader.putHere(claim("code://x", "here first"))
					}
					x := claim("code://x", "arrives during the read")
					go func() {
						// The question is in transit; messages of the reader from here on are lost.
						time.Sleep(150 * time.Millisecond)
						if !differs {
							for _, m := range others {
								w.net.CutOneWay(reader.name, m.name)
							}
						}
						reader.putHere(x)
					}()
					shown := read(reader, x)
					w.crash(reader, memfs.LoseAll, true)
					w.net.HealAll()
					time.Sleep(10 * time.Second)
					if shown {
						require.NoError(t, others[0].get(x), "shown, and then gone")
					}
				})
			})
		}
	}
}

// A subject that only this node holds is brought to a majority before its name is
// shown.
func TestSubjectThatWasShownIsSeenByLaterReads(t *testing.T) {
	scenario(t, 3, control.Timings{}, func(w *world) {
		shows := func(m *machine) bool {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			subjects, err := m.node.Cluster().Subjects(ctx, simProject, "code://", "", 10, cluster.Quorum)
			require.NoError(t, err)
			return slices.Contains(subjects, "code://x")
		}
		for _, m := range w.machines[1:] {
			w.net.SetDelayBetween(w.machines[0].name, m.name, 50*time.Millisecond, 50*time.Millisecond)
		}
		w.machines[0].putHere(claim("code://x", "x"))
		shown := shows(w.machines[0])
		w.crash(w.machines[0], memfs.LoseAll, true)
		time.Sleep(10 * time.Second)
		require.True(t, shown)
		require.True(t, shows(w.machines[1]))
	})
}
