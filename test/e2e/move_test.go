package e2e

import (
	"crypto/ed25519"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gruntwork-io/terratest/modules/k8s"
	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
)

// TestMove runs the steps of docs/moving.md verbatim: into another
// namespace and under another release name, with all volumes and claims.
func TestMove(t *testing.T) {
	t.Parallel()
	r := install(t, "move")
	to := r.opts.Namespace + "d"
	r.kubectl(t, "delete", "namespace", to, "--ignore-not-found", "--wait")
	r.kubectl(t, "create", "namespace", to)
	t.Cleanup(func() { r.kubectl(t, "delete", "namespace", to, "--wait=false") })

	ids := r.assert(t, 20)
	steps := shellBlocks(t, "../../docs/moving.md")
	require.Len(t, steps, 5)
	chart, err := filepath.Abs("../../charts/stemedb")
	require.NoError(t, err)
	set := strings.Join([]string{
		"set -eu",
		"FROM=" + r.opts.Namespace, "TO=" + to, "RELEASE=" + r.name, "NEW_RELEASE=elsewhere", "NAME=" + r.name + "-stemedb", "REPLICAS=3",
		"SECRET=" + r.name + "-stemedb-secrets", "CHART=" + chart, "WORK=" + filepath.Join(t.TempDir(), "move"),
	}, "\n")
	for _, name := range regexp.MustCompile(`(?m)^[A-Z_]+`).FindAllString(steps[0], -1) {
		require.Contains(t, set, "\n"+name+"=", "the page sets a variable that the test does not")
	}
	var volumes string
	t.Cleanup(func() { // they outlive their claims by now
		for _, volume := range strings.Fields(volumes) {
			r.kubectl(t, "delete", "pv", volume, "--ignore-not-found", "--wait=false")
		}
	})
	for i, step := range steps[1:] {
		began := time.Now()
		cmd := exec.CommandContext(t.Context(), "bash", "-c", set+"\n"+step)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+r.kubeconfig)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "step %d: %s", i+1, out)
		t.Logf("step %d took %s", i+1, time.Since(began).Round(time.Second))
		if i == 0 {
			volumes = r.kubectl(t, "get", "pv", "-o", "jsonpath={range .items[?(@.spec.claimRef.namespace==\""+r.opts.Namespace+"\")]}{.metadata.name} {end}")
		}
	}

	moved := *r
	moved.opts = k8s.NewKubectlOptions("", r.kubeconfig, to)
	moved.opts.Logger = r.opts.Logger
	moved.allWhole(t, 2*time.Minute)
	moved.requireReadable(t, ids)
}

// assert writes claims through the gateway and returns their ids.
func (r *release) assert(t *testing.T, count int) (ids []record.Hash) {
	t.Helper()
	url, done := r.tunnel(t, k8s.ResourceTypeService, r.name+"-stemedb", gatewayPort)
	defer done()
	for i := range count {
		a := &record.Assertion{Content: record.Content{
			Subject: fmt.Sprint("code://e2e/", i), Predicate: "version", Object: record.Text("v1"), Confidence: 1,
			SourceClass: record.Expert, Timestamp: uint64(time.Now().Unix()),
		}}
		a.Sign(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
		status, body := call(t, http.MethodPost, url+"/v1/assert", r.key, a)
		require.Equal(t, http.StatusCreated, status, "%s", body)
		ids = append(ids, a.ID())
	}
	return ids
}

// requireReadable reads the claims through the gateway.
func (r *release) requireReadable(t *testing.T, ids []record.Hash) {
	t.Helper()
	url, done := r.tunnel(t, k8s.ResourceTypeService, r.name+"-stemedb", gatewayPort)
	defer done()
	for _, id := range ids {
		status, body := call(t, http.MethodGet, url+"/v1/assertions/"+id.String(), r.key, nil)
		require.Equal(t, http.StatusOK, status, "%s", body)
	}
}

// shellBlocks are the shell blocks of a page.
func shellBlocks(t *testing.T, page string) (blocks []string) {
	t.Helper()
	text, err := os.ReadFile(page)
	require.NoError(t, err)
	for _, m := range regexp.MustCompile("(?s)```bash\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		blocks = append(blocks, m[1])
	}
	return blocks
}
