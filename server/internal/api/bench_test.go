package api

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stemedb/stemedb/server/internal/keys"
)

// nowhere is a response writer that discards everything.
type nowhere struct{ h http.Header }

func (n nowhere) Header() http.Header         { return n.h }
func (n nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (n nowhere) WriteHeader(int)             {}

// BenchmarkHandler measures the API's cost of a request, without sockets.
func BenchmarkHandler(b *testing.B) {
	w := newWorld(b, nil)
	body := []byte(jsonOf(b, claim(nil)))
	w.assert(claim(nil))
	for _, row := range []struct {
		name, method, path string
		body               []byte
	}{
		{"live", "GET", "/v1/health/live", nil},
		{"whoami", "GET", "/v1/whoami", nil},
		{"get", "GET", "/v1/assertions/" + claim(nil).ID().String(), nil},
		{"recency", "GET", "/v1/query?lens=recency&subject=code://go/example/tls&predicate=verification", nil},
		{"refused", "POST", "/v1/assert", []byte("{}")},
		{"assert", "POST", "/v1/assert", body},
	} {
		b.Run(row.name, func(b *testing.B) {
			reader := bytes.NewReader(row.body)
			r := httptest.NewRequest(row.method, row.path, reader)
			r.Header.Set("X-API-Key", w.raw[keys.Admin])
			r.Header.Set("Content-Type", js)
			b.ReportAllocs()
			for b.Loop() {
				reader.Reset(row.body)
				r.Body = io.NopCloser(reader)
				w.api.Handler().ServeHTTP(nowhere{http.Header{}}, r)
			}
		})
	}
}
