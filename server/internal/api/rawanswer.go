package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Some requests never reach a handler: net/http itself refuses those that it
// cannot parse (400, 431, 501, 505) and unknown expectations (417), in plain
// text or without a body, and writes the answer straight to the connection. So
// every connection inspects the bytes that are written to it. Bytes that begin
// with a status line and have no X-Request-Id are an answer by net/http: each
// answer of this package has an X-Request-Id, and no body of this package
// contains the carriage return that ends a status line.

// ownAnswers replaces the answers that net/http itself writes to the listener's
// connections by problems with a request id, like all others.
type ownAnswers struct {
	net.Listener
	api *API
	tls *tls.Config // nil: no TLS
}

func (l *ownAnswers) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if l.tls == nil {
		return &answerConn{Conn: conn, api: l.api}, nil
	}
	secured := tls.Server(conn, l.tls)
	return &answerConn{Conn: secured, api: l.api, tls: secured}, nil
}

// answerConn is one connection. With TLS, the first read performs the handshake.
type answerConn struct {
	net.Conn
	api  *API
	tls  *tls.Conn
	once sync.Once
	err  error // of the handshake
}

func (c *answerConn) Read(b []byte) (int, error) {
	if c.tls != nil {
		c.once.Do(c.handshake)
		if c.err != nil {
			return 0, c.err
		}
	}
	return c.Conn.Read(b)
}

// handshake performs the TLS handshake. A caller that speaks plain HTTP gets an
// answer in plain HTTP. To the HTTP server a failed handshake looks like the
// end of the connection, since there is no request to answer.
func (c *answerConn) handshake() {
	ctx, cancel := context.WithTimeout(context.Background(), readHeaderTimeout)
	defer cancel()
	err := c.tls.HandshakeContext(ctx)
	if err == nil {
		return
	}
	c.err = io.EOF
	var header tls.RecordHeaderError
	if errors.As(err, &header) && header.Conn != nil && looksLikeHTTP(header.RecordHeader) {
		err = errors.New("the caller speaks HTTP without TLS")
		p := problem(codeMalformedRequest, "", "this port speaks HTTPS; the request came without TLS", "use https:// in the address")
		_, _ = header.Conn.Write(c.api.rawAnswer(p)) // the caller may have disconnected
		_ = header.Conn.Close()
	}
	c.api.errors.tlsFailed(c.RemoteAddr(), err)
}

// looksLikeHTTP reports whether a connection begins with a plain HTTP request.
func looksLikeHTTP(start [5]byte) bool {
	switch string(start[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO", "PATCH", "DELET":
		return true
	}
	return false
}

// CloseWrite lets net/http close one direction only, so that a caller that is
// still sending can read the answer.
func (c *answerConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

func (c *answerConn) Write(b []byte) (int, error) {
	p := c.api.ownAnswer(b)
	if p == nil {
		return c.Conn.Write(b)
	}
	if _, err := c.Conn.Write(c.api.rawAnswer(p)); err != nil {
		return 0, err
	}
	return len(b), nil
}

// ownAnswer returns the problem for an answer by net/http, nil when b is part
// of an answer of this package.
func (a *API) ownAnswer(b []byte) *Problem {
	if !bytes.HasPrefix(b, []byte("HTTP/1.")) {
		return nil
	}
	head, text, whole := bytes.Cut(b, []byte("\r\n\r\n"))
	if !whole || bytes.Contains(head, []byte("\r\n"+headerRequestID+": ")) {
		return nil
	}
	status := statusOf(head)
	if status < http.StatusBadRequest {
		return nil // 100 Continue
	}
	return httpProblem(status, string(text))
}

// statusOf reads the status of an answer's head.
func statusOf(head []byte) int {
	fields := strings.Fields(string(head[:min(len(head), 16)]))
	if len(fields) < 2 {
		return 0
	}
	status, err := strconv.Atoi(fields[1])
	if err != nil {
		return 0
	}
	return status
}

// httpProblem describes a refusal by net/http; text is the body of its answer.
func httpProblem(status int, text string) *Problem {
	switch status {
	case http.StatusExpectationFailed:
		return problem(codeExpectation, "Expect", "the expectation in the request is not supported", "send Expect: 100-continue or leave the header out")
	case http.StatusRequestHeaderFieldsTooLarge:
		return problem(codeHeaderTooLarge, "", "the request's line and header are too large", "send at most "+strconv.Itoa(maxHeader)+" bytes")
	case http.StatusNotImplemented:
		return problem(codeTransferEncoding, "Transfer-Encoding", "the transfer encoding of the body is not supported", "send Content-Length or Transfer-Encoding: chunked")
	case http.StatusHTTPVersionNotSupported:
		return problem(codeHTTPVersion, "", "the HTTP version of the request is not supported", "use HTTP/1.1")
	}
	detail := "the request is not valid HTTP/1.1"
	if _, reason, ok := strings.Cut(text, ": "); ok {
		detail += ": " + clip(reason)
	}
	p := problem(codeMalformedRequest, "", detail, "correct the request line and the header")
	p.Status = status
	return p
}

// rawAnswer is the bytes of a problem for a request that no handler has seen;
// the connection is then closed. It is counted like any other.
func (a *API) rawAnswer(p *Problem) []byte {
	rt := unmatched()
	a.meters.requests.WithLabelValues(rt.pattern, methodLabel(""), strconv.Itoa(p.Status)).Inc()
	c := &call{api: a, route: rt, requestID: a.ids.next()}
	p.writeTo(c)
	h := http.Header{
		headerRequestID: {c.requestID}, "Content-Type": {c.contentType}, "X-Content-Type-Options": {"nosniff"},
		"Cache-Control": {"no-store"}, "Connection": {"close"}, "Date": {time.Now().UTC().Format(http.TimeFormat)},
		"Content-Length": {strconv.Itoa(len(c.out))},
	}
	var out bytes.Buffer
	out.WriteString("HTTP/1.1 " + strconv.Itoa(p.Status) + " " + http.StatusText(p.Status) + "\r\n")
	_ = h.Write(&out) // a buffer takes everything
	out.WriteString("\r\n")
	out.Write(c.out)
	return out.Bytes()
}
