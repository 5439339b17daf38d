package cluster

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/store"
)

// twoClaims writes two claims about one subject, the first of which holds "rotten".
func twoClaims(w *world) (subject string, ids []record.Hash) {
	rotten, fine := claim("s", 1), claim("s", 2)
	rotten.Object, fine.Object = record.Text("rotten"), record.Text("fine")
	for _, a := range []*record.Assertion{rotten, fine} {
		a.Signatures = nil
		a.Sign(agent)
	}
	ids = w.nodes["a"].write(rotten, fine)
	for _, n := range w.nodes {
		w.await("the records on "+n.name, func() bool { return n.holds(ids...) })
	}
	return rotten.Subject, ids
}

// readClaims returns the readable and the omitted claims of a subject.
func (n *node) readClaims(subject string, consistency Consistency) (readable, omitted []record.Hash, err error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	source, err := n.cluster.Claims(ctx, store.ClaimQuery{Project: "p", Subject: subject}, consistency)
	if err != nil {
		return nil, nil, err
	}
	for c, err := range source(nil) {
		if err != nil {
			return nil, nil, err
		}
		if c.Unreadable {
			omitted = append(omitted, c.ID)
			continue
		}
		if _, err := n.cluster.Content(ctx, c); err != nil {
			return nil, nil, err
		}
		readable = append(readable, c.ID)
	}
	return readable, omitted, nil
}

// notice makes a node read a damaged record, which records the damage.
func (n *node) notice(id record.Hash) error {
	_, err := n.cluster.Get(context.Background(), "p", id, Local)
	return err
}

// A cluster of one serves quorum reads from the rest; of three members that lost
// the same record, each serves local reads.
func TestADamagedClaimDoesNotSpoilItsSubject(t *testing.T) {
	for members, levels := range map[int][]Consistency{1: {Quorum, Local}, 3: {Local}} {
		t.Run(fmt.Sprint(members, " members"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				names := []string{"a", "b", "c"}[:members]
				w := newWorld(t, names...)
				w.startAll()
				w.setMembers(names...)
				w.awaitConnected()
				subject, ids := twoClaims(w)
				for _, n := range w.nodes {
					n.rot("rotten")
				}
				a := w.nodes["a"]
				var lost *LostError
				require.ErrorAs(t, a.notice(ids[0]), &lost)
				require.Equal(t, members, lost.Members)
				for _, consistency := range levels {
					readable, omitted, err := a.readClaims(subject, consistency)
					require.NoError(t, err)
					require.Equal(t, ids[1:], readable)
					require.Equal(t, ids[:1], omitted)
				}
			})
		})
	}
}

// A member that may hold an intact copy does not answer: a quorum read does not
// omit the claim. A local read does, and marks its answer.
func TestAQuorumReadLeavesOutNothingThatAnotherMemberMayHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		subject, ids := twoClaims(w)
		a := w.nodes["a"]
		w.net.Isolate("b")
		for _, name := range []string{"a", "c"} {
			w.nodes[name].rot("rotten")
		}
		_, _, err := a.readClaims(subject, Quorum)
		var u *UnavailableError
		require.ErrorAs(t, err, &u)
		require.Equal(t, CodeDamaged, u.Code)
		require.False(t, MayOmit(err, Quorum))
		readable, omitted, err := a.readClaims(subject, Local)
		require.NoError(t, err)
		require.Equal(t, ids[1:], readable)
		require.Equal(t, ids[:1], omitted)

		w.net.HealAll()
		w.await("the repair", func() bool {
			readable, omitted, err := a.readClaims(subject, Quorum)
			return err == nil && len(readable) == 2 && len(omitted) == 0
		})
	})
}

// A lost signature does not make its record unreadable: the record is partial.
func TestARecordWithALostSignatureIsPartial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a")
		w.startAll()
		w.setMembers("a")
		a := w.nodes["a"]
		_, ids := twoClaims(w)
		signer := record.AgentOf(agent)
		a.rot(string(signer[:])) // in the first signature
		for _, consistency := range []Consistency{Quorum, Local} {
			stored, err := a.cluster.Get(context.Background(), "p", ids[0], consistency)
			require.NoError(t, err)
			require.Empty(t, stored.Signatures)
			require.True(t, stored.Partial)
		}
	})
}

// When the control table marks a member with damaged records as whole, as after
// the acceptance of their loss, the member rebuilds its index without them.
func TestAnAcceptedLossLeavesNothingUnreadable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a")
		w.startAll()
		w.setMembers("a")
		a := w.nodes["a"]
		subject, ids := twoClaims(w)
		a.rot("rotten")
		require.Error(t, a.notice(ids[0]))
		w.await("the report of the loss", func() bool {
			me, _ := a.control.State().MemberByID(a.control.id)
			return !me.Whole
		})
		require.Contains(t, a.cluster.Incomplete(), ids[0].String())
		w.change(func(s *control.State) { s.Members[0].Whole = true })
		w.await("the end of the process", func() bool {
			select {
			case <-a.done:
				return true
			default:
				return false
			}
		})
		require.ErrorContains(t, a.err, "rebuilds the index")
		a.shutdown()
		a.start()
		require.True(t, a.store.Whole())
		w.await("readiness", func() bool { return a.cluster.Ready() == nil })
		require.ErrorIs(t, a.notice(ids[0]), store.ErrNotFound)
		readable, omitted, err := a.readClaims(subject, Quorum)
		require.NoError(t, err)
		require.Equal(t, ids[1:], readable)
		require.Empty(t, omitted)
	})
}
