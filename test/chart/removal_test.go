package chart

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

// nested creates a document with one value at a path.
func nested(t *testing.T, path []string, value any) string {
	t.Helper()
	for _, step := range slices.Backward(path) {
		value = map[string]any{step: value}
	}
	raw, err := yaml.Marshal(value)
	require.NoError(t, err)
	return string(raw)
}

// Every entry that null removes from a map with default entries can also be
// removed without null, since Helm 4 does not pass null on from a parent chart:
// `enabled: false` in a named entry, and in the other maps an empty string in
// place of any value at any depth, also of a map, a list or a boolean.
func TestEveryDefaultEntryIsRemovedWithoutNull(t *testing.T) {
	defaults := parse(t, readFile(t, filepath.Join(chartDir, "values.yaml")))
	const shows = "networkPolicy: {enabled: true, clients: &own {own: {podSelector: {matchLabels: {a: b}}}}, dns: {peers: *own}}"
	base := renderWith(t, shows).files
	removed := 0
	for _, open := range openMaps(t) {
		at := strings.Split(strings.TrimPrefix(open, "/"), "/")
		entries := asMap(lookup(defaults, at))
		require.NotEmpty(t, entries, "%s has no default entries", open)
		named := strings.HasPrefix(open, "/networkPolicy/")
		eachPath(entries, nil, func(below []string) {
			path := append(slices.Clone(at), below...)
			var empty any = ""
			if named {
				if len(below) > 1 {
					return // part of an entry
				}
				empty = map[string]any{"enabled": false}
			}
			want := renderWith(t, shows+"\n---\n"+nested(t, path, nil)).files
			require.NotEqual(t, base, want, "%s: null removes nothing", path)
			require.Equal(t, want, renderWith(t, shows+"\n---\n"+nested(t, path, empty)).files, "%s: %v", path, empty)
			removed++
		})
	}
	require.Greater(t, removed, 28)
}

// Default entries of a map of named entries can be removed: the test above
// covers every such map.
func TestEveryMapWithDefaultEntriesIsOpen(t *testing.T) {
	schema := readSchema(t)
	open := openMaps(t)
	found := 0
	var walk func(path string, node map[string]any, value any)
	walk = func(path string, node map[string]any, value any) {
		node = resolved(schema, node)
		entries := asMap(value)
		_, free := node["additionalProperties"].(map[string]any)
		if len(entries) > 0 && (free || len(asMap(node["patternProperties"])) > 0) {
			require.Contains(t, open, path)
			found++
			return
		}
		for name, child := range entries {
			walk(path+"/"+name, asMap(asMap(node["properties"])[name]), child)
		}
	}
	walk("", schema, parse(t, readFile(t, filepath.Join(chartDir, "values.yaml"))))
	require.GreaterOrEqual(t, found, 2)
}

// everyPath visits each value, in lists too, with the steps to it.
func everyPath(at []any, node any, visit func([]any)) {
	step := func(key, value any) {
		path := append(slices.Clone(at), key)
		visit(path)
		everyPath(path, value, visit)
	}
	switch node := node.(type) {
	case map[string]any:
		for key, value := range node {
			step(key, value)
		}
	case []any:
		for i, value := range node {
			step(i, value)
		}
	}
}

// literal are places where null is part of the user's own content: an
// instruction, or part of a manifest.
var literal = regexp.MustCompile(`^/(patch|merge|extraObjects/map)/`)

// Null without a default (entries of maps and lists, optional values) is
// equivalent to omission, or the schema rejects it by name: no template fails
// because of it.
func TestNullWithoutADefaultIsNothing(t *testing.T) {
	schema, err := jsonschema.NewCompiler().Compile(filepath.Join(chartDir, "values.schema.json"))
	require.NoError(t, err)
	defaults := parse(t, readFile(t, filepath.Join(chartDir, "values.yaml")))
	has := map[string]bool{}
	everyPath(nil, defaults, func(path []any) { has[place{path: path}.String()] = true })
	full := fullValues(t, "")
	var nulled []place
	everyPath(nil, full, func(path []any) {
		p := place{path: path}
		if has[p.String()] || literal.MatchString(p.String()) {
			return // TestNullMeansTheDefault, or the user's own null
		}
		values := deepCopy(t, full)
		p.putValue(values, nil)
		if schema.Validate(values) == nil {
			nulled = append(nulled, p)
		}
	})
	require.Greater(t, len(nulled), 20)
	const lanes = 4
	var mu sync.Mutex
	compared := 0
	t.Run("lanes", func(t *testing.T) {
		for lane := range lanes {
			t.Run(fmt.Sprint(lane), func(t *testing.T) {
				t.Parallel()
				for n := lane; n < len(nulled); n += lanes {
					same, err := nullIsNothing(t, full, nulled[n])
					if err != nil {
						t.Errorf("%s: null: %v", nulled[n], err)
					}
					mu.Lock()
					compared += same
					mu.Unlock()
				}
			})
		}
	})
	require.Greater(t, compared, 10)
}

// nullIsNothing returns 1 if both renderings exist and were compared.
func nullIsNothing(t *testing.T, full map[string]any, p place) (int, error) {
	t.Helper()
	values, left := deepCopy(t, full), deepCopy(t, full)
	p.putValue(values, nil)
	got, err := renderValues(t, values)
	if err != nil && isRefused(err) {
		return 0, nil
	}
	if err != nil || !p.leaveOut(left) {
		return 0, err
	}
	want, err := renderValues(t, left)
	if err != nil {
		return 0, err
	}
	return 1, sameLines(scalars(want), scalars(got))
}
