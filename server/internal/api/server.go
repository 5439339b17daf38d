package api

import (
	"context"
	"errors"
	"fmt"
	"log" //nolint:depguard // the type of http.Server.ErrorLog
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	readHeaderTimeout = 10 * time.Second
	idleTimeout       = 2 * time.Minute
	// answerTimeout is how long a caller may take to read an answer.
	answerTimeout = 30 * time.Second
)

// Serving is the API and the gateway on their listeners.
type Serving struct {
	servers []*http.Server
	wait    sync.WaitGroup
	failed  chan error
}

// Serve starts to answer on the listeners; either may be nil. With certificates
// it speaks HTTPS, here and to other members' APIs. It speaks only HTTP/1.1:
// the API's promises about slow bodies and about closing are per connection,
// and the proxies in front of it use HTTP/1.1.
//
// The caller ends it with Shutdown; Failed reports a broken listener.
func (a *API) Serve(api, gateway net.Listener, certs *Certificates) *Serving {
	a.certs.Store(certs)
	s := &Serving{failed: make(chan error, 2)}
	s.start(a, "API", api, a.Handler(), certs)
	s.start(a, "gateway", gateway, a.Gateway(), certs)
	return s
}

func (s *Serving) start(a *API, name string, l net.Listener, h http.Handler, certs *Certificates) {
	if l == nil {
		return
	}
	server := a.httpServer(h)
	own := &ownAnswers{Listener: l, api: a}
	if certs != nil {
		own.tls = certs.Config()
	}
	s.servers = append(s.servers, server)
	s.wait.Go(func() {
		if err := server.Serve(own); !errors.Is(err, http.ErrServerClosed) {
			s.failed <- fmt.Errorf("serve the %s on %s: %w", name, l.Addr(), err)
		}
	})
}

// httpServer is an HTTP server with the API's limits.
func (a *API) httpServer(h http.Handler) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Server{
		Handler: h, Protocols: protocols,
		ReadHeaderTimeout: min(readHeaderTimeout, a.opts.ReadTimeout),
		ReadTimeout:       a.opts.ReadTimeout,
		WriteTimeout:      a.opts.ReadTimeout + MaxRequestTimeout + answerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderServer,
		ErrorLog:          log.New(a.errors, "", 0),
		// "OPTIONS *" is answered like OPTIONS for a route.
		DisableGeneralOptionsHandler: true,
	}
}

// Failed receives an error when a listener breaks.
func (s *Serving) Failed() <-chan error { return s.failed }

// Shutdown stops accepting connections, closes idle ones and waits for the
// requests in progress; when ctx ends it aborts them. Call API.Drain first, and
// wait for as long as callers may still choose this node.
func (s *Serving) Shutdown(ctx context.Context) error {
	var errs []error
	var wait sync.WaitGroup
	var mu sync.Mutex
	for _, server := range s.servers {
		wait.Go(func() {
			err := server.Shutdown(ctx)
			if err != nil {
				err = errors.Join(err, server.Close())
			}
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		})
	}
	wait.Wait()
	s.wait.Wait()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("stop serving HTTP: %w", err)
	}
	return nil
}
