// Command probe is the workload of the cluster's integration test: a server
// that reports its name, keeps a file on its volume and resolves names, and a
// client that sends requests at a fixed rate and counts failures.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"sort"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) > 1 { // for exec
		fmt.Println("hello", os.Args[1])
		return
	}
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// serve answers until SIGTERM, and for some seconds longer: an endpoint is
// removed from the nodes' rules only after the pod received the signal.
func serve() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var leaving atomic.Bool
	mux := http.NewServeMux()
	mux.HandleFunc("GET /id", func(w http.ResponseWriter, _ *http.Request) {
		name, _ := os.Hostname()
		fmt.Fprint(w, name)
	})
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		if leaving.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("GET /resolve", resolve)
	mux.HandleFunc("GET /fetch", fetch)
	mux.HandleFunc("PUT /file", putFile)
	mux.HandleFunc("GET /file", getFile)
	mux.HandleFunc("GET /load", load)

	server := &http.Server{Addr: ":8080", Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	leaving.Store(true)
	server.SetKeepAlivesEnabled(false)
	time.Sleep(6 * time.Second)
	shutdown, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := server.Shutdown(shutdown); err != nil {
		return err
	}
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func resolve(w http.ResponseWriter, r *http.Request) {
	addresses, err := net.DefaultResolver.LookupHost(r.Context(), r.FormValue("name"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	sort.Strings(addresses)
	answer(w, addresses)
}

func fetch(w http.ResponseWriter, r *http.Request) {
	body, err := get(r.Context(), http.DefaultClient, r.FormValue("url"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	fmt.Fprint(w, body)
}

func file() string { return filepath.Join("/data", "file") }

func putFile(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err == nil {
		err = os.WriteFile(file(), body, 0o600)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

func getFile(w http.ResponseWriter, _ *http.Request) {
	body, err := os.ReadFile(file())
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	_, _ = w.Write(body)
}

// result is the answer of load.
type result struct {
	Sent, Failed int
	Errors       []string       // the first ten
	By           map[string]int // answers by server
}

// load sends rps requests per second to url for the given number of seconds,
// over kept-alive connections or, with fresh=true, over a new one each.
func load(w http.ResponseWriter, r *http.Request) {
	rps, _ := strconv.Atoi(r.FormValue("rps"))
	seconds, _ := strconv.Atoi(r.FormValue("seconds"))
	if rps < 1 || seconds < 1 {
		http.Error(w, "rps and seconds must be positive", http.StatusBadRequest)
		return
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableKeepAlives = r.FormValue("fresh") == "true"
	transport.MaxIdleConnsPerHost = 32
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()

	res := result{By: map[string]int{}}
	var mu sync.Mutex
	var wg sync.WaitGroup
	tick := time.NewTicker(time.Second / time.Duration(rps))
	defer tick.Stop()
	for range rps * seconds {
		select {
		case <-r.Context().Done():
			return
		case <-tick.C:
		}
		wg.Go(func() {
			body, err := get(r.Context(), client, r.FormValue("url"))
			mu.Lock()
			defer mu.Unlock()
			res.Sent++
			if err == nil {
				res.By[body]++
				return
			}
			res.Failed++
			if len(res.Errors) < 10 {
				res.Errors = append(res.Errors, time.Now().Format(time.TimeOnly)+" "+err.Error())
			}
		})
	}
	wg.Wait()
	answer(w, res)
}

func get(ctx context.Context, client *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %d: %s", resp.StatusCode, body)
	}
	return string(body), nil
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	// The client may have disconnected.
	_ = json.NewEncoder(w).Encode(v)
}
