package chart

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"
	"helm.sh/helm/v3/pkg/chart"
	"sigs.k8s.io/yaml"
)

// hostile are strings that YAML takes for something else when they stand bare.
var hostile = []string{"123", "0123", "true", "NO", "1e3", "null", "~"}

// hostileFor are two of them, by turns, and the empty string: a rendering for
// each of them in each place would take minutes, and what quotes one, quotes all.
func hostileFor(turn int) []string {
	return []string{hostile[2*turn%len(hostile)], hostile[(2*turn+1)%len(hostile)], ""}
}

// situations are laid over testdata/full.yaml: some values show only where
// another one does not take their place.
var situations = []string{
	"",
	"global: {imageRegistry: '', image: null, storageClass: '', defaultStorageClass: ''}\nnameOverride: ''\nfullnameOverride: ''\n" +
		"ingress: {tls: {secretNames: null}, traefik: {rateLimit: {sourceCriterion: {ipStrategy: null, requestHeaderName: text}}}}\nmonitoring: {serviceMonitor: {tlsConfig: {}}}",
	"secrets: {source: existing, existing: {name: text}, externalSecret: null}\nglobal: {imageRegistry: '', storageClass: ''}\n" +
		"fullnameOverride: ''\ningress: {traefik: {rateLimit: {sourceCriterion: {ipStrategy: null, requestHost: true}}}}\npersistence: {wal: {storageClassName: ''}, db: {storageClassName: ''}}",
}

// place is where a string is in the values: its path, and how to change it.
type place struct {
	path []any // keys and indexes
	key  bool  // the last key itself, of a map whose keys are the user's
}

func (p place) String() string {
	var out strings.Builder
	for _, step := range p.path {
		fmt.Fprintf(&out, "/%v", step)
	}
	if p.key {
		out.WriteString(" (key)")
	}
	return out.String()
}

// set returns the values with that string in that place.
func (p place) set(t *testing.T, values map[string]any, text string) map[string]any {
	t.Helper()
	copied := deepCopy(t, values)
	var node any = copied
	for _, step := range p.path[:len(p.path)-1] {
		if m, ok := node.(map[string]any); ok {
			node = m[step.(string)]
		} else {
			node = node.([]any)[step.(int)]
		}
	}
	switch last := p.path[len(p.path)-1].(type) {
	case int:
		node.([]any)[last] = text
	case string:
		parent := node.(map[string]any)
		if p.key {
			parent[text] = parent[last]
			delete(parent, last)
		} else {
			parent[last] = text
		}
	}
	return copied
}

func deepCopy(t *testing.T, values map[string]any) map[string]any {
	t.Helper()
	raw, err := json.Marshal(values)
	require.NoError(t, err)
	var copied map[string]any
	require.NoError(t, json.Unmarshal(raw, &copied))
	return copied
}

// places finds every string and every key of a map of the user's own.
func places(values map[string]any) []place {
	var found []place
	var walk func(at []any, node any)
	walk = func(at []any, node any) {
		switch node := node.(type) {
		case string:
			found = append(found, place{path: slices.Clone(at)})
		case []any:
			for i, child := range node {
				walk(append(at, i), child)
			}
		case map[string]any:
			for _, name := range slices.Sorted(maps.Keys(node)) {
				if strings.HasPrefix(strings.ToLower(name), "text") {
					found = append(found, place{path: append(slices.Clone(at), name), key: true})
				}
				walk(append(at, name), node[name])
			}
		}
	}
	walk(nil, values)
	return found
}

// fullValues are the chart's defaults under testdata/full.yaml and an overlay,
// merged by RFC 7396.
func fullValues(t *testing.T, overlay string) map[string]any {
	t.Helper()
	merged := map[string]any{}
	for _, file := range []string{filepath.Join(chartDir, "values.yaml"), "testdata/full.yaml"} {
		raw, err := os.ReadFile(file)
		require.NoError(t, err)
		merged = patched(merged, parse(t, string(raw)))
	}
	return deepCopy(t, patched(merged, parse(t, overlay)))
}

func parse(t *testing.T, text string) map[string]any {
	t.Helper()
	parsed := map[string]any{}
	require.NoError(t, yaml.Unmarshal([]byte(text), &parsed))
	return parsed
}

func patched(target, patch map[string]any) map[string]any {
	merged := map[string]any{}
	maps.Copy(merged, target)
	for key, value := range patch {
		child, isMap := value.(map[string]any)
		switch {
		case value == nil:
			delete(merged, key)
		case isMap:
			merged[key] = patched(asMap(merged[key]), child)
		default:
			merged[key] = value
		}
	}
	return merged
}

// renderValues renders values that are whole: the chart's own are not laid
// below, and the caller has asked the schema.
func renderValues(t *testing.T, values map[string]any) (*release, error) {
	t.Helper()
	raw, err := yaml.Marshal(values)
	require.NoError(t, err)
	return tryRender(t, options{values: []string{string(raw)}, noSchema: true, edit: func(c *chart.Chart) { c.Values = map[string]any{} }})
}

// scalars lists every scalar and key of all objects, with its type.
func scalars(r *release) []string {
	var found []string
	var walk func(node any)
	walk = func(node any) {
		switch node := node.(type) {
		case map[string]any:
			for key, child := range node {
				found = append(found, "string "+key)
				walk(child)
			}
		case []any:
			for _, child := range node {
				walk(child)
			}
		default:
			found = append(found, fmt.Sprintf("%T %v", node, node))
		}
	}
	for _, o := range r.objects {
		walk(o.fields)
	}
	slices.Sort(found)
	return found
}

// nameOnly are keys that name an entry for overlays and are rendered nowhere.
var nameOnly = regexp.MustCompile(`^/(extraObjects|networkPolicy/[a-zA-Z/]+)/text \(key\)$`)

// manifests are places where the user writes YAML or names a kind of object.
var manifests = []string{"/extraObjects/text", "/extraObjects/map/apiVersion", "/extraObjects/map/kind"}

// Every string and every key that a value can reach stays a string, whatever it
// looks like: it is set to what YAML would take for a number, a boolean or null,
// and comes out as that very text.
func TestEveryStringStaysAString(t *testing.T) {
	schema, err := jsonschema.NewCompiler().Compile(filepath.Join(chartDir, "values.schema.json"))
	require.NoError(t, err)
	shown, tried, accepted := map[string]bool{}, map[string]bool{}, 0
	for _, situation := range situations {
		values := fullValues(t, situation)
		require.NoError(t, schema.Validate(values), situation)
		for turn, p := range places(values) {
			if slices.Contains(manifests, p.String()) {
				continue
			}
			const marker = "qzx"
			marked := p.set(t, values, marker)
			if schema.Validate(marked) != nil {
				continue // an enumeration, a duration, an address: no free text
			}
			if tried[p.String()] = true; shown[p.String()] {
				continue
			}
			reference, err := renderValues(t, marked)
			if err != nil && strings.Contains(err.Error(), "These values cannot work") {
				continue // bound to another value; one of the situations sets it free
			}
			require.NoError(t, err, "%s", p)
			want := scalars(reference)
			shows := strings.Contains(strings.Join(want, " ")+reference.notes, marker)
			shown[p.String()] = shows
			for _, text := range hostileFor(turn) {
				if changed := p.set(t, values, text); schema.Validate(changed) == nil && staysText(t, p, changed, want, marker, text) {
					accepted++
				}
			}
		}
	}
	var hidden []string
	for path := range tried {
		if !shown[path] && !nameOnly.MatchString(path) {
			hidden = append(hidden, path)
		}
	}
	require.Empty(t, hidden, "these are set and show nowhere")
	require.Greater(t, len(tried), 100)
	require.Greater(t, accepted, 250)
}

// staysText renders the changed values and holds the result to the reference
// with its marker replaced; it says whether the values were accepted.
func staysText(t *testing.T, p place, changed map[string]any, reference []string, marker, text string) bool {
	t.Helper()
	got, err := renderValues(t, changed)
	if err != nil {
		require.ErrorContains(t, err, "These values cannot work", "%s = %q", p, text)
		return false
	}
	if text == "" { // empty means the default
		return true
	}
	expected := slices.Clone(reference)
	for i := range expected {
		expected[i] = strings.ReplaceAll(expected[i], marker, text)
	}
	slices.Sort(expected)
	require.Equal(t, expected, scalars(got), "%s = %q", p, text)
	return true
}

// testdata/full.yaml holds every property of the schema, so that the properties
// above and below are of the whole schema.
func TestFullValuesHoldTheWholeSchema(t *testing.T) {
	schema := readSchema(t)
	holds := map[string]bool{}
	for _, situation := range situations {
		mark(holds, schema, schema, "", fullValues(t, situation))
	}
	walkSchema("", schema, func(path string, node map[string]any) {
		for name := range asMap(node["properties"]) {
			at := path + "/properties/" + name
			if at != "/properties/enabled" && !strings.HasSuffix(at, "/$defs/container/properties/name") && !strings.Contains(path, "/allOf/") {
				require.True(t, holds[at], "testdata/full.yaml has nothing for %s", at)
			}
		}
	})
}

// mark notes which properties of the schema the values use.
func mark(holds map[string]bool, root, schema map[string]any, path string, value any) {
	if ref, ok := schema["$ref"].(string); ok {
		name := strings.TrimPrefix(ref, "#/$defs/")
		mark(holds, root, asMap(asMap(root["$defs"])[name]), "/$defs/"+name, value)
		return
	}
	for _, list := range []string{"anyOf", "allOf"} {
		branches, _ := schema[list].([]any)
		for i, branch := range branches {
			mark(holds, root, asMap(branch), fmt.Sprintf("%s/%s/%d", path, list, i), value)
		}
	}
	switch value := value.(type) {
	case []any:
		for _, child := range value {
			mark(holds, root, asMap(schema["items"]), path+"/items", child)
		}
	case map[string]any:
		for name, child := range value {
			if property, ok := asMap(schema["properties"])[name]; ok {
				holds[path+"/properties/"+name] = true
				mark(holds, root, asMap(property), path+"/properties/"+name, child)
			} else {
				for _, pattern := range asMap(schema["patternProperties"]) {
					mark(holds, root, asMap(pattern), path+"/patternProperties/*", child)
				}
			}
		}
	}
}
