// Command loadgen is the client of the end-to-end tests. It runs inside the
// cluster, sends asserts and reads through a Service at a fixed rate without
// ever retrying, over kept-alive and over fresh connections, and remembers
// every id that was acknowledged, so that a test can check afterwards that each
// replica holds it.
//
// It is driven over HTTP:
//
//	POST /start            begin to send
//	GET  /progress         a Summary of the run so far
//	POST /stop             stop, wait for requests in flight, answer with a Summary
//	POST /verify           {"url": …, "from": n, "count": n}: read that many of
//	                       the acknowledged ids, beginning with number n, from
//	                       this URL alone (consistency=local), answer with a
//	                       Verdict
//	GET  /healthz          200
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	var (
		target = flag.String("target", "", "URL of the gateway Service")
		listen = flag.String("listen", ":8080", "address of the control server")
		rate   = flag.Int("rate", 240, "requests per second, over both kinds of connection")
		key    = flag.String("key-file", "", "file with the API key (or STEMEDB_API_KEY)")
	)
	flag.Parse()
	if err := run(*target, *listen, *key, *rate); err != nil {
		slog.Error("loadgen ends", "error", err)
		os.Exit(1)
	}
}

func run(target, listen, keyFile string, rate int) error {
	if target == "" {
		return errors.New("--target is required: the URL of the gateway Service")
	}
	apiKey := os.Getenv("STEMEDB_API_KEY")
	if keyFile != "" {
		raw, err := os.ReadFile(keyFile)
		if err != nil {
			return err
		}
		apiKey = string(raw)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	l := newLoad(target, apiKey, rate)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("POST /start", func(w http.ResponseWriter, _ *http.Request) {
		if err := l.start(ctx); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
		}
	})
	for pattern, do := range map[string]func() (Summary, error){"POST /stop": l.stop, "GET /progress": l.progress} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) {
			summary, err := do()
			if err != nil {
				http.Error(w, err.Error(), http.StatusConflict)
				return
			}
			reply(w, summary)
		})
	}
	mux.HandleFunc("POST /verify", func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			URL         string
			From, Count int
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil || body.URL == "" || body.Count <= 0 {
			http.Error(w, `the body must be {"url": …, "from": n, "count": n}`, http.StatusBadRequest)
			return
		}
		reply(w, l.verify(r.Context(), body.URL, body.From, body.Count))
	})
	srv := &http.Server{Addr: listen, Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		<-ctx.Done()
		_ = srv.Close()
	}()
	slog.Info("loadgen is ready", "target", target, "listen", listen, "rate", rate)
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		slog.Error("answer lost", "error", err)
	}
}
