package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// answers is a transport without a network: the time since its first request
// determines the outcome of each request.
type answers struct {
	fate  func(since time.Duration) (status int, after time.Duration)
	began time.Time
}

func (a *answers) RoundTrip(req *http.Request) (*http.Response, error) {
	status, after := a.fate(time.Since(a.began))
	select {
	case <-req.Context().Done():
		return nil, req.Context().Err()
	case <-time.After(after):
	}
	if status == 0 {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
	}
	recorder := httptest.NewRecorder()
	recorder.WriteHeader(status)
	return recorder.Result(), nil
}

// runFor sends for a while at 100 requests a second of virtual time.
func runFor(t *testing.T, d time.Duration, fate func(time.Duration) (int, time.Duration)) Summary {
	t.Helper()
	l := newLoad("http://server", "", 100)
	transport := &answers{fate: fate, began: time.Now()}
	l.kept.Transport, l.fresh.Transport = transport, transport
	if err := l.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(d + time.Millisecond) // between two requests
	s, err := l.stop()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A failed request counts only as a failure; a successful one is counted by kind.
func TestSummaryTellsSuccessFromFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := runFor(t, 10*time.Second, func(time.Duration) (int, time.Duration) { return 0, 0 })
		if s.Requests != 1001 || s.Failures != 1001 || s.Unconnected != 1001 || s.Asserts+s.Reads+s.Fresh != 0 || s.FailureKinds["connection refused"] != 1001 {
			t.Errorf("everything failed: %+v", s)
		}
		s = runFor(t, 10*time.Second, func(time.Duration) (int, time.Duration) { return http.StatusOK, 0 })
		if s.Requests != 1001 || s.Failures != 0 || s.Asserts+s.Reads != 1001 || s.Reads < 400 || s.Fresh != 500 || s.Acknowledged != s.Asserts {
			t.Errorf("nothing failed: %+v", s)
		}
		s = runFor(t, 10*time.Second, func(time.Duration) (int, time.Duration) { return http.StatusServiceUnavailable, 0 })
		if s.Failures != 1001 || s.Unconnected != 0 || s.Asserts != 0 {
			t.Errorf("an answer that is not a success is a failure: %+v", s)
		}
	})
}

func TestSummaryTellsTheLongestGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := runFor(t, 10*time.Second, func(since time.Duration) (int, time.Duration) {
			if since > 3*time.Second && since < 7*time.Second {
				return 0, 0
			}
			return http.StatusOK, 0
		})
		if s.LongestGapSeconds != 4 {
			t.Errorf("the gap is from 3 s to 7 s: %+v", s)
		}
		s = runFor(t, 10*time.Second, func(since time.Duration) (int, time.Duration) {
			if since > 3*time.Second {
				return 0, 0
			}
			return http.StatusOK, 0
		})
		if s.LongestGapSeconds < 6.9 {
			t.Errorf("a gap that lasts until the end counts too: %+v", s)
		}
	})
}

// The rate refers to sending: a hanging last request does not lower it.
func TestSummaryDoesNotCountTheWaitAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := runFor(t, 10*time.Second, func(time.Duration) (int, time.Duration) { return http.StatusOK, time.Hour })
		if s.Seconds > 10.01 || s.Failures != s.Requests {
			t.Errorf("%+v", s)
		}
	})
}

func TestProgressIsASnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLoad("http://server", "", 100)
		if _, err := l.progress(); !errors.Is(err, errIdle) {
			t.Errorf("%v", err)
		}
		transport := &answers{fate: func(time.Duration) (int, time.Duration) { return http.StatusOK, 0 }}
		l.kept.Transport, l.fresh.Transport = transport, transport
		if err := l.start(t.Context()); err != nil {
			t.Fatal(err)
		}
		var before, after Summary
		for _, s := range []*Summary{&before, &after} {
			time.Sleep(time.Second + time.Millisecond)
			var err error
			if *s, err = l.progress(); err != nil {
				t.Fatal(err)
			}
		}
		if before.Requests != 101 || after.Requests != 201 {
			t.Errorf("%d, then %d", before.Requests, after.Requests)
		}
		if _, err := l.stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestVerify(t *testing.T) {
	held := func(id string) bool { return !strings.HasSuffix(id, "7") }
	asked := make(chan string, 1000)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := strings.TrimPrefix(r.URL.Path, "/v1/assertions/")
		asked <- id
		switch {
		case r.URL.RawQuery != "consistency=local":
			w.WriteHeader(http.StatusBadRequest)
		case id == "id-099":
			w.WriteHeader(http.StatusServiceUnavailable)
		case !held(id):
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer server.Close()
	l := newLoad("http://unused", "", 1)
	for i := range 100 {
		l.acked = append(l.acked, fmt.Sprintf("id-%03d", i))
	}

	v := l.verify(t.Context(), server.URL, 0, 40)
	slices.Sort(v.Examples)
	if v.Acknowledged != 100 || v.Checked != 40 || v.Missing != 4 || v.Error != "" || !slices.Equal(v.Examples, []string{"id-007", "id-017", "id-027", "id-037"}) {
		t.Errorf("%+v", v)
	}
	if len(asked) != 40 {
		t.Errorf("%d were read", len(asked))
	}
	if v = l.verify(t.Context(), server.URL, 40, 59); v.Checked != 59 || v.Missing != 6 || v.Error != "" {
		t.Errorf("%+v", v)
	}
	if v = l.verify(t.Context(), server.URL, 99, 1000); v.Checked != 1 || v.Missing != 0 || !strings.Contains(v.Error, "503") {
		t.Errorf("who cannot answer is no proof of anything: %+v", v)
	}
	if v = l.verify(t.Context(), server.URL, 100, 1000); v.Checked != 0 || v.Error != "" {
		t.Errorf("%+v", v)
	}
	server.Close()
	if v = l.verify(t.Context(), server.URL, 0, 40); v.Error == "" {
		t.Errorf("no server is listening: %+v", v)
	}
}
