package chart

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	batchv1 "k8s.io/api/batch/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"helm.sh/helm/v3/pkg/strvals"
	"sigs.k8s.io/yaml"
)

// readmeBlock is the nth block of a kind after a text of the chart's README.
func readmeBlock(t *testing.T, after, kind string, nth int) string {
	t.Helper()
	_, rest, ok := strings.Cut(readFile(t, filepath.Join(chartDir, "README.md")), after)
	require.True(t, ok, "README.md has no %q", after)
	var block string
	for range nth {
		_, rest, ok = strings.Cut(rest, "\n```"+kind+"\n")
		require.True(t, ok, "README.md has no block marked %s after %q", kind, after)
		block, rest, ok = strings.Cut(rest, "\n```\n")
		require.True(t, ok)
	}
	return block
}

const withoutHooks = "\n**Without hooks**"

// templating parses the README's `helm template` command: the rendering options
// and the output file.
func templating(t *testing.T) (o options, file string) {
	t.Helper()
	script := strings.ReplaceAll(readmeBlock(t, withoutHooks, "sh", 1), "\\\n", " ")
	line, rest, _ := strings.Cut(script, "\n")
	words := strings.Fields(line)
	require.Equal(t, []string{"helm", "template", "stemedb", "charts/stemedb"}, words[:4])
	o.release = words[2]
	set, dropsHooks := map[string]any{}, false
	for i := 4; i < len(words); i++ {
		switch words[i] {
		case "--no-hooks":
			dropsHooks = true
			continue
		case "-n":
			o.namespace = words[i+1]
		case "-f":
			require.Equal(t, "mine.yaml", words[i+1], "the reader's own values")
		case "--set":
			require.NoError(t, strvals.ParseInto(words[i+1], set))
		case ">":
			file = words[i+1]
		default:
			require.Fail(t, "the test does not know this flag", words[i])
		}
		i++
	}
	require.True(t, dropsHooks, "the pod of helm test would be applied")
	require.Contains(t, rest, "apply -f "+file)
	overlay, err := yaml.Marshal(set)
	require.NoError(t, err)
	o.values = []string{string(overlay)}
	return o, file
}

// template is the output of the command.
func template(t *testing.T, o options) (manifests string, objects map[string]object) {
	t.Helper()
	objects = map[string]object{}
	for _, rendered := range render(t, o).objects {
		if rendered.hook() == "" {
			manifests += "---\n" + rendered.text + "\n"
			objects[rendered.String()] = rendered
		}
	}
	return manifests, objects
}

// mine are values that a reader may have: each environment, and strings that
// YAML would take for something else.
func mine(t *testing.T, o options) []options {
	t.Helper()
	const strange = "podLabels: {a: '0123', b: 'NO'}\npodAnnotations: {a: '1e3', b: 'null', c: ''}\nextraEnv: {X: '~', Y: 'true'}"
	var cases []options
	for _, env := range environments(t) {
		reader := o
		reader.env = env
		reader.values = append([]string{strange}, o.values...)
		cases = append(cases, reader)
	}
	return cases
}

// The README's steps without hooks: the second rendering equals the first one,
// and contains no hook and no pod of the test.
func TestTheTemplateIsTheSameEachTime(t *testing.T) {
	o, _ := templating(t)
	for _, o := range mine(t, o) {
		first, objects := template(t, o)
		second, _ := template(t, o)
		require.Equal(t, first, second, o.env)
		require.NotContains(t, first, "helm.sh/hook", o.env)
		require.False(t, strings.Contains(first, "kind: Pod\n") || strings.Contains(first, "kind: Secret\n"), o.env)
		jobs := 0
		for _, rendered := range objects {
			if _, ok := rendered.typed.(*batchv1.Job); ok {
				jobs++
			}
		}
		generated := secretsSource(t, o) == "generated"
		require.Equal(t, generated, jobs == 1, "%s: a generated Secret has a Job, and no other", o.env)
	}
}

func secretsSource(t *testing.T, o options) string {
	t.Helper()
	return statefulSet(t, render(t, o)).Annotations["stemedb.io/secrets-source"]
}

// kustomize builds a folder that holds a kustomization and one resource.
func kustomize(t *testing.T, kustomization, file, manifests string) map[string]object {
	t.Helper()
	fs := filesys.MakeFsInMemory()
	require.NoError(t, fs.WriteFile("/app/kustomization.yaml", []byte(kustomization)))
	require.NoError(t, fs.WriteFile("/app/"+file, []byte(manifests)))
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(fs, "/app")
	require.NoError(t, err)
	raw, err := built.AsYaml()
	require.NoError(t, err)
	objects := map[string]object{}
	for _, text := range strings.Split(string(raw), "\n---\n") {
		o := decodeObject(t, file, text)
		objects[o.String()] = o
	}
	return objects
}

// The README's kustomization builds typed objects, the same each time, which
// differ from the chart's only in the patched fields.
func TestTheKustomizationOfTheReadmeBuilds(t *testing.T) {
	o, file := templating(t)
	kustomization := readmeBlock(t, withoutHooks, "yaml", 1)
	for _, o := range mine(t, o) {
		manifests, want := template(t, o)
		got := kustomize(t, kustomization, file, manifests)
		require.Equal(t, got, kustomize(t, kustomization, file, manifests), o.env)
		require.Len(t, got, len(want), o.env)
		for name, rendered := range want {
			fields := got[name].fields
			if rendered.kind == "StatefulSet" {
				spec := asMap(asMap(asMap(fields["spec"])["template"])["spec"])
				require.Equal(t, false, spec["hostUsers"], "%s: the patch is not applied", o.env)
				delete(spec, "hostUsers")
			}
			require.Equal(t, rendered.fields, fields, "%s: %s", o.env, name)
		}
	}
}

// The README's commands themselves on a server: a second apply changes no
// object, and the kustomization changes the object that it patches. The test
// compares objects rather than kubectl's output: kubectl reports each
// PodDisruptionBudget as configured every time, because the patch strategy of
// its selector makes the patch never empty (kubernetes/kubernetes, policy/v1).
func TestServerAppliesWithoutHooks(t *testing.T) {
	s := connectServer(t)
	for _, program := range []string{"sh", "kubectl", "helm"} {
		_, err := exec.LookPath(program)
		require.NoError(t, err, "`make gate` puts it into PATH")
	}
	namespace := s.restrictedNamespace(t)
	folder := t.TempDir()
	chart, err := filepath.Abs(chartDir)
	require.NoError(t, err)
	write := func(name, text string) {
		require.NoError(t, os.WriteFile(filepath.Join(folder, name), []byte(text), 0o600))
	}
	write("mine.yaml", "nodeSelector: {stemedb.dev/test: no-node-has-this}\n") // start nothing
	write("kustomization.yaml", readmeBlock(t, withoutHooks, "yaml", 1))
	shell := func(script string) string {
		t.Helper()
		script = strings.NewReplacer("-n stemedb ", "-n "+namespace+" ", "charts/stemedb", chart).Replace(script)
		command := exec.CommandContext(t.Context(), "sh", "-e", "-c", script)
		command.Dir = folder
		command.Env = append(os.Environ(), "KUBECONFIG="+os.Getenv(kubeconfigEnv))
		out, err := command.Output()
		require.NoError(t, err, "%s\n%s", script, out)
		return strings.TrimSpace(string(out))
	}
	apply, kustomized := readmeBlock(t, withoutHooks, "sh", 1), readmeBlock(t, withoutHooks, "sh", 2)
	var names []string
	for line := range strings.Lines(shell(apply)) {
		name, verb, _ := strings.Cut(strings.TrimSpace(line), " ")
		require.Equal(t, "created", verb, line)
		names = append(names, name)
	}
	require.Greater(t, len(names), 5)
	applied := func() map[string]map[string]any {
		objects := map[string]map[string]any{}
		for _, name := range names {
			var o map[string]any
			require.NoError(t, json.Unmarshal([]byte(shell("kubectl get -n stemedb -o json "+name)), &o))
			delete(o, "status") // the controllers' part
			delete(asMap(o["metadata"]), "resourceVersion")
			objects[name] = o
		}
		return objects
	}
	first := applied()
	shell(apply)
	require.Equal(t, first, applied())
	shell(kustomized)
	patched := applied()
	for name, before := range first {
		if strings.HasPrefix(name, "statefulset.apps/") {
			require.NotEqual(t, before["spec"], patched[name]["spec"], name)
			patched[name] = before
		}
	}
	require.Equal(t, first, patched)
}
