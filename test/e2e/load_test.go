package e2e

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"text/template"
	"time"

	"github.com/gruntwork-io/terratest/modules/k8s"
	"github.com/stretchr/testify/require"
)

// summary and verdict are what the load generator answers (see loadgen).
type summary struct {
	Seconds      float64        `json:"seconds"`
	Requests     int            `json:"requests"`
	Asserts      int            `json:"asserts"`
	Reads        int            `json:"reads"`
	Fresh        int            `json:"fresh"`
	Failures     int            `json:"failures"`
	FailureKinds map[string]int `json:"failureKinds"`
	Examples     []string       `json:"examples"`
	LostReads    []string       `json:"lostReads"`
	Acknowledged int            `json:"acknowledged"`
	P50Millis    float64        `json:"p50Millis"`
	P99Millis    float64        `json:"p99Millis"`
}

type verdict struct {
	Checked int                 `json:"checked"`
	Missing map[string][]string `json:"missing"`
	Counts  map[string]int      `json:"counts"`
	Errors  map[string]string   `json:"errors"`
}

var loadgenPod = template.Must(template.New("loadgen").Parse(`
apiVersion: v1
kind: Secret
metadata: {name: loadgen}
stringData: {api-key: "{{.Key}}"}
---
apiVersion: v1
kind: Pod
metadata: {name: loadgen, labels: {app: loadgen}}
spec:
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: 1
  securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: loadgen
      image: {{.Image}}
      imagePullPolicy: IfNotPresent
      args: ["--target", "{{.Target}}"]
      env:
        - name: STEMEDB_API_KEY
          valueFrom: {secretKeyRef: {name: loadgen, key: api-key}}
      securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
      readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
`))

// load is the client inside the cluster.
type load struct{ r *release }

func (r *release) startLoadgen(t *testing.T) *load {
	t.Helper()
	var out strings.Builder
	require.NoError(t, loadgenPod.Execute(&out, map[string]string{"Key": r.key, "Image": r.loadgen, "Target": r.gatewayURL()}))
	file := filepath.Join(t.TempDir(), "loadgen.yaml")
	require.NoError(t, os.WriteFile(file, []byte(out.String()), 0o600))
	r.kubectl(t, "apply", "-f", file)
	r.kubectl(t, "wait", "--for=condition=Ready", "pod/loadgen", "--timeout=60s")
	return &load{r: r}
}

func (l *load) post(t *testing.T, path string, body, into any) {
	t.Helper()
	url, done := l.r.tunnel(t, k8s.ResourceTypePod, "loadgen", 8080)
	defer done()
	status, raw := call(t, http.MethodPost, url+path, "", body)
	require.Equal(t, http.StatusOK, status, "%s: %s", path, raw)
	if into != nil {
		require.NoError(t, json.Unmarshal(raw, into), "%s", raw)
	}
}

// during sends requests all the while that fault runs, and for a moment
// before and after it.
func (l *load) during(t *testing.T, fault func()) summary {
	t.Helper()
	l.post(t, "/start", nil, nil)
	time.Sleep(3 * time.Second)
	fault()
	time.Sleep(3 * time.Second)
	var s summary
	l.post(t, "/stop", nil, &s)
	t.Logf("%d requests in %.0f s (%.0f/s; %d asserts, %d reads, %d over fresh connections), %d failed, p50 %.1f ms, p99 %.1f ms; failures: %v",
		s.Requests, s.Seconds, float64(s.Requests)/s.Seconds, s.Asserts, s.Reads, s.Fresh, s.Failures, s.P50Millis, s.P99Millis, s.FailureKinds)
	require.Empty(t, s.LostReads, "a read did not find what had been acknowledged")
	require.Greater(t, float64(s.Requests)/s.Seconds, 200.0, "the load generator itself was too slow for the test to mean anything")
	require.Positive(t, s.Asserts)
	require.Positive(t, s.Reads)
	return s
}

// everyPodHoldsAll reads each acknowledged id from each pod alone.
func (l *load) everyPodHoldsAll(t *testing.T) {
	t.Helper()
	urls := make([]string, replicas)
	for i := range urls {
		urls[i] = l.r.podURL(i)
	}
	// A replica may still be pulling the last records that the other two
	// acknowledged; it has to get there without anyone's help, and soon.
	deadline := time.Now().Add(time.Minute)
	for {
		var v verdict
		l.post(t, "/verify", map[string]any{"urls": urls}, &v)
		complete := len(v.Errors) == 0 && v.Checked > 0
		for _, n := range v.Counts {
			complete = complete && n == 0
		}
		if complete {
			t.Logf("%d acknowledged ids found on each of %d pods alone", v.Checked, len(v.Counts))
			return
		}
		require.True(t, time.Now().Before(deadline), "acknowledged ids are missing: counts %v, errors %v, examples %v", v.Counts, v.Errors, v.Missing)
		time.Sleep(2 * time.Second)
	}
}
