package api

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/keys"
)

// sane checks the promises that the package makes for all answers.
func sane(t *testing.T, got *httptest.ResponseRecorder) {
	t.Helper()
	require.NotEqual(t, http.StatusInternalServerError, got.Code, "%s", got.Body)
	require.NotEmpty(t, got.Header().Get(headerRequestID))
	if got.Code >= 400 {
		p := problemOf(t, got)
		require.Contains(t, codeTable, p.Code)
		require.NotEmpty(t, p.Remedy)
	}
}

// No body crashes a route, and every refusal says why.
func FuzzBodies(f *testing.F) {
	for _, row := range recordErrors(f) {
		f.Add(uint8(0), uint8(0), []byte(row.body))
		f.Add(uint8(1), uint8(1), []byte(row.body+"\n"+row.body))
	}
	f.Add(uint8(0), uint8(2), claim(nil).AppendCBOR(nil))
	f.Add(uint8(1), uint8(3), append(claim(nil).AppendCBOR(nil), claim(nil, 2).AppendCBOR(nil)...))
	f.Add(uint8(2), uint8(0), []byte(jsonOf(f, vote(record.Hash{1}, 1, 1))))
	f.Add(uint8(3), uint8(0), []byte(`{"project":"beta","role":"admin","label":"x","expires_at":0}`))
	f.Add(uint8(4), uint8(0), []byte(`{"version":1,"label":"x","enabled":true}`))
	f.Add(uint8(5), uint8(0), []byte(`{"grace":"1h"}`))
	w := newWorld(f, nil)
	paths := []struct{ method, path string }{
		{"POST", "/v1/assert"},
		{"POST", "/v1/assert/batch"},
		{"POST", "/v1/vote"},
		{"POST", "/v1/admin/api-keys"},
		{"PATCH", "/v1/admin/api-keys/" + unknownHash},
		{"POST", "/v1/admin/api-keys/" + unknownHash + "/rotate"},
	}
	media := []string{record.MediaJSON, record.MediaNDJSON, record.MediaCBOR, record.MediaCBORSeq}
	f.Fuzz(func(t *testing.T, route, kind uint8, body []byte) {
		to := paths[int(route)%len(paths)]
		sane(t, w.do(request{method: to.method, path: to.path, key: w.raw[keys.Admin], media: media[int(kind)%len(media)], body: body}))
	})
}

// No query string and no path crashes a route.
func FuzzQueries(f *testing.F) {
	for _, row := range requestErrors(f) {
		if row.method == "GET" && row.body == "" {
			path, query, _ := strings.Cut(row.path, "?")
			f.Add(path, query)
		}
	}
	w := newWorld(f, nil)
	w.assert(claim(nil))
	f.Fuzz(func(t *testing.T, path, query string) {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.URL.Path, r.URL.RawQuery = path, query
		r.Header.Set("X-API-Key", w.raw[keys.Admin])
		got := httptest.NewRecorder()
		w.api.Handler().ServeHTTP(got, r)
		sane(t, got)
	})
}
