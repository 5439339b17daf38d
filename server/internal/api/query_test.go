package api

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/keys"
)

func (w *world) query(path string) queryAnswer {
	got := w.as(keys.ReadOnly, "GET", path, "")
	require.Equal(w.t, http.StatusOK, got.Code, "%s", got.Body)
	return decode[queryAnswer](w.t, got)
}

// Pages of claims follow each other without gaps, newest first, with any page
// size.
func TestQueryPages(t *testing.T) {
	w := newWorld(t, nil)
	var want []string
	for i := range 25 {
		a := claim(func(c *record.Content) { c.Timestamp -= uint64(i); c.Object = record.Number(float64(i)) })
		want = append(want, w.assert(a).String())
	}
	for _, limit := range []int{1, 4, 25, 26} {
		var got []string
		cursor := ""
		for {
			page := w.query(fmt.Sprintf("/v1/query?subject=code://go/example/tls&limit=%d%s", limit, cursor))
			for _, c := range page.Claims {
				got = append(got, c.Hash)
			}
			if page.Cursor == "" {
				break
			}
			cursor = "&cursor=" + page.Cursor
		}
		require.Equal(t, want, got, "limit %d", limit)
	}
}

func TestQueryWithLensGoesThroughPredicates(t *testing.T) {
	w := newWorld(t, nil)
	for p := range 5 {
		for i := range 3 {
			w.assert(claim(func(c *record.Content) {
				c.Predicate = fmt.Sprintf("p%d", p)
				c.Timestamp += uint64(i)
				c.Object = record.Number(float64(i))
			}))
		}
	}
	all := w.query("/v1/query?subject=code://go/example/tls&lens=recency")
	require.Len(t, all.Answers, 5)
	var paged []string
	cursor := ""
	for {
		page := w.query("/v1/query?subject=code://go/example/tls&lens=recency&limit=2" + cursor)
		for _, a := range page.Answers {
			require.NotNil(t, a.Winner)
			paged = append(paged, a.Predicate)
		}
		if page.Cursor == "" {
			break
		}
		cursor = "&cursor=" + page.Cursor
	}
	require.Equal(t, []string{"p0", "p1", "p2", "p3", "p4"}, paged)
}

// The lifecycle that counts is that of the newest successor, and both are shown.
func TestLifecycleIsTheSuccessors(t *testing.T) {
	w := newWorld(t, nil)
	parent := claim(nil)
	id := w.assert(parent)
	child := claim(func(c *record.Content) {
		c.ParentHash, c.Lifecycle, c.Timestamp = &id, record.Deprecated, c.Timestamp+5
	})
	w.assert(child)
	require.Empty(t, w.query("/v1/query?subject=code://go/example/tls").Claims)
	all := w.query("/v1/query?subject=code://go/example/tls&lifecycle=deprecated")
	require.Len(t, all.Claims, 2)
	require.Equal(t, child.ID().String(), all.Claims[0].Hash)
	require.Equal(t, "deprecated", all.Claims[1].Effective)
	require.Equal(t, child.ID().String(), all.Claims[1].ReplacedBy)
	past := w.query(fmt.Sprintf("/v1/query?subject=code://go/example/tls&as_of=%d", parent.Timestamp))
	require.Len(t, past.Claims, 1, "as_of leaves out claims signed later")
}

func TestFiltersAndVotes(t *testing.T) {
	w := newWorld(t, nil)
	sure := w.assert(claim(func(c *record.Content) { c.SourceClass = record.Regulatory; c.Confidence = 1 }, 1, 2))
	w.assert(claim(func(c *record.Content) {
		c.SourceClass = record.Anecdotal
		c.Confidence = 0.1
		c.Object = record.Text("off")
	}, 3))
	require.Equal(t, 201, w.as(keys.WriteAgent, "POST", "/v1/vote", jsonOf(t, vote(sure, -0.25, 7))).Code)
	subject := "/v1/query?subject=code://go/example/tls"
	require.Len(t, w.query(subject).Claims, 2)
	require.Len(t, w.query(subject+"&source_class=anecdotal,expert").Claims, 1)
	got := w.query(subject + "&min_confidence=0.5").Claims
	require.Len(t, got, 1)
	require.Equal(t, sure.String(), got[0].Hash)
	require.Len(t, got[0].Agents, 2)
	require.Equal(t, voteSummary{Against: 1, Weight: -0.25}, got[0].Votes)
}

func TestSkepticAndLayered(t *testing.T) {
	w := newWorld(t, nil)
	w.assert(claim(nil, 1, 2, 3))
	w.assert(claim(func(c *record.Content) { c.Object, c.SourceClass = record.Text("off"), record.Community }, 4))
	path := "?subject=code://go/example/tls&predicate=verification"
	s := decode[skepticBody](t, w.as(keys.ReadOnly, "GET", "/v1/skeptic"+path, ""))
	require.Equal(t, "majority", s.Status)
	require.Len(t, s.Values, 2)
	require.Equal(t, record.Text("on"), s.Values[0].Object)
	require.Equal(t, 3, s.Values[0].Signers)
	short := decode[skepticBody](t, w.as(keys.ReadOnly, "GET", "/v1/skeptic"+path+"&limit=1", ""))
	require.True(t, short.Truncated)
	require.Equal(t, s.Score, short.Score, "claims that are not shown still count")
	l := decode[struct {
		Layers []struct {
			Class string `json:"source_class"`
			Tier  int
		}
	}](t, w.as(keys.ReadOnly, "GET", "/v1/layered"+path, ""))
	require.Len(t, l.Layers, 2)
	require.Equal(t, "expert", l.Layers[0].Class)
	require.Equal(t, 4, l.Layers[1].Tier)
}

func TestSubjects(t *testing.T) {
	w := newWorld(t, nil)
	for _, s := range []string{"code://a/1", "code://a/2", "code://b/1", "other"} {
		w.assert(claim(func(c *record.Content) { c.Subject = s }))
	}
	first := decode[subjectsBody](t, w.as(keys.ReadOnly, "GET", "/v1/subjects?prefix=code:&limit=2", ""))
	require.Equal(t, []string{"code://a/1", "code://a/2"}, first.Subjects)
	second := decode[subjectsBody](t, w.as(keys.ReadOnly, "GET", "/v1/subjects?prefix=code:&limit=2&cursor="+first.Cursor, ""))
	require.Equal(t, []string{"code://b/1"}, second.Subjects)
	require.Empty(t, second.Cursor)
}

// A cursor made for one query is refused by another, also in another project.
func TestCursorBelongsToItsQuery(t *testing.T) {
	w := newWorld(t, nil)
	for i := range 3 {
		w.assert(claim(func(c *record.Content) { c.Timestamp += uint64(i) }))
	}
	path := "/v1/query?limit=1&subject=code://go/example/tls"
	cursor := w.query(path).Cursor
	require.NotEmpty(t, cursor)
	require.Len(t, w.query(path+"&cursor="+cursor).Claims, 1)
	require.Len(t, w.query(strings.Replace(path, "limit=1", "limit=2", 1)+"&cursor="+cursor).Claims, 2, "the size of a page may change")
	for _, other := range []string{path + "&predicate=verification", "/v1/query?limit=1&subject=x", path + "&scope=shared", path + "&lens=recency"} {
		require.Equal(t, codeInvalidCursor, problemOf(t, w.as(keys.ReadOnly, "GET", other+"&cursor="+cursor, "")).Code, other)
	}
	beta := w.key("beta", keys.ReadOnly, nil)
	got := w.do(request{method: "GET", path: path + "&cursor=" + cursor, key: beta})
	require.Equal(t, codeInvalidCursor, problemOf(t, got).Code)
}
