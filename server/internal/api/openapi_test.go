package api

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"
	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/keys"
)

var update = flag.Bool("update", false, "write openapi.json anew from openapi.yaml")

func loadOpenAPI(t testing.TB) *openapi3.T {
	t.Helper()
	loader := openapi3.NewLoader()
	doc, err := loader.LoadFromFile("openapi.yaml")
	require.NoError(t, err)
	require.NoError(t, doc.Validate(loader.Context))
	return doc
}

// People edit openapi.yaml; the server serves openapi.json.
func TestOpenAPIJSONIsUpToDate(t *testing.T) {
	doc := loadOpenAPI(t)
	text, err := doc.MarshalJSON()
	require.NoError(t, err)
	var pretty bytes.Buffer
	require.NoError(t, json.Indent(&pretty, text, "", " "))
	pretty.WriteByte('\n')
	if *update {
		require.NoError(t, os.WriteFile("openapi.json", pretty.Bytes(), 0o644))
		return
	}
	require.JSONEq(t, pretty.String(), string(openapiJSON), "run: make generate")
}

// The description has exactly the routes of the table, with the same parameters
// and media types.
func TestOpenAPIDescribesEveryRoute(t *testing.T) {
	doc := loadOpenAPI(t)
	colon := regexp.MustCompile(`:(\w+)`)
	seen := map[string]bool{}
	for _, rt := range routes() {
		path := colon.ReplaceAllString(rt.pattern, "{$1}")
		name := rt.method + " " + path
		seen[name] = true
		item := doc.Paths.Value(path)
		require.NotNil(t, item, name)
		op := item.GetOperation(rt.method)
		require.NotNil(t, op, name)
		var params []string
		for _, p := range op.Parameters {
			if p.Value.In == "query" {
				params = append(params, p.Value.Name)
			}
		}
		require.ElementsMatch(t, rt.params, params, name)
		var media []string
		if op.RequestBody != nil {
			media = sortedKeys(op.RequestBody.Value.Content)
		}
		require.ElementsMatch(t, rt.media, media, name)
		require.Equal(t, rt.class == keys.Public, op.Security != nil, "%s: exactly the public routes need no key", name)
	}
	for path, item := range doc.Paths.Map() {
		for method := range item.Operations() {
			require.True(t, seen[method+" "+path], "%s %s is described and does not exist", method, path)
		}
	}
}

// contract checks requests and answers against the description.
type contract struct {
	router routers.Router
}

func newContract(t testing.TB) *contract {
	t.Helper()
	router, err := legacy.NewRouter(loadOpenAPI(t))
	require.NoError(t, err)
	openapi3filter.RegisterBodyDecoder(mediaProblem, openapi3filter.JSONBodyDecoder)
	for _, media := range []string{record.MediaNDJSON, record.MediaCBOR, record.MediaCBORSeq, mediaRecords} {
		openapi3filter.RegisterBodyDecoder(media, openapi3filter.PlainBodyDecoder)
	}
	return &contract{router}
}

// check compares an exchange with the description. Refused requests need not
// match it; answers always must.
func (c *contract) check(t testing.TB, r request, got *httptest.ResponseRecorder) {
	t.Helper()
	req := httptest.NewRequest(r.method, r.path, bytes.NewReader(r.body))
	if r.media != "" {
		req.Header.Set("Content-Type", r.media)
	}
	req.Header.Set("X-API-Key", r.key)
	route, params, err := c.router.FindRoute(req)
	require.NoError(t, err, "%s %s", r.method, r.path)
	in := &openapi3filter.RequestValidationInput{
		Request: req, PathParams: params, Route: route,
		Options: &openapi3filter.Options{
			IncludeResponseStatus: true,
			AuthenticationFunc:    func(context.Context, *openapi3filter.AuthenticationInput) error { return nil },
		},
	}
	if got.Code < 300 {
		require.NoError(t, openapi3filter.ValidateRequest(t.Context(), in), "%s %s", r.method, r.path)
	}
	out := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: in, Status: got.Code, Header: got.Header(), Options: in.Options,
	}
	out.SetBodyBytes(got.Body.Bytes())
	require.NoError(t, openapi3filter.ValidateResponse(t.Context(), out), "%s %s answered %d %s", r.method, r.path, got.Code, got.Body)
}

func TestContract(t *testing.T) {
	w := newWorld(t, nil)
	c := newContract(t)
	a := claim(func(c *record.Content) {
		c.SourceMetadata = map[string]string{"file": "a.go"}
		c.SourceHash = &record.Hash{1}
	}, 1, 2)
	child := claim(func(c *record.Content) {
		parent := a.ID()
		c.ParentHash, c.Lifecycle, c.Timestamp = &parent, record.Approved, c.Timestamp+1
	}, 3)
	number := claim(func(c *record.Content) { c.Object, c.SourceClass = record.Number(2.5), record.Regulatory })
	flagClaim := claim(func(c *record.Content) { c.Object, c.Predicate = record.Boolean(true), "other" })
	ref := claim(func(c *record.Content) { c.Object, c.Predicate = record.Reference("code://x"), "refers" })
	cborSeq := append(flagClaim.AppendCBOR(nil), ref.AppendCBOR(nil)...)
	raw, err := keys.Generate(keys.Live, nil)
	require.NoError(t, err)
	registered := keys.HashOf(raw).String()
	incarnation, first := w.backend.Incarnation(), positionText(w.backend.store.First())
	query := "subject=code://go/example/tls"
	steps := []struct {
		role         keys.Role
		method, path string
		media, body  string
		status       int
	}{
		{keys.WriteAgent, "POST", "/v1/assert", "application/json", jsonOf(t, a), 201},
		{keys.WriteAgent, "POST", "/v1/assert", "application/json", jsonOf(t, a), 200},
		{keys.WriteAgent, "POST", "/v1/assert", "application/json; charset=utf-8", jsonOf(t, a), 200},
		{keys.WriteAgent, "POST", "/v1/assert", "application/cbor", string(child.AppendCBOR(nil)), 201},
		{keys.WriteAgent, "POST", "/v1/assert", "application/json", "{}", 400},
		{keys.WriteAgent, "POST", "/v1/assert/batch", "application/json", "[" + jsonOf(t, number) + `,{"subject":1}]`, 200},
		{keys.WriteAgent, "POST", "/v1/assert/batch", "application/x-ndjson", jsonOf(t, number) + "\nnonsense\n", 200},
		{keys.WriteAgent, "POST", "/v1/assert/batch", "application/cbor", string(cborSeq), 200},
		{keys.WriteAgent, "POST", "/v1/assert/batch", "application/cbor-seq", string(cborSeq), 200},
		{keys.WriteAgent, "POST", "/v1/vote", "application/json", jsonOf(t, vote(a.ID(), -0.5, 4)), 201},
		{keys.WriteAgent, "POST", "/v1/vote", "application/cbor", string(vote(a.ID(), 1, 5).AppendCBOR(nil)), 201},
		{keys.ReadOnly, "GET", "/v1/assertions/" + a.ID().String(), "", "", 200},
		{keys.ReadOnly, "GET", "/v1/assertions/" + a.ID().String() + "?consistency=local&scope=own,shared", "", "", 200},
		{keys.ReadOnly, "GET", "/v1/assertions/" + record.Hash{9}.String(), "", "", 404},
		{keys.ReadOnly, "GET", "/v1/query?" + query, "", "", 200},
		{keys.ReadOnly, "GET", "/v1/query?limit=1&" + query, "", "", 200},
		{keys.ReadOnly, "GET", "/v1/query?lens=recency&" + query, "", "", 200},
		{keys.ReadOnly, "GET", "/v1/query?lens=consensus&scope=own,shared&as_of=1800000000&" + query, "", "", 200},
		{keys.ReadOnly, "GET", "/v1/query?lens=confidence&min_confidence=0.2&" + query, "", "", 200},
		{keys.ReadOnly, "GET", "/v1/query?lens=authority&source_class=expert,regulatory&lifecycle=proposed,approved&" + query, "", "", 200},
		{keys.ReadOnly, "GET", "/v1/query?lens=recency&subject=nothing", "", "", 200},
		{keys.ReadOnly, "GET", "/v1/query?subject=nothing", "", "", 200},
		{keys.ReadOnly, "GET", "/v1/skeptic?predicate=verification&" + query, "", "", 200},
		{keys.ReadOnly, "GET", "/v1/skeptic?predicate=nothing&" + query, "", "", 200},
		{keys.ReadOnly, "GET", "/v1/layered?predicate=verification&" + query, "", "", 200},
		{keys.ReadOnly, "GET", "/v1/subjects?prefix=code:", "", "", 200},
		{keys.ReadOnly, "GET", "/v1/subjects", "", "", 200},
		{keys.ReadOnly, "GET", "/v1/whoami", "", "", 200},
		{keys.ReadOnly, "GET", "/v1/health", "", "", 200},
		{keys.ReadOnly, "GET", "/v1/health/live", "", "", 200},
		{keys.ReadOnly, "GET", "/v1/health/ready", "", "", 200},
		{keys.ReadOnly, "GET", "/v1/health/startup", "", "", 200},
		{keys.ReadOnly, "GET", "/v1/cluster/status", "", "", 200},
		{"", "GET", "/v1/cluster/status", "", "", 200},
		{keys.Admin, "POST", "/v1/admin/api-keys", "application/json", `{"project":"beta","role":"write_agent","label":"ci","environment":"test","expires_at":4000000000}`, 201},
		{keys.Admin, "POST", "/v1/admin/api-keys", "application/json", `{"project":"beta","role":"read_only","key_hash":"` + registered + `"}`, 201},
		{keys.Admin, "POST", "/v1/admin/api-keys", "application/json", `{"project":"beta","role":"read_only","key_hash":"` + registered + `"}`, 200},
		{keys.Admin, "GET", "/v1/admin/api-keys", "", "", 200},
		{keys.Admin, "GET", "/v1/admin/api-keys?project=beta&limit=1", "", "", 200},
		{keys.Admin, "GET", "/v1/admin/api-keys/" + registered, "", "", 200},
		{keys.Admin, "PATCH", "/v1/admin/api-keys/" + registered, "application/json", `{"version":1,"label":"new","enabled":true}`, 200},
		{keys.Admin, "PATCH", "/v1/admin/api-keys/" + registered, "application/json", `{"version":1,"label":"newer"}`, 409},
		{keys.Admin, "POST", "/v1/admin/api-keys/" + registered + "/rotate", "application/json", `{"grace":"0s"}`, 201},
		{keys.Admin, "GET", "/v1/admin/api-keys/" + registered, "", "", 200},
		{keys.Admin, "DELETE", "/v1/admin/api-keys/" + registered, "", "", 204},
		{keys.Admin, "POST", "/v1/admin/members/n0/accept-loss", "", "", 204},
		{keys.Admin, "POST", "/v1/admin/members/nobody/accept-loss", "", "", 404},
		{keys.Admin, "DELETE", "/v1/admin/change", "", "", 204},
		{keys.Admin, "DELETE", "/v1/admin/change?id=7", "", "", 404},
		{keys.Backup, "GET", "/v1/admin/backup?node=n0", "", "", 200},
		{keys.Backup, "GET", "/v1/admin/backup/records?incarnation=" + incarnation + "&from=" + first + "&to=END", "", "", 200},
		{keys.Backup, "GET", "/v1/admin/backup/records?incarnation=other&from=" + first + "&to=END", "", "", 404},
		{keys.Backup, "POST", "/v1/admin/restore", mediaRecords, string(pieceOf(a)), 200},
		{keys.Admin, "GET", "/metrics", "", "", 200},
		{keys.Admin, "GET", "/openapi.json", "", "", 200},
	}
	exercised := map[string]bool{}
	for _, s := range steps {
		s.path = strings.ReplaceAll(s.path, "END", positionText(w.backend.store.End()))
		r := request{method: s.method, path: s.path, key: w.raw[s.role], media: s.media}
		if s.body != "" {
			r.body = []byte(s.body)
		}
		got := w.do(r)
		require.Equal(t, s.status, got.Code, "%s %s: %s", s.method, s.path, got.Body)
		c.check(t, r, got)
		if s.status < 300 {
			path, _, _ := strings.Cut(s.path, "?")
			path = regexp.MustCompile(`[0-9a-f]{64}`).ReplaceAllString(path, ":hash")
			path = strings.Replace(path, "/members/n0/", "/members/:name/", 1)
			exercised[s.method+" "+path] = true
		}
	}
	for _, rt := range routes() {
		require.True(t, exercised[rt.method+" "+rt.pattern], "%s %s has no exchange in this test", rt.method, rt.pattern)
	}
}

// A node that is starting shows its progress.
func TestContractWhileStarting(t *testing.T) {
	a, err := New(Options{Node: "n0"})
	require.NoError(t, err)
	c := newContract(t)
	a.SetProgress(Progress{Phase: "replaying the log", Done: 5, Total: 10})
	r := request{method: "GET", path: "/v1/health/startup"}
	got := send(a.Handler(), r)
	require.Equal(t, http.StatusServiceUnavailable, got.Code)
	require.Equal(t, &Progress{Phase: "replaying the log", Done: 5, Total: 10}, problemOf(t, got).Progress)
	c.check(t, r, got)
	require.Equal(t, http.StatusOK, send(a.Handler(), request{method: "GET", path: "/v1/health/live"}).Code)
}
