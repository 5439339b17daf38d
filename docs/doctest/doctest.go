// Package doctest runs the commands in the documentation as a reader would
// paste them: every block marked sh on a page, in order, in one shell.
//
// It promises that a page passes only when each of its commands succeeds, each
// curl on it reached the server, and the server rejected no request and no item
// of a batch.
package doctest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Server is the target of the commands. A reader names it in STEMEDB_URL,
// STEMEDB_API_KEY and STEMEDB_ADMIN_KEY.
type Server struct {
	URL      string
	Key      string // of a project, with the role write_agent; empty when auth is off
	AdminKey string
}

// Exchange is one request that a command made.
type Exchange struct {
	Method, Path string
	Status       int
	agent        string
	answer       []byte
}

// partlyRefused is the answer to a batch in which items failed.
var partlyRefused = regexp.MustCompile(`"failed":[1-9]`)

func (e *Exchange) refused() bool {
	return e.Status >= http.StatusBadRequest || partlyRefused.Match(e.answer)
}

// pageTime bounds one page.
const pageTime = 5 * time.Minute

// Pages runs the commands of every documentation page below root against one
// server, and checks that the pages show each route of the server.
func Pages(t *testing.T, root string, s Server) {
	t.Helper()
	root, err := filepath.Abs(root)
	require.NoError(t, err)
	pages, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	require.NoError(t, err)
	require.NotEmpty(t, pages)
	bin := build(t, root)
	var all []Exchange
	for _, page := range append(pages, filepath.Join(root, "README.md")) {
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		t.Run(filepath.Base(page), func(t *testing.T) {
			for _, line := range Outside(string(text)) {
				t.Errorf("line %d shows a curl that is not in a block marked sh, so nothing runs it", line)
			}
			exchanges, err := Run(t.Context(), string(text), root, bin, t.TempDir(), s)
			require.NoError(t, err)
			all = append(all, exchanges...)
		})
	}
	t.Run("every route is shown", func(t *testing.T) { everyRoute(t, s, all) })
}

// build compiles the program that the pages use into a folder.
func build(t *testing.T, root string) string {
	t.Helper()
	_, err := exec.LookPath("curl")
	require.NoError(t, err, "the pages use curl; install it (apt-get install curl)")
	bin := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "./server/cmd/stemedb")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOWORK=off")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return bin
}

// Run runs one page's commands in the folder home, with the programs in bin
// first on the path. A page that builds something does so in the checkout,
// which is root. The error lists all problems.
func Run(ctx context.Context, markdown, root, bin, home string, s Server) ([]Exchange, error) {
	script := Script(markdown)
	if script == "" {
		return nil, nil
	}
	rec := &recorder{}
	front, err := rec.proxy(s.URL)
	if err != nil {
		return nil, err
	}
	defer front.Close()
	ctx, cancel := context.WithTimeout(ctx, pageTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-eu", "-c", script)
	cmd.Dir = home
	if strings.Contains(script, "./server/cmd/stemedb") {
		cmd.Dir = root
	}
	cmd.Env = append(clean(os.Environ()),
		"PATH="+bin+string(os.PathListSeparator)+os.Getenv("PATH"), "GOBIN="+home, "GOWORK=off",
		"XDG_CONFIG_HOME="+filepath.Join(home, ".config"),
		"STEMEDB_URL="+front.URL, "STEMEDB_API_KEY="+s.Key, "STEMEDB_ADMIN_KEY="+s.AdminKey)
	out, err := cmd.CombinedOutput()
	var wrong []error
	if err != nil {
		wrong = append(wrong, fmt.Errorf("a command failed: %w", err))
	}
	curls := 0
	for _, e := range rec.all {
		if e.refused() {
			wrong = append(wrong, fmt.Errorf("%s %s answered %d: %s", e.Method, e.Path, e.Status, e.answer))
		}
		if strings.HasPrefix(e.agent, "curl/") {
			curls++
		}
	}
	if shown := len(curl.FindAllString(script, -1)); curls != shown {
		wrong = append(wrong, fmt.Errorf("the page shows curl %d times but the server received it %d times", shown, curls))
	}
	if wrong != nil {
		wrong = append(wrong, fmt.Errorf("output of the commands:\n%s", out))
	}
	return rec.all, errors.Join(wrong...)
}

// clean omits variables that would change the commands' behaviour.
func clean(environ []string) (out []string) {
	for _, kv := range environ {
		if !strings.HasPrefix(kv, "STEMEDB_") && !strings.HasPrefix(kv, "STEME_") && !strings.HasPrefix(strings.ToLower(kv), "http_proxy=") {
			out = append(out, kv)
		}
	}
	return out
}

// recorder is a proxy between the commands and the server.
type recorder struct {
	mu  sync.Mutex
	all []Exchange
}

func (r *recorder) proxy(server string) (*httptest.Server, error) {
	target, err := url.Parse(server)
	if err != nil {
		return nil, fmt.Errorf("the server's URL: %w", err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) { p.SetURL(target) },
		ModifyResponse: func(resp *http.Response) error {
			answer, err := io.ReadAll(resp.Body)
			if err != nil {
				return fmt.Errorf("read the answer: %w", err)
			}
			resp.Body = io.NopCloser(bytes.NewReader(answer))
			e := Exchange{
				Method: resp.Request.Method, Path: resp.Request.URL.Path, Status: resp.StatusCode,
				agent: resp.Request.UserAgent(), answer: answer,
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			r.all = append(r.all, e)
			return nil
		},
	}
	return httptest.NewServer(proxy), nil
}

var (
	fence = regexp.MustCompile("^```(.*)$")
	// curl matches a curl command on a line of a script.
	curl = regexp.MustCompile(`(?m)(?:^|[\s(|;&])curl\s+-`)
)

// Script is every block of a page that is marked sh, one after the other.
func Script(markdown string) string {
	var script strings.Builder
	walk(markdown, func(_ int, line string, runs bool) {
		if runs {
			script.WriteString(line + "\n")
		}
	})
	return script.String()
}

// Outside returns the numbers of the lines with a curl that is not part of Script.
func Outside(markdown string) (lines []int) {
	walk(markdown, func(n int, line string, runs bool) {
		if !runs && curl.MatchString(line) {
			lines = append(lines, n)
		}
	})
	return lines
}

// walk visits every line except the fences.
func walk(markdown string, visit func(n int, line string, runs bool)) {
	kind, inside := "", false
	for n, line := range strings.Split(markdown, "\n") {
		if m := fence.FindStringSubmatch(line); m != nil {
			kind, inside = m[1], !inside
			continue
		}
		visit(n+1, line, inside && kind == "sh")
	}
}
