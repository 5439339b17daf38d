package client

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
)

func agentKey(n byte) ed25519.PrivateKey {
	seed := make([]byte, ed25519.SeedSize)
	seed[0] = n
	return ed25519.NewKeyFromSeed(seed)
}

func content(subject string) *record.Assertion {
	return &record.Assertion{Content: record.Content{
		Subject: subject, Predicate: "version", Object: record.Text("v1"), Confidence: 1,
		SourceClass: record.Observational, Timestamp: 1_760_000_000,
	}}
}

// waits records the client's waits.
type waits struct {
	mu  sync.Mutex
	all []time.Duration
}

func (w *waits) sleep(ctx context.Context, d time.Duration) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, d)
	return ctx.Err()
}

func newClient(t *testing.T, handler http.HandlerFunc, opts ...Option) (*Client, *waits) {
	t.Helper()
	srv := httptest.NewServer(handler)
	t.Cleanup(srv.Close)
	w := &waits{}
	c, err := New(srv.URL, "steme_test_key", append([]Option{WithAgentKey(agentKey(1)), WithSleep(w.sleep)}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(c.CloseIdleConnections)
	c.jitter = func() float64 { return 0.5 }
	return c, w
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	b, err := json.Marshal(v)
	if err == nil {
		_, _ = w.Write(b)
	}
}

func problem(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"type":"about:blank","title":"no","status":%d,"code":%q,"detail":"d","field":"subject","remedy":"r","request_id":"q1","more":1}`, status, code)
}

// takeOne answers /v1/assert like the server.
func takeOne(t *testing.T, w http.ResponseWriter, r *http.Request) {
	t.Helper()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	a, err := record.ParseAssertionCBOR(body)
	if err != nil {
		t.Errorf("the client sent %v", err)
		problem(w, 400, "malformed")
		return
	}
	for _, ok := range record.NewVerifier(4).Verify(a.AppendSigned(nil, a.ID())) {
		if !ok {
			problem(w, 400, "invalid_signature")
			return
		}
	}
	answer(w, 201, map[string]any{"hash": a.ID(), "status": "created"})
}

func TestAssert(t *testing.T) {
	c, w := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.URL.Path != "/v1/assert" || r.Header.Get("X-API-Key") != "steme_test_key" || r.Header.Get("Content-Type") != "application/cbor" {
			problem(w, 400, "malformed")
			return
		}
		takeOne(t, w, r)
	})
	a := content("s")
	got, err := c.Assert(t.Context(), a)
	require.NoError(t, err)
	require.Equal(t, Result{ID: a.ID(), Created: true}, got)
	require.Len(t, a.Signatures, 1)
	require.Empty(t, w.all)
}

func TestAssertRefusedBeforeSending(t *testing.T) {
	c, _ := newClient(t, func(http.ResponseWriter, *http.Request) { t.Error("a request was sent") })
	a := content("")
	_, err := c.Assert(t.Context(), a)
	var fe *record.FieldError
	require.ErrorAs(t, err, &fe)
	require.Equal(t, "subject", fe.Field)
	require.Empty(t, a.Signatures)
	c.agent = nil
	_, err = c.Assert(t.Context(), content("s"))
	require.ErrorIs(t, err, ErrNoAgentKey)
	_, err = c.Vote(t.Context(), &record.Vote{Weight: 1})
	require.ErrorIs(t, err, ErrNoAgentKey)
}

func TestVote(t *testing.T) {
	c, _ := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		v, err := record.ParseVoteCBOR(body)
		item := v.Signed()
		if err != nil || r.URL.Path != "/v1/vote" || !record.NewVerifier(1).VerifyOne(&item) {
			problem(w, 400, "malformed")
			return
		}
		answer(w, 200, map[string]any{"hash": v.ID(), "status": "exists"})
	})
	v := &record.Vote{Assertion: record.Hash{1}, Weight: -1, Timestamp: 5}
	got, err := c.Vote(t.Context(), v)
	require.NoError(t, err)
	require.Equal(t, Result{ID: v.ID()}, got)
}

func TestRetries(t *testing.T) {
	second := time.Second
	for name, tc := range map[string]struct {
		fail  func(w http.ResponseWriter, r *http.Request, n int32)
		times int32 // that it fails
		want  []time.Duration
		ok    bool
	}{
		"503 once": {func(w http.ResponseWriter, _ *http.Request, _ int32) { problem(w, 503, "unavailable") }, 1, []time.Duration{2 * second}, true},
		"502 page": {func(w http.ResponseWriter, _ *http.Request, _ int32) {
			http.Error(w, "<h1>Bad Gateway</h1>", http.StatusBadGateway)
		}, 2, []time.Duration{2 * second, 4 * second}, true},
		"429 thrice": {func(w http.ResponseWriter, _ *http.Request, _ int32) { problem(w, 429, "rate_limited") }, 3, []time.Duration{2 * second, 4 * second, 8 * second}, true},
		"503 always": {func(w http.ResponseWriter, _ *http.Request, _ int32) { problem(w, 503, "unavailable") }, 99, []time.Duration{2 * second, 4 * second, 8 * second}, false},
		"400":        {func(w http.ResponseWriter, _ *http.Request, _ int32) { problem(w, 400, "malformed") }, 99, nil, false},
		"401":        {func(w http.ResponseWriter, _ *http.Request, _ int32) { problem(w, 401, "key_missing") }, 99, nil, false},
		"500":        {func(w http.ResponseWriter, _ *http.Request, _ int32) { problem(w, 500, "internal") }, 99, nil, false},
		"507":        {func(w http.ResponseWriter, _ *http.Request, _ int32) { problem(w, 507, "read_only") }, 99, nil, false},
		"504":        {func(w http.ResponseWriter, _ *http.Request, _ int32) { http.Error(w, "", http.StatusGatewayTimeout) }, 99, nil, false},
		"redirect": {func(w http.ResponseWriter, r *http.Request, _ int32) {
			http.Redirect(w, r, "http://elsewhere/", http.StatusFound)
		}, 99, nil, false},
		"Retry-After":  {retryAfter("7"), 2, []time.Duration{7 * second, 7 * second}, true},
		"shorter":      {retryAfter("1"), 1, []time.Duration{2 * second}, true},
		"far too long": {retryAfter("86400"), 99, nil, false},
		"a date":       {retryAfter("Thu, 01 Jan 2026 00:00:30 GMT"), 1, []time.Duration{30 * second}, true},
		"nonsense":     {retryAfter("soon"), 1, []time.Duration{2 * second}, true},
		"cut off":      {func(http.ResponseWriter, *http.Request, int32) { panic(http.ErrAbortHandler) }, 2, []time.Duration{2 * second, 4 * second}, true},
		"cut in body": {func(w http.ResponseWriter, _ *http.Request, _ int32) {
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write([]byte("{"))
		}, 1, []time.Duration{2 * second}, true},
		"not StemeDB": {func(w http.ResponseWriter, _ *http.Request, _ int32) { _, _ = w.Write([]byte("<html>")) }, 99, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			var n atomic.Int32
			var shown []Retry
			c, w := newClient(t, func(w http.ResponseWriter, r *http.Request) {
				if i := n.Add(1); i <= tc.times {
					tc.fail(w, r, i)
					return
				}
				takeOne(t, w, r)
			}, WithClock(func() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) }), WithOnRetry(func(r Retry) { shown = append(shown, r) }))
			_, err := c.Assert(t.Context(), content("s"))
			require.Equal(t, tc.ok, err == nil, "%v", err)
			require.Equal(t, tc.want, w.all)
			require.Len(t, shown, len(tc.want))
			require.Equal(t, int32(len(tc.want)+1), n.Load())
		})
	}
}

func retryAfter(value string) func(http.ResponseWriter, *http.Request, int32) {
	return func(w http.ResponseWriter, _ *http.Request, _ int32) {
		w.Header().Set("Retry-After", value)
		problem(w, 503, "unavailable")
	}
}

func TestJitterStaysNearTheWait(t *testing.T) {
	c, _ := newClient(t, nil)
	err := &Error{Status: 503}
	for _, tc := range []struct {
		jitter float64
		want   time.Duration
	}{{0, 1600 * time.Millisecond}, {1, 2400 * time.Millisecond}} {
		c.jitter = func() float64 { return tc.jitter }
		got, ok := c.wait(err, 0)
		require.True(t, ok)
		require.Equal(t, tc.want, got)
	}
}

func TestErrorsAreTyped(t *testing.T) {
	c, _ := newClient(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "3")
		problem(w, 404, "no_such_record")
	})
	_, err := c.Get(t.Context(), record.Hash{1})
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, &Error{Type: "about:blank", Title: "no", Status: 404, Detail: "d", Code: "no_such_record", Field: "subject", Remedy: "r", RequestID: "q1", RetryAfter: 3 * time.Second}, e)
	require.True(t, IsNotFound(err))
	require.False(t, IsTemporary(err))
	require.ErrorContains(t, err, "404 no_such_record (subject): d; r [request q1]")

	c, _ = newClient(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "nothing\n here", http.StatusForbidden) })
	_, err = c.Get(t.Context(), record.Hash{1})
	require.ErrorContains(t, err, "403: nothing here")
}

// A caller with a queue keeps temporary failures, also those that this client
// does not retry itself.
func TestTemporaryIsWhatIsAboutNow(t *testing.T) {
	for status, want := range map[int]bool{
		429: true, 502: true, 503: true, 504: true, 507: true, 522: true,
		302: false, 400: false, 401: false, 403: false, 413: false, 500: false, 501: false, 505: false,
	} {
		require.Equal(t, want, IsTemporary(fmt.Errorf("wrapped: %w", &Error{Status: status})), status)
	}
}

func TestNoConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := l.Addr().String()
	require.NoError(t, l.Close())
	w := &waits{}
	c, err := New("http://"+addr, "", WithSleep(w.sleep))
	require.NoError(t, err)
	_, err = c.WhoAmI(t.Context())
	require.Error(t, err)
	require.True(t, IsTemporary(err))
	require.Len(t, w.all, 3)
	require.ErrorContains(t, err, "failed 4 times")
}

func TestUntrustedCertificateIsFinal(t *testing.T) {
	srv := httptest.NewTLSServer(http.NotFoundHandler())
	defer srv.Close()
	srv.Config.ErrorLog = nil
	w := &waits{}
	c, err := New(srv.URL, "", WithSleep(w.sleep))
	require.NoError(t, err)
	_, err = c.WhoAmI(t.Context())
	require.Error(t, err)
	require.False(t, IsTemporary(err))
	require.Empty(t, w.all)
}

func TestContextEndsWaiting(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c, _ := newClient(t, func(w http.ResponseWriter, _ *http.Request) {
		cancel()
		problem(w, 503, "unavailable")
	}, WithSleep(wait))
	_, err := c.WhoAmI(ctx)
	require.Error(t, err)
}

func TestTheEndOfTheCallersContextIsFinal(t *testing.T) {
	for name, sleeping := range map[string]bool{"during an attempt": false, "between attempts": true} {
		ctx, cancel := context.WithCancel(t.Context())
		c, _ := newClient(t, func(w http.ResponseWriter, _ *http.Request) {
			if !sleeping {
				cancel()
			}
			problem(w, 503, "unavailable")
		}, WithSleep(func(ctx context.Context, _ time.Duration) error {
			cancel()
			return ctx.Err()
		}))
		_, err := c.WhoAmI(ctx)
		require.ErrorIs(t, err, context.Canceled, name)
		require.False(t, IsTemporary(err), name)
	}
}

func TestSlowAttemptIsTemporary(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	c, w := newClient(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-release:
		}
	}, WithTimeout(50*time.Millisecond), WithRetries(time.Second))
	_, err := c.WhoAmI(t.Context())
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.True(t, IsTemporary(err))
	require.Len(t, w.all, 1)
}

func TestOtherIDIsAnError(t *testing.T) {
	c, _ := newClient(t, func(w http.ResponseWriter, _ *http.Request) {
		answer(w, 201, map[string]any{"hash": record.Hash{9}, "status": "created"})
	})
	_, err := c.Assert(t.Context(), content("s"))
	require.ErrorIs(t, err, ErrOtherID)
}

func TestNewRefuses(t *testing.T) {
	for _, bad := range []string{"", "stemedb.example.org", "ftp://x", "http://", "https://user:pw@x", "https://x?y=1", "http://x\n"} {
		_, err := New(bad, "")
		require.Error(t, err, bad)
	}
	_, err := New("http://x", "key with space")
	require.Error(t, err)
	c, err := New("http://x/base/", "")
	require.NoError(t, err)
	require.Equal(t, "http://x/base", c.BaseURL())
}

func TestConnectionsAreReused(t *testing.T) {
	var opened atomic.Int32
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { takeOne(t, w, r) }))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			opened.Add(1)
		}
	}
	srv.Start()
	defer srv.Close()
	c, err := New(srv.URL, "", WithAgentKey(agentKey(1)))
	require.NoError(t, err)
	for i := range 20 {
		_, err := c.Assert(t.Context(), content(fmt.Sprint(i)))
		require.NoError(t, err)
	}
	require.Equal(t, int32(1), opened.Load())
	c.CloseIdleConnections()
}

// batchServer answers batches; fate is the result for a record when it is
// received for the nth time: 0 for success or the status of a problem.
type batchServer struct {
	t        *testing.T
	mu       sync.Mutex
	seen     map[record.Hash]int
	requests []int // records of each
	fate     func(a *record.Assertion, sight int) int
}

func (s *batchServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	if err != nil || r.URL.Path != "/v1/assert/batch" || r.Header.Get("Content-Type") != record.MediaCBORSeq {
		problem(w, 400, "malformed")
		return
	}
	var results []map[string]any
	for item, err := range record.BatchItems(r.Header.Get("Content-Type"), body) {
		require.NoError(s.t, err)
		a, err := record.ParseAssertionCBOR(item)
		require.NoError(s.t, err)
		id := a.ID()
		status := 0
		if s.fate != nil {
			status = s.fate(a, s.seen[id])
		}
		s.seen[id]++
		one := map[string]any{"index": len(results)}
		if status != 0 {
			one["error"] = map[string]any{"status": status, "code": "c", "detail": a.Subject}
		} else {
			one["hash"], one["status"] = id, "created"
		}
		results = append(results, one)
	}
	s.requests = append(s.requests, len(results))
	answer(w, 200, map[string]any{"results": results})
}

func TestAssertBatch(t *testing.T) {
	s := &batchServer{t: t, seen: map[record.Hash]int{}, fate: func(a *record.Assertion, sight int) int {
		switch {
		case a.Subject == "7":
			return 400
		case a.Subject == "9" && sight < 2:
			return 503
		}
		return 0
	}}
	c, w := newClient(t, s.ServeHTTP)
	var as []*record.Assertion
	for i := range 1203 {
		as = append(as, content(fmt.Sprint(i)))
	}
	as[5].Confidence = 2
	results, err := c.AssertBatch(t.Context(), as)
	require.NoError(t, err)
	require.Len(t, results, len(as))
	for i, r := range results {
		switch i {
		case 5:
			var fe *record.FieldError
			require.ErrorAs(t, r.Err, &fe)
		case 7:
			var e *Error
			require.ErrorAs(t, r.Err, &e)
			require.Equal(t, 400, e.Status)
		default:
			require.NoError(t, r.Err, i)
			require.Equal(t, as[i].ID(), r.ID)
			require.True(t, r.Created)
		}
	}
	require.Equal(t, []int{1000, 1, 1, 202}, s.requests)
	require.Equal(t, []time.Duration{2 * time.Second, 4 * time.Second}, w.all)
}

func TestAssertBatchGivesUpOnOne(t *testing.T) {
	s := &batchServer{t: t, seen: map[record.Hash]int{}, fate: func(a *record.Assertion, _ int) int {
		if a.Subject == "1" {
			return 503
		}
		return 0
	}}
	c, w := newClient(t, s.ServeHTTP)
	results, err := c.AssertBatch(t.Context(), []*record.Assertion{content("0"), content("1"), content("2")})
	require.NoError(t, err)
	require.NoError(t, results[0].Err)
	require.True(t, IsTemporary(results[1].Err))
	require.NoError(t, results[2].Err)
	require.Len(t, w.all, 3)
}

// A full disk is reported for each record; waiting for seconds does not help.
func TestAssertBatchDoesNotWaitForSpace(t *testing.T) {
	s := &batchServer{t: t, seen: map[record.Hash]int{}, fate: func(*record.Assertion, int) int { return 507 }}
	c, w := newClient(t, s.ServeHTTP)
	results, err := c.AssertBatch(t.Context(), []*record.Assertion{content("0")})
	require.NoError(t, err)
	require.True(t, IsTemporary(results[0].Err))
	require.Empty(t, w.all)
}

func TestAssertBatchFails(t *testing.T) {
	n := 0
	s := &batchServer{t: t, seen: map[record.Hash]int{}}
	c, _ := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		if n++; n > 1 {
			problem(w, 403, "forbidden")
			return
		}
		s.ServeHTTP(w, r)
	})
	var as []*record.Assertion
	for i := range 1001 {
		as = append(as, content(fmt.Sprint(i)))
	}
	results, err := c.AssertBatch(t.Context(), as)
	var e *Error
	require.ErrorAs(t, err, &e)
	require.NoError(t, results[999].Err)
	require.ErrorIs(t, results[1000].Err, err)

	results, err = c.AssertBatch(t.Context(), nil)
	require.NoError(t, err)
	require.Empty(t, results)
}

func TestAssertBatchRefusesOddAnswers(t *testing.T) {
	for name, body := range map[string]string{
		"too few":     `{"results":[]}`,
		"wrong index": `{"results":[{"index":1,"hash":"` + (record.Hash{}).String() + `","status":"created"}]}`,
		"no JSON":     `hello`,
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := newClient(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) })
			results, err := c.AssertBatch(t.Context(), []*record.Assertion{content("0")})
			require.Error(t, err)
			require.Error(t, results[0].Err)
		})
	}
	c, _ := newClient(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"results":[{"index":0,"hash":"` + (record.Hash{}).String() + `","status":"created"}]}`))
	})
	results, err := c.AssertBatch(t.Context(), []*record.Assertion{content("0")})
	require.NoError(t, err)
	require.True(t, errors.Is(results[0].Err, ErrOtherID))
}
