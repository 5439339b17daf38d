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

// summary and verdict are the answers of the load generator (see loadgen).
type summary struct {
	Seconds           float64        `json:"seconds"`
	Requests          int            `json:"requests"`
	Asserts           int            `json:"asserts"`
	Reads             int            `json:"reads"`
	Fresh             int            `json:"fresh"`
	Failures          int            `json:"failures"`
	Unconnected       int            `json:"unconnected"`
	FailureKinds      map[string]int `json:"failureKinds"`
	Examples          []string       `json:"examples"`
	LostReads         []string       `json:"lostReads"`
	Acknowledged      int            `json:"acknowledged"`
	LongestGapSeconds float64        `json:"longestGapSeconds"`
	P50Millis         float64        `json:"p50Millis"`
	P99Millis         float64        `json:"p99Millis"`
}

type verdict struct {
	Acknowledged int      `json:"acknowledged"`
	Checked      int      `json:"checked"`
	Missing      int      `json:"missing"`
	Examples     []string `json:"examples"`
	Error        string   `json:"error"`
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

// control opens a connection to the load generator; do sends it one request.
func (l *load) control(t *testing.T) (do func(method, path string, body, into any), done func()) {
	t.Helper()
	url, done := l.r.tunnel(t, k8s.ResourceTypePod, "loadgen", 8080)
	return func(method, path string, body, into any) {
		t.Helper()
		status, raw := call(t, method, url+path, "", body)
		require.Equal(t, http.StatusOK, status, "%s: %s", path, raw)
		if into != nil {
			require.NoError(t, json.Unmarshal(raw, into), "%s", raw)
		}
	}, done
}

func (l *load) send(t *testing.T, method, path string, into any) {
	t.Helper()
	do, done := l.control(t)
	defer done()
	do(method, path, nil, into)
}

// during sends requests while fault runs, and for a moment before and after it.
func (l *load) during(t *testing.T, fault func()) summary {
	t.Helper()
	l.send(t, http.MethodPost, "/start", nil)
	time.Sleep(3 * time.Second)
	fault()
	time.Sleep(3 * time.Second)
	var s summary
	l.send(t, http.MethodPost, "/stop", &s)
	t.Logf("%d requests in %.0f s (%.0f/s): %d asserts, %d reads (%d over fresh connections), %d failed, %.1f s at most without a success, p50 %.1f ms, p99 %.1f ms; failures: %v",
		s.Requests, s.Seconds, float64(s.Requests)/s.Seconds, s.Asserts, s.Reads, s.Fresh, s.Failures, s.LongestGapSeconds, s.P50Millis, s.P99Millis, s.FailureKinds)
	require.Empty(t, s.LostReads, "a read did not find an acknowledged record")
	require.Greater(t, float64(s.Requests)/s.Seconds, 200.0, "the load generator itself was too slow for the test to mean anything")
	require.Positive(t, s.Asserts)
	require.Positive(t, s.Reads)
	return s
}

// longestGap is a generous limit for the time that a cluster with a majority
// may go without a success: a silent node is noticed within seconds.
const longestGap = 30.0 // seconds

// serves requires that more than one in share of the asserts and of the reads,
// half of the requests each, succeeded: reads from the two remaining members
// prove nothing about writes, which need both.
func (s *summary) serves(t *testing.T, share int, why string) {
	t.Helper()
	require.Greater(t, s.Asserts, s.Requests/2/share, "asserts: %s: %v", why, s.FailureKinds)
	require.Greater(t, s.Reads, s.Requests/2/share, "reads: %s: %v", why, s.FailureKinds)
	require.Less(t, s.LongestGapSeconds, longestGap, "%s: %v", why, s.FailureKinds)
}

// quiet is the observation time in which nothing may fail.
const quiet = 10 * time.Second

// withoutFailure sends requests while do runs and allows no failure.
func (l *load) withoutFailure(t *testing.T, do func()) {
	t.Helper()
	s := l.during(t, do)
	require.Zero(t, s.Failures, "%v", s.Examples)
	require.Positive(t, s.Fresh)
}

// withoutFailureOnceConnected is withoutFailure for the minutes after a pod was
// lost abruptly. Connection tracking on the client's node remembers every
// attempt to reach that pod for two minutes
// (nf_conntrack_tcp_timeout_syn_sent), and one that happens to get the source
// port of such an attempt is sent after it, regardless of the Service's current
// endpoints. No release can prevent that; requests on established connections
// are answered.
func (l *load) withoutFailureOnceConnected(t *testing.T, do func()) {
	t.Helper()
	s := l.during(t, do)
	require.Equal(t, s.Unconnected, s.Failures, "%v", s.Examples)
	require.Less(t, s.Unconnected, s.Fresh/5, "%v", s.Examples)
}

// resumes waits until asserts and reads succeed again in the current run.
func (l *load) resumes(t *testing.T, limit time.Duration) {
	t.Helper()
	const enough = 100 // of each kind: a second's worth
	do, done := l.control(t)
	defer done()
	var before, now summary
	do(http.MethodGet, "/progress", nil, &before)
	for began := time.Now(); now.Asserts < before.Asserts+enough || now.Reads < before.Reads+enough; {
		require.Less(t, time.Since(began), limit, "requests do not succeed again: %+v", now)
		time.Sleep(500 * time.Millisecond)
		do(http.MethodGet, "/progress", nil, &now)
	}
}

// piece is the number of ids that one /verify reads: a few seconds' work on a
// slow machine.
const piece = 5000

// everyPodHoldsAll reads each acknowledged id from each pod alone.
func (l *load) everyPodHoldsAll(t *testing.T) {
	t.Helper()
	do, done := l.control(t)
	defer done()
	for i := range replicas {
		// A replica may still be pulling the last records that the other two
		// acknowledged; it has to finish soon and without intervention.
		const soon = time.Minute
		began, checked := time.Now(), 0
		var incomplete time.Time // since when
		for {
			var v verdict
			do(http.MethodPost, "/verify", map[string]any{"url": l.r.podURL(i), "from": checked, "count": piece}, &v)
			if v.Error != "" || v.Missing > 0 {
				if incomplete.IsZero() {
					incomplete = time.Now()
				}
				require.Less(t, time.Since(incomplete), soon, "%s alone, ids %d and following: %d are missing (such as %v); %s", l.r.pod(i), checked, v.Missing, v.Examples, v.Error)
				time.Sleep(2 * time.Second)
				continue
			}
			if checked += v.Checked; checked >= v.Acknowledged {
				break
			}
		}
		require.Positive(t, checked)
		t.Logf("%d acknowledged ids found on %s alone in %s", checked, l.r.pod(i), time.Since(began).Round(100*time.Millisecond))
	}
}
