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

	"github.com/stemedb/stemedb/server/internal/cluster"
	"github.com/stemedb/stemedb/server/internal/keys"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/record"
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

// weighing are the requests whose answer needs every value and agent at once.
var weighing = []string{"/v1/query" + hotSubject + "&lens=consensus", "/v1/skeptic" + hotSubject, "/v1/layered" + hotSubject}

// A subject about which too much is said is refused by the lenses that would
// have to hold all of it, and by no others; the refusal names the remedy, which
// works.
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

// What one predicate took is not held against the next.
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

// One claim that too many agents have signed.
func TestTooManyVoices(t *testing.T) {
	w := newWorld(t, nil)
	w.backend.voices = 2
	w.assert(claim(nil, 1, 2, 3))
	got := w.as(keys.ReadOnly, "GET", "/v1/query?subject=code://go/example/tls", "")
	require.Equal(t, codeSubjectTooLarge, problemOf(t, got).Code)
}

// Requests that hold much take turns; those that hold little do not wait.
func TestHeavyReadsTakeTurns(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.HeavyReads = 1 })
	w.hot("hot", 400)
	require.True(t, w.api.heavy.TryAcquire(1), "another request has the turn")
	for _, path := range weighing {
		r := request{method: "GET", path: path, key: w.raw[keys.ReadOnly], header: http.Header{headerTimeout: {"0.05"}}}
		got := w.do(r)
		require.Equal(t, cluster.CodeOverloaded, problemOf(t, got).Code, path)
		require.NotEmpty(t, got.Header().Get("Retry-After"))
		require.Equal(t, http.StatusOK, w.as(keys.ReadOnly, "GET", path+"&source_class=regulatory", "").Code, path)
	}
	require.Len(t, w.query("/v1/query"+hotSubject+"&lens=recency").Answers, 1)
	w.api.heavy.Release(1)

	for _, limit := range []int64{defaultReadLimit, 300 << 10} { // also a refusal gives its turn back
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

// A page of large winners ends early, and the next goes on behind it.
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

// What an answer shows needs the turn as well as what it took to weigh it, also
// where a lens holds next to nothing.
func TestLargeAnswersTakeTurns(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.HeavyReads = 1 })
	w.large(8)
	a := claim(func(c *record.Content) { c.Subject = "crowd" })
	items := []store.Item{store.NewContent("alpha", a.ID(), &a.Content)}
	for i := range freeRoom / agentText {
		var agent record.AgentID
		binary.BigEndian.PutUint64(agent[:], uint64(i))
		items = append(items, store.NewSignature("alpha", a.ID(), record.Signature{Agent: agent}))
	}
	w.put(items)
	heavy := slices.Clone(weighing[1:]) // consensus shows one value alone
	for _, lens := range allLenses {
		path := "/v1/query?subject=code://go/example/tls&lens=" + lens
		require.Len(t, w.query(path+"&limit=2").Answers, 2, lens)
		heavy = append(heavy, path, "/v1/query?subject=crowd&lens="+lens)
	}
	for _, path := range heavy {
		t.Run(path, func(t *testing.T) {
			require.True(t, w.api.heavy.TryAcquire(1)) // another request has the turn
			r := request{method: "GET", path: path, key: w.raw[keys.ReadOnly], header: http.Header{headerTimeout: {"0.05"}}}
			answer := w.do(r)
			w.api.heavy.Release(1)
			require.Equal(t, http.StatusServiceUnavailable, answer.Code)
			require.Equal(t, cluster.CodeOverloaded, problemOf(t, answer).Code)
			require.Equal(t, http.StatusOK, w.as(keys.ReadOnly, "GET", path, "").Code)
			require.True(t, w.api.heavy.TryAcquire(1), "it has kept its turn")
			w.api.heavy.Release(1)
		})
	}
}

// A read ends when its caller has gone, wherever it is by then.
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

// recency reads two claims of each predicate, and the others' claims are
// brought here once.
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
