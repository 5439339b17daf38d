package chart

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
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
// depth and with everything switched on, and renders the same as without it. In
// maps of named entries null removes the entry, which only has to be accepted
// here: TestEveryDefaultEntryIsRemovedWithoutNull compares the result.
func TestNullMeansTheDefault(t *testing.T) {
	defaults := parse(t, readFile(t, filepath.Join(chartDir, "values.yaml")))
	open := openMaps(t)
	full := parse(t, readFile(t, "testdata/full.yaml"))
	tried, inPeers := 0, 0
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
		if slices.ContainsFunc(open, func(p string) bool { return removes(p, at) }) {
			require.NoError(t, gotErr, "%s: null", at)
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
		if strings.HasPrefix(at, "/networkPolicy/") && len(path) > 3 {
			inPeers++
		}
		require.Equal(t, want.files, got.files, "%s: null", at)
	})
	require.Greater(t, tried, 180)
	require.Greater(t, inPeers, 5)
}

// removes reports whether null at a path below an open map removes it: at any
// depth, but of a peer only the entire peer or one label.
func removes(open, at string) bool {
	below, inside := strings.CutPrefix(at, open+"/")
	peers := strings.HasPrefix(open, "/networkPolicy/")
	return inside && (!peers || !strings.Contains(below, "/") || strings.Contains(below, "/matchLabels/"))
}

// Whatever may be left out may also be null, with or without a default: an
// overlay takes a value back that way. TestNullWithoutADefaultIsNothing compares
// the result, but passes over values that the schema rejects.
func TestNullIsAcceptedWhereverTheValueIsOptional(t *testing.T) {
	full := parse(t, readFile(t, "testdata/full.yaml"))
	loaded, err := loader.Load(chartDir)
	require.NoError(t, err)
	validate := func(values map[string]any) error {
		text, err := yaml.Marshal(values)
		require.NoError(t, err)
		merged := mergeValues(t, options{values: []string{string(text)}})
		_, err = chartutil.ToRenderValues(loaded, merged, chartutil.ReleaseOptions{Name: "r"}, nil)
		return err
	}
	optional := 0
	everyPath(nil, fullValues(t, ""), func(steps []any) {
		var path []string
		for _, step := range steps {
			name, ok := step.(string)
			if !ok {
				return // lists are replaced as a whole
			}
			path = append(path, name)
		}
		at := "/" + strings.Join(path, "/")
		if literal.MatchString(at) {
			return
		}
		left := deepCopy(t, full)
		remove(left, path)
		if validate(left) == nil {
			optional++
			require.NoError(t, validate(patchedNull(t, left, path)), "%s: null", at)
		}
	})
	require.Greater(t, optional, 300)
}

// An overlay replaces one of several alternatives by setting the other to null.
func TestNullTakesBackAnAlternative(t *testing.T) {
	for first, second := range map[string]string{
		"extraEnv: {A: {valueFrom: {secretKeyRef: {name: a, key: b}}}}":                                                          "extraEnv: {A: {valueFrom: {secretKeyRef: null, fieldRef: {fieldPath: c}}}}",
		"extraVolumes: {a: {source: {emptyDir: {}}}}":                                                                            "extraVolumes: {a: {source: {emptyDir: null, configMap: {name: c}}}}",
		"networkPolicy: {enabled: true, clients: {a: {podSelector: {}}}}":                                                        "networkPolicy: {clients: {a: {podSelector: null, ipBlock: {cidr: 10.0.0.0/8}}}}",
		"networkPolicy: {enabled: true}":                                                                                         "networkPolicy: {dns: {peers: {kubeDNS: {podSelector: null, namespaceSelector: null, ipBlock: {cidr: 10.0.0.0/8}}}}}",
		"ingress: {enabled: true, host: a.example, traefik: {rateLimit: {enabled: true, sourceCriterion: {requestHost: true}}}}": "ingress: {traefik: {rateLimit: {sourceCriterion: {requestHost: null, requestHeaderName: A}}}}",
	} {
		values := parse(t, first)
		var alone map[string]any
		raw, err := yaml.Marshal(patched(values, parse(t, second)))
		require.NoError(t, err)
		require.NoError(t, yaml.Unmarshal(raw, &alone))
		if strings.Contains(second, "kubeDNS") {
			alone = parse(t, "networkPolicy: {enabled: true, dns: {peers: {kubeDNS: {enabled: false}, other: {ipBlock: {cidr: 10.0.0.0/8}}}}}")
		}
		want, err := yaml.Marshal(alone)
		require.NoError(t, err)
		require.Equal(t, renderWith(t, string(want)).files, renderWith(t, first, second).files, second)
	}
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
		node = resolved(schema, node)
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
