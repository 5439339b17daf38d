package main

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
)

var methods = map[string][]byte{http.MethodGet: nil, http.MethodPost: []byte(`{"a":1}`)}

// A server that closes a kept-alive connection instead of answering fails one
// request, regardless of its method, and receives it once.
func TestABrokenConnectionIsAFailure(t *testing.T) {
	for method, body := range methods {
		t.Run(method, func(t *testing.T) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			var seen atomic.Int32
			go func() {
				for {
					conn, err := listener.Accept()
					if err != nil {
						return
					}
					go breakSecond(conn, &seen)
				}
			}()
			l := newLoad("http://"+listener.Addr().String(), "", 1)
			status, answer, err := l.send(t.Context(), l.kept, method, l.target, body)
			if err != nil || status != http.StatusOK || string(answer) != "ok" {
				t.Fatalf("first request: %d %q %v", status, answer, err)
			}
			if _, _, err := l.send(t.Context(), l.kept, method, l.target, body); err == nil {
				t.Error("the second request was lost with its connection without an error")
			} else if errors.Is(err, errResent) {
				t.Errorf("sent again: %v", err)
			}
			if n := seen.Load(); n != 2 {
				t.Errorf("the server saw %d requests instead of 2", n)
			}
		})
	}
}

// breakSecond answers one request, and closes the connection after the next.
func breakSecond(conn net.Conn, seen *atomic.Int32) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	for n := 1; ; n++ {
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			return
		}
		seen.Add(1)
		if n == 2 {
			return
		}
		if _, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"); err != nil {
			return
		}
	}
}

// resender is a transport with the forbidden behaviour.
type resender struct{ base http.RoundTripper }

func (r resender) RoundTrip(req *http.Request) (*http.Response, error) {
	first, err := r.base.RoundTrip(req.Clone(req.Context()))
	if err != nil {
		return nil, err
	}
	first.Body.Close()
	return r.base.RoundTrip(req)
}

func TestASecondAttemptIsAFailure(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	l := newLoad(server.URL, "", 1)
	l.kept.Transport = resender{l.kept.Transport}
	if _, _, err := l.send(t.Context(), l.kept, http.MethodGet, l.target, nil); !errors.Is(err, errResent) {
		t.Errorf("sent twice, but the error is %v", err)
	}
}

// The body that prevents a GET from being resent is invisible.
func TestAGetHasNoBody(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 || len(r.TransferEncoding) > 0 || r.Header.Get("Content-Type") != "" {
			w.WriteHeader(http.StatusBadRequest)
		}
	}))
	defer server.Close()
	l := newLoad(server.URL, "", 1)
	for _, client := range []*http.Client{l.kept, l.fresh} {
		if status, _, err := l.send(t.Context(), client, http.MethodGet, l.target, nil); err != nil || status != http.StatusOK {
			t.Errorf("%d %v", status, err)
		}
	}
}
