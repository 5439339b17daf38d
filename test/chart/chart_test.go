package chart

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/stretchr/testify/require"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/yaml"
)

// everything switches on every object of the chart except those of the secret
// sources, only one of which can be active.
const everything = published + closed + "\n---\n" + `
networkPolicy: {clients: {ingress: {podSelector: {matchLabels: {app: ingress}}}}}
ingress: {traefik: {rateLimit: {enabled: true}}}
monitoring: {serviceMonitor: {enabled: true}}
`

const external = "\n---\nsecrets: {source: externalSecret, externalSecret: {secretStoreRef: {name: s}, rootApiKey: {key: a}, clusterSecret: {key: b}}}"

func TestEachEnvironmentRenders(t *testing.T) {
	require.Equal(t, []string{"dev", "production", "single-node", "staging"}, environments(t))
	for _, env := range environments(t) {
		t.Run(env, func(t *testing.T) {
			got := render(t, options{release: "stemedb", namespace: "stemedb", env: env, strict: true})
			require.NotEmpty(t, got.objects)
			for file, text := range got.files {
				require.NotContains(t, text, "<no value>", file)
				require.NotContains(t, text, "%!", file)
			}
		})
	}
}

func TestEachEnvironmentLints(t *testing.T) {
	for _, env := range environments(t) {
		linter := lint.AllWithKubeVersion(chartDir, mergeValues(t, options{env: env}), "ns", nil)
		for _, message := range linter.Messages {
			require.Less(t, message.Severity, support.WarningSev, "%s: %s", env, message)
		}
	}
}

// Rendering is a pure function of the values: a GitOps tool renders repeatedly
// and would apply each difference.
func TestRenderingIsPure(t *testing.T) {
	for _, env := range environments(t) {
		first := render(t, options{env: env}).files
		for range 5 {
			require.Equal(t, first, render(t, options{env: env}).files)
		}
	}
	upgraded := render(t, options{values: []string{everything}}).files
	require.Equal(t, upgraded, render(t, options{values: []string{everything}}).files)
}

func TestTemplatesUseNothingImpure(t *testing.T) {
	impure := regexp.MustCompile(`\b(lookup|now|date|dateInZone|ago|unixEpoch|uuidv4|rand\w*|gen(CA|PrivateKey|SelfSigned|Signed)\w*|derivePassword|htpasswd|bcrypt|env|expandenv|getHostByName|shuffle|keys|values)\b`)
	action := regexp.MustCompile(`(?s)\{\{.*?\}\}`)
	text := regexp.MustCompile(`(?s)/\*.*?\*/|"(\\.|[^"\\])*"|[.$][A-Za-z]\w*`)
	err := filepath.WalkDir(filepath.Join(chartDir, "templates"), func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		for _, found := range action.FindAllString(string(raw), -1) {
			bare := text.ReplaceAllString(found, "")
			require.NotRegexp(t, impure, bare, "%s: %s", path, found)
		}
		return err
	})
	require.NoError(t, err)
}

// One object per file, and every file fits on a screen.
func TestTemplatesFitOnAScreen(t *testing.T) {
	err := filepath.WalkDir(filepath.Join(chartDir, "templates"), func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Base(path) == "_checks.tpl" {
			return err
		}
		raw, err := os.ReadFile(path)
		require.LessOrEqual(t, strings.Count(string(raw), "\n"), 90, path)
		return err
	})
	require.NoError(t, err)
	files := map[string]string{}
	for _, o := range render(t, options{values: []string{everything}}).objects {
		require.Empty(t, files[o.file], "%s and %s share %s", o, files[o.file], o.file)
		files[o.file] = o.String()
	}
}

// merge.KEY reaches the object KEY, for every key that the schema has and for
// every object that the chart renders.
func TestMergeReachesEveryObject(t *testing.T) {
	keys := asMap(asMap(asMap(readSchema(t)["properties"])["merge"])["properties"])
	touched := map[string]bool{}
	for key := range keys {
		values := everything
		if key == "externalSecret" {
			values += external
		}
		patch := "{metadata: {annotations: {merged: into}}}"
		if key == "container" {
			patch = "{tty: true}"
		}
		before := render(t, options{values: []string{values}})
		after := render(t, options{values: []string{values, "merge: {" + key + ": " + patch + "}"}})
		changed := 0
		for i, o := range after.objects {
			if o.text != before.objects[i].text {
				changed++
				touched[o.file] = true
			}
		}
		require.Equal(t, 1, changed, "merge.%s", key)
	}
	for _, o := range slices.Concat(render(t, options{values: []string{everything}}).objects, render(t, options{values: []string{everything + external}}).objects) {
		require.True(t, touched[o.file], "%s has no merge value", o)
	}
}

// RFC 7396: maps merge, null removes, false and 0 are values, lists are replaced.
func TestMergeCanTurnThingsOff(t *testing.T) {
	set := statefulSet(t, renderWith(t, `
merge:
  statefulSet: {spec: {minReadySeconds: 0, updateStrategy: null}}
  pod: {spec: {enableServiceLinks: true, terminationGracePeriodSeconds: 90, affinity: null}}
  container: {args: [serve, --log-level=debug], readinessProbe: {httpGet: {scheme: null}}}
  walClaim: {spec: {volumeAttributesClassName: fast}}
`))
	require.Zero(t, set.Spec.MinReadySeconds)
	require.Equal(t, appsv1.StatefulSetUpdateStrategy{}, set.Spec.UpdateStrategy)
	spec := set.Spec.Template.Spec
	require.True(t, *spec.EnableServiceLinks)
	require.EqualValues(t, 90, *spec.TerminationGracePeriodSeconds)
	require.Nil(t, spec.Affinity)
	require.Equal(t, []string{"serve", "--log-level=debug"}, spec.Containers[0].Args)
	require.Empty(t, spec.Containers[0].ReadinessProbe.HTTPGet.Scheme)
	require.Equal(t, "/v1/health/ready", spec.Containers[0].ReadinessProbe.HTTPGet.Path)
	require.Equal(t, "fast", *set.Spec.VolumeClaimTemplates[0].Spec.VolumeAttributesClassName)
}

// Prometheus' own braces in a manifest are not a template of the chart.
func TestExtraObjects(t *testing.T) {
	got := renderWith(t, `
extraObjects:
  map:
    apiVersion: monitoring.coreos.com/v1
    kind: PrometheusRule
    metadata: {name: alerts}
    spec: {groups: [{name: a, rules: [{alert: A, expr: up == 0, annotations: {summary: "{{ $labels.pod }} is down"}}]}]}
  text: |
    apiVersion: v1
    kind: ConfigMap
    metadata:
      name: {{ .Release.Name }}-text
  gone: null
`)
	rule := one[*monitoringv1.PrometheusRule](t, got, "alerts")
	require.Equal(t, "{{ $labels.pod }} is down", rule.Spec.Groups[0].Rules[0].Annotations["summary"], "a manifest is rendered unchanged")
	require.True(t, got.has("ConfigMap", "r-text"))
}

// As a dependency the chart gets `global`, and a parent's condition sets `enabled`.
func TestWorksAsADependency(t *testing.T) {
	render := func(values string) (*release, error) {
		dependency, err := loader.Load(chartDir)
		require.NoError(t, err)
		parent := &chart.Chart{Metadata: &chart.Metadata{
			APIVersion: "v2", Name: "parent", Version: "1.0.0", Type: "application",
			Dependencies: []*chart.Dependency{{Name: "stemedb", Version: dependency.Metadata.Version, Condition: "stemedb.enabled"}},
		}}
		parent.AddDependency(dependency)
		return tryRenderChart(t, parent, options{values: []string{values}})
	}
	got, err := render("global: {imageRegistry: mirror.example, other: {a: [1]}}\nstemedb: {enabled: true, replicas: 5}")
	require.NoError(t, err)
	set := statefulSet(t, got)
	require.Equal(t, "r-stemedb", set.Name)
	require.EqualValues(t, 5, *set.Spec.Replicas)
	require.Equal(t, "mirror.example/stemedb/stemedb:0.1.0", set.Spec.Template.Spec.Containers[0].Image)

	off, err := render("stemedb: {enabled: false}")
	require.NoError(t, err)
	require.Empty(t, off.objects)

	_, err = render("stemedb: {replcas: 5}")
	require.ErrorContains(t, err, "additional properties 'replcas' not allowed")
}

func TestChartMetadata(t *testing.T) {
	loaded, err := loader.Load(chartDir)
	require.NoError(t, err)
	require.NoError(t, loaded.Validate())
	for _, version := range []string{"v1.27.0", "v1.33.4+k3s1", "v1.33.4-gke.1", "v1.37.2"} {
		require.True(t, chartutil.IsCompatibleRange(loaded.Metadata.KubeVersion, version), version)
	}
	require.False(t, chartutil.IsCompatibleRange(loaded.Metadata.KubeVersion, "v1.26.9"))
	for _, annotation := range []string{"license", "category", "changes", "images", "links", "operator", "prerelease"} {
		require.NotEmpty(t, loaded.Metadata.Annotations["artifacthub.io/"+annotation], annotation)
	}
	for _, list := range []string{"changes", "images", "links"} {
		var entries []map[string]string
		require.NoError(t, yaml.UnmarshalStrict([]byte(loaded.Metadata.Annotations["artifacthub.io/"+list]), &entries), list)
	}
	require.Contains(t, loaded.Metadata.Annotations["artifacthub.io/images"], ":"+loaded.Metadata.AppVersion)
}
