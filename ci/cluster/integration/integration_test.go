// Package integration brings up a real source cluster, uses the features that
// the project's own tests rely on, and takes it down. It needs root and the
// cluster's address ranges, and runs when STEMEDB_CLUSTER_INTEGRATION is set.
package integration

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/ci/cluster"
	"github.com/stemedb/stemedb/ci/image"
	"github.com/stemedb/stemedb/ci/process"
	"github.com/stemedb/stemedb/ci/progress"
	"github.com/stemedb/stemedb/ci/tools"
)

//go:embed workload.yaml
var workload string

type suite struct {
	t       *testing.T
	options cluster.Options
	p       cluster.Provider
}

func TestSourceCluster(t *testing.T) {
	if os.Getenv("STEMEDB_CLUSTER_INTEGRATION") == "" {
		t.Skip("set STEMEDB_CLUSTER_INTEGRATION=1 to bring up a cluster on this machine, as root")
	}
	// Short, because of unix sockets.
	base, err := os.MkdirTemp("/tmp", "stemedb-")
	require.NoError(t, err)
	reporter := progress.New(os.Stderr)
	builder, err := tools.New(process.Exec{}, reporter)
	require.NoError(t, err)
	s := &suite{t: t, options: cluster.Options{
		Dir: filepath.Join(base, "cluster"), Runner: process.Exec{}, Reporter: reporter, Tools: builder,
	}}
	before := footprint(t)
	t.Cleanup(func() {
		// Not the test's context, which is over by now.
		_, err := cluster.Down(context.Background(), s.options)
		require.NoError(t, err)
		require.NoError(t, os.RemoveAll(base))
		require.Equal(t, before, footprint(t), "down restores the state of the machine")
	})

	s.p, err = cluster.Up(t.Context(), s.options, "source")
	require.NoError(t, err)
	s.run("second up changes nothing", s.secondUp)
	s.install()
	s.run("admission", s.admission)
	s.run("node access", s.nodeAccess)
	s.run("names", s.names)
	s.run("rolling restart", s.rollingRestart)
	s.run("kill all", s.killAll)
	s.run("node cut", s.nodeCut)
	s.run("volumes deleted", s.volumesDeleted)
	s.run("down and up", s.downAndUp)
}

// run is t.Run with the helpers failing the subtest.
func (s *suite) run(name string, test func(*testing.T)) {
	outer := s.t
	defer func() { s.t = outer }()
	outer.Run(name, func(t *testing.T) {
		s.t = t
		test(t)
	})
}

func (s *suite) secondUp(t *testing.T) {
	t.Helper()
	before, err := s.p.Status(t.Context())
	require.NoError(t, err)
	_, err = cluster.Up(t.Context(), s.options, "")
	require.NoError(t, err)
	after, err := s.p.Status(t.Context())
	require.NoError(t, err)
	require.Equal(t, before, after, "the same processes are running")
	require.NotContains(t, after, "ENDED")
}

// install builds the probe, loads it and waits for the workload.
func (s *suite) install() {
	t := s.t
	root, err := tools.CheckoutDir()
	require.NoError(t, err)
	dir := t.TempDir()
	compiler := &image.Compiler{Root: root, Version: "test", Runner: s.options.Runner, Reporter: s.options.Reporter}
	files, err := compiler.Compile(t.Context(), dir, image.Program{Module: "ci", Package: "./cluster/integration/probe", Path: "/probe"})
	require.NoError(t, err)
	tar := filepath.Join(dir, "probe.tar")
	require.NoError(t, image.Write(image.Spec{
		Reference: "docker.io/stemedb/probe:test", Files: files, Entrypoint: []string{"/probe"}, User: image.NonRoot,
	}, tar))
	require.NoError(t, s.p.LoadImage(t.Context(), tar))
	s.kubectl(workload, "apply", "--filename=-")
	s.settled()
}

func (s *suite) admission(t *testing.T) {
	t.Helper()
	privileged := `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"bad","namespace":"probe"},
		"spec":{"containers":[{"name":"x","image":"docker.io/stemedb/probe:test"}]}}`
	_, err := s.tryKubectl(privileged, "apply", "--filename=-")
	require.ErrorContains(t, err, "violates PodSecurity")
}

// nodeAccess lists the API server's requests to kubelets.
func (s *suite) nodeAccess(t *testing.T) {
	t.Helper()
	require.Equal(t, "hello there\n", s.kubectl("", "exec", "--namespace=probe", "probe-2", "--", "/probe", "there"))
	s.kubectl("", "logs", "--namespace=kube-system", "daemonset/coredns")
}

func (s *suite) names(t *testing.T) {
	t.Helper()
	var all, one []string
	s.ask("/resolve?name=probe-headless", &all)
	require.Len(t, all, 3, "the headless Service has an address for each pod")
	nodes := map[string]bool{}
	for i := range 3 {
		name := fmt.Sprintf("probe-%d.probe-headless.probe.svc.cluster.local", i)
		s.ask("/resolve?name="+name, &one)
		require.Len(t, one, 1)
		require.Contains(t, all, one[0])
		require.Equal(t, fmt.Sprintf("probe-%d", i), s.text("/fetch?url="+url.QueryEscape("http://"+name+":8080/id")))
		nodes[s.kubectl("", "get", "pod", "--namespace=probe", fmt.Sprintf("probe-%d", i), "--output=jsonpath={.spec.nodeName}")] = true
	}
	require.Len(t, nodes, 3, "the pods are on three nodes")
	require.Contains(t, s.text("/fetch?url="+url.QueryEscape("http://probe/id")), "probe-")
	s.ask("/resolve?name=kubernetes.default.svc.cluster.local", &one)
	require.Equal(t, []string{"10.96.0.1"}, one)
	_, err := s.get(s.client() + "/resolve?name=example.com")
	require.ErrorContains(t, err, "no such host", "a name outside of the cluster is answered immediately")
}

// rollingRestart sends requests through the Service while every pod is replaced.
func (s *suite) rollingRestart(t *testing.T) {
	t.Helper()
	type outcome struct {
		result
		err error
	}
	results := map[string]chan outcome{"true": make(chan outcome, 1), "false": make(chan outcome, 1)}
	for fresh, into := range results {
		go func() {
			var r outcome
			text, err := s.get(s.client() + "/load?rps=200&seconds=75&fresh=" + fresh + "&url=" + url.QueryEscape("http://probe/id"))
			if r.err = err; err == nil {
				r.err = json.Unmarshal([]byte(text), &r.result)
			}
			into <- r
		}()
	}
	s.kubectl("", "rollout", "restart", "--namespace=probe", "statefulset/probe")
	s.settled()
	for fresh, from := range results {
		r := <-from
		require.NoError(t, r.err)
		t.Logf("fresh=%s: %d sent, %d failed, by %v", fresh, r.Sent, r.Failed, r.By)
		require.Zero(t, r.Failed, "fresh=%s: %v", fresh, r.Errors)
		require.Len(t, r.By, 3, "every pod answered")
	}
}

func (s *suite) killAll(t *testing.T) {
	t.Helper()
	before := s.restarts()
	var all []cluster.Container
	for i := range 3 {
		all = append(all, cluster.Container{Namespace: "probe", Pod: fmt.Sprintf("probe-%d", i), Name: "probe"})
	}
	require.NoError(t, cluster.Signal(t.Context(), s.options, s.p.(cluster.Faults), syscall.SIGKILL, all...))
	require.Eventually(t, func() bool { return s.restarts() == before+3 }, time.Minute, 200*time.Millisecond)
	s.settled()
}

func (s *suite) nodeCut(t *testing.T) {
	t.Helper()
	faults := s.p.(cluster.Faults)
	begin := time.Now()
	require.NoError(t, faults.CutNode(t.Context(), "node3"))
	defer func() { require.NoError(t, faults.HealNode(t.Context(), "node3")) }()
	s.kubectl("", "wait", "--for=condition=Ready=Unknown", "node/node3", "--timeout=60s")
	t.Logf("not ready %s after the cut", time.Since(begin).Round(time.Second))
	// The lost pod leaves the Service's endpoints, and every node's rules, next.
	require.Eventually(t, func() bool {
		for range 20 {
			if _, err := s.get(s.client() + "/fetch?url=" + url.QueryEscape("http://probe/id")); err != nil {
				return false
			}
		}
		return true
	}, 30*time.Second, 100*time.Millisecond, "the others answer")
	t.Logf("no request goes to it %s after the cut", time.Since(begin).Round(time.Second))
	var pods []string
	s.ask("/resolve?name=probe-headless", &pods)
	require.Len(t, pods, 3, "addresses that are not ready are published")
	require.NoError(t, faults.HealNode(t.Context(), "node3"))
	begin = time.Now()
	s.kubectl("", "wait", "--for=condition=Ready", "node/node3", "--timeout=90s")
	t.Logf("ready %s after it was healed", time.Since(begin).Round(time.Second))
	s.settled()
	require.Error(t, faults.CutNode(t.Context(), "node9"))
}

func (s *suite) volumesDeleted(t *testing.T) {
	t.Helper()
	pod := "http://probe-0.probe-headless.probe.svc.cluster.local:8080"
	address := func() string {
		return "http://" + s.kubectl("", "get", "pod", "--namespace=probe", "probe-0", "--output=jsonpath={.status.podIP}") + ":8080"
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, address()+"/file", strings.NewReader("kept"))
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusOK, resp.StatusCode)

	s.kubectl("", "delete", "pod", "--namespace=probe", "probe-0")
	s.settled()
	require.Equal(t, "kept", s.text("/fetch?url="+url.QueryEscape(pod+"/file")), "a volume outlives its pod")

	s.kubectl("", "delete", "pvc", "--namespace=probe", "data-probe-0", "--wait=false")
	s.kubectl("", "delete", "pod", "--namespace=probe", "probe-0")
	s.settled()
	_, err = s.get(s.client() + "/fetch?url=" + url.QueryEscape(pod+"/file"))
	require.ErrorContains(t, err, "404", "the new volume is empty")
	volumes := func() int {
		found, err := filepath.Glob(filepath.Join(s.options.Dir, "node*", "volumes", "*"))
		require.NoError(t, err)
		return len(found)
	}
	require.Eventually(t, func() bool { return volumes() == 3 }, time.Minute, 200*time.Millisecond, "the old volume's data is deleted")
}

func (s *suite) downAndUp(t *testing.T) {
	t.Helper()
	was, err := cluster.Down(t.Context(), s.options)
	require.NoError(t, err)
	require.True(t, was)
	require.NoDirExists(t, s.options.Dir)
	_, err = cluster.Up(t.Context(), s.options, "source")
	require.NoError(t, err)
}

type result struct {
	Sent, Failed int
	Errors       []string
	By           map[string]int
}

func (s *suite) restarts() int {
	text := s.kubectl("", "get", "pods", "--namespace=probe", "--selector=app=probe", "--output=jsonpath={.items[*].status.containerStatuses[0].restartCount}")
	sum := 0
	for _, word := range strings.Fields(text) {
		var n int
		_, err := fmt.Sscan(word, &n)
		require.NoError(s.t, err)
		sum += n
	}
	return sum
}

// settled waits until the workload is complete.
func (s *suite) settled() {
	s.kubectl("", "rollout", "status", "--namespace=probe", "statefulset/probe", "--timeout=180s")
	s.kubectl("", "wait", "--for=condition=Ready", "--namespace=probe", "pod", "--all", "--timeout=60s")
}

// client is the URL of the client pod, which this machine reaches directly.
func (s *suite) client() string {
	return "http://" + s.kubectl("", "get", "pod", "--namespace=probe", "client", "--output=jsonpath={.status.podIP}") + ":8080"
}

func (s *suite) ask(path string, into any) {
	s.t.Helper()
	require.NoError(s.t, json.Unmarshal([]byte(s.text(path)), into))
}

func (s *suite) text(path string) string {
	s.t.Helper()
	text, err := s.get(s.client() + path)
	require.NoError(s.t, err)
	return text
}

func (s *suite) get(url string) (string, error) {
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %s", resp.StatusCode, body)
	}
	return string(body), err
}

func (s *suite) kubectl(in string, args ...string) string {
	s.t.Helper()
	out, err := s.tryKubectl(in, args...)
	require.NoError(s.t, err)
	return out
}

func (s *suite) tryKubectl(in string, args ...string) (string, error) {
	path, err := s.options.Tools.Path(s.t.Context(), "kubectl")
	if err != nil {
		return "", err
	}
	c := process.Cmd(path, append([]string{"--kubeconfig=" + s.p.Kubeconfig()}, args...)...)
	c.In = []byte(in)
	return s.options.Runner.Run(s.t.Context(), c)
}

// footprint lists the traces that a cluster could leave on a machine.
func footprint(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, command := range []string{
		"ip netns list", "ip -brief link", "ip -4 route show table all", "nft list tables",
	} {
		words := strings.Fields(command)
		text, err := process.Exec{}.Run(t.Context(), process.Cmd(words[0], words[1:]...))
		if t.Context().Err() != nil {
			text, err = process.Exec{}.Run(context.Background(), process.Cmd(words[0], words[1:]...))
		}
		require.NoError(t, err)
		out[command] = text
	}
	for _, pattern := range []string{
		"/sys/fs/cgroup/stemedb", "/sys/fs/cgroup/*/stemedb", "/var/lib/cni/*", "/var/log/containers/*", "/var/log/pods/*",
		"/run/containerd/*", "/run/containerd/s/*", "/var/lib/containerd", "/var/lib/kubelet", "/opt/containerd", "/opt/cni", "/usr/libexec/kubernetes", "/run/netns/*",
	} {
		found, err := filepath.Glob(pattern)
		require.NoError(t, err)
		out[pattern] = strings.Join(found, "\n")
	}
	for _, s := range []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "fs/inotify/max_user_instances", "net/ipv4/ip_forward"} {
		text, err := os.ReadFile(filepath.Join("/proc/sys", s))
		require.NoError(t, err)
		out[s] = string(text)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	require.NoError(t, err)
	out["mounts"] = string(mounts)
	return out
}
