package api

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/keys"
)

// figure returns the value of a series in /metrics, 0 when it is absent.
func (w *world) figure(series string) float64 {
	for line := range strings.Lines(w.do(request{method: "GET", path: "/metrics"}).Body.String()) {
		if text, ok := strings.CutPrefix(line, series+" "); ok {
			value, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
			require.NoError(w.t, err)
			return value
		}
	}
	return 0
}

// exchange sends text over a connection and reads one answer.
func exchange(t testing.TB, conn net.Conn, text string) (*http.Response, []byte) {
	t.Helper()
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	_, err := io.WriteString(conn, text)
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp, body
}

// refused are requests that net/http answers before any handler sees them.
var refused = []struct {
	name, text string
	status     int
	code       string
}{
	{"an expectation", "GET /v1/health/live HTTP/1.1\r\nHost: x\r\nExpect: coffee\r\n\r\n", 417, codeExpectation},
	{"an expectation with a body", "POST /v1/assert HTTP/1.1\r\nHost: x\r\nExpect: coffee\r\nContent-Length: 2\r\n\r\n{}", 417, codeExpectation},
	{"a transfer encoding", "POST /v1/assert HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501, codeTransferEncoding},
	{"two transfer encodings", "POST /v1/assert HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 501, codeTransferEncoding},
	{"HTTP/2 without negotiation", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, codeHTTPVersion},
	{"another version", "GET / HTTP/3.0\r\nHost: x\r\n\r\n", 505, codeHTTPVersion},
	{"no version", "GET /\r\n\r\n", 400, codeMalformedRequest},
	{"no HTTP", "\x16\x03\x01 hello\r\n\r\n", 400, codeMalformedRequest},
	{"no host", "GET /v1/health HTTP/1.1\r\n\r\n", 400, codeMalformedRequest},
	{"two hosts", "GET /v1/health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, codeMalformedRequest},
	{"an invalid host", "GET /v1/health HTTP/1.1\r\nHost: a b\r\n\r\n", 400, codeMalformedRequest},
	{"a header name with a space", "GET /v1/health HTTP/1.1\r\nHost: x\r\nX Y: z\r\n\r\n", 400, codeMalformedRequest},
	{"a header value with a zero byte", "GET /v1/health HTTP/1.1\r\nHost: x\r\nX: \x00\r\n\r\n", 400, codeMalformedRequest},
	{"a negative length", "POST /v1/assert HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400, codeMalformedRequest},
	{"two lengths", "POST /v1/assert HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400, codeMalformedRequest},
	{"a broken path", "GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n", 400, codeMalformedRequest},
	{"a header without end", "GET /v1/health HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n", 431, codeHeaderTooLarge},
}

// A request that never reaches a handler is answered like any other: a problem
// with a request id, on both ports, with TLS and without.
func TestRequestsThatNoHandlerSeesAreAnsweredWithProblems(t *testing.T) {
	certs, err := loadPair(t, t.TempDir(), "a", 1)
	require.NoError(t, err)
	for _, secured := range []*Certificates{nil, certs} {
		w := newWorld(t, nil)
		l := listen(t, w, secured)
		for _, row := range refused {
			for _, addr := range []string{l.api, l.gateway} {
				t.Run(row.name, func(t *testing.T) {
					counted := `stemedb_http_requests_total{method="other",route="unmatched",status="` + strconv.Itoa(row.status) + `"}`
					before := w.figure(counted)
					conn, err := net.Dial("tcp", addr)
					require.NoError(t, err)
					if secured != nil {
						conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true}) // a test
					}
					resp, body := exchange(t, conn, row.text)
					require.Equal(t, row.status, resp.StatusCode, "%s", body)
					require.True(t, resp.Close)
					require.Equal(t, mediaProblem, resp.Header.Get("Content-Type"), "%s", body)
					require.EqualValues(t, len(body), resp.ContentLength)
					var p problemBody
					require.NoError(t, json.Unmarshal(body, &p))
					require.Equal(t, row.code, p.Code)
					require.Equal(t, row.status, p.Status)
					require.NotEmpty(t, p.Detail)
					require.NotEmpty(t, p.Remedy)
					require.NotEmpty(t, p.RequestID)
					require.Equal(t, p.RequestID, resp.Header.Get(headerRequestID))
					require.InDelta(t, before+1, w.figure(counted), 0)
				})
			}
		}
	}
}

// OPTIONS for the whole server is answered like that of a route.
func TestOptionsForTheServer(t *testing.T) {
	l := listen(t, newWorld(t, nil), nil)
	for _, addr := range []string{l.api, l.gateway} {
		resp, _, _ := raw(t, addr, "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n")
		require.Equal(t, http.StatusNoContent, resp.StatusCode)
		require.NotEmpty(t, resp.Header.Get(headerRequestID))
		require.Contains(t, resp.Header.Get("Allow"), "OPTIONS")
		resp, body, _ := raw(t, addr, "GET * HTTP/1.1\r\nHost: x\r\n\r\n")
		require.GreaterOrEqual(t, resp.StatusCode, 400)
		require.NotEmpty(t, resp.Header.Get(headerRequestID), "%s", body)
	}
}

// Targets that are not a path of this server are answered with a problem.
func TestTargetsThatAreNoPath(t *testing.T) {
	l := listen(t, newWorld(t, nil), nil)
	for target, status := range map[string]int{
		"CONNECT example.com:443": 404, "CONNECT *": 404, "OPTIONS example.com:443": 404, "GET http://x": 404, "OPTIONS http://x": 404,
		"GET mailto:a@b": 404, "GET //v1/health/live": 404, "GET /v1/assertions/../x": 404, "GET *": 405,
	} {
		resp, body, _ := raw(t, l.api, target+" HTTP/1.1\r\nHost: x\r\n\r\n")
		require.Equal(t, status, resp.StatusCode, target)
		require.Equal(t, mediaProblem, resp.Header.Get("Content-Type"), "%s: %s", target, body)
		require.NotEmpty(t, resp.Header.Get(headerRequestID))
	}
}

// A plain HTTP request to a TLS port is answered in plain HTTP.
func TestPlainRequestToATLSPort(t *testing.T) {
	certs, err := loadPair(t, t.TempDir(), "a", 1)
	require.NoError(t, err)
	w := newWorld(t, nil)
	l := listen(t, w, certs)
	for _, addr := range []string{l.api, l.gateway} {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "OPTIONS", "PATCH", "DELETE"} {
			resp, body, closed := raw(t, addr, method+" /v1/health HTTP/1.1\r\nHost: x\r\n\r\n")
			require.Equal(t, http.StatusBadRequest, resp.StatusCode, method)
			require.True(t, closed)
			require.NotEmpty(t, resp.Header.Get(headerRequestID))
			require.Contains(t, string(body), "https://")
		}
	}
	require.Eventually(t, func() bool { return w.figure(`stemedb_http_server_errors_total{kind="tls_handshake"}`) == 14 }, 10*time.Second, 10*time.Millisecond)
}

// Answers of handlers pass unchanged, with any content.
func TestAnswersOfHandlersPass(t *testing.T) {
	w := newWorld(t, nil)
	l := listen(t, w, nil)
	text := strings.Repeat("HTTP/1.1 417 Expectation Failed\r\n\r\n", 1000)
	a := claim(func(c *record.Content) { c.Object = record.Text(text) })
	id := w.assert(a)
	for shift := range 40 { // so that a write begins with each byte of it
		req, err := http.NewRequest(http.MethodGet, "http://"+l.api+"/v1/assertions/"+id.String(), nil)
		require.NoError(t, err)
		req.Header.Set("X-API-Key", w.raw[keys.ReadOnly])
		req.Header.Set(headerRequestID, strings.Repeat("r", 1+shift))
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		var got struct{ Object record.Object }
		require.NoError(t, json.NewDecoder(resp.Body).Decode(&got))
		require.NoError(t, resp.Body.Close())
		require.Equal(t, record.Text(text), got.Object)
	}
	conn, err := net.Dial("tcp", l.api)
	require.NoError(t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, "POST /v1/assert HTTP/1.1\r\nHost: x\r\nX-API-Key: "+w.raw[keys.WriteAgent]+"\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
	require.NoError(t, err)
	line, err := bufio.NewReader(conn).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "HTTP/1.1 100 Continue\r\n", line)
}

// A repeated single-value header is refused by every route, also when both values
// are equal.
func TestHeadersThatCountOnceComeOnce(t *testing.T) {
	w := newWorld(t, nil)
	for _, rt := range routes() {
		e := exchanges(t, &rt)
		for _, row := range []struct {
			name   string
			values []string
		}{
			{"X-API-Key", []string{w.raw[keys.Admin], w.raw[keys.Admin]}},
			{"Content-Type", []string{js, js}},
			{"Content-Encoding", []string{"identity", "gzip"}},
			{headerTimeout, []string{"1", "60"}},
			{headerRequestID, []string{"a", "b"}},
			{headerGateway, []string{"n1", "n2"}},
			{"Origin", []string{"https://a.example", "https://b.example"}},
			{"Access-Control-Request-Method", []string{"GET", "POST"}},
		} {
			r := request{method: rt.method, path: e.path, key: w.raw[keys.Admin], media: js, body: []byte(e.body), header: http.Header{}}
			switch row.name {
			case "X-API-Key":
				r.key = ""
			case "Content-Type":
				r.media = ""
			}
			r.header[http.CanonicalHeaderKey(row.name)] = row.values
			for _, h := range []http.Handler{w.api.Handler(), w.api.Gateway()} {
				p := problemOf(t, send(h, r))
				require.Equal(t, http.StatusBadRequest, p.Status, "%s %s: %s", rt.method, rt.pattern, row.name)
				require.Equal(t, record.CodeDuplicate, p.Code)
				require.Equal(t, row.name, p.Field)
			}
		}
	}
}

// Each line of net/http is counted by its kind; repeated lines are mostly not
// logged.
func TestLinesOfTheHTTPServerAreCounted(t *testing.T) {
	var out bytes.Buffer
	w := newWorld(t, func(o *Options) { o.Logger = slog.New(slog.NewJSONHandler(&out, nil)) })
	report := w.api.httpServer(w.api.Handler()).ErrorLog
	for line, kind := range map[string]string{
		"http: Accept error: accept tcp 127.0.0.1:1: accept4: too many open files; retrying in 5ms": "accept",
		"http: TLS handshake error from 127.0.0.1:1: remote error: tls: bad certificate":            "tls_handshake",
		"http: panic serving 127.0.0.1:1: oops\ngoroutine 1 [running]:":                             "panic",
		"http: URL query contains semicolon, which is no longer a supported separator":              "semicolon",
		"http: superfluous response.WriteHeader call from x (y.go:1)":                               "other",
	} {
		for range 3 {
			report.Print(line)
		}
		require.InDelta(t, 3, w.figure(`stemedb_http_server_errors_total{kind="`+kind+`"}`), 0, line)
	}
	require.Equal(t, 1, strings.Count(out.String(), "oops"))
	require.Contains(t, out.String(), `"level":"ERROR","msg":"a request made the HTTP server panic"`)
	require.Contains(t, out.String(), "bad certificate")
}
