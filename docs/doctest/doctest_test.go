package doctest

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const root = "../.."

// Every command works against the server of `make run`, with and without keys.
// STEMEDB_DOCS_URL selects a different server, such as the one of `make up`;
// STEMEDB_DOCS_KEY and STEMEDB_DOCS_ADMIN_KEY then hold a project's key and an
// administrator's.
func TestTheCommandsInTheDocumentationWork(t *testing.T) {
	if url := os.Getenv("STEMEDB_DOCS_URL"); url != "" {
		Pages(t, root, Server{URL: url, Key: os.Getenv("STEMEDB_DOCS_KEY"), AdminKey: os.Getenv("STEMEDB_DOCS_ADMIN_KEY")})
		return
	}
	t.Run("without keys", func(t *testing.T) { Pages(t, root, Server{URL: running(t)}) })
	t.Run("with keys", func(t *testing.T) {
		admin := "steme_test_" + strings.Repeat("0123456789abcdef", 3)
		file := filepath.Join(t.TempDir(), "root-api-key")
		require.NoError(t, os.WriteFile(file, []byte(admin), 0o600))
		s := Server{URL: running(t, "--auth-enabled", "--root-api-key-file", file), AdminKey: admin}
		s.Key = mint(t, s)
		Pages(t, root, s)
	})
}

// running starts the server of `make run` and returns its gateway's URL.
func running(t *testing.T, flags ...string) string {
	t.Helper()
	port := freePorts(t)
	cmd := exec.Command(filepath.Join(root, "ci", "run-server"), flags...)
	cmd.Env = append(os.Environ(), fmt.Sprintf("PORT=%d", port), "GOWORK=off")
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	require.NoError(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		require.NoError(t, <-ended, "%s", &out)
	})
	url := fmt.Sprintf("http://127.0.0.1:%d", port+1)
	require.Eventually(t, func() bool {
		resp, err := http.Get(url + "/v1/health/ready")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	}, 5*time.Minute, 50*time.Millisecond, "the server does not become ready")
	return url
}

// freePorts finds four consecutive ports without a listener.
func freePorts(t *testing.T) int {
	t.Helper()
	for range 1000 {
		base := 31000 + 4*rand.IntN(2000)
		free := true
		for port := base; port < base+4 && free; port++ {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if free = err == nil; free {
				_ = l.Close()
			}
		}
		if free {
			return base
		}
	}
	require.Fail(t, "no four free ports in a row")
	return 0
}

// mint mints a project's key; the root key is registered soon after the start.
func mint(t *testing.T, s Server) (key string) {
	t.Helper()
	require.Eventually(t, func() bool {
		req, err := http.NewRequest(http.MethodPost, s.URL+"/v1/admin/api-keys", strings.NewReader(`{"project":"docs","role":"write_agent","label":"docs"}`))
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("X-API-Key", s.AdminKey)
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer resp.Body.Close()
		var made struct{ Key string }
		if resp.StatusCode == http.StatusCreated {
			require.NoError(t, json.NewDecoder(resp.Body).Decode(&made))
		}
		key = made.Key
		return key != ""
	}, time.Minute, 100*time.Millisecond, "no key was minted")
	return key
}

// asPage turns a script into a page.
func asPage(script string) string { return "# Page\n\n```sh\n" + script + "\n```\n" }

// The checks of this package fail when they should.
func TestAPageThatDoesNotWorkIsFound(t *testing.T) {
	server := http.NewServeMux()
	server.HandleFunc("/good", func(http.ResponseWriter, *http.Request) {})
	server.HandleFunc("/batch", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"created":1,"failed":2}`) })
	front := httptest.NewServer(server)
	t.Cleanup(front.Close)
	for name, row := range map[string]struct{ script, says string }{
		"works":                      {`curl -sS "$STEMEDB_URL/good"`, ""},
		"works inside an assignment": {`X=$(curl -sS "$STEMEDB_URL/good"); echo "$X"`, ""},
		"is refused":                 {`curl -sS "$STEMEDB_URL/bad"`, "answered 404"},
		"is refused inside a pipe":   {`curl -sS "$STEMEDB_URL/bad" | cat`, "answered 404"},
		"is refused in part":         {`curl -sS "$STEMEDB_URL/batch"`, "answered 200"},
		"fails":                      {"false", "a command failed"},
		"uses a variable not set":    {`curl -sS "$NOWHERE/good"`, "a command failed"},
		"does not reach the server":  {`curl -sS -V`, "1 times but the server received it 0 times"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Run(t.Context(), asPage(row.script), root, t.TempDir(), t.TempDir(), Server{URL: front.URL})
			if row.says == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, row.says)
			}
		})
	}
}

func TestBlocksMarkedShAreRunAndOthersAreNot(t *testing.T) {
	page := "text\n```sh\none\n```\n```\ncurl -sS two\n```\n\n    curl -sS three\n\n`curl` is a program\n```sh\nfour\n```\n"
	require.Equal(t, "one\nfour\n", Script(page))
	require.Equal(t, []int{6, 9}, Outside(page))
}
