package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// switching is a release whose source of secrets changes.
type switching struct {
	*release
	folder string // holds mine.yaml, as in the chart's README
	chart  string
	values string // values/dev.yaml without its secrets, and the image's tag
}

// TestEverySwitchOfTheSecretsSource goes through the six changes of
// secrets.source by the steps of the chart's README. After each one a restarted
// pod joins the others, and the root key and all claims are unchanged. A change
// without its steps is rejected and has no effect.
func TestEverySwitchOfTheSecretsSource(t *testing.T) {
	t.Parallel()
	r := install(t, "switch")
	ids := r.assert(t, 5)
	s := &switching{release: r, folder: t.TempDir()}
	var err error
	s.chart, err = filepath.Abs("../../charts/stemedb")
	require.NoError(t, err)
	dev, err := os.ReadFile("../../values/dev.yaml")
	require.NoError(t, err)
	s.values = strings.Replace(regexp.MustCompile(`(?m)^secrets:\n  source: generated\n`).ReplaceAllString(string(dev), ""), "tag: dev", "tag: "+r.image, 1)
	require.NotContains(t, s.values, "secrets:")
	s.values = strings.Replace(s.values, "shutdownGrace: 10s", "shutdownGrace: 1s", 1) + "minReadySeconds: 0\n" // nothing here is under load
	stage, fill := s.readme(t, "To stage a change to"), s.readme(t, "To copy the current values into")

	clusterSecret := r.secret(t, "switch-stemedb-secrets", "cluster-secret")
	var wrong atomic.Bool // the values in the store differ from the members' values
	r.runExternalSecrets(t, func(key string) string {
		switch {
		case wrong.Load():
			return "steme_live_" + strings.Repeat("0", 48)
		case key == "stemedb-root-api-key":
			return r.root
		case key == "stemedb-cluster-secret":
			return clusterSecret
		}
		return ""
	})
	const store = `externalSecret: {secretStoreRef: {name: store}, rootApiKey: {key: stemedb-root-api-key}, clusterSecret: {key: stemedb-cluster-secret}}`

	s.refused(t, "{source: existing, existing: {name: mine}}", "does not exist")
	s.shell(t, fill)
	r.kubectl(t, "patch", "secret", "mine", "-p", `{"stringData":{"cluster-secret":"another-secret-of-the-members-0123456789"}}`)
	s.refused(t, "{source: existing, existing: {name: mine}}", "differs")
	r.kubectl(t, "delete", "secret", "mine")
	s.shell(t, fill)
	s.changes(t, "generated to existing", "{source: existing, existing: {name: mine}}")

	r.kubectl(t, "delete", "secret", "switch-stemedb-secrets") // so that only previous.name can supply the values
	s.changes(t, "existing to generated", "{source: generated, previous: {name: mine}}")

	s.refused(t, "{source: externalSecret, "+store+"}", "are not known")
	wrong.Store(true)
	s.write(t, "{source: generated}")
	s.shell(t, stage)
	s.refused(t, "{source: externalSecret, "+store+"}", "differs")
	wrong.Store(false)
	s.untilStaged(t, clusterSecret)
	s.changes(t, "generated to externalSecret", "{source: externalSecret, "+store+"}")

	r.kubectl(t, "delete", "secret", "mine")
	s.shell(t, fill)
	s.changes(t, "externalSecret to existing", "{source: existing, existing: {name: mine}}")

	r.kubectl(t, "delete", "secret", "switch-stemedb-secrets")
	s.write(t, "{source: existing, existing: {name: mine}, previous: {name: mine}}")
	s.shell(t, stage)
	s.untilStaged(t, clusterSecret)
	s.changes(t, "existing to externalSecret", "{source: externalSecret, previous: {name: mine}, "+store+"}")

	s.changes(t, "externalSecret to generated", "{source: generated}")

	r.requireReadable(t, ids)
}

// changes upgrades, and requires a restarted pod to join the cluster.
func (s *switching) changes(t *testing.T, name, secrets string) {
	t.Helper()
	began := time.Now()
	s.write(t, secrets)
	out, err := s.upgrade(t)
	require.NoError(t, err, "%s: %s", name, out)
	s.kubectl(t, "delete", "pod", s.pod(1))
	s.allWhole(t, 2*time.Minute)
	t.Logf("%s: %s", name, time.Since(began).Round(time.Second))
}

// refused requires the upgrade to fail with that reason in the Job's log, and
// the release to keep its values.
func (s *switching) refused(t *testing.T, secrets, reason string) {
	t.Helper()
	before := s.kubectl(t, "get", "statefulset", "switch-stemedb", "-o", "jsonpath={.metadata.generation}")
	s.write(t, secrets)
	out, err := s.upgrade(t)
	require.Error(t, err, "%s", out)
	logs := s.kubectl(t, "logs", "-l", "app.kubernetes.io/component=ensure-secret", "--tail=-1")
	require.Contains(t, logs, reason)
	require.Equal(t, before, s.kubectl(t, "get", "statefulset", "switch-stemedb", "-o", "jsonpath={.metadata.generation}"))
}

// write writes mine.yaml, the values of the next upgrade.
func (s *switching) write(t *testing.T, secrets string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(s.folder, "mine.yaml"), []byte(s.values+"\nsecrets: "+secrets+"\n"), 0o600))
}

func (s *switching) upgrade(t *testing.T) (string, error) {
	t.Helper()
	return s.run(t, "helm upgrade switch "+s.chart+" -n "+s.opts.Namespace+" -f mine.yaml --wait --timeout 3m")
}

// untilStaged waits until the simulated operator has fetched the store's values.
func (s *switching) untilStaged(t *testing.T, clusterSecret string) {
	t.Helper()
	require.Eventually(t, func() bool {
		return s.secret(t, "switch-stemedb-secrets-staged", "cluster-secret") == clusterSecret
	}, time.Minute, 500*time.Millisecond)
}

// readme is the shell block of the chart's README after a text, for this release.
func (s *switching) readme(t *testing.T, after string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.chart, "README.md"))
	require.NoError(t, err)
	_, rest, found := strings.Cut(string(text), after)
	require.True(t, found, "the README has no %q", after)
	_, rest, _ = strings.Cut(rest, "```sh\n")
	block, _, found := strings.Cut(rest, "\n```")
	require.True(t, found)
	return strings.NewReplacer("-n stemedb ", "-n "+s.opts.Namespace+" ", "stemedb-secrets", "switch-stemedb-secrets",
		"upgrade stemedb charts/stemedb", "upgrade switch "+s.chart).Replace(block)
}

func (s *switching) shell(t *testing.T, script string) {
	t.Helper()
	out, err := s.run(t, script)
	require.NoError(t, err, "%s\n%s", script, out)
}

func (s *switching) run(t *testing.T, script string) (string, error) {
	t.Helper()
	command := exec.CommandContext(t.Context(), "sh", "-e", "-c", script)
	command.Dir = s.folder
	command.Env = append(os.Environ(), "KUBECONFIG="+s.kubeconfig)
	out, err := command.CombinedOutput()
	return string(out), err
}
