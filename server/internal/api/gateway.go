package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/julienschmidt/httprouter"

	"github.com/stemedb/stemedb/server/internal/keys"
)

const (
	// headerGateway names the gateway that forwards a request. A request that
	// carries it is never forwarded again, so requests cannot go round in circles.
	headerGateway = "X-Stemedb-Gateway"

	maxPeerAnswer   = 32 << 20
	peerDialTimeout = time.Second
	peerIdleConns   = 64
	// peerIdleTimeout is below idleTimeout, so that the gateway closes idle
	// connections first and never uses one that the peer has just closed.
	peerIdleTimeout = idleTimeout / 2
)

// gateway serves each route through this node or, when it cannot serve,
// through another one.
type gateway struct {
	api       *API
	transport *http.Transport
}

// peerKey carries the Peer of a request to the transport's dial.
type peerKey struct{}

func newGateway(a *API) http.Handler {
	g := &gateway{api: a}
	if a.opts.Dial != nil {
		g.transport = &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				peer, _ := ctx.Value(peerKey{}).(Peer)
				ctx, cancel := context.WithTimeout(ctx, peerDialTimeout)
				defer cancel()
				conn, err := a.dial(ctx, peer)
				if err != nil {
					return nil, &dialError{err}
				}
				return conn, nil
			},
			MaxIdleConnsPerHost: peerIdleConns, IdleConnTimeout: peerIdleTimeout,
			DisableCompression: true, MaxResponseHeaderBytes: maxHeaderServer,
		}
	}
	return a.router(g.serve)
}

// dial opens a connection to a peer's API, secured like this node's own API.
func (a *API) dial(ctx context.Context, peer Peer) (net.Conn, error) {
	conn, err := a.opts.Dial(ctx, peer)
	certs := a.certs.Load()
	if err != nil || certs == nil {
		return conn, err
	}
	secured := tls.Client(conn, certs.PeerConfig())
	if err := secured.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return secured, nil
}

// dialError marks an error that occurred before anything was sent.
type dialError struct{ err error }

func (e *dialError) Error() string { return "connect: " + e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// Peer is another member as the gateway sees it.
type Peer struct {
	Name     string
	APIAddr  string // host:port of its HTTP API
	PeerAddr string // host:port of its replication listener
	Alive    bool   // not declared dead
	Ready    bool   // alive, and announces that it can serve
}

// serve answers one request through this node or another.
func (g *gateway) serve(w http.ResponseWriter, r *http.Request, params httprouter.Params, rt *route) {
	start := time.Now()
	g.api.meters.inFlight.Inc()
	c := newCall(g.api, rt, w, r, params)
	by := g.answer(c)
	if !rt.here {
		g.api.meters.gatewayRequests.WithLabelValues(by).Inc()
	}
	g.api.cors(w.Header(), r)
	c.flush(w)
	g.api.meters.inFlight.Dec()
	g.api.meters.observe(c, time.Since(start))
	c.release()
}

// answer leaves an answer in the call and returns the node that gave it.
func (g *gateway) answer(c *call) (by string) {
	if c.route.here || g.transport == nil || c.r.Header[headerGateway] != nil {
		c.run()
		return "local"
	}
	var peers []Peer
	if c.svc != nil {
		// In a new cluster a member's address may not be known yet.
		peers = slices.DeleteFunc(c.svc.backend.Peers(), func(p Peer) bool { return p.APIAddr == "" })
	}
	named := c.otherNode()
	if named != "" {
		peers = slices.DeleteFunc(peers, func(p Peer) bool { return p.Name != named })
	}
	if len(peers) == 0 {
		c.run()
		return "local"
	}
	budget := g.api.opts.RequestTimeout
	if asked, given, err := askedTimeout(c.r); given && err == nil {
		budget = asked
	}
	ctx, cancel := context.WithTimeout(c.r.Context(), budget)
	defer cancel()
	if named == "" && g.localServes(c) {
		c.limit = budget / 2 // the rest is for another node
		c.run()
		if !worthRetry(c.status) || !mayRepeat(c) {
			return "local"
		}
		g.api.meters.gatewayRetries.Inc()
	}
	c.ctx = ctx // the local attempt's context has ended
	if !g.receive(c) {
		return "local"
	}
	return g.forward(ctx, c, peers)
}

// otherNode is the name of the other node that has to answer the request, if it names
// one.
func (c *call) otherNode() string {
	if !c.route.named {
		return ""
	}
	if name := c.r.URL.Query().Get("node"); name != c.api.opts.Node {
		return name
	}
	return ""
}

// localServes reports whether this node is tried first. A draining node still
// serves.
func (g *gateway) localServes(c *call) bool {
	return c.svc.backend.Ready() == nil
}

// receive reads the body, unless this node has already done so. It returns
// false when the request is invalid and has been answered.
func (g *gateway) receive(c *call) bool {
	if c.received {
		return true
	}
	err := c.checkHeader()
	if err == nil && c.api.opts.Auth && c.route.class != keys.Public {
		_, err = c.givenKey()
	}
	if err == nil {
		err = c.readBody()
	}
	if err != nil {
		asProblem(err).writeTo(c)
	}
	return err == nil
}

// worthRetry reports whether another node may be able to answer.
func worthRetry(status int) bool {
	return status == http.StatusServiceUnavailable || status == http.StatusInsufficientStorage
}

// mayRepeat reports whether the request may be sent to another node after one
// that answered 503.
func mayRepeat(c *call) bool {
	return !c.started || c.route.retry == nil || c.route.retry(c)
}

// forward tries one peer after another and leaves the first good answer, or the
// last bad one, in the call.
func (g *gateway) forward(ctx context.Context, c *call, peers []Peer) (by string) {
	var last error
	answered := c.status != 0 // by this node
	for i, peer := range peers {
		share := remaining(ctx)
		if i < len(peers)-1 {
			share /= 2
		}
		if share <= 0 {
			break
		}
		if i > 0 {
			g.api.meters.gatewayRetries.Inc()
		}
		sent, err := g.attempt(ctx, c, peer, share)
		if err == nil {
			answered, by = true, "peer"
			if !worthRetry(c.status) || (c.route.retry != nil && !c.route.retry(c)) {
				return by
			}
			continue
		}
		last = err
		g.api.log.Debug("gateway: a peer did not answer", "peer", peer.Name, "request_id", c.requestID, "error", err)
		if sent && c.route.retry != nil && !c.route.retry(c) {
			answered = false
			last = fmt.Errorf("%w: the request may have taken effect and is not sent again", err)
			break
		}
	}
	if !answered {
		by = "none"
		p := problem(codeNoNode, "", "this node cannot serve now, and no other node answered", remedyRetry).retry(retrySoon).because(last)
		c.logFailure(p)
		p.writeTo(c)
	}
	if by == "" {
		by = "local"
	}
	return by
}

func remaining(ctx context.Context) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok || ctx.Err() != nil {
		return 0
	}
	return time.Until(deadline)
}

// attempt sends the request to a peer. Without an error the peer's answer is in
// the call. sent reports whether the peer may have seen the request.
func (g *gateway) attempt(ctx context.Context, c *call, peer Peer, share time.Duration) (sent bool, err error) {
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, peerKey{}, peer), share)
	defer cancel()
	req, err := g.request(ctx, c, peer, share)
	if err != nil {
		return false, err
	}
	resp, err := g.transport.RoundTrip(req)
	if err != nil {
		return !notSent(err), fmt.Errorf("send to %s: %w", peer.Name, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxPeerAnswer+1))
	if err != nil {
		return true, fmt.Errorf("read the answer of %s: %w", peer.Name, err)
	}
	if len(body) > maxPeerAnswer {
		return true, fmt.Errorf("the answer of %s has more than %d bytes", peer.Name, maxPeerAnswer)
	}
	c.headers = c.headers[:0]
	for _, name := range passedBack() {
		if v := resp.Header.Get(name); v != "" {
			c.header(name, v)
		}
	}
	if c.r.Method == http.MethodHead && resp.ContentLength >= 0 {
		// The length of a body that is not sent.
		c.header("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
	}
	c.status, c.contentType, c.out = resp.StatusCode, resp.Header.Get("Content-Type"), body
	return true, nil
}

// passedBack lists the header fields of a peer's answer that reach the caller.
func passedBack() []string {
	return []string{headerNext, headerIncomplete, "Retry-After", "Location", "Allow", "Www-Authenticate", "Cache-Control"}
}

// notSent reports whether the transport failed before anything was written,
// because the connection could not be opened.
func notSent(err error) bool {
	var failed *dialError
	return errors.As(err, &failed)
}

func (g *gateway) request(ctx context.Context, c *call, peer Peer, share time.Duration) (*http.Request, error) {
	target := "http://" + peer.APIAddr + c.r.URL.RequestURI()
	req, err := http.NewRequestWithContext(ctx, c.r.Method, target, bytes.NewReader(c.body))
	if err != nil {
		return nil, fmt.Errorf("address %s at %q: %w", peer.Name, peer.APIAddr, err)
	}
	if len(c.body) == 0 {
		req.Body, req.GetBody, req.ContentLength = nil, nil, 0
	}
	h := req.Header
	for _, name := range []string{headerKey, "Content-Type"} {
		if v := c.r.Header[name]; v != nil {
			h[name] = v
		}
	}
	h[headerRequestID] = []string{c.requestID}
	h[headerTimeout] = []string{strconv.FormatFloat(share.Seconds(), 'f', 3, 64)}
	h[headerGateway] = []string{g.api.opts.Node}
	h["User-Agent"] = []string{"stemedb-gateway"}
	if c.route.retry == nil || c.route.retry(c) {
		// Allows the transport to open a new connection when a kept one turns out to
		// be closed. It is not sent to the peer.
		h["X-Idempotency-Key"] = nil
	}
	return req, nil
}
