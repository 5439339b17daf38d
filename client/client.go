// Package client is a client of StemeDB servers: it signs and sends assertions
// and votes, runs queries, administers API keys and shows the cluster.
//
// Writes of records are idempotent, since records are identified by their content.
// So the client retries after 2, 4 and 8 seconds (jittered, and never before a
// Retry-After has passed) when the connection fails or the answer is 429, 502
// or 503; WithRetries replaces the waits. Calls that must not be repeated, such as
// MintKey, are sent once, and say so.
//
// A refusal by the server is an *Error; a refusal by this package, before anything
// is sent, is a *record.FieldError. IsTemporary reports whether a retry later may
// succeed.
//
// A Client is safe for concurrent use and keeps its connections open.
package client

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/stemedb/stemedb/internal/sleep"
)

// Client is one connection to one server or gateway.
type Client struct {
	base      *url.URL
	key       string
	http      *http.Client
	agent     ed25519.PrivateKey // nil: the caller must sign
	userAgent string
	timeout   time.Duration // of one attempt
	delays    []time.Duration
	maxWait   time.Duration // a longer Retry-After ends the attempts
	sleep     func(context.Context, time.Duration) error
	now       func() time.Time
	jitter    func() float64 // 0..1
	onRetry   func(Retry)
}

// Retry describes a failed attempt that will be retried.
type Retry struct {
	Method, Path string
	Attempt      int           // of the attempt that failed, from 1
	Wait         time.Duration // until the next one
	Err          error
}

// Option configures a Client.
type Option func(*Client)

// WithAgentKey makes the client sign records that have no signature yet.
func WithAgentKey(key ed25519.PrivateKey) Option { return func(c *Client) { c.agent = key } }

// WithHTTPClient replaces the HTTP client. Its CheckRedirect is not changed: a
// client that follows redirects also sends the API key to the new address.
func WithHTTPClient(h *http.Client) Option { return func(c *Client) { c.http = h } }

// WithTLS sets the TLS configuration of the default HTTP client, for example
// with the roots of a private CA. It has no effect after WithHTTPClient.
func WithTLS(config *tls.Config) Option {
	return func(c *Client) {
		if t, ok := c.http.Transport.(*http.Transport); ok {
			t.TLSClientConfig = config
		}
	}
}

// WithUserAgent sets the User-Agent header.
func WithUserAgent(s string) Option { return func(c *Client) { c.userAgent = s } }

// WithTimeout bounds one attempt, including its answer. The default is 30 s;
// the context bounds all attempts together.
func WithTimeout(d time.Duration) Option { return func(c *Client) { c.timeout = d } }

// WithRetries replaces the waits between attempts; none means one attempt.
func WithRetries(delays ...time.Duration) Option { return func(c *Client) { c.delays = delays } }

// WithSleep replaces the waiting, for tests. It must return the context's
// error when the context ends first.
func WithSleep(sleep func(context.Context, time.Duration) error) Option {
	return func(c *Client) { c.sleep = sleep }
}

// WithClock replaces the clock that a Retry-After date is compared with.
func WithClock(now func() time.Time) Option { return func(c *Client) { c.now = now } }

// WithOnRetry sets a function that is called before each wait.
func WithOnRetry(f func(Retry)) Option { return func(c *Client) { c.onRetry = f } }

// maxRetryAfter is the longest Retry-After that this client respects.
const maxRetryAfter = 2 * time.Minute

// New makes a client for the server at baseURL, such as
// https://stemedb.example.org. apiKey may be empty when the server requires
// none. New opens no connection.
func New(baseURL, apiKey string, opts ...Option) (*Client, error) {
	base, err := parseBase(baseURL)
	if err != nil {
		return nil, err
	}
	if i := strings.IndexFunc(apiKey, func(r rune) bool { return r <= ' ' || r > '~' }); i >= 0 {
		return nil, fmt.Errorf("the API key has a space, a line break or another invalid character at position %d; copy it again", i+1)
	}
	c := &Client{
		base:      base,
		key:       apiKey,
		http:      defaultHTTPClient(),
		userAgent: "stemedb-client",
		timeout:   30 * time.Second,
		delays:    []time.Duration{2 * time.Second, 4 * time.Second, 8 * time.Second},
		maxWait:   maxRetryAfter,
		sleep:     wait,
		now:       time.Now,
		jitter:    rand.Float64,
		onRetry:   func(Retry) {},
	}
	for _, opt := range opts {
		opt(c)
	}
	return c, nil
}

// BaseURL is the server's address as the client uses it.
func (c *Client) BaseURL() string { return c.base.String() }

// CloseIdleConnections closes the connections that are not in use.
func (c *Client) CloseIdleConnections() { c.http.CloseIdleConnections() }

func parseBase(raw string) (*url.URL, error) {
	base, err := url.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("the server's URL cannot be read: %w", err)
	}
	switch {
	case base.Scheme != "http" && base.Scheme != "https":
		return nil, fmt.Errorf("the server's URL %q must begin with https:// or http://", raw)
	case base.Host == "":
		return nil, fmt.Errorf("the server's URL %q names no host", raw)
	case base.RawQuery != "" || base.Fragment != "" || base.User != nil:
		return nil, errors.New("the server's URL must have no user, query or fragment; the API key has its own setting")
	}
	base.Path = strings.TrimRight(base.Path, "/")
	return base, nil
}

// defaultHTTPClient follows no redirects, which would send the API key to
// another host and turn a POST into a GET.
func defaultHTTPClient() *http.Client {
	dialer := &net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}
	return &http.Client{
		Transport: &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			DialContext:         dialer.DialContext,
			TLSHandshakeTimeout: 5 * time.Second,
			MaxIdleConnsPerHost: 64,
			IdleConnTimeout:     90 * time.Second,
			ForceAttemptHTTP2:   true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// wait is the default of WithSleep.
func wait(ctx context.Context, d time.Duration) error {
	sleep.For(ctx, d)
	return ctx.Err()
}
