package api

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/clock"
	"github.com/stemedb/stemedb/server/internal/keys"
)

// listening is a world that answers on real sockets.
type listening struct {
	*world
	serving      *Serving
	api, gateway string // host:port
}

func listen(t testing.TB, w *world, certs *Certificates) *listening {
	t.Helper()
	open := func() net.Listener {
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		require.NoError(t, err)
		return l
	}
	a, g := open(), open()
	l := &listening{world: w, api: a.Addr().String(), gateway: g.Addr().String()}
	l.serving = w.api.Serve(a, g, certs)
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = l.serving.Shutdown(ctx)
	})
	return l
}

// raw sends bytes and returns the answer, and whether the server then closed
// the connection.
func raw(t testing.TB, addr string, parts ...string) (*http.Response, []byte, bool) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	for _, p := range parts {
		_, err = io.WriteString(conn, p)
		require.NoError(t, err)
	}
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	if !resp.Close {
		return resp, body, false
	}
	_, err = r.ReadByte()
	return resp, body, errors.Is(err, io.EOF)
}

// A body that does not arrive is answered with 408 and the connection closed.
func TestSlowBodyIsAnsweredAndClosed(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.ReadTimeout = 300 * time.Millisecond })
	l := listen(t, w, nil)
	for _, addr := range []string{l.api, l.gateway} {
		for _, framing := range []string{"Content-Length: 100\r\n\r\n{", "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"} {
			resp, body, closed := raw(t, addr, "POST /v1/assert HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-API-Key: "+w.raw[keys.WriteAgent]+"\r\n"+framing)
			require.Equal(t, http.StatusRequestTimeout, resp.StatusCode, "%s", body)
			require.Contains(t, string(body), codeBodyTimeout)
			require.True(t, closed)
		}
	}
}

// A header that does not end costs only its connection.
func TestSlowHeaderIsClosed(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.ReadTimeout = 300 * time.Millisecond })
	l := listen(t, w, nil)
	conn, err := net.Dial("tcp", l.api)
	require.NoError(t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, "GET /v1/health HTTP/1.1\r\nHost:")
	require.NoError(t, err)
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(20*time.Second)))
	_, err = io.ReadAll(conn)
	require.NoError(t, err, "the server closes the connection")
}

// Bodies that break off, have a wrong length or are too large are answered, and
// the next connection is served.
func TestBrokenBodies(t *testing.T) {
	w := newWorld(t, nil)
	l := listen(t, w, nil)
	head := "POST /v1/assert HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-API-Key: " + w.raw[keys.WriteAgent] + "\r\n"
	for _, row := range []struct {
		rest   string
		status int
	}{
		{"Content-Length: 2000000\r\n\r\n{}", 413},
		{"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400},
		{"Content-Length: -5\r\n\r\n", 400},
		{"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400},
		{"Expect: 100-continue\r\nContent-Length: 2000000\r\n\r\n", 413},
		{"X-Filler: " + strings.Repeat("f", 20<<10) + "\r\nContent-Length: 2\r\n\r\n{}", 431},
		{"X-Filler: " + strings.Repeat("f", 60<<10) + "\r\nContent-Length: 2\r\n\r\n{}", 431},
	} {
		resp, body, _ := raw(t, l.api, head+row.rest)
		require.Equal(t, row.status, resp.StatusCode, "%.80q: %s", row.rest, body)
	}
	// 64 MiB in chunks: refused long before they are all there.
	conn, err := net.Dial("tcp", l.api)
	require.NoError(t, err)
	defer conn.Close()
	go func() {
		_, _ = io.WriteString(conn, head+"Transfer-Encoding: chunked\r\n\r\n")
		chunk := fmt.Sprintf("10000\r\n%s\r\n", strings.Repeat(" ", 0x10000))
		for range 1024 {
			if _, err := io.WriteString(conn, chunk); err != nil {
				return
			}
		}
	}()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusRequestEntityTooLarge, resp.StatusCode)
	ok, _, _ := raw(t, l.api, "GET /v1/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
	require.Equal(t, 200, ok.StatusCode)
}

// Large bodies share a budget; a caller whose body does not fit is asked to
// retry.
func TestBodiesShareABudget(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.BodyBudget = 256 << 10 })
	big := request{
		method: "POST", path: "/v1/assert", key: w.raw[keys.WriteAgent], media: js, body: bytes.Repeat([]byte(" "), 700<<10),
		header: http.Header{headerTimeout: {"0.05"}},
	}
	require.Equal(t, codeOverloadedBodies, problemOf(t, w.do(big)).Code)
	big.body = bytes.Repeat([]byte(" "), 200<<10)
	for range 5 { // the budget is given back
		require.Equal(t, record.CodeMalformed, problemOf(t, w.do(big)).Code)
	}
}

func TestHeadAndOptions(t *testing.T) {
	w := newWorld(t, nil)
	l := listen(t, w, nil)
	for _, rt := range routes() {
		if rt.method != "GET" {
			continue
		}
		e := exchanges(t, &rt)
		get := w.do(request{method: "GET", path: e.path, key: w.raw[keys.Admin]})
		head := w.do(request{method: "HEAD", path: e.path, key: w.raw[keys.Admin]})
		require.Equal(t, get.Code, head.Code, rt.pattern)
		require.Zero(t, head.Body.Len())
		require.Equal(t, get.Header().Get("Content-Type"), head.Header().Get("Content-Type"))
	}
	resp, err := http.Head("http://" + l.api + "/v1/health/live")
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, 200, resp.StatusCode)
	options := w.do(request{method: "OPTIONS", path: "/v1/admin/api-keys/" + unknownHash})
	require.Equal(t, http.StatusNoContent, options.Code)
	require.Equal(t, "DELETE, GET, HEAD, OPTIONS, PATCH", options.Header().Get("Allow"))
}

func TestCORS(t *testing.T) {
	for _, row := range []struct {
		name    string
		auth    bool
		allowed []string
		origin  string
		want    string
	}{
		{"auth, none given", true, nil, "https://a.example", ""},
		{"no auth, none given", false, nil, "https://a.example", "*"},
		{"listed", true, []string{"https://a.example", "https://b.example"}, "https://b.example", "https://b.example"},
		{"not listed", true, []string{"https://a.example"}, "https://evil.example", ""},
		{"not listed, no auth", false, []string{"https://a.example"}, "https://evil.example", ""},
		{"any", true, []string{"*"}, "https://c.example", "*"},
		{"a prefix is no match", true, []string{"https://a.example"}, "https://a.example.evil", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld(t, func(o *Options) { o.Auth, o.AllowedOrigins = row.auth, row.allowed })
			origin := http.Header{"Origin": {row.origin}}
			got := w.do(request{method: "GET", path: "/v1/whoami", key: w.raw[keys.Admin], header: origin})
			require.Equal(t, row.want, got.Header().Get("Access-Control-Allow-Origin"))
			origin.Set("Access-Control-Request-Method", "POST")
			pre := w.do(request{method: "OPTIONS", path: "/v1/assert", header: origin})
			require.Equal(t, row.want, pre.Header().Get("Access-Control-Allow-Origin"))
			require.Equal(t, row.want != "", pre.Header().Get("Access-Control-Allow-Methods") != "")
		})
	}
}

func TestRequestIDs(t *testing.T) {
	w := newWorld(t, nil)
	given := func(id string) string {
		return w.do(request{method: "GET", path: "/v1/health/live", header: http.Header{headerRequestID: {id}}}).Header().Get(headerRequestID)
	}
	require.Equal(t, "abc-1.2:3_x", given("abc-1.2:3_x"))
	for _, bad := range []string{"", "a b", "a\tb", strings.Repeat("x", 65), "é", `"`} {
		made := given(bad)
		require.NotEqual(t, bad, made)
		require.True(t, plainID(made))
	}
	require.NotEqual(t, given(""), given(""))
}

func TestMetrics(t *testing.T) {
	w := newWorld(t, nil)
	w.assert(claim(nil))
	w.as(keys.ReadOnly, "GET", "/v1/query?subject=s", "")
	w.as(keys.ReadOnly, "GET", "/v1/nothing/"+unknownHash, "")
	w.do(request{method: "BREW", path: "/v1/query"})
	text := w.do(request{method: "GET", path: "/metrics"}).Body.String()
	for _, line := range []string{
		`stemedb_http_requests_total{method="POST",route="/v1/assert",status="201"} 1`,
		`stemedb_http_requests_total{method="GET",route="unmatched",status="404"} 1`,
		`stemedb_http_requests_total{method="other",route="unmatched",status="405"} 1`,
		`stemedb_queries_total{endpoint="query"} 1`,
		`stemedb_query_latency_seconds_count{endpoint="query"} 1`,
		`stemedb_assertions_ingested_total 1`,
		`stemedb_http_requests_in_flight 1`,
		`stemedb_ready 1`,
	} {
		require.Contains(t, text, line+"\n")
	}
	require.NotContains(t, text, unknownHash, "no label contains callers' text")
}

func TestReducedStatus(t *testing.T) {
	w := newWorld(t, nil)
	full := w.as(keys.ReadOnly, "GET", "/v1/cluster/status", "")
	require.Contains(t, full.Body.String(), "n1:18180")
	for _, key := range []string{"", "nonsense", w.key("alpha", keys.Admin, func(k *keys.Key) { k.RevokedAt = 1 })} {
		got := w.do(request{method: "GET", path: "/v1/cluster/status", key: key})
		require.Equal(t, 200, got.Code)
		require.NotContains(t, got.Body.String(), "n1")
		require.Equal(t, 2, decode[reducedStatus](t, got).Members)
	}
	w.table.unconfirmed.Store(true)
	got := w.as(keys.Admin, "GET", "/v1/cluster/status", "")
	require.Equal(t, 200, got.Code, "the status is there when keys cannot be checked")
	require.Equal(t, codeKeysUnconfirmed, decode[reducedStatus](t, got).Because)
}

// While a node shuts down no caller sees a failed request: callers on kept
// connections are asked to leave with a good answer; callers on new ones are
// served until no caller chooses the node any more.
func TestShutdownFailsNoRequest(t *testing.T) {
	w := newWorld(t, nil)
	nodes := []*listening{listen(t, w, nil), listen(t, newWorld(t, nil), nil)}
	nodes[1].raw = w.raw
	nodes[1].table.keys = w.table.keys
	var ready [2]atomic.Bool
	ready[0].Store(true)
	ready[1].Store(true)
	pick := func() *listening { // as a Service does
		if ready[0].Load() {
			return nodes[0]
		}
		return nodes[1]
	}
	body := []byte(jsonOf(t, claim(nil)))
	stop := make(chan struct{})
	var wait sync.WaitGroup
	var requests, failures atomic.Int64
	var first atomic.Pointer[string]
	hammer := func(keep bool) {
		transport := &http.Transport{DisableKeepAlives: !keep, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, pick().api)
		}}
		defer transport.CloseIdleConnections()
		client := &http.Client{Transport: transport}
		for {
			select {
			case <-stop:
				return
			default:
			}
			req, _ := http.NewRequest(http.MethodPost, "http://service/v1/assert", io.NopCloser(bytes.NewReader(body)))
			req.Header.Set("Content-Type", js)
			req.Header.Set("X-API-Key", w.raw[keys.WriteAgent])
			requests.Add(1)
			resp, err := client.Do(req)
			if err == nil {
				_, err = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode > 201 {
					err = errors.New(resp.Status)
				}
			}
			if err != nil {
				failures.Add(1)
				text := err.Error()
				first.CompareAndSwap(nil, &text)
			}
			time.Sleep(time.Millisecond)
		}
	}
	for i := range 8 {
		wait.Go(func() { hammer(i%2 == 0) })
	}
	time.Sleep(200 * time.Millisecond)
	before := requests.Load()

	w.api.Drain()
	require.Equal(t, http.StatusServiceUnavailable, w.do(request{method: "GET", path: "/v1/health/ready"}).Code)
	resp, _, closed := raw(t, nodes[0].api, "GET /v1/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
	require.Equal(t, 200, resp.StatusCode)
	require.True(t, closed, "every answer asks the caller to leave")
	time.Sleep(200 * time.Millisecond) // endpoints are removed later
	ready[0].Store(false)
	time.Sleep(200 * time.Millisecond)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	require.NoError(t, nodes[0].serving.Shutdown(ctx))
	time.Sleep(200 * time.Millisecond)
	close(stop)
	wait.Wait()
	require.Greater(t, requests.Load(), before)
	if text := first.Load(); text != nil {
		t.Fatalf("%d of %d requests failed, the first with %s", failures.Load(), requests.Load(), *text)
	}
}

// A request in progress when the server stops is answered.
func TestShutdownWaitsForRequests(t *testing.T) {
	w := newWorld(t, nil)
	l := listen(t, w, nil)
	w.backend.slow.Store(int64(300 * time.Millisecond))
	status := make(chan int, 1)
	go func() {
		req, _ := http.NewRequest(http.MethodPost, "http://"+l.api+"/v1/assert", strings.NewReader(jsonOf(t, claim(nil))))
		req.Header.Set("Content-Type", js)
		req.Header.Set("X-API-Key", w.raw[keys.WriteAgent])
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			status <- -1
			return
		}
		_ = resp.Body.Close()
		status <- resp.StatusCode
	}()
	require.Eventually(t, func() bool { return w.backend.calls.Load() > 0 }, 10*time.Second, time.Millisecond)
	require.NoError(t, l.serving.Shutdown(t.Context()))
	require.Equal(t, http.StatusCreated, <-status)
}

// pair writes a self-signed certificate for a name into dir.
func pair(t testing.TB, dir, name string, serial int64) (certPath, keyPath string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Duration(serial) * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	certPath, keyPath = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	require.NoError(t, os.WriteFile(certPath, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	require.NoError(t, os.WriteFile(keyPath, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600))
	return certPath, keyPath
}

func TestTLSReload(t *testing.T) {
	dir := t.TempDir()
	certs, err := loadPair(t, dir, "db.example", 5)
	require.NoError(t, err)
	l := listen(t, newWorld(t, nil), certs)
	serial := func() int64 {
		conn, err := tls.Dial("tcp", l.api, &tls.Config{InsecureSkipVerify: true}) // a test
		require.NoError(t, err)
		defer conn.Close()
		require.Equal(t, "", conn.ConnectionState().NegotiatedProtocol)
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	require.EqualValues(t, 5, serial())

	require.NoError(t, os.WriteFile(certs.keyPath, []byte("half written"), 0o600))
	certs.Reload()
	require.EqualValues(t, 5, serial(), "a pair that does not match changes nothing")
	pair(t, dir, "db.example", 7)
	certs.Reload()
	require.EqualValues(t, 7, serial())
	require.NoError(t, os.Remove(certs.certPath))
	certs.Reload()
	require.EqualValues(t, 7, serial())

	_, err = LoadCertificates(certs.certPath, certs.keyPath, clock.Wall(), nil)
	require.Error(t, err, "at the start they must be there")
}

func TestPeersCertificate(t *testing.T) {
	load := func(name string, serial int64) *tls.Certificate {
		certs, err := loadPair(t, t.TempDir(), name, serial)
		require.NoError(t, err)
		return certs.get()
	}
	own := load("db.example", 3)
	require.NoError(t, verifyPeer(own, []*x509.Certificate{own.Leaf}, time.Now()))
	require.Error(t, verifyPeer(own, nil, time.Now()))
	require.Error(t, verifyPeer(own, []*x509.Certificate{load("db.example", 4).Leaf}, time.Now()), "the same name, self-signed by another party")
	require.Error(t, verifyPeer(own, []*x509.Certificate{load("other.example", 4).Leaf}, time.Now()))
}

func loadPair(t testing.TB, dir, name string, serial int64) (*Certificates, error) {
	t.Helper()
	certPath, keyPath := pair(t, dir, name, serial)
	return LoadCertificates(certPath, keyPath, clock.Wall(), nil)
}

// A node that lost records that no other member can restore answers from the
// rest, and says so with every read until an operator has accepted the loss.
func TestAnswersOfAnIncompleteNodeSaySo(t *testing.T) {
	w := newWorld(t, nil)
	w.backend.incomplete = "records are lost"
	got := w.as(keys.ReadOnly, "GET", "/v1/subjects", "")
	require.Equal(t, 200, got.Code)
	require.Equal(t, "records are lost", got.Header().Get("X-Stemedb-Incomplete"))
	require.Empty(t, w.as(keys.ReadOnly, "GET", "/v1/whoami", "").Header().Get("X-Stemedb-Incomplete"))
	refused := w.as(keys.Admin, "POST", "/v1/admin/members/n1/accept-loss", "")
	require.Equal(t, 409, refused.Code)
	require.Contains(t, refused.Body.String(), "the others refill n1")
	require.Equal(t, 204, w.as(keys.Admin, "POST", "/v1/admin/members/n0/accept-loss", "").Code)
	require.Empty(t, w.as(keys.ReadOnly, "GET", "/v1/subjects", "").Header().Get("X-Stemedb-Incomplete"))
}

// A change is cancelled by its number, so that no other change is affected.
func TestChangeIsCancelledByItsNumber(t *testing.T) {
	w := newWorld(t, nil)
	w.backend.change = 7
	require.Equal(t, 404, w.as(keys.Admin, "DELETE", "/v1/admin/change?id=6", "").Code)
	require.Equal(t, 400, w.as(keys.Admin, "DELETE", "/v1/admin/change?id=x", "").Code)
	require.EqualValues(t, 7, w.backend.change)
	require.Equal(t, 204, w.as(keys.Admin, "DELETE", "/v1/admin/change?id=7", "").Code)
	require.Zero(t, w.backend.change)
	require.Equal(t, 204, w.as(keys.Admin, "DELETE", "/v1/admin/change", "").Code, "none is open")
}
