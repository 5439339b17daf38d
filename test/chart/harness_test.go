// Package chart holds the tests of charts/stemedb. They render the chart in
// process with Helm's own packages, exactly as `helm install` would, and decode
// the output as typed Kubernetes objects: an unknown field, a duplicate key or
// a wrong type in any template fails the test that rendered it.
package chart

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/cli/values"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/getter"
	"sigs.k8s.io/yaml"
)

const (
	chartDir  = "../../charts/stemedb"
	valuesDir = "../../values"
)

// environments returns the values files of values/ by name, sorted.
func environments(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(valuesDir, "*.yaml"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	names := make([]string, len(files))
	for i, file := range files {
		names[i] = strings.TrimSuffix(filepath.Base(file), ".yaml")
	}
	return names
}

// options configure the rendering of a release; the zero value is release "r" in
// namespace "ns" with the chart's own values.
type options struct {
	release     string
	namespace   string
	env         string   // a file of values/, without .yaml
	values      []string // YAML, each document merged over the previous ones
	kubeVersion string
	apis        []string // API versions the cluster serves besides Helm's default set
	strict      bool     // a missing value is an error
	noSchema    bool     // the schema was checked before
	upgrade     bool     // of an existing release, not an install
	edit        func(*chart.Chart)
}

// render returns the objects that Helm would send, or fails the test.
func render(t testing.TB, o options) *release {
	t.Helper()
	got, err := tryRender(t, o)
	require.NoError(t, err)
	return got
}

// renderWith renders release "r" with YAML merged over the chart's values.
func renderWith(t testing.TB, overlays ...string) *release {
	t.Helper()
	return render(t, options{values: overlays})
}

func tryRender(t testing.TB, o options) (*release, error) {
	t.Helper()
	loaded, err := loader.Load(chartDir)
	require.NoError(t, err)
	if o.edit != nil {
		o.edit(loaded)
	}
	return tryRenderChart(t, loaded, o)
}

func tryRenderChart(t testing.TB, loaded *chart.Chart, o options) (*release, error) {
	t.Helper()
	vals := mergeValues(t, o)
	if err := chartutil.ProcessDependencies(loaded, vals); err != nil {
		return nil, fmt.Errorf("process dependencies: %w", err)
	}
	renderValues, err := chartutil.ToRenderValuesWithSchemaValidation(loaded, vals, chartutil.ReleaseOptions{
		Name:      either(o.release, "r"),
		Namespace: either(o.namespace, "ns"),
		Revision:  1,
		IsInstall: !o.upgrade,
		IsUpgrade: o.upgrade,
	}, capabilities(t, o), o.noSchema)
	if err != nil {
		return nil, err
	}
	files, err := engine.Engine{Strict: o.strict}.Render(loaded, renderValues)
	if err != nil {
		return nil, err
	}
	return decodeRelease(t, files), nil
}

// mergeValues merges the overlays with Helm's own rules for -f.
func mergeValues(t testing.TB, o options) map[string]any {
	t.Helper()
	var files []string
	if o.env != "" {
		files = append(files, filepath.Join(valuesDir, o.env+".yaml"))
	}
	dir, err := os.MkdirTemp("", "values") // Helm could mistake t.TempDir's names for URLs
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	for i, overlay := range strings.Split(strings.Join(o.values, "\n---\n"), "\n---\n") {
		require.NoError(t, yaml.UnmarshalStrict([]byte(overlay), &map[string]any{}), "duplicate key in\n%s", overlay)
		file := filepath.Join(dir, fmt.Sprintf("%d.yaml", i))
		require.NoError(t, os.WriteFile(file, []byte(overlay), 0o600))
		files = append(files, file)
	}
	vals, err := (&values.Options{ValueFiles: files}).MergeValues(getter.Providers{})
	require.NoError(t, err)
	return vals
}

func capabilities(t testing.TB, o options) *chartutil.Capabilities {
	t.Helper()
	caps := chartutil.DefaultCapabilities.Copy()
	version, err := chartutil.ParseKubeVersion(either(o.kubeVersion, "v1.37.2"))
	require.NoError(t, err)
	caps.KubeVersion = *version
	caps.APIVersions = append(slices.Clone(caps.APIVersions), o.apis...)
	return caps
}

func either(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}

// release is the result of one rendering.
type release struct {
	notes   string
	objects []object
	files   map[string]string
}

// object is one manifest: its text, its fields, and the typed form.
type object struct {
	file       string
	text       string
	fields     map[string]any
	typed      any
	apiVersion string
	kind       string
	name       string
}

func (o object) String() string { return o.kind + "/" + o.name }

// metadata returns one map of the object's metadata, such as "labels".
func (o object) metadata(key string) map[string]string {
	meta, _ := o.fields["metadata"].(map[string]any)
	found, _ := meta[key].(map[string]any)
	texts := make(map[string]string, len(found))
	for k, v := range found {
		texts[k] = fmt.Sprint(v)
	}
	return texts
}

func (o object) hook() string { return o.metadata("annotations")["helm.sh/hook"] }

func decodeRelease(t testing.TB, files map[string]string) *release {
	t.Helper()
	got := &release{files: files}
	for _, file := range slices.Sorted(maps.Keys(files)) {
		text := files[file]
		if filepath.Base(file) == "NOTES.txt" {
			got.notes += text
			continue
		}
		for _, doc := range strings.Split("\n"+text, "\n---\n") {
			if strings.TrimSpace(doc) == "" {
				continue
			}
			got.objects = append(got.objects, decodeObject(t, file, doc))
		}
	}
	return got
}

func decodeObject(t testing.TB, file, text string) object {
	t.Helper()
	o := object{file: file, text: text}
	require.NoError(t, yaml.UnmarshalStrict([]byte(text), &o.fields), "%s:\n%s", file, text)
	o.apiVersion, _ = o.fields["apiVersion"].(string)
	o.kind, _ = o.fields["kind"].(string)
	meta, _ := o.fields["metadata"].(map[string]any)
	o.name, _ = meta["name"].(string)
	o.typed = decodeTyped(t, o)
	return o
}

// all returns the objects of one Go type.
func all[T any](r *release) []T {
	var found []T
	for _, o := range r.objects {
		if typed, ok := o.typed.(T); ok {
			found = append(found, typed)
		}
	}
	return found
}

// one returns the object of type T with that name, or fails the test.
func one[T any](t testing.TB, r *release, name string) T {
	t.Helper()
	var names []string
	for _, o := range r.objects {
		names = append(names, o.String())
		if typed, ok := o.typed.(T); ok && o.name == name {
			return typed
		}
	}
	var want T
	require.Failf(t, "no such object", "no %T named %q among %v", want, name, names)
	return want
}

// has reports whether the release contains an object of that kind and name.
func (r *release) has(kind, name string) bool {
	return slices.ContainsFunc(r.objects, func(o object) bool { return o.kind == kind && o.name == name })
}
