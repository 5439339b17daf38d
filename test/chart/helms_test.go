package chart

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"helm.sh/helm/v3/pkg/chart/loader"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

// otherHelms are programs that render with other Helm versions than this
// package. Each is a separate module below this folder (docs/decisions/0001).
var otherHelms = []string{"helm3oldest", "helm4"}

// helmRequest and helmAnswer are the input and output of these programs.
type helmRequest struct {
	Chart       string
	Release     string
	Namespace   string
	KubeVersion string
	Upgrade     bool
	Values      map[string]any
}

type helmAnswer struct {
	Files map[string]string
	Error string
}

// helmsDir is the folder of the programs from buildHelms, empty if it did not run.
var helmsDir string

// buildHelms builds the programs once; Go's own cache makes it seconds.
var buildHelms = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "helms")
	if err != nil {
		return "", err
	}
	helmsDir = dir
	for _, name := range otherHelms {
		build := exec.Command("go", "build", "-o", filepath.Join(dir, name), ".") // without a context: tests share it
		build.Dir, build.Env = name, append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=readonly")
		if out, err := build.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build test/chart/%s: %w\n%s", name, err, out)
		}
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if helmsDir != "" {
		_ = os.RemoveAll(helmsDir)
	}
	os.Exit(code)
}

func askHelm(t *testing.T, name string, requests []helmRequest) []helmAnswer {
	t.Helper()
	dir, err := buildHelms()
	require.NoError(t, err)
	raw, err := json.Marshal(requests)
	require.NoError(t, err)
	command := exec.CommandContext(t.Context(), filepath.Join(dir, name))
	command.Stdin = bytes.NewReader(raw)
	var stderr bytes.Buffer
	command.Stderr = &stderr
	out, err := command.Output()
	require.NoError(t, err, "%s", stderr.String())
	var answers []helmAnswer
	require.NoError(t, json.Unmarshal(out, &answers))
	require.Len(t, answers, len(requests))
	return answers
}

func (o options) request(t *testing.T, chart string) helmRequest {
	t.Helper()
	return helmRequest{
		Chart: chart, Release: either(o.release, "r"), Namespace: either(o.namespace, "ns"),
		KubeVersion: either(o.kubeVersion, "v1.37.2"), Upgrade: o.upgrade, Values: mergeValues(t, o),
	}
}

// The oldest supported Helm 3, the newest, and Helm 4 render every environment,
// and every variant, to the same bytes.
func TestEveryHelmRendersTheSame(t *testing.T) {
	var cases []options
	for _, env := range environments(t) {
		cases = append(cases, options{env: env}, options{env: env, upgrade: true})
	}
	for _, values := range variants {
		cases = append(cases, options{values: []string{values}})
	}
	for _, values := range []string{"image: {pullSecrets: null}", "networkPolicy: null", "probes: {startup: null}", closed + "\n---\nnetworkPolicy: {clients: {sameNamespace: {podSelector: null}}, dns: {peers: {kubeDNS: {podSelector: {matchLabels: null}}}}}", "replicas:", "secrets: {keys: {rootApiKey: null}}"} {
		cases = append(cases, options{values: []string{values}})
	}
	requests := make([]helmRequest, len(cases))
	for i, o := range cases {
		requests[i] = o.request(t, chartDir)
	}
	for _, helm := range otherHelms {
		for i, answer := range askHelm(t, helm, requests) {
			require.Empty(t, answer.Error, "%s: %+v", helm, cases[i])
			require.Equal(t, render(t, cases[i]).files, answer.Files, "%s: %+v", helm, cases[i])
		}
	}
}

// Every Helm version rejects the values that the schema and the checks reject.
func TestEveryHelmRefusesTheSame(t *testing.T) {
	var values, says []string
	for _, bad := range impossible {
		values, says = append(values, bad.values), append(says, bad.says)
	}
	for _, bad := range badValues {
		values, says = append(values, bad.values), append(says, "values don't meet the specifications of the schema")
	}
	requests := make([]helmRequest, len(values))
	for i, v := range values {
		requests[i] = options{values: []string{v}}.request(t, chartDir)
	}
	for _, helm := range otherHelms {
		for i, answer := range askHelm(t, helm, requests) {
			require.Contains(t, answer.Error, says[i], "%s: %s", helm, values[i])
		}
	}
}

// umbrella writes a parent chart that has this one under another name, with
// values for it in its own values.yaml.
func umbrella(t *testing.T, values string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "umbrella")
	require.NoError(t, os.CopyFS(filepath.Join(dir, "charts", "stemedb"), os.DirFS(chartDir)))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Chart.yaml"), []byte(
		"apiVersion: v2\nname: umbrella\nversion: 1.0.0\ndependencies:\n"+
			"- {name: stemedb, alias: facts, version: 0.x.x, repository: 'file://charts/stemedb', condition: facts.enabled}\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "values.yaml"), []byte("facts:\n  "+strings.ReplaceAll(values, "\n", "\n  ")+"\n"), 0o600))
	return dir
}

// The chart under an alias in a parent chart, with each environment's values in
// the parent's own values.yaml: every Helm version renders it, with the same
// result.
func TestEveryHelmRendersAnUmbrella(t *testing.T) {
	for _, env := range environments(t) {
		raw, err := os.ReadFile(filepath.Join(valuesDir, env+".yaml"))
		require.NoError(t, err)
		dir := umbrella(t, string(raw))
		loaded, err := loader.Load(dir)
		require.NoError(t, err)
		newest, err := tryRenderChart(t, loaded, options{})
		require.NoError(t, err)
		require.Equal(t, "r-facts", statefulSet(t, newest).Name)
		for _, helm := range otherHelms {
			answer := askHelm(t, helm, []helmRequest{options{}.request(t, dir)})[0]
			require.Empty(t, answer.Error, helm)
			require.Equal(t, newest.files, answer.Files, "%s: %s", helm, env)
		}
	}
}

// Helm 4 does not pass null on from a parent's values: the removal of an entry
// with a default must work in every Helm version.
func TestDefaultEntriesCanBeRemovedInAnUmbrella(t *testing.T) {
	dir := umbrella(t, `
networkPolicy:
  enabled: true
  clients: {sameNamespace: {enabled: false}, web: {podSelector: {matchLabels: {app: web}}}}
  dns: {peers: {kubeDNS: {enabled: false}, own: {podSelector: {matchLabels: {app: dns}}}}}
resources: {limits: {memory: ""}, requests: {cpu: "", memory: ""}}
secrets: {generated: {resources: {limits: ""}}}
test: {resources: {limits: {memory: ""}}}
podSecurityContext: {runAsUser: "", runAsGroup: "", fsGroup: "", fsGroupChangePolicy: "", seccompProfile: ""}
containerSecurityContext: {capabilities: "", allowPrivilegeEscalation: "", readOnlyRootFilesystem: ""}
patch: {container: [{op: remove, path: /livenessProbe}]}`)
	check := func(got *release) {
		policy := one[*networkingv1.NetworkPolicy](t, got, "r-facts").Spec
		for _, rule := range policy.Ingress {
			for _, peer := range rule.From {
				require.NotEmpty(t, peer.PodSelector.MatchLabels, "the whole namespace may come in")
			}
		}
		require.Len(t, policy.Egress[0].To, 1)
		require.Equal(t, "dns", policy.Egress[0].To[0].PodSelector.MatchLabels["app"])
		spec := statefulSet(t, got).Spec.Template.Spec
		require.Empty(t, spec.Containers[0].Resources)
		require.NotContains(t, env(spec.Containers[0]), "GOMEMLIMIT")
		require.Nil(t, spec.Containers[0].LivenessProbe)
		for _, template := range podTemplates(got) {
			security := template.Spec.SecurityContext
			require.True(t, *security.RunAsNonRoot)
			require.Nil(t, security.RunAsUser)
			require.Nil(t, security.RunAsGroup)
			require.Nil(t, security.FSGroup)
			require.Nil(t, security.FSGroupChangePolicy)
			require.Nil(t, security.SeccompProfile)
			require.Empty(t, template.Spec.Containers[0].Resources.Limits)
			require.Equal(t, &corev1.SecurityContext{Privileged: new(bool)}, template.Spec.Containers[0].SecurityContext)
		}
	}
	loaded, err := loader.Load(dir)
	require.NoError(t, err)
	newest, err := tryRenderChart(t, loaded, options{})
	require.NoError(t, err)
	check(newest)
	for _, helm := range otherHelms {
		answer := askHelm(t, helm, []helmRequest{options{}.request(t, dir)})[0]
		require.Empty(t, answer.Error, helm)
		check(decodeRelease(t, answer.Files))
	}
}
