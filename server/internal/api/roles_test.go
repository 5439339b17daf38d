package api

import (
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/keys"
	"github.com/stemedb/stemedb/server/internal/lens"
)

// Every role calls every route with an otherwise valid request: it is refused
// with 403 exactly where the matrix says so.
func TestRoleMatrix(t *testing.T) {
	for _, rt := range routes() {
		for _, role := range keys.Roles() {
			t.Run(rt.method+" "+rt.pattern+" "+string(role), func(t *testing.T) {
				w := newWorld(t, nil)
				holdKey(func(*keys.Key) {})(w)
				w.assert(claim(nil))
				e := exchanges(t, &rt)
				r := request{method: e.method, path: e.path, key: w.raw[role], media: e.media}
				if e.body != "" {
					r.body = []byte(e.body)
				}
				got := w.do(r)
				if role.Allows(rt.class) {
					require.NotContains(t, []int{http.StatusUnauthorized, http.StatusForbidden}, got.Code, "%s", got.Body)
					require.Less(t, got.Code, 500)
				} else {
					require.Equal(t, http.StatusForbidden, got.Code, "%s", got.Body)
				}
			})
		}
	}
}

// docs/api-keys.md shows the matrix as it is.
func TestRoleMatrixIsDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../../docs/api-keys.md")
	require.NoError(t, err)
	for _, row := range matrixRows() {
		require.Contains(t, string(doc), row)
	}
}

// matrixRows are the rows of the documented matrix.
func matrixRows() (rows []string) {
	for _, rt := range routes() {
		marks := make([]string, 0, 5)
		anybody := "no"
		if rt.class == keys.Public {
			anybody = "yes"
		}
		marks = append(marks, anybody)
		for _, role := range keys.Roles() {
			mark := "no"
			if role.Allows(rt.class) {
				mark = "yes"
			}
			marks = append(marks, mark)
		}
		path := regexp.MustCompile(`:(\w+)`).ReplaceAllString(rt.pattern, "{$1}")
		rows = append(rows, fmt.Sprintf("| %s `%s` | %s |", rt.method, path, strings.Join(marks, " | ")))
	}
	return rows
}

func TestAuthOffMeansDefaultProjectAndEveryRole(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.Auth = false })
	for _, rt := range routes() {
		e := exchanges(t, &rt)
		r := request{method: e.method, path: e.path, media: e.media, key: "not a key"}
		if e.body != "" {
			r.body = []byte(e.body)
		}
		require.NotContains(t, []int{401, 403}, w.do(r).Code, rt.pattern)
	}
	who := decode[whoamiBody](t, w.do(request{method: "GET", path: "/v1/whoami"}))
	require.Equal(t, whoamiBody{Project: "default", Role: "admin"}, who)
}

// A project's records are invisible to other projects; shared records are
// visible to all.
func TestProjectsAreApart(t *testing.T) {
	w := newWorld(t, nil)
	beta := w.key("beta", keys.WriteAgent, nil)
	shared := w.key(keys.SharedProject, keys.Admin, nil)
	a := claim(nil)
	id := w.assert(a)
	get := func(key, query string) int {
		return w.do(request{method: "GET", path: "/v1/assertions/" + id.String() + query, key: key}).Code
	}
	require.Equal(t, 200, get(w.raw[keys.ReadOnly], ""))
	require.Equal(t, 404, get(beta, ""))
	require.Equal(t, 404, get(beta, "?scope=own,shared"))

	put := w.do(request{method: "POST", path: "/v1/assert", key: shared, media: js, body: []byte(jsonOf(t, a))})
	require.Equal(t, http.StatusCreated, put.Code, "the same claim in two projects is two records: %s", put.Body)
	require.Equal(t, 404, get(beta, ""))
	require.Equal(t, 200, get(beta, "?scope=shared"))

	query := "/v1/query?scope=own,shared&subject=" + a.Subject
	both := decode[queryAnswer](t, w.do(request{method: "GET", path: query, key: w.raw[keys.ReadOnly]}))
	require.Len(t, both.Claims, 1, "a claim that two scopes hold appears once")
	require.Equal(t, "alpha", both.Claims[0].Project)
	one := decode[queryAnswer](t, w.do(request{method: "GET", path: query, key: beta}))
	require.Equal(t, keys.SharedProject, one.Claims[0].Project)
}

// queryAnswer is the part of a query's answer that a client reads.
type queryAnswer struct {
	Claims []struct {
		Hash, Project string
		Effective     string `json:"effective_lifecycle"`
		ReplacedBy    string `json:"replaced_by"`
		Agents        []string
		Votes         voteSummary
		Object        record.Object
		Partial       bool
	}
	Answers []struct {
		Predicate string
		Winner    *struct{ Hash string }
		Why       lens.Why
	}
	Cursor string
}

// The leader is asked once about a key that this node's copy lacks. An unknown
// key costs it one question, not one per request.
func TestUnknownKeyIsAskedOfTheLeaderOnce(t *testing.T) {
	w := newWorld(t, nil)
	raw, err := keys.Generate(keys.Live, nil)
	require.NoError(t, err)
	h := keys.HashOf(raw)
	w.table.leaderOnly[h] = keys.Key{Hash: h, Project: "beta", Role: keys.ReadOnly, Enabled: true, Version: 1}
	for range 3 {
		got := w.do(request{method: "GET", path: "/v1/whoami", key: raw})
		require.Equal(t, http.StatusOK, got.Code)
		require.Equal(t, "beta", decode[whoamiBody](t, got).Project)
	}
	require.EqualValues(t, 1, w.table.asked.Load())

	wrong, err := keys.Generate(keys.Live, nil)
	require.NoError(t, err)
	for range 5 {
		require.Equal(t, 401, w.do(request{method: "GET", path: "/v1/whoami", key: wrong}).Code)
	}
	require.EqualValues(t, 2, w.table.asked.Load())
}

func TestUnknownKeysAreForgotten(t *testing.T) {
	u := newUnknownKeys()
	now := time.Now()
	for i := range 3 * unknownKept {
		u.remember(keys.Hash{byte(i), byte(i >> 8)}, now.Add(time.Duration(i)*time.Millisecond))
		require.LessOrEqual(t, len(u.seen), unknownKept)
	}
	u.remember(keys.Hash{1}, now)
	require.True(t, u.recent(keys.Hash{1}, now.Add(unknownFor-1)))
	require.False(t, u.recent(keys.Hash{1}, now.Add(unknownFor)))
}

func TestKeyLife(t *testing.T) {
	w := newWorld(t, nil)
	minted := decode[keyBody](t, w.as(keys.Admin, "POST", "/v1/admin/api-keys", `{"project":"beta","role":"write_agent","label":"ci"}`))
	require.NoError(t, keys.ValidateRaw(minted.Key))
	require.Equal(t, keys.HashOf(minted.Key).String(), minted.Hash)
	try := func(raw string) int { return w.do(request{method: "GET", path: "/v1/whoami", key: raw}).Code }
	require.Equal(t, 200, try(minted.Key))

	path := "/v1/admin/api-keys/" + minted.Hash
	shown := w.as(keys.Admin, "GET", path, "")
	require.NotContains(t, shown.Body.String(), minted.Key, "a key is shown once")

	require.Equal(t, 200, w.as(keys.Admin, "PATCH", path, `{"version":1,"enabled":false}`).Code)
	require.Equal(t, 401, try(minted.Key))
	require.Equal(t, 200, w.as(keys.Admin, "PATCH", path, `{"version":2,"enabled":true,"role":"read_only"}`).Code)
	require.Equal(t, 200, try(minted.Key))

	next := decode[keyBody](t, w.as(keys.Admin, "POST", path+"/rotate", `{"grace":"1h"}`))
	require.Equal(t, "read_only", next.Role)
	require.Equal(t, 200, try(minted.Key), "the old key works until the end of the grace period")
	require.Equal(t, 200, try(next.Key))
	last := decode[keyBody](t, w.as(keys.Admin, "POST", "/v1/admin/api-keys/"+next.Hash+"/rotate", `{"grace":"0s","environment":"test"}`))
	require.Equal(t, 401, try(next.Key))
	require.True(t, strings.HasPrefix(last.Key, "steme_test_"))

	require.Equal(t, 204, w.as(keys.Admin, "DELETE", path, "").Code)
	require.Equal(t, 204, w.as(keys.Admin, "DELETE", path, "").Code, "revoking is idempotent")
	require.Equal(t, 401, try(minted.Key))
}

// Pages of keys follow each other without gaps, and a cursor belongs to its
// query.
func TestKeyPages(t *testing.T) {
	w := newWorld(t, nil)
	for range 10 {
		w.key("beta", keys.ReadOnly, nil)
	}
	seen := map[string]bool{}
	cursor := ""
	for pages := 0; ; pages++ {
		page := decode[keyList](t, w.as(keys.Admin, "GET", "/v1/admin/api-keys?limit=3&project=beta"+cursor, ""))
		for _, k := range page.Keys {
			require.False(t, seen[k.Hash])
			seen[k.Hash] = true
		}
		if page.Cursor == "" {
			require.Equal(t, 3, pages)
			break
		}
		cursor = "&cursor=" + page.Cursor
	}
	require.Len(t, seen, 10)
	require.Equal(t, codeInvalidCursor, problemOf(t, w.as(keys.Admin, "GET", "/v1/admin/api-keys?limit=3&project=alpha"+cursor, "")).Code)
}
