package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/client"
	"github.com/stemedb/stemedb/record"
)

// fakeServer accepts batches like the server: it checks the key and every
// signature, and records the claims that it holds.
type fakeServer struct {
	t      *testing.T
	mu     sync.Mutex
	held   map[record.Hash]*record.Assertion
	sizes  []int
	status int // of every answer, when not 0
	role   string
}

const apiKey = "steme_test_0123"

func (s *fakeServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.status != 0:
		s.problem(w, s.status, "told_to")
	case r.Header.Get("X-API-Key") != apiKey:
		s.problem(w, 401, "key_invalid")
	case r.URL.Path == "/v1/whoami":
		s.answer(w, map[string]any{"auth": true, "project": "p1", "role": s.role, "expires_at": 1_900_000_000})
	case r.URL.Path == "/v1/cluster/status":
		s.answer(w, map[string]any{"detail": "full", "leader": "a", "members": []map[string]any{{"name": "a", "alive": true, "whole": true}}})
	case r.URL.Path == "/v1/assert/batch":
		s.batch(w, r)
	default:
		s.problem(w, 404, "no_such_route")
	}
}

func (s *fakeServer) batch(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	var results []any
	for item, err := range record.BatchItems(r.Header.Get("Content-Type"), body) {
		if err != nil {
			s.problem(w, 400, "malformed")
			return
		}
		i := len(results)
		a, err := record.ParseAssertionCBOR(item)
		if err != nil {
			results = append(results, map[string]any{"index": i, "error": map[string]any{"status": 400, "code": "c", "detail": err.Error()}})
			continue
		}
		id := a.ID()
		for _, ok := range record.NewVerifier(1).Verify(a.AppendSigned(nil, id)) {
			if !ok {
				s.t.Error("a signature does not verify")
			}
		}
		status := "created"
		if s.held[id] != nil {
			status = "exists"
		}
		s.held[id] = a
		results = append(results, map[string]any{"index": i, "hash": id, "status": status})
	}
	s.sizes = append(s.sizes, len(results))
	s.answer(w, map[string]any{"results": results})
}

func (s *fakeServer) answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.t.Error(err)
	}
}

func (s *fakeServer) problem(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"status":%d,"code":%q,"detail":"d"}`, status, code)
}

// bench is one project and one server.
type bench struct {
	t      *testing.T
	dir    string
	url    string
	server *fakeServer
	env    map[string]string
	now    time.Time
}

func newBench(t *testing.T) *bench {
	t.Helper()
	s := &fakeServer{t: t, held: map[record.Hash]*record.Assertion{}, role: "write_agent"}
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	b := &bench{
		t: t, dir: t.TempDir(), url: srv.URL, server: s, now: time.Unix(1_770_000_000, 0),
		env: map[string]string{"STEMEDB_API_KEY": apiKey},
	}
	b.write("go.mod", "module example.org/app\n\ngo 1.26\n\nrequire (\n\texample.org/dep v1.2.3\n\texample.org/other v0.1.0 // indirect\n)\n")
	b.write("client.go", "package app\n\nvar c = tls.Config{InsecureSkipVerify: true}\n")
	b.write("tools/requirements.txt", "requests==2.31.0\n")
	return b
}

func (b *bench) write(name, text string) {
	b.t.Helper()
	file := filepath.Join(b.dir, filepath.FromSlash(name))
	require.NoError(b.t, os.MkdirAll(filepath.Dir(file), 0o755))
	require.NoError(b.t, os.WriteFile(file, []byte(text), 0o644))
}

func (b *bench) run(args ...string) (code int, stdout, stderr string) {
	b.t.Helper()
	var out, errs bytes.Buffer
	code = Run(b.t.Context(), args, Env{
		Stdout: &out, Stderr: &errs, Getenv: func(k string) string { return b.env[k] }, Version: "test",
		Now: func() time.Time { return b.now },
		ClientOptions: []client.Option{client.WithSleep(func(ctx context.Context, _ time.Duration) error {
			return ctx.Err()
		})},
	})
	return code, out.String(), errs.String()
}

func (b *bench) mustRun(args ...string) (stdout, stderr string) {
	b.t.Helper()
	code, stdout, stderr := b.run(args...)
	require.Zero(b.t, code, "%s%s", stdout, stderr)
	return stdout, stderr
}

func (b *bench) git(args ...string) {
	b.t.Helper()
	cmd := exec.Command("git", append([]string{"-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"}, args...)...)
	cmd.Dir = b.dir
	cmd.Env = append(os.Environ(), "GIT_COMMITTER_DATE=2025-01-02T03:04:05Z")
	out, err := cmd.CombinedOutput()
	require.NoError(b.t, err, "%s", out)
}

func TestInit(t *testing.T) {
	b := newBench(t)
	first, _ := b.mustRun("init", b.dir, "--name", "app", "--url", b.url)
	require.Contains(t, first, "made "+filepath.Join(b.dir, ".aphoria", "config.toml"))
	id := first[strings.Index(first, "agent id"):]
	info, err := os.Stat(filepath.Join(b.dir, ".aphoria", "agent.key"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	second, _ := b.mustRun("init", b.dir)
	require.NotContains(t, second, "made ")
	require.Contains(t, second, id, "the key stays the same")

	b.git("init", "-q")
	b.git("add", ".")
	cmd := exec.Command("git", "ls-files")
	cmd.Dir = b.dir
	listed, err := cmd.Output()
	require.NoError(t, err)
	require.Contains(t, string(listed), ".aphoria/config.toml")
	require.NotContains(t, string(listed), "agent.key")

	code, _, stderr := b.run("init", t.TempDir(), "--language", "cobol")
	require.Equal(t, 2, code)
	require.Contains(t, stderr, "project.language")
}

func TestScanWithoutConfiguration(t *testing.T) {
	b := newBench(t)
	out, _ := b.mustRun("scan", b.dir)
	require.Contains(t, out, "BLOCK    client.go:3  InsecureSkipVerify accepts any certificate")
	require.Contains(t, out, "4 observations in 3 files (1 blocked, 0 flagged)")
	require.NotContains(t, out, "example.org/dep")
	out, _ = b.mustRun("scan", b.dir, "--show-observations")
	require.Contains(t, out, "code://go/example.org/app/dep/example.org/dep version v1.2.3")
	code, _, stderr := b.run("scan", b.dir, "--exit-code")
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "1 observations are blocked")
	_, err := os.Stat(filepath.Join(b.dir, ".aphoria"))
	require.ErrorIs(t, err, os.ErrNotExist, "a scan writes nothing")
}

func TestScanJSON(t *testing.T) {
	b := newBench(t)
	out, _ := b.mustRun("scan", b.dir, "--format", "json")
	var got struct {
		Observations []struct {
			Verdict string
			File    string
			Line    int
			Hash    string
			Claim   json.RawMessage
		}
		Summary struct{ Files, Observations, Blocked int }
	}
	require.NoError(t, json.Unmarshal([]byte(out), &got))
	require.Len(t, got.Observations, 4)
	require.Equal(t, "client.go", got.Observations[0].File)
	require.Equal(t, "BLOCK", got.Observations[0].Verdict)
	require.Equal(t, 1, got.Summary.Blocked)
	for _, o := range got.Observations {
		c, err := record.ParseContentJSON(o.Claim)
		require.NoError(t, err)
		require.Equal(t, o.Hash, c.ID().String())
	}
}

func TestPersist(t *testing.T) {
	b := newBench(t)
	b.mustRun("init", b.dir, "--url", b.url)
	b.git("init", "-q")
	b.git("add", ".")
	b.git("commit", "-q", "-m", "first")
	out, _ := b.mustRun("scan", b.dir, "--persist")
	require.Contains(t, out, "persisted: 4 created, 0 exist, 0 failed, 0 queued, 0 skipped")
	require.Len(t, b.server.held, 4)
	commit := time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC)
	subjects := map[string]*record.Assertion{}
	for _, a := range b.server.held {
		subjects[a.Subject] = a
		require.Equal(t, uint64(commit.Unix()), a.Timestamp)
		require.Equal(t, record.Observational, a.SourceClass)
		require.Len(t, a.SourceMetadata["commit"], 40)
	}
	tls := subjects["code://go/example.org/app/tls/cert_verification"]
	require.NotNil(t, tls)
	require.Equal(t, record.Boolean(false), tls.Object)
	require.Equal(t, "client.go", tls.SourceMetadata["file"])
	require.Equal(t, "3", tls.SourceMetadata["line"])
	require.NotNil(t, subjects["code://go/example.org/app/dep/example.org/dep"])
	require.NotNil(t, subjects["code://python/"+filepath.Base(b.dir)+"/dep/requests"])

	// The same commit, later: nothing new.
	b.now = b.now.Add(24 * time.Hour)
	out, _ = b.mustRun("scan", b.dir, "--persist")
	require.Contains(t, out, "persisted: 0 created, 4 exist")

	// An uncommitted change is dated now.
	b.write("client.go", "package app\n\n\nvar c = tls.Config{InsecureSkipVerify: true}\n")
	out, _ = b.mustRun("scan", b.dir, "--persist")
	require.Contains(t, out, "persisted: 4 created")
}

func TestPersistFromElsewhere(t *testing.T) {
	b := newBench(t)
	state := t.TempDir()
	file := filepath.Join(state, "conf", "app.toml")
	b.mustRun("init", b.dir, "--config", file, "--state-dir", state, "--url", b.url, "--name", "my app")
	require.NoError(t, os.Chmod(b.dir, 0o555)) // like the Go module cache
	t.Cleanup(func() { require.NoError(t, os.Chmod(b.dir, 0o755)) })
	out, _ := b.mustRun("scan", b.dir, "--persist", "--config", file, "--state-dir", state)
	require.Contains(t, out, "persisted: 4 created")
	entries, err := os.ReadDir(b.dir)
	require.NoError(t, err)
	require.Len(t, entries, 3)
	found := false
	for _, a := range b.server.held {
		found = found || a.Subject == "code://python/my-app/dep/requests"
	}
	require.True(t, found)
}

func TestPersistWithKeyFromEnvironment(t *testing.T) {
	b := newBench(t)
	b.env["STEME_PRIVATE_KEY"] = strings.Repeat("01", 32)
	b.mustRun("scan", b.dir, "--persist", "--url", b.url)
	require.Len(t, b.server.held, 4)
	b.env["STEME_PRIVATE_KEY"] = "nothing"
	code, _, stderr := b.run("scan", b.dir, "--persist", "--url", b.url)
	require.Equal(t, 2, code)
	require.Contains(t, stderr, "STEME_PRIVATE_KEY")
}

func TestPersistRefuses(t *testing.T) {
	b := newBench(t)
	code, _, stderr := b.run("scan", b.dir, "--persist", "--url", b.url)
	require.Equal(t, 2, code)
	require.Contains(t, stderr, "aphoria init")

	b.mustRun("init", b.dir)
	code, _, stderr = b.run("scan", b.dir, "--persist")
	require.Equal(t, 2, code)
	require.Contains(t, stderr, "no server is configured")

	b.env["STEMEDB_API_KEY"] = ""
	code, _, stderr = b.run("scan", b.dir, "--persist", "--url", b.url)
	require.Equal(t, 1, code, "a missing key is not an outage")
	require.Contains(t, stderr, "STEMEDB_API_KEY is not set")
	require.Contains(t, stderr, "401 key_invalid")

	b.write(".aphoria/config.toml", "[hosted]\nurll = 'x'\n")
	code, _, stderr = b.run("scan", b.dir)
	require.Equal(t, 2, code)
	require.Contains(t, stderr, "did you mean hosted.url?")
	for _, args := range [][]string{{"scan", filepath.Join(b.dir, "none")}, {"scan", filepath.Join(b.dir, "go.mod")}, {"scan", "--format", "xml", b.dir}, {"scan", "--no-such-flag"}, {"nonsense"}} {
		code, _, stderr := b.run(args...)
		require.Equal(t, 2, code, args)
		require.NotEmpty(t, stderr)
	}
}

func TestOffline(t *testing.T) {
	for _, fallback := range []string{"skip", "fail", "queue"} {
		t.Run(fallback, func(t *testing.T) {
			b := newBench(t)
			b.mustRun("init", b.dir, "--url", b.url)
			file := filepath.Join(b.dir, ".aphoria", "config.toml")
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			b.write(".aphoria/config.toml", strings.Replace(string(text), `"skip" `, fmt.Sprintf("%q ", fallback), 1))
			b.server.status = 503
			code, out, stderr := b.run("scan", b.dir, "--persist")
			require.Contains(t, stderr, "attempt 3 failed")
			switch fallback {
			case "skip":
				require.Zero(t, code)
				require.Contains(t, out, "0 queued, 4 skipped")
				require.Contains(t, stderr, "4 claims were not sent")
			case "fail":
				require.Equal(t, 1, code)
				require.Contains(t, stderr, "could not be reached")
			case "queue":
				require.Zero(t, code)
				require.Contains(t, out, "4 queued")
				b.server.status = 0
				b.now = b.now.Add(time.Minute) // so that this scan's claims are different
				out, _ = b.mustRun("scan", b.dir, "--persist")
				require.Contains(t, out, "persisted: 8 created")
				queue, err := filepath.Glob(filepath.Join(b.dir, ".aphoria", "queue", "*"))
				require.NoError(t, err)
				require.Empty(t, queue)
			}
		})
	}
}

func TestManyClaimsGoInBatches(t *testing.T) {
	b := newBench(t)
	var mod strings.Builder
	mod.WriteString("module example.org/app\n\nrequire (\n")
	for i := range 1100 {
		fmt.Fprintf(&mod, "\texample.org/dep%d v1.0.%d\n", i, i)
	}
	b.write("go.mod", mod.String()+")\n")
	b.mustRun("init", b.dir, "--url", b.url)
	out, _ := b.mustRun("scan", b.dir, "--persist")
	require.Contains(t, out, "persisted: 1102 created")
	require.Equal(t, []int{500, 500, 102}, b.server.sizes)
}

func TestCheckRemote(t *testing.T) {
	b := newBench(t)
	b.mustRun("init", b.dir, "--url", b.url)
	out, _ := b.mustRun("check-remote", b.dir)
	require.Contains(t, out, "project  p1")
	require.Contains(t, out, "1 members, 1 alive, 1 whole")
	b.server.role = "read_only"
	code, _, stderr := b.run("check-remote", b.dir)
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "may not write")
	b.env["STEMEDB_API_KEY"] = "other"
	code, _, stderr = b.run("check-remote", b.dir)
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "401")
}

func TestVersion(t *testing.T) {
	out, _ := newBench(t).mustRun("version")
	require.Equal(t, "test\n", out)
}
