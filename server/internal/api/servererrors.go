package api

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stemedb/stemedb/server/internal/logs"
)

// serverErrors receives the lines that net/http writes to its ErrorLog. Each is
// counted by its kind; at most one line of a kind is logged in each interval,
// since callers can cause any number of them.
type serverErrors struct {
	log   *logs.Seldom
	count *prometheus.CounterVec
}

const serverErrorsEvery = 10 * time.Second

// errorKind is a kind of line that net/http logs.
type errorKind struct {
	name    string
	prefix  string // of the line
	level   slog.Level
	message string
}

// The kinds. The last one matches every line.
const (
	kindAccept = iota
	kindTLS
	kindPanic
	kindSemicolon
	kindOther
)

// errorKinds are the kinds by their number.
func errorKinds() [kindOther + 1]errorKind {
	return [...]errorKind{
		// Package node logs this for every listener.
		kindAccept: {"accept", "http: Accept error: ", slog.LevelDebug, "the HTTP server cannot accept connections"},
		kindTLS:    {"tls_handshake", "http: TLS handshake error ", slog.LevelWarn, "a TLS handshake with a caller of the HTTP server failed"},
		kindPanic:  {"panic", "http: panic serving ", slog.LevelError, "a request made the HTTP server panic"},
		// The route refuses such a query string with 400.
		kindSemicolon: {"semicolon", "http: URL query contains semicolon", slog.LevelDebug, "a query string contains a semicolon"},
		kindOther:     {"other", "", slog.LevelWarn, "the HTTP server reports"},
	}
}

func newServerErrors(log *slog.Logger) *serverErrors {
	s := &serverErrors{
		log: logs.NewSeldom(log, serverErrorsEvery),
		count: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stemedb_http_server_errors_total",
			Help: "Errors that the HTTP server reported outside of answers, by kind: accept (mostly out of file descriptors), tls_handshake, panic, semicolon, other.",
		}, []string{"kind"}),
	}
	for _, k := range errorKinds() {
		s.count.WithLabelValues(k.name)
	}
	return s
}

// Write takes one line of net/http.
func (s *serverErrors) Write(line []byte) (int, error) {
	text := bytes.TrimSpace(line)
	for _, k := range errorKinds() {
		if bytes.HasPrefix(text, []byte(k.prefix)) {
			s.note(&k, "line", string(text))
			break
		}
	}
	return len(line), nil
}

func (s *serverErrors) note(k *errorKind, args ...any) {
	s.count.WithLabelValues(k.name).Inc()
	s.log.Log(k.level, k.name, k.message, args...)
}

// tlsFailed records a failed handshake. A connection that is closed before it
// sends anything is a port probe and is not counted.
func (s *serverErrors) tlsFailed(from net.Addr, err error) {
	if errors.Is(err, io.EOF) {
		return
	}
	k := errorKinds()[kindTLS]
	s.note(&k, "from", from.String(), "error", err)
}
