package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/stemedb/stemedb/client"
	"github.com/stemedb/stemedb/record"
)

// stemedb is one server process, authentication and signature checks on.
type stemedb struct {
	proc   *process
	binary string
	dir    string
	port   int
	url    string // of the node's API
	debug  string // of its profiles
	key    string
	// clients is for set-up; load is lean, since a load generator that uses as
	// much CPU as the server would measure itself.
	clients *http.Client
	load    *fasthttp.HostClient
}

const rootKey = "steme_test_0123456789abcdef0123456789abcdef0123456789abcdef"

func startStemedb(ctx context.Context, binary, dir string, port, clients int) (*stemedb, error) {
	s := &stemedb{
		binary: binary, dir: dir, port: port,
		url:   "http://127.0.0.1:" + strconv.Itoa(port),
		debug: "127.0.0.1:" + strconv.Itoa(port+4),
		clients: &http.Client{Transport: &http.Transport{
			MaxIdleConnsPerHost: clients, MaxConnsPerHost: clients,
			DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		}},
	}
	s.load = &fasthttp.HostClient{
		Addr: "127.0.0.1:" + strconv.Itoa(port), MaxConns: clients + 16,
		MaxIdemponentCallAttempts: 1, // a retry would hide a failure
	}
	if _, err := s.start(ctx); err != nil {
		return nil, err
	}
	return s, s.mint(ctx)
}

// start runs the server on its folders and returns the time until it is ready.
func (s *stemedb) start(ctx context.Context) (time.Duration, error) {
	at := func(n int) string { return "127.0.0.1:" + strconv.Itoa(s.port+n) }
	proc, err := start("stemedb", s.dir, []string{
		"STEMEDB_ROOT_API_KEY=" + rootKey, "STEMEDB_AUTH_ENABLED=true",
		"STEMEDB_BIND_ADDR=" + at(0), "STEMEDB_GATEWAY_ADDR=" + at(1), "STEMEDB_REPLICATION_ADDR=" + at(2), "STEMEDB_GOSSIP_ADDR=" + at(3),
		"STEMEDB_DEBUG_ADDR=" + s.debug, "STEMEDB_ADVERTISE_ADDR=127.0.0.1",
		"STEMEDB_WAL_DIR=" + filepath.Join(s.dir, "wal"), "STEMEDB_DB_DIR=" + filepath.Join(s.dir, "db"),
		"STEMEDB_NODE_NAME=bench", "STEMEDB_SHUTDOWN_GRACE=0s", "STEMEDB_LOG_LEVEL=warn",
	}, s.binary, "serve")
	if err != nil {
		return 0, err
	}
	s.proc = proc
	took, err := proc.await(ctx, 2*time.Minute, httpOK(ctx, s.clients, s.url+"/v1/health/ready"))
	if err != nil {
		proc.stop(syscall.SIGKILL)
	}
	return took, err
}

func (s *stemedb) stop() { s.proc.stop(syscall.SIGTERM) }

// mint mints the key of the project for the runs.
func (s *stemedb) mint(ctx context.Context) error {
	root, err := client.New(s.url, rootKey, client.WithRetries())
	if err != nil {
		return err
	}
	defer root.CloseIdleConnections()
	deadline := time.Now().Add(20 * time.Second)
	for { // the root key is registered some time after the start
		minted, err := root.MintKey(ctx, client.NewKey{Project: "bench", Role: "write_agent", Label: "bench"})
		if err == nil {
			s.key = minted.Secret
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("mint a key: %w", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// request sends one request of a measured run and passes the answer to check.
func (s *stemedb) request(ctx context.Context, method, path, mediaType string, body []byte, check func(status int, answer []byte) error) error {
	req, resp := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(resp)
	req.SetRequestURI(s.url + path)
	req.Header.SetMethod(method)
	req.Header.Set("X-API-Key", s.key)
	if mediaType != "" {
		req.Header.SetContentType(mediaType)
	}
	req.SetBodyRaw(body)
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.load.DoTimeout(req, resp, time.Minute); err != nil {
		return err
	}
	return check(resp.StatusCode(), resp.Body())
}

// wants is the check for one status.
func wants(status int) func(int, []byte) error {
	return func(got int, answer []byte) error {
		if got != status {
			return fmt.Errorf("status %d: %.300s", got, answer)
		}
		return nil
	}
}

// encoding of a request's body.
type encoding struct {
	name, mediaType string
	one             func(dst []byte, a *record.Assertion) []byte
	glue            func(bodies [][]byte) []byte
}

var (
	cborSequence = encoding{
		"CBOR", "application/cbor",
		func(dst []byte, a *record.Assertion) []byte { return a.AppendCBOR(dst) },
		func(bodies [][]byte) []byte { return bytes.Join(bodies, nil) },
	}
	jsonArray = encoding{
		"JSON", "application/json",
		func(dst []byte, a *record.Assertion) []byte {
			raw, err := json.Marshal(a)
			if err != nil {
				panic(err) // a record that was valid a moment ago
			}
			return append(dst, raw...)
		},
		func(bodies [][]byte) []byte {
			return append(append([]byte{'['}, bytes.Join(bodies, []byte{','})...), ']')
		},
	}
)

// prepare signs and encodes requests of each records, on all processors, before
// the measurement starts: in production the clients do this on other machines.
func prepare(c *corpus, enc encoding, requests, each int64) [][]byte {
	bodies := make([][]byte, requests)
	var wg sync.WaitGroup
	for p := range int64(runtime.NumCPU()) {
		wg.Go(func() {
			for i := p; i < requests; i += int64(runtime.NumCPU()) {
				parts := make([][]byte, each)
				for k := range each {
					a := c.assertion(i*each + k)
					a.Sign(c.agent)
					parts[k] = enc.one(nil, a)
				}
				if each == 1 {
					bodies[i] = parts[0]
				} else {
					bodies[i] = enc.glue(parts)
				}
			}
		})
	}
	wg.Wait()
	return bodies
}

// assert sends one record per request.
func (s *stemedb) assert(enc encoding, bodies [][]byte) op {
	check := wants(http.StatusCreated)
	return func(ctx context.Context, _ int, seq int64) error {
		return s.request(ctx, http.MethodPost, "/v1/assert", enc.mediaType, bodies[seq], check)
	}
}

// batch sends many records per request and checks that each was created.
func (s *stemedb) batch(enc encoding, bodies [][]byte, each int64) op {
	// The counts are at the beginning; reading every result would cost the
	// client's CPU time, not the server's.
	want := []byte(fmt.Sprintf(`{"created":%d,`, each))
	check := func(status int, answer []byte) error {
		if status != http.StatusOK || !bytes.HasPrefix(answer, want) {
			return fmt.Errorf("status %d, not all of %d created: %.300s", status, each, answer)
		}
		return nil
	}
	return func(ctx context.Context, _ int, seq int64) error {
		return s.request(ctx, http.MethodPost, "/v1/assert/batch", enc.mediaType, bodies[seq], check)
	}
}

// get requests the given paths in turn and expects 200 from each.
func (s *stemedb) get(paths []string) op {
	check := wants(http.StatusOK)
	return func(ctx context.Context, _ int, seq int64) error {
		return s.request(ctx, http.MethodGet, paths[int(seq)%len(paths)], "", nil, check)
	}
}

// profile fetches a processor profile of the given length into a file.
func (s *stemedb) profile(ctx context.Context, length time.Duration, path string) error {
	url := fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", s.debug, int(length.Seconds()))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("fetch profile: %w", err)
	}
	defer resp.Body.Close()
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer out.Close()
	_, err = io.Copy(out, resp.Body)
	return err
}
