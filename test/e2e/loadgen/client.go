package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"
)

const (
	// requestTimeout is the time after which a request counts as failed.
	requestTimeout = 10 * time.Second
	dialTimeout    = 5 * time.Second
	// keptIdle is the time for which an idle connection is kept. A stopping
	// server closes connections that were idle throughout its grace, and a
	// request may cross that close on the wire, which no HTTP/1.1 server can
	// prevent. This value is therefore below server.shutdownGrace of
	// values/dev.yaml.
	keptIdle = 5 * time.Second
)

// keptClient reuses its connections, freshClient does not.
func keptClient() *http.Client {
	return onceClient(&http.Transport{MaxIdleConnsPerHost: 64, IdleConnTimeout: keptIdle})
}

func freshClient() *http.Client { return onceClient(&http.Transport{DisableKeepAlives: true}) }

// onceClient follows no redirects: those would be a second request.
func onceClient(t *http.Transport) *http.Client {
	t.DialContext = (&net.Dialer{Timeout: dialTimeout}).DialContext
	return &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// errResent marks a request that went out more than once.
var errResent = errors.New("the request was sent more than once")

// send sends a request once and never retries it.
func (l *load) send(ctx context.Context, client *http.Client, method, url string, body []byte) (int, []byte, error) {
	// Go's transport repeats a request when a kept-alive connection breaks: any
	// request with GetBody, and a GET without a body. Every request therefore
	// has a body, of a type without GetBody; the body of a GET is empty and
	// invisible on the wire.
	req, err := http.NewRequestWithContext(ctx, method, url, io.NopCloser(bytes.NewReader(body)))
	if err != nil {
		return 0, nil, err
	}
	req.ContentLength = int64(len(body))
	req.Header.Set("X-API-Key", l.apiKey)
	if len(body) > 0 {
		req.Header.Set("Content-Type", "application/json")
	}
	// A counter verifies that the transport still behaves like this.
	var attempts atomic.Int32
	req = req.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { attempts.Add(1) },
	}))
	resp, err := client.Do(req)
	if n := attempts.Load(); n > 1 {
		err = errors.Join(err, fmt.Errorf("%w: %d connections", errResent, n))
	}
	if err != nil {
		if resp != nil {
			resp.Body.Close()
		}
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	return resp.StatusCode, answer, err
}
