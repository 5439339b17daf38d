package chart

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

// situations are merged over testdata/full.yaml: some values take effect only
// if another one does not replace them.
var situations = []string{
	"",
	"global: {imageRegistry: '', image: null, storageClass: '', defaultStorageClass: ''}\nnameOverride: ''\nfullnameOverride: ''\n" +
		"ingress: {tls: {secretNames: null}, traefik: {rateLimit: {sourceCriterion: {ipStrategy: null, requestHeaderName: text}}}}\nmonitoring: {serviceMonitor: {tlsConfig: {}}}",
	"secrets: {source: existing, existing: {name: text}, externalSecret: null}\nglobal: {imageRegistry: '', storageClass: ''}\n" +
		"fullnameOverride: ''\ningress: {traefik: {rateLimit: {sourceCriterion: {ipStrategy: null, requestHost: true}}}}\npersistence: {wal: {storageClassName: ''}, db: {storageClassName: ''}}",
}

// place is the location of a string in the values: its path, and the way to change it.
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

// parent is the map or list that contains the place.
func (p place) parent(values map[string]any) any {
	var node any = values
	for _, step := range p.path[:len(p.path)-1] {
		node = child(node, step)
	}
	return node
}

func (p place) last() any { return p.path[len(p.path)-1] }

// put writes a string into that place and returns a function that restores it.
func (p place) put(values map[string]any, text string) (undo func()) {
	if !p.key {
		return p.putValue(values, text)
	}
	entries, name := asMap(p.parent(values)), p.last().(string)
	entry := entries[name]
	delete(entries, name)
	entries[text] = entry
	return func() {
		delete(entries, text)
		entries[name] = entry
	}
}

// putValue writes any value into that place.
func (p place) putValue(values map[string]any, value any) (undo func()) {
	node := p.parent(values)
	before := child(node, p.last())
	setChild(node, p.last(), value)
	return func() { setChild(node, p.last(), before) }
}

// leaveOut removes the value, which an entry of a list does not allow.
func (p place) leaveOut(values map[string]any) bool {
	name, ok := p.last().(string)
	if !ok || p.key {
		return false
	}
	delete(asMap(p.parent(values)), name)
	return true
}

func child(node, step any) any {
	if name, ok := step.(string); ok {
		return asMap(node)[name]
	}
	return node.([]any)[step.(int)]
}

func setChild(node, step, value any) {
	if name, ok := step.(string); ok {
		node.(map[string]any)[name] = value
		return
	}
	node.([]any)[step.(int)] = value
}

func deepCopy(t *testing.T, values map[string]any) map[string]any {
	t.Helper()
	raw, err := json.Marshal(values)
	require.NoError(t, err)
	var copied map[string]any
	require.NoError(t, json.Unmarshal(raw, &copied))
	return copied
}

// places finds every string and every key of a user's own map.
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

// testdata/full.yaml contains every property of the schema, so that the
// property tests above and below cover the entire schema.
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

// mark records which properties of the schema the values use.
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
				mark(holds, root, asMap(schema["additionalProperties"]), path+"/additionalProperties", child)
				for _, pattern := range asMap(schema["patternProperties"]) {
					mark(holds, root, asMap(pattern), path+"/patternProperties/*", child)
				}
			}
		}
	}
}
