package pipeline

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/stemedb/stemedb/ci/process"
	"github.com/stemedb/stemedb/ci/progress"
)

const (
	releaseName = "stemedb"
	namespace   = "stemedb"
	localPort   = "18181"
	localURL    = "http://127.0.0.1:" + localPort
)

// sample is a code base that `make up` scans into the release.
type sample struct {
	project string // the project whose key is used for the scan
	name    string
	module  string // of the Go module cache; empty: this checkout
}

// The two modules are already in the cache: the cluster's own tools are built from them.
var samples = []sample{
	{project: "stemedb", name: "stemedb"},
	{project: "upstream", name: "kubernetes", module: "k8s.io/kubernetes@v1.37.2"},
	{project: "upstream", name: "coredns", module: "github.com/coredns/coredns@v1.15.0"},
}

// Up brings up a cluster, installs the release with values/dev.yaml, loads real
// data into it, and prints the next commands to try.
func (p *Pipeline) Up(ctx context.Context) error {
	env, err := p.release(ctx)
	if err != nil {
		return err
	}
	var root string
	keys := map[string]string{}
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"forward " + localURL + " to the gateway", func(ctx context.Context) error { return p.startForward(ctx) }},
		{"keys for two projects", func(ctx context.Context) (err error) {
			if root, err = p.rootKey(ctx, env); err != nil {
				return err
			}
			for _, s := range samples {
				if keys[s.project] == "" {
					if keys[s.project], err = p.projectKey(ctx, root, s.project); err != nil {
						return err
					}
				}
			}
			return nil
		}},
		{"scan real code into it", func(ctx context.Context) error { return p.scanSamples(ctx, keys) }},
	} {
		if err := p.Reporter.Step(ctx, step.name, step.do); err != nil {
			return err
		}
	}
	fmt.Printf(next, localURL, keys["stemedb"], filepath.Join(p.State, "bin", "cluster"), namespace, releaseName)
	return nil
}

const next = `
StemeDB runs: three pods behind %[1]s

  export STEMEDB_URL=%[1]s STEMEDB_API_KEY=%[2]s
  curl -s -H "X-API-Key: $STEMEDB_API_KEY" "$STEMEDB_URL/v1/whoami"
  curl -s -H "X-API-Key: $STEMEDB_API_KEY" "$STEMEDB_URL/v1/subjects?prefix=code://go/&limit=5"
  curl -s "$STEMEDB_URL/v1/cluster/status"

The cluster itself:  export KUBECONFIG=$(%[3]s kubeconfig); kubectl -n %[4]s get pods -o wide
An admin's key:      export STEMEDB_ADMIN_KEY=$(kubectl -n %[4]s get secret %[5]s-secrets -o jsonpath='{.data.root-api-key}' | base64 -d)
Take it all down:    make down
`

func (p *Pipeline) rootKey(ctx context.Context, env []string) (string, error) {
	out, err := p.quiet(ctx, ".", env, "kubectl", "-n", namespace, "get", "secret", releaseName+"-secrets", "-o", "jsonpath={.data.root-api-key}")
	if err != nil {
		return "", err
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(out))
	return string(raw), err
}

// projectKey returns the key of a project: the saved one from an earlier run if
// the release still knows it, else a new one.
func (p *Pipeline) projectKey(ctx context.Context, root, project string) (string, error) {
	kept := filepath.Join(p.State, "key-"+project)
	if raw, err := os.ReadFile(kept); err == nil {
		if status, _, err := ask(ctx, http.MethodGet, "/v1/whoami", string(raw), nil); err == nil && status == http.StatusOK {
			return string(raw), nil
		}
	}
	status, body, err := ask(ctx, http.MethodPost, "/v1/admin/api-keys", root, map[string]string{"project": project, "role": "write_agent", "label": "make up"})
	if err != nil {
		return "", err
	}
	var answer struct{ Key string }
	if status != http.StatusCreated || json.Unmarshal(body, &answer) != nil || answer.Key == "" {
		return "", fmt.Errorf("mint a key for project %s: status %d: %s", project, status, body)
	}
	return answer.Key, os.WriteFile(kept, []byte(answer.Key), 0o600)
}

func ask(ctx context.Context, method, path, key string, body any) (int, []byte, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return 0, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, localURL+path, bytes.NewReader(raw))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("X-API-Key", key)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	} else {
		req.Body, req.ContentLength = http.NoBody, 0
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	return resp.StatusCode, answer, err
}

func (p *Pipeline) scanSamples(ctx context.Context, keys map[string]string) error {
	aphoria, err := p.goBuild(ctx, ".", "./aphoria/cmd/aphoria", "aphoria")
	if err != nil {
		return err
	}
	for _, s := range samples {
		dir := p.Root
		if s.module != "" {
			if dir, err = p.moduleDir(ctx, s.module); err != nil {
				return err
			}
		}
		state := filepath.Join(p.State, "aphoria", s.name)
		if err := os.MkdirAll(state, 0o755); err != nil {
			return err
		}
		// In the state folder, not in the code, since a module cache is read-only.
		config := filepath.Join(state, "config.toml")
		where := []string{dir, "--config", config, "--state-dir", state}
		if _, err := os.Stat(config); err != nil {
			if _, err := p.quiet(ctx, ".", nil, aphoria, append([]string{"init", "--name", s.name, "--url", localURL}, where...)...); err != nil {
				return err
			}
		}
		if _, err := p.Runner.Run(ctx, process.Command{
			Name: aphoria, Args: append([]string{"scan", "--persist"}, where...),
			Env: []string{"STEMEDB_API_KEY=" + keys[s.project]}, Tee: os.Stdout,
		}); err != nil {
			return err
		}
	}
	return nil
}

// moduleDir is the folder of a module in the module cache.
func (p *Pipeline) moduleDir(ctx context.Context, module string) (string, error) {
	out, err := p.quiet(ctx, ".", []string{"GOFLAGS=-mod=mod"}, "go", "mod", "download", "-json", module)
	if err != nil {
		return "", err
	}
	var answer struct{ Dir string }
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		return "", fmt.Errorf("find %s in the module cache: %w", module, err)
	}
	return answer.Dir, nil
}

// Forward keeps a port of this machine connected to the gateway until it is
// stopped. It restarts kubectl's port-forward, which ends with its pod.
func (p *Pipeline) Forward(ctx context.Context) error {
	_, env, err := p.client(ctx, filepath.Join(p.State, "bin", "cluster"))
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		_, err := p.quiet(ctx, ".", env, "kubectl", "-n", namespace, "port-forward", "service/"+releaseName, localPort+":"+localPort)
		p.Reporter.Note("the port-forward ended and is restarted: %v", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	return nil
}

func (p *Pipeline) forwardPID() string { return filepath.Join(p.State, "forward.pid") }

// startForward starts Forward as a process that outlives this one.
func (p *Pipeline) startForward(ctx context.Context) error {
	p.stopForward()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	// `go run` removes its binary when it ends; the forward needs a permanent one.
	stays := filepath.Join(p.State, "bin", "dev")
	if err := copyFile(self, stays); err != nil {
		return err
	}
	logPath := filepath.Join(p.State, "forward.log")
	out, err := os.Create(logPath)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(stays, "forward") //nolint:noctx // it has to outlive this process; `make down` ends it
	cmd.Dir, cmd.Stdout, cmd.Stderr = filepath.Join(p.Root, "ci"), out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	if err := os.WriteFile(p.forwardPID(), []byte(strconv.Itoa(cmd.Process.Pid)), 0o644); err != nil {
		return err
	}
	for range 60 {
		if status, _, err := ask(ctx, http.MethodGet, "/v1/health", "", nil); err == nil && status == http.StatusOK {
			return cmd.Process.Release()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
	return progress.WithHint(progress.WithLog(errors.New(localURL+" does not answer"), logPath), "make sure that nothing else listens on port %s, then run make up again", localPort)
}

// stopForward ends the process of an earlier run and its kubectl, which form a
// separate process group.
func (p *Pipeline) stopForward() {
	raw, err := os.ReadFile(p.forwardPID())
	if err != nil {
		return
	}
	_ = os.Remove(p.forwardPID())
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil || pid <= 1 {
		return
	}
	// Another process may have reused the number since.
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && strings.HasPrefix(exe, filepath.Join(p.State, "bin", "dev")) {
		_ = syscall.Kill(-pid, syscall.SIGTERM)
	}
}

// Down removes the forward and the cluster with the release that Up created;
// from an existing cluster it removes only the release.
func (p *Pipeline) Down(ctx context.Context) error {
	p.stopForward()
	command, err := p.clusterCommand(ctx)
	if err != nil {
		return err
	}
	existing, err := recordedExisting()
	if err != nil {
		return err
	}
	if existing {
		if err := p.Reporter.Step(ctx, "uninstall the release", func(ctx context.Context) error { return p.uninstall(ctx, command) }); err != nil {
			return err
		}
	}
	return p.cluster(ctx, command, "down")
}
