package client

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
)

// serve answers one route with a text and records the query.
func serve(t *testing.T, path, body string) (*Client, *string) {
	t.Helper()
	var query string
	c, _ := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.URL.Path != path {
			problem(w, 404, "no_such_route")
			return
		}
		query = r.URL.RawQuery
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(body))
	})
	return c, &query
}

const contentJSON = `"subject":"s","predicate":"version","object":{"type":"text","value":"v1"},"confidence":1,"source_class":"observational","lifecycle":"proposed","timestamp":1760000000`

func TestGet(t *testing.T) {
	a := content("s")
	a.Sign(agentKey(1))
	v := record.Vote{Assertion: a.ID(), Weight: 1, Timestamp: 3}
	record.SignVote(agentKey(2), &v)
	body := fmt.Sprintf(`{"hash":%q,"project":"p",%s,"effective_lifecycle":"approved","signatures":[{"agent_id":%q,"signature":%q}],"votes":[{"assertion":%q,"agent":%q,"weight":1,"timestamp":3,"signature":%q}],"consistency":"local","later":{}}`,
		a.ID(), contentJSON, a.Signatures[0].Agent, a.Signatures[0].Sig, v.Assertion, v.Agent, v.Sig)
	c, query := serve(t, "/v1/assertions/"+a.ID().String(), body)
	got, err := c.GetWith(t.Context(), a.ID(), Local)
	require.NoError(t, err)
	require.Equal(t, &Record{Hash: a.ID(), Project: "p", Assertion: *a, EffectiveLifecycle: record.Approved, Votes: []record.Vote{v}, Consistency: Local}, got)
	require.Equal(t, a.ID(), got.ID())
	require.Equal(t, "consistency=local", *query)
	_, err = c.Get(t.Context(), a.ID())
	require.NoError(t, err)
	require.Empty(t, *query)
}

func TestQuery(t *testing.T) {
	claim := fmt.Sprintf(`{"hash":%q,"project":"p",%s,"effective_lifecycle":"deprecated","replaced_by":%q,"agents":[%q],"votes":{"for":2,"against":1,"weight":0.5}}`,
		record.Hash{1}, contentJSON, record.Hash{2}, record.AgentID{3})
	c, query := serve(t, "/v1/query", `{"subject":"s","lens":"authority","consistency":"quorum","answers":[{"predicate":"version","winner":`+claim+`,"why":{"rule":"r","because":"b","score":0.5,"tie_break":"id","runner_up":{"hash":"`+record.Hash{4}.String()+`","score":0.25}}},{"predicate":"x","winner":null,"why":{"rule":"r","because":"none","score":0}}],"cursor":"c2"}`)
	page, err := c.Query(t.Context(), Query{
		Subject: "a b/ü", Predicate: "version", Lifecycles: []record.Lifecycle{record.Approved, record.UnderReview},
		SourceClasses: []record.SourceClass{record.Expert}, MinConfidence: 0.25, AsOf: 7, Scope: OwnAndShared, Consistency: Quorum, Limit: 9, Cursor: "c1",
	}, Authority)
	require.NoError(t, err)
	require.Equal(t, "as_of=7&consistency=quorum&cursor=c1&lens=authority&lifecycle=approved%2Cunder_review&limit=9&min_confidence=0.25&predicate=version&scope=own%2Cshared&source_class=expert&subject=a+b%2F%C3%BC", *query)
	require.Equal(t, "c2", page.Cursor)
	require.Len(t, page.Answers, 2)
	require.Nil(t, page.Answers[1].Winner)
	first := page.Answers[0]
	require.Equal(t, record.Text("v1"), first.Winner.Object)
	require.Equal(t, record.Deprecated, first.Winner.EffectiveLifecycle)
	require.Equal(t, &record.Hash{2}, first.Winner.ReplacedBy)
	require.Equal(t, []record.AgentID{{3}}, first.Winner.Agents)
	require.Equal(t, VoteCount{2, 1, 0.5}, first.Winner.Votes)
	require.Equal(t, record.Hash{4}, first.Why.RunnerUp.Hash)

	c, query = serve(t, "/v1/query", `{"claims":[`+claim+`],"cursor":""}`)
	claims, err := c.Claims(t.Context(), Query{Subject: "s"})
	require.NoError(t, err)
	require.Len(t, claims.Claims, 1)
	require.Equal(t, "subject=s", *query)
}

func TestSkeptic(t *testing.T) {
	c, query := serve(t, "/v1/skeptic", `{"subject":"s","predicate":"p","consistency":"quorum","conflict_score":0.9,"status":"contested","why":"w","values":[{"object":{"type":"number","value":-0.5},"support":2,"share":0.5,"signers":2,"claim_count":3,"claims":[{"hash":"`+record.Hash{1}.String()+`","timestamp":5,"confidence":0.5,"source_class":"expert","effective_lifecycle":"approved","agents":[],"votes":{"for":0,"against":0,"weight":0}}]}]}`)
	got, err := c.Skeptic(t.Context(), Query{Subject: "s", Predicate: "p"})
	require.NoError(t, err)
	require.Equal(t, "predicate=p&subject=s", *query)
	require.Equal(t, "contested", got.Status)
	require.InDelta(t, 0.9, got.Score, 0)
	require.Equal(t, record.Number(-0.5), got.Values[0].Object)
	require.Equal(t, record.Expert, got.Values[0].Claims[0].SourceClass)
}

func TestSubjects(t *testing.T) {
	c, query := serve(t, "/v1/subjects", `{"prefix":"code://","subjects":["code://a","code://b"],"consistency":"quorum","cursor":"n"}`)
	page, err := c.Subjects(t.Context(), "code://", "m", 2)
	require.NoError(t, err)
	require.Equal(t, &SubjectPage{Subjects: []string{"code://a", "code://b"}, Cursor: "n"}, page)
	require.Equal(t, "cursor=m&limit=2&prefix=code%3A%2F%2F", *query)
}

func TestWhoAmI(t *testing.T) {
	c, _ := serve(t, "/v1/whoami", `{"auth":true,"project":"p","role":"write_agent","label":"l","hash":"h","expires_at":5}`)
	got, err := c.WhoAmI(t.Context())
	require.NoError(t, err)
	require.Equal(t, &Identity{Auth: true, Project: "p", Role: "write_agent", Label: "l", Hash: "h", ExpiresAt: 5}, got)
}

func TestClusterStatus(t *testing.T) {
	c, _ := serve(t, "/v1/cluster/status", `{"detail":"full","generation":4,"leader":"a","ready":true,"members":[{"name":"a","alive":true,"whole":true,"last_heard":"2026-01-01T00:00:00Z"},{"name":"b","alive":true,"whole":false,"lag_bytes":-1},{"name":"c"}]}`)
	got, err := c.ClusterStatus(t.Context())
	require.NoError(t, err)
	require.Equal(t, []int{3, 2, 1}, []int{got.MemberCount, got.AliveCount, got.WholeCount})
	require.True(t, got.LeaderKnown)
	c, _ = serve(t, "/v1/cluster/status", `{"detail":"reduced","member_count":3,"alive_count":3,"whole_count":2,"leader_known":true}`)
	got, err = c.ClusterStatus(t.Context())
	require.NoError(t, err)
	require.Equal(t, []int{3, 3, 2}, []int{got.MemberCount, got.AliveCount, got.WholeCount})
}

func TestUnreadableAnswer(t *testing.T) {
	c, _ := serve(t, "/v1/whoami", strings.Repeat("[", 3))
	_, err := c.WhoAmI(t.Context())
	require.ErrorContains(t, err, "is this a StemeDB server?")
}

// A node that lost records says so in a header of each answer to a read, also of
// a refusal.
func TestResultsAndErrorsSayThatRecordsMayBeMissing(t *testing.T) {
	status := http.StatusOK
	c, _ := newClient(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Stemedb-Incomplete", "records are lost")
		if status != http.StatusOK {
			problem(w, status, "no_such_record")
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte("{}"))
	})
	for name, read := range map[string]func() (string, error){
		"Claims":   func() (string, error) { r, err := c.Claims(t.Context(), Query{}); return r.Incomplete, err },
		"Query":    func() (string, error) { r, err := c.Query(t.Context(), Query{}, Recency); return r.Incomplete, err },
		"Skeptic":  func() (string, error) { r, err := c.Skeptic(t.Context(), Query{}); return r.Incomplete, err },
		"Subjects": func() (string, error) { r, err := c.Subjects(t.Context(), "", "", 0); return r.Incomplete, err },
	} {
		got, err := read()
		require.NoError(t, err, name)
		require.Equal(t, "records are lost", got, name)
	}
	status = http.StatusNotFound
	_, err := c.Get(t.Context(), record.Hash{1})
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, "records are lost", e.Incomplete)
}
