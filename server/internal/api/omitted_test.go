package api

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/cluster"
	"github.com/stemedb/stemedb/server/internal/keys"
	"github.com/stemedb/stemedb/server/internal/store"
)

// The newest two of three claims are damaged, and only reading them shows it. Every
// answer is that of the third one, names the two, and says that it is incomplete.
func TestAnswersLeaveOutDamagedClaimsAndNameThem(t *testing.T) {
	const about = "subject=code://go/example/tls&predicate=tls/min_version"
	for _, path := range []string{
		"/v1/query?" + about, "/v1/query?lens=recency&" + about, "/v1/query?lens=authority&" + about,
		"/v1/query?lens=confidence&" + about, "/v1/query?lens=consensus&" + about, "/v1/skeptic?" + about, "/v1/layered?" + about,
	} {
		t.Run(path, func(t *testing.T) {
			w := newWorld(t, nil)
			var ids []record.Hash
			for i := range 3 {
				ids = append(ids, w.assert(claim(func(c *record.Content) {
					c.Predicate, c.Object = "tls/min_version", record.Number(float64(i))
					c.Timestamp += uint64(i)
					c.Confidence = 0.5 + 0.1*float64(i)
				})))
			}
			w.backend.lost = map[record.Hash]bool{ids[1]: false, ids[2]: false}
			got := w.as(keys.ReadOnly, "GET", path, "")
			require.Equal(t, http.StatusOK, got.Code, "%s", got.Body)
			body := decode[struct {
				Unreadable []record.Hash `json:"unreadable_claims"`
			}](t, got)
			require.ElementsMatch(t, ids[1:], body.Unreadable, "%s", got.Body)
			require.Contains(t, got.Body.String(), ids[0].String())
			require.Contains(t, got.Header().Get(headerIncomplete), "2 damaged claims are left out")
		})
	}
}

// A damaged claim that the filter does not let through is not named.
func TestOnlyDamagedClaimsThatMatchAreNamed(t *testing.T) {
	w := newWorld(t, nil)
	id := w.assert(claim(func(c *record.Content) { c.SourceClass = record.Anecdotal }))
	w.backend.lost = map[record.Hash]bool{id: true}
	got := w.as(keys.ReadOnly, "GET", "/v1/query?subject=code://go/example/tls&source_class=regulatory", "")
	require.Equal(t, http.StatusOK, got.Code, "%s", got.Body)
	require.NotContains(t, got.Body.String(), "unreadable_claims")
	require.Empty(t, got.Header().Get(headerIncomplete))
}

// A claim that two projects hold is shown when one of them has it intact.
func TestADamagedClaimIsShownFromAnotherProject(t *testing.T) {
	own, other := &store.Claim{Project: "own", Unreadable: true}, &store.Claim{Project: "shared"}
	for _, joined := range []bool{joinClaims(own, other).Unreadable, joinClaims(other, own).Unreadable} {
		require.False(t, joined)
	}
	require.Equal(t, "shared", joinClaims(own, other).Project)
	other.Unreadable = true
	require.True(t, joinClaims(own, other).Unreadable)
}

// A read without an answer is marked too: the record that is not found may be one
// of those that the node lost. A peer's mark reaches the gateway's caller.
func TestProblemsOfAnIncompleteNodeSaySo(t *testing.T) {
	c := newTrio(t, nil)
	for i, n := range c.nodes {
		n.backend.incomplete = "records are lost"
		if i == 0 {
			n.backend.failWith(noQuorum())
		}
	}
	asked := request{method: "GET", path: "/v1/assertions/" + unknownHash, key: c.nodes[0].raw[keys.ReadOnly]}
	for by, got := range map[string]*httptest.ResponseRecorder{"the node": c.nodes[1].do(asked), "a peer": c.ask(asked)} {
		require.Equal(t, http.StatusNotFound, got.Code, by)
		require.Equal(t, "records are lost", got.Header().Get(headerIncomplete), by)
		require.Contains(t, got.Body.String(), "this node lost records and may have held it", by)
	}
	c.nodes[1].backend.failWith(&cluster.LostError{Members: 1})
	got := c.nodes[1].do(asked)
	require.Equal(t, http.StatusGone, got.Code)
	require.Equal(t, "records are lost", got.Header().Get(headerIncomplete))
}
