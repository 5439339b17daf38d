package chart

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// podTemplate returns the pod that an object would start, nil if none.
func podTemplate(o object) *corev1.PodTemplateSpec {
	switch typed := o.typed.(type) {
	case *appsv1.StatefulSet:
		return &typed.Spec.Template
	case *batchv1.Job:
		return &typed.Spec.Template
	case *corev1.Pod:
		return &corev1.PodTemplateSpec{ObjectMeta: typed.ObjectMeta, Spec: typed.Spec}
	}
	return nil
}

func TestNames(t *testing.T) {
	for _, c := range []struct{ release, values, want string }{
		{"r", "", "r-stemedb"},
		{"stemedb", "", "stemedb"},
		{"my-stemedb-eu", "", "my-stemedb-eu"},
		{"r", "nameOverride: facts", "r-facts"},
		{"r", "fullnameOverride: facts", "facts"},
	} {
		require.Equal(t, c.want, statefulSet(t, render(t, options{release: c.release, values: []string{c.values}})).Name)
	}
}

// The longest release name that Helm accepts (53), and the longest overrides.
func TestLongNamesFit(t *testing.T) {
	long := strings.Repeat("a", 53)
	seen := map[string]bool{}
	for _, o := range []options{
		{release: long},
		{release: long[:52] + "b"},
		{release: strings.Repeat("a-", 26) + "a"},
		{values: []string{"fullnameOverride: " + strings.Repeat("b", 63)}},
		{values: []string{"nameOverride: " + strings.Repeat("c", 63)}},
	} {
		o.namespace = strings.Repeat("n", 63)
		o.values = append(o.values, everything, "replicas: 99")
		got := render(t, o)
		set := statefulSet(t, got)
		require.False(t, seen[set.Name], "two long names became one: %s", set.Name)
		seen[set.Name] = true
		require.LessOrEqual(t, len(set.Name), 52, "controller-revision-hash adds 11 characters")
		for _, o := range got.objects {
			require.LessOrEqual(t, len(o.name), 63, o)
			require.Regexp(t, "^[a-z]([-a-z0-9]*[a-z0-9])?$", o.name)
			for key, value := range o.metadata("labels") {
				require.LessOrEqual(t, len(value), 63, "%s: %s", o, key)
			}
		}
	}
}

// Decoding fails if one of these is rendered as a number or a boolean.
func TestReleasesAndNamespacesMayLookLikeNumbers(t *testing.T) {
	for _, name := range []string{"1234", "0123", "1e3", "true", "null"} {
		for _, source := range []string{"", external, "\n---\n" + existingMine} {
			for _, o := range render(t, options{release: name, namespace: name, values: []string{everything + source, "fullnameOverride: a"}}).objects {
				require.Equal(t, name, asMap(o.fields["metadata"])["namespace"], o)
				require.Equal(t, name, asMap(asMap(o.fields["metadata"])["labels"])["app.kubernetes.io/instance"], o)
			}
		}
	}
}

func TestEveryObjectHasTheStandardLabels(t *testing.T) {
	for _, env := range environments(t) {
		for _, o := range render(t, options{release: "r", env: env}).objects {
			labels := o.metadata("labels")
			require.Equal(t, "stemedb", labels["app.kubernetes.io/name"], o)
			require.Equal(t, "r", labels["app.kubernetes.io/instance"], o)
			require.Equal(t, "stemedb", labels["app.kubernetes.io/part-of"], o)
			require.Equal(t, "Helm", labels["app.kubernetes.io/managed-by"], o)
			require.Equal(t, "0.1.0", labels["app.kubernetes.io/version"], o)
			require.Equal(t, "stemedb-0.1.0", labels["helm.sh/chart"], o)
			require.NotEmpty(t, labels["app.kubernetes.io/component"], o)
			require.Equal(t, "ns", o.fields["metadata"].(map[string]any)["namespace"], o)
		}
	}
}
