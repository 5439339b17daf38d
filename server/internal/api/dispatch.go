package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/julienschmidt/httprouter"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/keys"
)

const (
	// maxHeader bounds the bytes of a request's line and header fields. The HTTP
	// server itself stops reading somewhat later, so that callers slightly above
	// the limit get an answer that says so.
	maxHeader       = 16 << 10
	maxHeaderServer = 32 << 10

	headerTimeout = "X-Request-Timeout"

	firstRead   = 4 << 10
	freeBody    = 64 << 10 // bodies up to here are not counted against the budget
	bodyPatient = 2 * time.Second
)

// router routes requests to serve. Requests without a route also go there and
// are answered with a problem.
func (a *API) router(serve func(http.ResponseWriter, *http.Request, httprouter.Params, *route)) http.Handler {
	mux := httprouter.New()
	mux.RedirectTrailingSlash, mux.RedirectFixedPath = false, false
	for _, row := range routes() {
		rt := &row
		handle := func(w http.ResponseWriter, r *http.Request, p httprouter.Params) { serve(w, r, p, rt) }
		mux.Handle(rt.method, rt.pattern, handle)
		if rt.method == http.MethodGet {
			mux.Handle(http.MethodHead, rt.pattern, handle)
		}
	}
	lost := func(handle func(*call) error) http.Handler {
		rt := unmatched()
		rt.handle = handle
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { serve(w, r, nil, rt) })
	}
	mux.NotFound = lost((*call).notFound)
	mux.MethodNotAllowed = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		allow := w.Header().Get("Allow")
		lost(func(*call) error { return methodNotAllowed(r.Method, allow) }).ServeHTTP(w, r)
	})
	mux.GlobalOPTIONS = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		allow := w.Header().Get("Allow")
		lost(func(c *call) error { return c.options(allow) }).ServeHTTP(w, r)
	})
	return mux
}

func (c *call) notFound() error {
	return problem(codeNoRoute, "", "there is no route "+strconv.Quote(clip(c.r.URL.Path)), "GET /openapi.json lists the routes")
}

func methodNotAllowed(method, allow string) error {
	p := problem(codeMethodNotAllowed, "", "the route does not support "+strconv.Quote(clip(method)), "use one of "+allow)
	p.Allow = allow
	return p
}

// options answers OPTIONS with the route's methods and, for an allowed origin,
// the permission for browsers to call it.
func (c *call) options(allow string) error {
	c.status = http.StatusNoContent
	c.header("Allow", allow)
	origin := c.r.Header.Get("Origin")
	if origin != "" && c.r.Header.Get("Access-Control-Request-Method") != "" && c.api.originAllowed(origin) != "" {
		c.header("Access-Control-Allow-Methods", allow)
		c.header("Access-Control-Allow-Headers", "Content-Type, X-API-Key, X-Request-Id, X-Request-Timeout")
		c.header("Access-Control-Max-Age", "600")
	}
	return nil
}

// serve answers one request through this node.
func (a *API) serve(w http.ResponseWriter, r *http.Request, params httprouter.Params, rt *route) {
	start := time.Now()
	a.meters.inFlight.Inc()
	c := newCall(a, rt, w, r, params)
	c.run()
	a.cors(w.Header(), r)
	c.flush(w)
	a.meters.inFlight.Dec()
	a.meters.observe(c, time.Since(start))
	c.release()
}

// run works on the request and always leaves an answer in the call.
func (c *call) run() {
	c.prepareDeadline()
	err := c.guarded()
	if c.cancel != nil {
		c.cancel()
	}
	if err == nil {
		return
	}
	p := asProblem(err)
	if p.Status >= http.StatusInternalServerError && !c.route.early {
		c.logFailure(p) // a negative answer to a probe is not a failure
	}
	p.writeTo(c)
}

func (c *call) logFailure(p *Problem) {
	level := c.api.log.Warn
	if p.Code == codeInternal {
		level = c.api.log.Error
	}
	level("request failed", "route", c.route.pattern, "method", c.r.Method, "status", p.Status,
		"code", p.Code, "detail", p.Detail, "cause", p.cause, "request_id", c.requestID)
}

// guarded turns a panic into an error, so that one request cannot end the
// process.
func (c *call) guarded() (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic in %s: %v\n%s", c.route.pattern, v, debug.Stack())
		}
	}()
	return c.execute()
}

// headerIncomplete is set on answers of a node that lost records that no other
// member can restore. Its value explains the loss.
const headerIncomplete = "X-Stemedb-Incomplete"

func (c *call) execute() error {
	if err := c.checkHeader(); err != nil {
		return err
	}
	if err := c.authorize(time.Now()); err != nil {
		return err
	}
	if c.svc == nil && !c.route.early {
		return c.api.startingProblem()
	}
	if err := c.readQuery(); err != nil {
		return err
	}
	if err := c.readBody(); err != nil {
		return err
	}
	if err := c.authorizeChange(); err != nil {
		return err
	}
	c.started = true
	c.liftReadDeadline()
	if err := c.route.handle(c); err != nil {
		return err
	}
	if c.svc != nil && c.route.class == keys.Read {
		if why := c.svc.backend.Incomplete(); why != "" {
			c.header(headerIncomplete, why)
		}
	}
	return c.authorizeAnswer()
}

// liftReadDeadline removes the read timeout once the request has been read: the
// HTTP server watches the connection while the request is worked on and would
// take the timeout for a disconnected caller. Calls that end well within the
// timeout keep it, which costs nothing.
func (c *call) liftReadDeadline() {
	long := c.r.Header[headerTimeout] != nil || time.Since(c.began) > time.Second
	if long || c.api.opts.RequestTimeout+time.Second >= c.api.opts.ReadTimeout {
		_ = http.NewResponseController(c.w).SetReadDeadline(time.Time{}) // not every writer has one
	}
}

// prepareDeadline bounds the work for this call. checkHeader reports an invalid
// X-Request-Timeout.
func (c *call) prepareDeadline() {
	if c.route.early {
		return
	}
	limit := c.limit
	if limit == 0 {
		limit = c.api.opts.RequestTimeout
		if given, ok, err := askedTimeout(c.r); ok && err == nil {
			limit = given
		}
	}
	c.ctx, c.cancel = context.WithTimeout(c.ctx, limit)
}

func askedTimeout(r *http.Request) (d time.Duration, given bool, err error) {
	h := r.Header[headerTimeout]
	if len(h) == 0 {
		return 0, false, nil
	}
	seconds, err := strconv.ParseFloat(h[0], 64)
	if err != nil || !(seconds > 0 && seconds <= MaxRequestTimeout.Seconds()) {
		return 0, true, problem(record.CodeOutOfRange, headerTimeout, strconv.Quote(clip(h[0]))+" is not a number of seconds above 0 and up to 60", "give seconds, such as 2.5, or leave the header out")
	}
	return time.Duration(seconds * float64(time.Second)), true, nil
}

// singleHeaders are the header fields that this package reads; each may be
// given once. If one is repeated, a proxy in front of the server may choose a
// different value than the server.
func singleHeaders() [8]string {
	return [...]string{
		headerKey, headerRequestID, headerTimeout, headerGateway,
		"Content-Type", "Content-Encoding", "Origin", "Access-Control-Request-Method",
	}
}

func (c *call) checkHeader() error {
	if c.r.ProtoMajor != 1 { // net/http lets the preface of HTTP/2 through
		c.header("Connection", "close")
		return httpProblem(http.StatusHTTPVersionNotSupported, "")
	}
	for _, name := range singleHeaders() {
		if n := len(c.r.Header[name]); n > 1 {
			if name == headerKey {
				name = headerName
			}
			return problem(record.CodeDuplicate, name, "the header is given "+strconv.Itoa(n)+" times", "give it once")
		}
	}
	size := len(c.r.RequestURI)
	for name, values := range c.r.Header {
		for _, v := range values {
			size += len(name) + len(v) + len(": \r\n")
		}
	}
	if size > maxHeader {
		return problem(codeHeaderTooLarge, "", fmt.Sprintf("the request's line and header have %d bytes", size), fmt.Sprintf("send at most %d bytes", maxHeader))
	}
	_, _, err := askedTimeout(c.r)
	return err
}

// readQuery refuses unknown parameters: a misspelt one would silently widen the
// answer.
func (c *call) readQuery() error {
	if c.r.URL.RawQuery == "" || c.route.early {
		return nil
	}
	query, err := url.ParseQuery(c.r.URL.RawQuery)
	if err != nil {
		return problem(codeMalformedRequest, "", "the query string is malformed: "+err.Error(), "percent-encode names and values and join them with &").because(err)
	}
	for name, values := range query {
		if !slices.Contains(c.route.params, name) {
			remedy := "this route takes no parameters"
			if len(c.route.params) > 0 {
				remedy = "use " + strings.Join(c.route.params, ", ")
			}
			return problem(codeUnknownParameter, clip(name), "there is no parameter "+strconv.Quote(clip(name)), remedy)
		}
		if len(values) > 1 {
			return problem(record.CodeDuplicate, name, "the parameter is given "+strconv.Itoa(len(values))+" times", "give it once; several values are separated by commas where they are allowed")
		}
	}
	c.query = query
	return nil
}

// readBody reads the body, if the route has one, within its limits.
func (c *call) readBody() error {
	if len(c.route.media) == 0 {
		c.received = true
		return nil
	}
	if err := c.readMediaType(); err != nil {
		return err
	}
	if c.r.ContentLength > c.route.limit {
		return c.tooLarge()
	}
	buf := c.in[:0]
	if cap(buf) == 0 {
		buf = make([]byte, 0, firstRead)
	}
	for {
		if len(buf) == cap(buf) {
			if err := c.reserve(cap(buf)); err != nil {
				return err
			}
			buf = slices.Grow(buf, cap(buf))
		}
		n, err := c.r.Body.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		c.in = buf
		if int64(len(buf)) > c.route.limit {
			return c.tooLarge()
		}
		if errors.Is(err, io.EOF) {
			c.body, c.received = buf, true
			return nil
		}
		if err != nil {
			return c.readFailed(err)
		}
	}
}

// reserve takes n more bytes from the budget for large bodies.
func (c *call) reserve(n int) error {
	if cap(c.in)+n <= freeBody {
		return nil
	}
	ctx, cancel := context.WithTimeout(c.ctx, bodyPatient)
	defer cancel()
	if err := c.api.bodies.Acquire(ctx, int64(n)); err != nil {
		return problem(codeOverloadedBodies, "", "too many large bodies are being received", remedyRetry).retry(retrySoon)
	}
	c.reserved += int64(n)
	return nil
}

func (c *call) tooLarge() error {
	c.header("Connection", "close") // the rest of the body is not read
	return problem(record.CodeTooLarge, "", fmt.Sprintf("the body has more than the %d bytes that this route accepts", c.route.limit), "send less in one request")
}

func (c *call) readFailed(err error) error {
	c.header("Connection", "close")
	var timeout net.Error
	if errors.Is(err, os.ErrDeadlineExceeded) || (errors.As(err, &timeout) && timeout.Timeout()) {
		return problem(codeBodyTimeout, "", fmt.Sprintf("the body did not arrive within %s", c.api.opts.ReadTimeout), "send it faster, or in smaller requests").because(err)
	}
	return problem(codeMalformedRequest, "", "the body broke off: "+err.Error(), "send as many bytes as Content-Length says").because(err)
}

// readMediaType determines how to read the body.
func (c *call) readMediaType() error {
	if encoding := c.r.Header.Get("Content-Encoding"); encoding != "" && !strings.EqualFold(encoding, "identity") {
		return problem(codeMediaType, "Content-Encoding", "compressed bodies are not supported", "send the body uncompressed")
	}
	given := c.r.Header["Content-Type"]
	if len(given) == 0 && c.r.ContentLength == 0 {
		return nil // no body; the handler decides whether it needs one
	}
	accepted := strings.Join(c.route.media, ", ")
	if len(given) != 1 {
		return problem(codeMediaType, "Content-Type", "the header must be given exactly once", "send one of "+accepted)
	}
	base := given[0]
	if !slices.Contains(c.route.media, base) {
		parsed, params, err := mime.ParseMediaType(base)
		if err != nil || !slices.Contains(c.route.media, parsed) {
			return problem(codeMediaType, "Content-Type", strconv.Quote(clip(base))+" is not accepted here", "send one of "+accepted)
		}
		if charset, ok := params["charset"]; ok && !strings.EqualFold(charset, "utf-8") {
			return problem(codeMediaType, "Content-Type", "the character set "+strconv.Quote(clip(charset))+" is not supported", "send UTF-8")
		}
		base = parsed
	}
	c.mediaType = base
	return nil
}

// clip bounds a caller's text in an answer or a log line.
func clip(s string) string {
	const limit = 80
	if len(s) > limit {
		return strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return s
}
