package chart

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"helm.sh/helm/v3/pkg/chart"
	"sigs.k8s.io/yaml"
)

// openMaps are those of the chart's stemedb.openMaps: null removes an entry.
func openMaps(t *testing.T) []string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(chartDir, "templates", "_defaults.tpl"))
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(raw), `{{- define "stemedb.openMaps" -}}`)
	require.True(t, ok)
	list, _, _ := strings.Cut(rest, "{{")
	var paths []string
	require.NoError(t, yaml.Unmarshal([]byte(list), &paths))
	require.NotEmpty(t, paths)
	return paths
}

// eachPath visits every value that has a default, maps before their entries.
func eachPath(values map[string]any, at []string, visit func([]string)) {
	for name, value := range values {
		path := append(slices.Clone(at), name)
		visit(path)
		eachPath(asMap(value), path, visit)
	}
}

// Null selects the default: each value with a default is set to null, at any
// depth and with everything switched on, and renders the same as without it; in
// maps of named entries null removes the entry.
func TestNullMeansTheDefault(t *testing.T) {
	defaults := parse(t, readFile(t, filepath.Join(chartDir, "values.yaml")))
	open := openMaps(t)
	full := parse(t, readFile(t, "testdata/full.yaml"))
	tried := 0
	eachPath(defaults, nil, func(path []string) {
		tried++
		at := "/" + strings.Join(path, "/")
		left := deepCopy(t, full)
		remove(left, path)
		without, err := yaml.Marshal(left)
		require.NoError(t, err)
		null, err := yaml.Marshal(patchedNull(t, left, path))
		require.NoError(t, err)
		want, wantErr := tryRender(t, options{values: []string{string(without)}})
		got, gotErr := tryRender(t, options{values: []string{string(null)}})
		if slices.ContainsFunc(open, func(p string) bool { return strings.HasPrefix(at, p+"/") }) {
			if gotErr != nil { // a peer without a selector is rejected
				require.ErrorContains(t, gotErr, "don't meet the specifications of the schema", "%s: null", at)
			}
			return
		}
		if wantErr != nil {
			require.Error(t, gotErr, at)
			for _, words := range []string{"<nil>", "nil pointer", "error calling"} {
				require.NotContains(t, strings.ReplaceAll(gotErr.Error(), "error calling include", ""), words, at)
			}
			return
		}
		require.NoError(t, gotErr, "%s: null", at)
		require.Equal(t, want.files, got.files, "%s: null", at)
	})
	require.Greater(t, tried, 180)
}

func patchedNull(t *testing.T, values map[string]any, path []string) map[string]any {
	t.Helper()
	copied := deepCopy(t, values)
	node := copied
	for _, step := range path[:len(path)-1] {
		child, ok := node[step].(map[string]any)
		if !ok {
			child = map[string]any{}
			node[step] = child
		}
		node = child
	}
	node[path[len(path)-1]] = nil
	return copied
}

func remove(values map[string]any, path []string) {
	for _, step := range path[:len(path)-1] {
		values = asMap(values[step])
	}
	if values != nil {
		delete(values, path[len(path)-1])
	}
}

func readFile(t *testing.T, file string) string {
	t.Helper()
	raw, err := os.ReadFile(file)
	require.NoError(t, err)
	return string(raw)
}

// The defaults that replace null are those of values.yaml.
func TestDefaultsAreThoseOfTheValues(t *testing.T) {
	want, err := yaml.Marshal(parse(t, readFile(t, filepath.Join(chartDir, "values.yaml"))))
	require.NoError(t, err)
	text := "# Written from values.yaml by `make generate`.\n" + string(want)
	file := filepath.Join(chartDir, "files", "defaults.yaml")
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(text), 0o644))
		return
	}
	require.Equal(t, text, readFile(t, file), "run: make generate")
}

// `helm upgrade --reuse-values` renders this chart with the values of the last
// release alone: new values get their defaults.
func TestValuesOfTheLastVersionRender(t *testing.T) {
	files, err := filepath.Glob("testdata/values-*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		last := parse(t, readFile(t, file))
		for _, values := range append([]string{""}, situationsOfTheLastVersion...) {
			got, err := tryRender(t, options{upgrade: true, values: []string{values}, edit: func(c *chart.Chart) { c.Values = deepCopy(t, last) }})
			require.NoError(t, err, "%s: %s", file, values)
			require.NotEmpty(t, got.objects)
		}
	}
}

// situationsOfTheLastVersion are values that its users may have set.
var situationsOfTheLastVersion = []string{
	"secrets: {source: existing, existing: {name: mine}}",
	"secrets: {source: externalSecret, externalSecret: {secretStoreRef: {name: s}, rootApiKey: {key: a}, clusterSecret: {key: b}}}",
	"ingress: {enabled: true, host: a.example, extraHosts: [b.example], traefik: {rateLimit: {enabled: true}}}",
	"networkPolicy: {enabled: true, clients: {sameNamespace: null}}",
	"monitoring: {serviceMonitor: {enabled: true}}",
	"extraVolumes: {a: {mountPath: /a, source: {emptyDir: {}}}}\nmerge: {pod: {spec: {hostUsers: false}}}",
}

// A value with a default is never required: a new key is missing in the values
// of an older release.
func TestTheSchemaRequiresNothingThatHasADefault(t *testing.T) {
	schema := readSchema(t)
	defaults := parse(t, readFile(t, filepath.Join(chartDir, "values.yaml")))
	var walk func(at string, node, values map[string]any)
	walk = func(at string, node, values map[string]any) {
		if ref, ok := node["$ref"].(string); ok {
			node = asMap(asMap(schema["$defs"])[strings.TrimPrefix(ref, "#/$defs/")])
		}
		for _, name := range listOf(node["required"]) {
			_, has := values[name]
			require.False(t, has, "%s requires %s", at, name)
		}
		for name, value := range values {
			if child, ok := value.(map[string]any); ok {
				walk(at+"/"+name, asMap(asMap(node["properties"])[name]), child)
			}
		}
	}
	walk("", schema, defaults)
}

func listOf(v any) []string {
	items, _ := v.([]any)
	names := make([]string, len(items))
	for i, item := range items {
		names[i], _ = item.(string)
	}
	return names
}
