package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/gruntwork-io/terratest/modules/helm"
	"github.com/gruntwork-io/terratest/modules/k8s"
	"github.com/gruntwork-io/terratest/modules/logger"
	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/client"
)

const (
	apiPort     = 18180
	gatewayPort = 18181
	replicas    = 3
	project     = "e2e"
)

// environment holds the settings that `make gate` passes to the tests.
type environment struct {
	kubeconfig string
	image      string // tag of docker.io/stemedb/stemedb on every node
	loadgen    string // full reference of the load generator's image
	cluster    string // path of the cluster command: cuts nodes, kills containers
}

func fromEnvironment(t *testing.T) environment {
	t.Helper()
	env := environment{
		kubeconfig: os.Getenv("STEMEDB_E2E_KUBECONFIG"),
		image:      os.Getenv("STEMEDB_E2E_IMAGE_TAG"),
		loadgen:    os.Getenv("STEMEDB_E2E_LOADGEN_IMAGE"),
		cluster:    os.Getenv("STEMEDB_E2E_CLUSTER_COMMAND"),
	}
	if env.kubeconfig == "" {
		t.Skip("NOT RUN: STEMEDB_E2E_KUBECONFIG is not set; `make gate` brings a cluster and sets it")
	}
	for name, value := range map[string]string{"IMAGE_TAG": env.image, "LOADGEN_IMAGE": env.loadgen, "CLUSTER_COMMAND": env.cluster} {
		require.NotEmpty(t, value, "STEMEDB_E2E_%s must be set together with STEMEDB_E2E_KUBECONFIG", name)
	}
	return env
}

// release is one installed chart in a separate namespace that enforces the
// restricted Pod Security Standard.
type release struct {
	environment
	name string
	opts *k8s.KubectlOptions
	key  string // of a write_agent in the test's project
	root string
}

func (r *release) pod(i int) string { return fmt.Sprintf("%s-stemedb-%d", r.name, i) }

func (r *release) podURL(i int) string {
	return fmt.Sprintf("http://%s.%s-stemedb-headless.%s.svc.cluster.local:%d", r.pod(i), r.name, r.opts.Namespace, apiPort)
}

func (r *release) gatewayURL() string {
	return fmt.Sprintf("http://%s-stemedb.%s.svc.cluster.local:%d", r.name, r.opts.Namespace, gatewayPort)
}

func install(t *testing.T, name string) *release {
	t.Helper()
	env := fromEnvironment(t)
	namespace := "stemedb-e2e-" + name
	r := &release{environment: env, name: name, opts: k8s.NewKubectlOptions("", env.kubeconfig, namespace)}
	r.opts.Logger = logger.Discard
	r.kubectl(t, "delete", "namespace", namespace, "--ignore-not-found", "--wait")
	r.kubectl(t, "create", "namespace", namespace)
	r.kubectl(t, "label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted", "pod-security.kubernetes.io/warn=restricted")
	t.Cleanup(func() {
		if t.Failed() {
			r.dump(t)
			if os.Getenv("STEMEDB_E2E_KEEP") != "" {
				return
			}
		}
		r.kubectl(t, "delete", "namespace", namespace, "--wait=false")
	})
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	began := time.Now()
	helm.Install(t, &helm.Options{
		KubectlOptions: r.opts,
		ValuesFiles:    []string{filepath.Join(root, "values/dev.yaml")},
		SetStrValues:   map[string]string{"image.tag": env.image},
		ExtraArgs:      map[string][]string{"install": {"--wait", "--timeout", "5m"}},
		Logger:         logger.Discard,
	}, filepath.Join(root, "charts/stemedb"), name)
	t.Logf("installed and ready after %s", time.Since(began).Round(time.Second))
	r.root = r.secret(t, name+"-stemedb-secrets", "root-api-key")
	r.key = r.mint(t)
	return r
}

// dump prints the first information that a reader of a failed run needs.
func (r *release) dump(t *testing.T) {
	t.Helper()
	for _, args := range [][]string{
		{"get", "pods,pvc,endpointslices", "-o", "wide"},
		{"get", "events", "--sort-by=.lastTimestamp"},
		{"logs", "-l", "app.kubernetes.io/name=stemedb", "--prefix", "--tail=60"},
	} {
		out, err := k8s.RunKubectlAndGetOutputE(t, r.opts, args...)
		t.Logf("kubectl %v (%v)\n%s", args, err, out)
	}
}

func (r *release) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := k8s.RunKubectlAndGetOutputE(t, r.opts, args...)
	require.NoError(t, err, "kubectl %v", args)
	return out
}

// onCluster runs the cluster command, for faults that kubectl cannot inject.
func (r *release) onCluster(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), r.cluster, args...).CombinedOutput()
	require.NoError(t, err, "cluster %v: %s", args, out)
}

func (r *release) secret(t *testing.T, name, field string) string {
	t.Helper()
	s := k8s.GetSecret(t, r.opts, name)
	require.Contains(t, s.Data, field)
	return string(s.Data[field])
}

// tunnel forwards a local port to a pod or a service and returns its URL.
func (r *release) tunnel(t *testing.T, kind k8s.KubeResourceType, name string, port int) (url string, closeTunnel func()) {
	t.Helper()
	tun := k8s.NewTunnel(r.opts, kind, name, 0, port)
	tun.ForwardPort(t)
	return "http://" + tun.Endpoint(), tun.Close
}

// call sends one request and returns status and body.
func call(t *testing.T, method, url, key string, body any) (int, []byte) {
	t.Helper()
	var in io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		require.NoError(t, err)
		in = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, url, in)
	require.NoError(t, err)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if key != "" {
		req.Header.Set("X-API-Key", key)
	}
	resp, err := (&http.Client{Timeout: time.Minute}).Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, out
}

// mint mints a key for the test's project with the root key.
func (r *release) mint(t *testing.T) string {
	t.Helper()
	url, done := r.tunnel(t, k8s.ResourceTypeService, r.name+"-stemedb", gatewayPort)
	defer done()
	root, err := client.New(url, r.root)
	require.NoError(t, err)
	minted, err := root.MintKey(t.Context(), client.NewKey{Project: project, Role: "write_agent", Label: "e2e"})
	require.NoError(t, err)
	require.NotEmpty(t, minted.Secret)
	return minted.Secret
}

func (r *release) members(t *testing.T) []client.Member {
	t.Helper()
	url, done := r.tunnel(t, k8s.ResourceTypeService, r.name+"-stemedb", gatewayPort)
	defer done()
	root, err := client.New(url, r.root, client.WithRetries())
	require.NoError(t, err)
	status, err := root.ClusterStatus(t.Context())
	require.NoError(t, err)
	return status.Members
}

// allWhole waits until all pods are ready and the cluster reports every member
// as alive and whole.
func (r *release) allWhole(t *testing.T, limit time.Duration) {
	t.Helper()
	began := time.Now()
	r.kubectl(t, "rollout", "status", "statefulset/"+r.name+"-stemedb", "--timeout", limit.String())
	for i := range replicas {
		r.kubectl(t, "wait", "--for=condition=Ready", "pod/"+r.pod(i), "--timeout", limit.String())
	}
	for {
		members := r.members(t)
		good := 0
		for _, m := range members {
			if m.Alive && m.Whole {
				good++
			}
		}
		if good == replicas && len(members) == replicas {
			t.Logf("three members alive and whole after %s", time.Since(began).Round(100*time.Millisecond))
			return
		}
		require.Less(t, time.Since(began), limit, "members are not all alive and whole: %+v", members)
		time.Sleep(500 * time.Millisecond)
	}
}

// ready names the pods that the gateway Service routes to.
func (r *release) ready(t *testing.T) []string {
	t.Helper()
	var found struct {
		Items []struct {
			Endpoints []struct {
				Conditions struct{ Ready *bool }
				TargetRef  struct{ Name string }
			}
		}
	}
	out := r.kubectl(t, "get", "endpointslices", "-l", "kubernetes.io/service-name="+r.name+"-stemedb", "-o", "json")
	require.NoError(t, json.Unmarshal([]byte(out), &found), "%s", out)
	var names []string
	for _, s := range found.Items {
		for _, e := range s.Endpoints {
			if e.Conditions.Ready == nil || *e.Conditions.Ready { // absent means ready
				names = append(names, e.TargetRef.Name)
			}
		}
	}
	return names
}

// helmTest runs the chart's own test.
func (r *release) helmTest(t *testing.T) {
	t.Helper()
	out, err := helm.RunHelmCommandAndGetOutputE(t, &helm.Options{KubectlOptions: r.opts, Logger: logger.Discard}, "test", r.name, "--timeout", "2m")
	require.NoError(t, err, "%s", out)
	require.Contains(t, out, "Succeeded")
}
