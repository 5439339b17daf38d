package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
)

// Error is an unsuccessful answer of the server: a problem of RFC 9457.
// Programs compare Code, which is stable.
type Error struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Detail    string `json:"detail"`
	Code      string `json:"code"`  // "" when the answer is not from StemeDB
	Field     string `json:"field"` // the offending field, if there is one
	Remedy    string `json:"remedy"`
	RequestID string `json:"request_id"`
	Node      string `json:"node"` // the node that made the problem

	// RetryAfter is how long the server asked to wait; 0 when it did not say.
	RetryAfter time.Duration `json:"-"`
}

// Error returns one line with all details.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d", e.Status)
	if e.Code != "" {
		b.WriteString(" " + e.Code)
	}
	if e.Field != "" {
		b.WriteString(" (" + e.Field + ")")
	}
	b.WriteString(": ")
	if e.Detail != "" {
		b.WriteString(e.Detail)
	} else {
		b.WriteString(e.Title)
	}
	if e.Remedy != "" {
		b.WriteString("; " + e.Remedy)
	}
	if e.RequestID != "" {
		b.WriteString(" [request " + e.RequestID)
		if e.Node != "" {
			b.WriteString(" on " + e.Node)
		}
		b.WriteString("]")
	}
	return b.String()
}

// Temporary reports whether the same request may succeed later: the cause is
// neither the request nor a fault of the server. Seconds are not always enough
// (a full disk), so this client itself retries only when passesSoon.
func (e *Error) Temporary() bool {
	switch e.Status {
	case http.StatusTooManyRequests:
		return true
	case http.StatusInternalServerError, http.StatusNotImplemented, http.StatusHTTPVersionNotSupported:
		return false
	default:
		return e.Status/100 == 5
	}
}

// passesSoon reports whether a retry within seconds makes sense.
func (e *Error) passesSoon() bool {
	switch e.Status {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable:
		return true
	default:
		return false
	}
}

// IsNotFound reports whether err says that there is no such record.
func IsNotFound(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Status == http.StatusNotFound
}

// IsTemporary reports whether err is temporary: the server could not be
// reached, or could not serve the request now. A caller with a queue keeps such
// requests; others must be corrected. The end of the caller's context is final,
// whatever the last attempt's error.
func IsTemporary(err error) bool { return may(err, (*Error).Temporary) }

// worthRetry reports whether this client retries after err.
func worthRetry(err error) bool { return may(err, (*Error).passesSoon) }

// may judges an answer by the given rule and a missing answer by its cause.
func may(err error, rule func(*Error) bool) bool {
	var end *endedError
	if errors.As(err, &end) {
		return false
	}
	var e *Error
	if errors.As(err, &e) {
		return rule(e)
	}
	var c *connError
	return errors.As(err, &c) && c.retry
}

// connError is a failure without an answer.
type connError struct {
	err   error
	retry bool
}

func (e *connError) Error() string { return e.err.Error() }
func (e *connError) Unwrap() error { return e.err }

// endedError is the end of the caller's context after an attempt that failed.
type endedError struct {
	end, last error
}

func ended(end, last error) error {
	var c *connError
	if errors.Is(last, end) && !errors.As(last, &c) {
		return last // the caller's context ended the attempt, not the attempt's timeout
	}
	return &endedError{end, last}
}

func (e *endedError) Error() string   { return e.end.Error() + "; the last attempt: " + e.last.Error() }
func (e *endedError) Unwrap() []error { return []error{e.end, e.last} }

// connectionError sorts a failure of the transport. Waiting does not help with
// a certificate that does not verify, and the end of the caller's context is
// final.
func connectionError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var (
		verify  *tls.CertificateVerificationError
		unknown x509.UnknownAuthorityError
		host    x509.HostnameError
		record  tls.RecordHeaderError
	)
	final := errors.As(err, &verify) || errors.As(err, &unknown) || errors.As(err, &host) || errors.As(err, &record)
	return &connError{err: err, retry: !final}
}

// maxDetail bounds the text shown of an answer that is not a problem document.
const maxDetail = 300

// answerError reads an unsuccessful answer.
func (c *Client) answerError(resp *http.Response, body []byte) *Error {
	e := &Error{}
	media, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err == nil && (media == "application/problem+json" || media == "application/json") {
		// An answer that cannot be read as a problem is shown as text below.
		if json.Unmarshal(body, e) != nil {
			e = &Error{}
		}
	}
	e.Status = resp.StatusCode
	if e.Title == "" {
		e.Title = http.StatusText(resp.StatusCode)
	}
	if e.Code == "" && e.Detail == "" {
		e.Detail = oneLine(body)
	}
	if location := resp.Header.Get("Location"); location != "" && resp.StatusCode/100 == 3 {
		e.Detail = "the server redirects to " + location
		e.Remedy = "use that address as the server's URL"
	}
	if e.RequestID == "" {
		e.RequestID = resp.Header.Get("X-Request-Id")
	}
	e.RetryAfter = c.retryAfter(resp.Header.Get("Retry-After"))
	return e
}

// retryAfter reads seconds or a date; 0 means none.
func (c *Client) retryAfter(value string) time.Duration {
	if value == "" {
		return 0
	}
	if n, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(at.Sub(c.now()), 0)
	}
	return 0
}

func oneLine(body []byte) string {
	if len(body) == 0 || !utf8.Valid(body) {
		return ""
	}
	s := strings.Join(strings.Fields(string(body)), " ")
	if len(s) > maxDetail {
		s = strings.ToValidUTF8(s[:maxDetail], "") + "…"
	}
	return s
}
