package api

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/cluster"
	"github.com/stemedb/stemedb/server/internal/keys"
	"github.com/stemedb/stemedb/server/internal/store"
)

// hot writes so many claims of different values, newest first, into a predicate.
func (w *world) hot(predicate string, count int) {
	var items []store.Item
	for i := range count {
		a := claim(func(c *record.Content) {
			c.Predicate, c.Object = predicate, record.Number(float64(i))
			c.Timestamp -= uint64(i)
			if i < 5 {
				c.SourceClass = record.Regulatory
			}
		})
		items = append(items, store.NewContent("alpha", a.ID(), &a.Content), store.NewSignature("alpha", a.ID(), a.Signatures[0]))
	}
	w.put(items)
}

func (w *world) put(items []store.Item) {
	for ; len(items) > 0; items = items[min(200, len(items)):] {
		done := make(chan store.PutResult, 1)
		require.NoError(w.t, w.backend.store.Put(items[:min(200, len(items))], func(r store.PutResult) { done <- r }))
		require.NoError(w.t, (<-done).Err)
	}
}

const hotSubject = "?subject=code://go/example/tls&predicate=hot"

// weighing are the requests whose answer needs all values and agents together.
var weighing = []string{"/v1/query" + hotSubject + "&lens=consensus", "/v1/skeptic" + hotSubject, "/v1/layered" + hotSubject}

// A subject with too much data is refused by the lenses that would have to hold
// all of it, and by no others; the refusal names a remedy that works.
func TestSubjectTooLarge(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.ReadLimit = 64 << 10 })
	c := newContract(t)
	w.hot("hot", 200)
	w.hot("cool", 5)
	for _, path := range weighing {
		r := request{method: "GET", path: path, key: w.raw[keys.ReadOnly]}
		got := w.do(r)
		c.check(t, r, got)
		p := problemOf(t, got)
		require.Equal(t, http.StatusUnprocessableEntity, p.Status, path)
		require.Equal(t, codeSubjectTooLarge, p.Code)
		require.Equal(t, "subject", p.Field)
		require.Contains(t, p.Remedy, "source_class")
		require.Equal(t, http.StatusOK, w.as(keys.ReadOnly, "GET", path+"&source_class=regulatory", "").Code, path)
	}
	for _, lens := range []string{"recency", "confidence", "authority"} {
		require.Len(t, w.query("/v1/query"+hotSubject+"&lens="+lens).Answers, 1, lens)
	}
	require.Len(t, w.query("/v1/query"+hotSubject).Claims, 100)
	cool := w.query("/v1/query?subject=code://go/example/tls&predicate=cool&lens=consensus")
	require.Len(t, cool.Answers, 1)
}

// The bytes of one predicate do not count for the next one.
func TestEachPredicateHasItsRoom(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.ReadLimit = 64 << 10 })
	for i := range 6 {
		w.hot(fmt.Sprint("p", i), 20)
	}
	require.Len(t, w.query("/v1/query?subject=code://go/example/tls&lens=consensus").Answers, 6)
}

// A gateway does not send a subject that is too large to the next node.
func TestGatewayKeepsASubjectThatIsTooLarge(t *testing.T) {
	c := newTrio(t, nil)
	c.nodes[0].world.api.opts.ReadLimit = 64 << 10
	c.nodes[0].hot("hot", 200)
	got := c.ask(request{method: "GET", path: weighing[0], key: c.nodes[0].raw[keys.ReadOnly]})
	require.Equal(t, codeSubjectTooLarge, problemOf(t, got).Code)
	require.Zero(t, c.dials.Load())
}

// crowd signs a claim of the subject as so many agents, and votes for it as many.
func (w *world) crowd(project string, count int, change func(*record.Content)) record.Hash {
	a := claim(change)
	items := []store.Item{store.NewContent(project, a.ID(), &a.Content)}
	for i := range count {
		agent := record.AgentID{31: 1}
		binary.BigEndian.PutUint32(agent[:], uint32(i))
		items = append(items, store.NewSignature(project, a.ID(), record.Signature{Agent: agent}),
			store.NewVote(project, &record.Vote{Assertion: a.ID(), Agent: agent, Weight: 1, Timestamp: a.Timestamp + 1}))
	}
	w.put(items)
	return a.ID()
}

// A claim with too many agents or votes is shown and counted in part and says
// so, on every route; the rest of its subject is answered as usual.
func TestHotClaimIsPartial(t *testing.T) {
	w := newWorld(t, nil)
	c := newContract(t)
	w.backend.voices = 2
	hot := w.crowd("alpha", 3, nil)
	cool := w.assert(claim(func(c *record.Content) { c.Object, c.Timestamp = record.Text("off"), c.Timestamp-1 }, 1, 2))
	other := w.assert(claim(func(c *record.Content) { c.Predicate = "other" }, 1))
	ask := func(path string) *httptest.ResponseRecorder {
		r := request{method: "GET", path: path, key: w.raw[keys.ReadOnly]}
		got := w.do(r)
		require.Equal(t, http.StatusOK, got.Code, "%s: %s", path, got.Body)
		c.check(t, r, got)
		return got
	}
	const subject = "?subject=code://go/example/tls"
	require.Len(t, decode[queryAnswer](t, ask("/v1/query"+subject+"&limit=1")).Claims, 1)
	page := decode[queryAnswer](t, ask("/v1/query"+subject))
	require.Len(t, page.Claims, 3)
	for _, shown := range page.Claims {
		require.Equal(t, shown.Hash == hot.String(), shown.Partial)
		if shown.Partial {
			require.Len(t, shown.Agents, 2)
			require.Equal(t, voteSummary{For: 2, Weight: 2}, shown.Votes)
		}
	}
	for _, lens := range allLenses {
		answers := decode[queryAnswer](t, ask("/v1/query"+subject+"&lens="+lens)).Answers
		require.Len(t, answers, 2, lens)
		if lens == "consensus" {
			require.Equal(t, []record.Hash{hot}, answers[1].Why.PartialClaims)
			require.EqualValues(t, 2, answers[1].Why.Score)
			require.Equal(t, cool, answers[1].Why.RunnerUp.ID)
		} else {
			require.Empty(t, answers[1].Why.PartialClaims, lens)
		}
		require.Empty(t, answers[0].Why.PartialClaims, "the other predicate has no such claim")
		require.Equal(t, other.String(), answers[0].Winner.Hash)
	}
	dispute := decode[skepticBody](t, ask("/v1/skeptic"+subject+"&predicate=verification"))
	require.Equal(t, []record.Hash{hot}, dispute.PartialClaims)
	require.True(t, dispute.Values[0].Claims[0].Partial)
	require.False(t, dispute.Values[1].Claims[0].Partial)
	layers := decode[layeredBody](t, ask("/v1/layered"+subject+"&predicate=verification"))
	require.Equal(t, []record.Hash{hot}, layers.Layers[0].Why.PartialClaims)

	for id, partial := range map[record.Hash]bool{hot: true, cool: false} {
		one := decode[assertionBody](t, ask("/v1/assertions/"+id.String()))
		require.Equal(t, partial, one.Partial)
		require.Len(t, one.Signatures, 2)
	}
}

// A claim of two projects is cut as if one project held everything.
func TestPartialClaimOfTwoProjects(t *testing.T) {
	w := newWorld(t, nil)
	w.backend.voices = 3
	w.crowd("alpha", 2, nil)
	id := w.crowd(keys.SharedProject, 5, nil)
	w.put([]store.Item{store.NewSignature("alpha", id, record.Signature{Agent: record.AgentID{0}})})
	shown := w.query("/v1/query?subject=code://go/example/tls&scope=own,shared").Claims
	require.Len(t, shown, 1)
	require.True(t, shown[0].Partial)
	zero := strings.Repeat("00", 31)
	require.Equal(t, []string{zero + "00", zero + "01", "00000001" + zero[8:] + "01"}, shown[0].Agents)
	require.Equal(t, voteSummary{For: 3, Weight: 3}, shown[0].Votes)
}

// With a server's limits, a claim of the largest size does not affect the
// others of its predicate, and an answer with all of it does not exceed the
// limit of a gateway.
func TestHotClaimLeavesRoomForTheRest(t *testing.T) {
	w := newWorld(t, nil)
	w.backend.voices = 10_000 // as cluster.Limits
	ids := []record.Hash{}
	for i := range 2 {
		ids = append(ids, w.crowd("alpha", w.backend.voices+1, func(c *record.Content) { c.Object = record.Number(float64(i)) }))
	}
	w.assert(claim(nil))
	for _, path := range []string{"/v1/query?lens=consensus&", "/v1/skeptic?predicate=verification&", "/v1/layered?predicate=verification&", "/v1/query?limit=1&"} {
		got := w.as(keys.ReadOnly, "GET", path+"subject=code://go/example/tls", "")
		require.Equal(t, http.StatusOK, got.Code, "%s: %.200s", path, got.Body)
	}
	got := w.as(keys.ReadOnly, "GET", "/v1/assertions/"+ids[0].String(), "")
	require.Equal(t, http.StatusOK, got.Code)
	require.Less(t, got.Body.Len(), maxPeerAnswer)
	require.Less(t, got.Body.Len(), w.backend.voices*(signatureText+voteText)+4096, "the answer is not larger than counted")
}

// Requests that hold much take turns; those that hold little do not wait.
func TestHeavyReadsTakeTurns(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.HeavyReads = 1 })
	w.hot("hot", 400)
	require.True(t, w.api.heavy.TryAcquire(1), "another request has the turn")
	for _, path := range weighing {
		r := request{method: "GET", path: path, key: w.raw[keys.ReadOnly], header: http.Header{headerTimeout: {"0.3"}}}
		got := w.do(r)
		require.Equal(t, codeOverloadedReads, problemOf(t, got).Code, path)
		require.NotEmpty(t, got.Header().Get("Retry-After"))
		require.Equal(t, http.StatusOK, w.as(keys.ReadOnly, "GET", path+"&source_class=regulatory", "").Code, path)
	}
	require.Len(t, w.query("/v1/query"+hotSubject+"&lens=recency").Answers, 1)
	w.api.heavy.Release(1)

	for _, limit := range []int64{defaultReadLimit, 300 << 10} { // a refused request also gives its turn back
		w.api.opts.ReadLimit = limit
		for _, path := range append(weighing, "/v1/query"+hotSubject+"&limit=1000") {
			w.as(keys.ReadOnly, "GET", path, "")
			require.True(t, w.api.heavy.TryAcquire(1), "%s has kept its turn", path)
			w.api.heavy.Release(1)
		}
	}
}

// large writes claims of 64 KiB of text, one for each of the predicates p00 and
// following, and as many different ones, of all source classes, into hot.
func (w *world) large(count int) {
	for i := range count {
		text := record.Text(strings.Repeat(string(rune('a'+i%26)), record.MaxText-1-i/26))
		w.assert(claim(func(c *record.Content) { c.Predicate, c.Object = fmt.Sprintf("p%02d", i), text }))
		w.assert(claim(func(c *record.Content) {
			c.Predicate, c.Object, c.SourceClass = "hot", text, record.SourceClasses()[i%len(record.SourceClasses())]
		}))
	}
}

var allLenses = []string{"recency", "consensus", "confidence", "authority"}

// A page of large winners ends early, and the next page continues after it.
func TestLargeWinnersEndAPage(t *testing.T) {
	w := newWorld(t, nil)
	w.large(70)
	for _, lens := range allLenses {
		var got []string
		for cursor, more := "", true; more; {
			answer := w.as(keys.ReadOnly, "GET", "/v1/query?subject=code://go/example/tls&lens="+lens+cursor, "")
			require.Less(t, answer.Body.Len(), pageBytes+2*record.MaxText, lens)
			page := decode[queryAnswer](t, answer)
			for _, a := range page.Answers {
				require.NotNil(t, a.Winner)
				got = append(got, a.Predicate)
			}
			cursor, more = "&cursor="+page.Cursor, page.Cursor != ""
		}
		require.Len(t, got, 71, lens)
		require.Len(t, slices.Compact(slices.Sorted(slices.Values(got))), 71, lens)
	}
}

// Shown bytes need the turn just like the bytes held for weighing, even where a
// lens holds almost nothing.
func TestLargeAnswersTakeTurns(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.HeavyReads = 1 })
	w.large(8)
	a := claim(func(c *record.Content) { c.Subject = "crowd" })
	items := []store.Item{store.NewContent("alpha", a.ID(), &a.Content)}
	for i := range freeBytes / agentText {
		var agent record.AgentID
		binary.BigEndian.PutUint64(agent[:], uint64(i))
		items = append(items, store.NewSignature("alpha", a.ID(), record.Signature{Agent: agent}))
	}
	w.put(items)
	heavy := slices.Clone(weighing[1:]) // consensus shows only one value
	for _, lens := range allLenses {
		path := "/v1/query?subject=code://go/example/tls&lens=" + lens
		require.Len(t, w.query(path+"&limit=2").Answers, 2, lens)
		heavy = append(heavy, path, "/v1/query?subject=crowd&lens="+lens)
	}
	for _, path := range heavy {
		t.Run(path, func(t *testing.T) {
			require.True(t, w.api.heavy.TryAcquire(1)) // another request has the turn
			r := request{method: "GET", path: path, key: w.raw[keys.ReadOnly], header: http.Header{headerTimeout: {"0.3"}}}
			answer := w.do(r)
			w.api.heavy.Release(1)
			require.Equal(t, http.StatusServiceUnavailable, answer.Code)
			require.Equal(t, codeOverloadedReads, problemOf(t, answer).Code)
			require.Equal(t, http.StatusOK, w.as(keys.ReadOnly, "GET", path, "").Code)
			require.True(t, w.api.heavy.TryAcquire(1), "it has kept its turn")
			w.api.heavy.Release(1)
		})
	}
}

// A read ends when its caller has disconnected, at any stage.
func TestReadEndsWithItsCaller(t *testing.T) {
	w := newWorld(t, nil)
	w.hot("hot", 2000)
	for _, path := range append(weighing,
		"/v1/query"+hotSubject+"&lens=confidence", "/v1/query"+hotSubject+"&lens=authority&scope=own,shared",
		"/v1/query"+hotSubject+"&source_class=community") {
		ctx, leave := context.WithCancel(t.Context())
		w.backend.given = 0
		w.backend.onClaim = func(given int) {
			if given == 10 {
				leave()
			}
		}
		req := httptest.NewRequest(http.MethodGet, path, nil).WithContext(ctx)
		req.Header.Set("X-API-Key", w.raw[keys.ReadOnly])
		w.api.Handler().ServeHTTP(httptest.NewRecorder(), req)
		require.GreaterOrEqual(t, w.backend.given, 10, path)
		require.Less(t, w.backend.given, 500, path)
		leave()
	}
}

// recency reads two claims of each predicate, and the claims of other
// predicates are fetched only once.
func TestRecencyReadsFewClaims(t *testing.T) {
	for _, scope := range []string{"own", "own,shared"} {
		w := newWorld(t, nil)
		for i := range 4 {
			w.hot(fmt.Sprint("p", i), 300)
		}
		w.backend.onClaim = func(int) {}
		got := w.query("/v1/query?subject=code://go/example/tls&lens=recency&scope=" + scope)
		require.Len(t, got.Answers, 4)
		for i, a := range got.Answers {
			require.Equal(t, fmt.Sprint("p", i), a.Predicate)
			require.Contains(t, a.Why.Because, "1700000000")
		}
		require.LessOrEqual(t, w.backend.given, 20)
		opened := len(strings.Split(scope, ","))
		require.Equal(t, slices.Repeat([]cluster.Consistency{cluster.Quorum}, opened), w.backend.asked,
			"each project is compared with other members once, and all predicates are read from that moment")
	}
}
