package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gruntwork-io/terratest/modules/k8s"
	"github.com/stretchr/testify/require"
)

// settle is the time after a change of endpoints in which an earlier request
// may still fail: afterwards every node has its rules, and a request to the
// wrong address has reached its time-out (see requestTimeout and keptIdle in
// loadgen).
const settle = 15 * time.Second

// TestGate1 is the first gate: a release that forms a cluster, rejects unknown
// callers, and loses no acknowledged record while it is restarted, killed,
// deprived of a member's volumes and partitioned.
func TestGate1(t *testing.T) {
	r := install(t, "gate1")
	r.allWhole(t, 2*time.Minute)

	t.Run("health", func(t *testing.T) {
		healthy := func(kind k8s.KubeResourceType, name string, port int) {
			url, done := r.tunnel(t, kind, name, port)
			defer done()
			for _, path := range []string{"/v1/health", "/v1/health/live", "/v1/health/ready", "/v1/health/startup"} {
				status, body := call(t, http.MethodGet, url+path, "", nil)
				require.Equal(t, http.StatusOK, status, "%s %s: %s", name, path, body)
			}
		}
		healthy(k8s.ResourceTypeService, r.name+"-stemedb", gatewayPort)
		for i := range replicas {
			healthy(k8s.ResourceTypePod, r.pod(i), apiPort)
		}
	})

	t.Run("strangers are refused", func(t *testing.T) {
		url, done := r.tunnel(t, k8s.ResourceTypeService, r.name+"-stemedb", gatewayPort)
		defer done()
		status, body := call(t, http.MethodPost, url+"/v1/assert", "", map[string]any{})
		require.Equal(t, http.StatusUnauthorized, status, "%s", body)
		var problem struct{ Code string }
		require.NoError(t, json.Unmarshal(body, &problem))
		require.NotEmpty(t, problem.Code)
	})

	t.Run("pods are on different nodes", func(t *testing.T) {
		nodes := strings.Fields(r.kubectl(t, "get", "pods", "-l", "app.kubernetes.io/name=stemedb,app.kubernetes.io/instance="+r.name, "-o", "jsonpath={.items[*].spec.nodeName}"))
		require.Len(t, nodes, replicas)
		seen := map[string]bool{}
		for _, n := range nodes {
			seen[n] = true
		}
		require.Len(t, seen, replicas, "pods share a node: %v", nodes)
	})

	l := r.startLoadgen(t)

	t.Run("three rolling restarts fail not one request", func(t *testing.T) {
		l.withoutFailure(t, func() {
			for i := range 3 {
				began := time.Now()
				r.kubectl(t, "rollout", "restart", "statefulset/"+r.name+"-stemedb")
				r.kubectl(t, "rollout", "status", "statefulset/"+r.name+"-stemedb", "--timeout=5m")
				t.Logf("restart %d took %s", i+1, time.Since(began).Round(time.Second))
			}
		})
		r.allWhole(t, time.Minute)
		l.everyPodHoldsAll(t)
	})

	t.Run("all pods killed at once", func(t *testing.T) {
		l.during(t, func() {
			before := r.restarts(t)
			args := []string{"kill-container"}
			for i := range replicas {
				args = append(args, r.opts.Namespace+"/"+r.pod(i)+"/stemedb")
			}
			r.onCluster(t, args...)
			require.Eventually(t, func() bool { return r.restarts(t) >= before+replicas }, time.Minute, 500*time.Millisecond, "not every container was restarted")
			l.resumes(t, 3*time.Minute)
			r.allWhole(t, 3*time.Minute)
			time.Sleep(settle)
		})
		l.withoutFailure(t, func() { time.Sleep(quiet) })
		l.everyPodHoldsAll(t)
	})

	t.Run("a member that lost both volumes becomes whole by itself", func(t *testing.T) {
		// The pod shuts down gracefully, so no client notices.
		l.withoutFailure(t, func() {
			victim := r.pod(1)
			old := r.kubectl(t, "get", "pod", victim, "-o", "jsonpath={.metadata.uid}")
			r.kubectl(t, "delete", "pvc", "wal-"+victim, "db-"+victim, "--wait=false")
			r.kubectl(t, "delete", "pod", victim)
			require.Eventually(t, func() bool {
				uid, err := k8s.RunKubectlAndGetOutputE(t, r.opts, "get", "pod", victim, "-o", "jsonpath={.metadata.uid}")
				return err == nil && uid != "" && uid != old
			}, 2*time.Minute, time.Second)
			r.allWhole(t, 5*time.Minute)
		})
		l.everyPodHoldsAll(t)
	})

	t.Run("a node cut off for a minute", func(t *testing.T) {
		client := r.kubectl(t, "get", "pod", "loadgen", "-o", "jsonpath={.spec.nodeName}")
		var victim, pod string
		for i := range replicas {
			if node := r.kubectl(t, "get", "pod", r.pod(i), "-o", "jsonpath={.spec.nodeName}"); node != client {
				victim, pod = node, r.pod(i)
				break
			}
		}
		require.NotEmpty(t, victim)
		var cut time.Time
		// Until Kubernetes has noticed, a third of the connections and DNS
		// look-ups go to the dead node, and the clients here do not retry.
		s := l.during(t, func() {
			cut = time.Now()
			r.onCluster(t, "node-cut", victim)
			for slices.Contains(r.ready(t), pod) {
				require.Less(t, time.Since(cut), 2*time.Minute, "the Service still leads to %s", pod)
				time.Sleep(time.Second)
			}
			time.Sleep(settle)
		})
		s.serves(t, 4, "two members of three serve")

		l.withoutFailureOnceConnected(t, func() { time.Sleep(max(quiet, time.Until(cut.Add(time.Minute)))) })

		s = l.during(t, func() {
			r.onCluster(t, "node-heal", victim)
			r.kubectl(t, "wait", "--for=condition=Ready", "node/"+victim, "--timeout=2m")
			r.allWhole(t, 3*time.Minute)
			time.Sleep(settle)
		})
		s.serves(t, 2, "coming back disturbs more than it helps")

		l.withoutFailure(t, func() { time.Sleep(quiet) })
		l.everyPodHoldsAll(t)
	})

	t.Run("helm test", func(t *testing.T) {
		r.helmTest(t)
		url, done := r.tunnel(t, k8s.ResourceTypeService, r.name+"-stemedb", gatewayPort)
		defer done()
		status, body := call(t, http.MethodGet, url+"/v1/query?scope=own,shared&subject=stemedb://smoke", r.key, nil)
		require.Equal(t, http.StatusOK, status, "%s", body)
		var found struct{ Claims []json.RawMessage }
		require.NoError(t, json.Unmarshal(body, &found))
		require.Empty(t, found.Claims, "its records are in the shared corpus")
	})
}

// restarts counts the restarts of the release's containers.
func (r *release) restarts(t *testing.T) int {
	t.Helper()
	total := 0
	for i := range replicas {
		var n int
		out := r.kubectl(t, "get", "pod", r.pod(i), "-o", "jsonpath={.status.containerStatuses[0].restartCount}")
		_, err := fmt.Sscan(out, &n)
		require.NoError(t, err)
		total += n
	}
	return total
}
