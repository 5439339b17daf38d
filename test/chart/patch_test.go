package chart

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
)

// patch.KEY reaches the object KEY, for every key that merge has.
func TestPatchReachesEveryObject(t *testing.T) {
	properties := asMap(readSchema(t)["properties"])
	keys := asMap(asMap(properties["merge"])["properties"])
	require.Equal(t, len(keys), len(asMap(asMap(properties["patch"])["properties"])))
	for key := range keys {
		values := everything
		if key == "externalSecret" {
			values += external
		}
		var patch string
		switch key {
		case "container":
			patch = "[{op: add, path: /tty, value: true}]"
		case "pod", "statefulSet", "walClaim", "dbClaim":
			patch = "[{op: replace, path: /metadata/labels/app.kubernetes.io~1component, value: server}, {op: add, path: /metadata/generateName, value: x}]"
		default:
			patch = "[{op: add, path: /metadata/generateName, value: x}]"
		}
		before := render(t, options{values: []string{values}})
		after := render(t, options{values: []string{values, "patch: {" + key + ": " + patch + "}"}})
		changed := 0
		for i, o := range after.objects {
			if o.text != before.objects[i].text {
				changed++
			}
		}
		require.Equal(t, 1, changed, "patch.%s", key)
	}
}

// RFC 6902, all six operations, on maps and on entries of lists.
func TestPatchChangesListsEntryByEntry(t *testing.T) {
	got := renderWith(t, `
merge: {container: {args: [serve, a, b]}}
patch:
  container:
    - {op: test, path: /args/1, value: a}
    - {op: add, path: /args/1, value: first}
    - {op: add, path: /args/-, value: last}
    - {op: remove, path: /args/2}
    - {op: replace, path: /args/0, value: serve}
    - {op: copy, from: /args/1, path: /args/-}
    - {op: move, from: /args/2, path: /args/0}
  headlessService:
    - {op: remove, path: /spec/ports/0}
  statefulSet:
    - {op: add, path: /metadata/annotations/a.example~1b, value: c}
    - {op: add, path: /spec/template/spec/containers/0/volumeMounts/0/readOnly, value: true}
    - {op: remove, path: /spec/template/spec/affinity}
`)
	set := statefulSet(t, got)
	require.Equal(t, []string{"b", "serve", "first", "last", "first"}, set.Spec.Template.Spec.Containers[0].Args)
	require.Equal(t, "c", set.Annotations["a.example/b"])
	require.True(t, set.Spec.Template.Spec.Containers[0].VolumeMounts[0].ReadOnly)
	require.Nil(t, set.Spec.Template.Spec.Affinity)
	require.Len(t, one[*corev1.Service](t, got, "r-stemedb-headless").Spec.Ports, 4)
}

func TestPatchSaysWhatItCannotDo(t *testing.T) {
	for patch, says := range map[string]string{
		"{op: remove, path: /spec/none}":                 `patch.gatewayService[0] (remove /spec/none): there is no "none".`,
		"{op: replace, path: /spec/none/a, value: 1}":    `there is no "none"`,
		"{op: add, path: /spec/ports/5, value: {}}":      `a list of 1 entries has no entry "5"`,
		"{op: remove, path: /spec/ports/1}":              `a list of 1 entries has no entry "1"`,
		"{op: remove, path: /spec/ports/-}":              `a list of 1 entries has no entry "-"`,
		"{op: remove, path: /spec/ports/00}":             `a list of 1 entries has no entry "00"`,
		"{op: add, path: /spec/type/a, value: 1}":        `the parent of "a" is neither a map nor a list`,
		"{op: test, path: /spec/type, value: NodePort}":  `the object has "ClusterIP" there, so the patch is not applied`,
		"{op: copy, from: /spec/none, path: /spec/type}": `there is no "none"`,
	} {
		_, err := tryRender(t, options{values: []string{"patch: {gatewayService: [" + patch + "]}"}})
		require.ErrorContains(t, err, says, patch)
	}
}
