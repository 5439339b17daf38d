package chart

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	batchv1 "k8s.io/api/batch/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

const (
	existingMine = "secrets: {source: existing, existing: {name: mine}}"
	staged       = "secrets: {externalSecret: {staged: true, secretStoreRef: {name: s}, rootApiKey: {key: a}, clusterSecret: {key: b}}}"
)

// The contract with stemedb-k8s (server/cmd/stemedb-k8s/inuse.go), which
// derives the members' current secret from the StatefulSet: the annotation of
// the source, the volume's name, and the two files in it.
func TestTheStatefulSetSaysWhatTheMembersUse(t *testing.T) {
	for source, values := range map[string]string{"generated": "", "existing": existingMine, "externalSecret": strings.TrimPrefix(external, "\n---\n")} {
		set := statefulSet(t, renderWith(t, values))
		require.Equal(t, source, set.Annotations["stemedb.io/secrets-source"])
		require.Empty(t, set.Spec.Template.Annotations, "a change of the source alone restarts no pod")
	}
	paths := map[string]bool{}
	for _, item := range secretVolume(t, renderWith(t)).Items {
		paths[item.Path] = true
	}
	require.Equal(t, map[string]bool{"root-api-key": true, "cluster-secret": true}, paths)
	code := readFile(t, "../../server/cmd/stemedb-k8s/inuse.go")
	for _, constant := range []string{`"stemedb.io/secrets-source"`, `"secrets"`, `"root-api-key"`, `"cluster-secret"`} {
		require.Contains(t, code, "= "+constant)
	}
}

// With every source, the Job runs before an upgrade and a rollback, and rejects
// different values; it may create only a generated Secret.
func TestEverySourceIsCheckedBeforeAChange(t *testing.T) {
	for source, values := range map[string]string{"existing": existingMine, "externalSecret": strings.TrimPrefix(external, "\n---\n")} {
		got := renderWith(t, values+"\n---\nsecrets: {previous: {name: before}}")
		for _, o := range got.objects {
			if strings.HasSuffix(o.name, "ensure-secret") {
				require.Equal(t, "pre-upgrade,pre-rollback", o.hook(), o)
			}
		}
		args := one[*batchv1.Job](t, got, "r-stemedb-ensure-secret").Spec.Template.Spec.Containers[0].Args
		require.Contains(t, args, "--source="+source)
		require.Equal(t, source == "externalSecret", strings.Contains(strings.Join(args, " "), "--staged-name=r-stemedb-secrets-staged"))
		readable := map[string]bool{}
		for _, rule := range one[*rbacv1.Role](t, got, "r-stemedb-ensure-secret").Rules {
			require.Equal(t, []string{"get"}, rule.Verbs)
			require.NotEmpty(t, rule.ResourceNames)
			for _, name := range rule.ResourceNames {
				readable[name] = true
			}
		}
		require.True(t, readable["before"] && readable["r-stemedb-secrets"] && readable["r-stemedb"], "%v", readable)
		require.Equal(t, source == "existing", readable["mine"])
		require.Equal(t, source == "externalSecret", readable["r-stemedb-secrets-staged"])
	}
	require.False(t, renderWith(t, existingMine+"\n---\nsecrets: {job: {enabled: false}}").has("Job", "r-stemedb-ensure-secret"))
	accepts := one[*batchv1.Job](t, renderWith(t, "secrets: {acceptNewValues: true}"), "r-stemedb-ensure-secret")
	require.Contains(t, accepts.Spec.Template.Spec.Containers[0].Args, "--accept-new-values")
}

// The Secret outlives its ExternalSecret, and staged values never change the
// members' Secret.
func TestExternalSecretsKeepTheirSecret(t *testing.T) {
	field := func(r *release, name string, path ...string) string {
		found, _, err := unstructured.NestedString(one[*unstructured.Unstructured](t, r, name).Object, path...)
		require.NoError(t, err)
		return found
	}
	switched := renderWith(t, strings.TrimPrefix(external, "\n---\n"))
	require.Equal(t, "Orphan", field(switched, "r-stemedb-secrets", "spec", "target", "creationPolicy"))
	require.Contains(t, switched.notes, "kept on uninstall: yes")

	for _, values := range []string{staged, staged + "\n---\n" + existingMine} {
		prepared := renderWith(t, values)
		require.Equal(t, "r-stemedb-secrets-staged", field(prepared, "r-stemedb-secrets-staged", "spec", "target", "name"))
		require.NotEqual(t, "r-stemedb-secrets-staged", secretVolume(t, prepared).SecretName)
		require.Contains(t, prepared.notes, "set secrets.source to externalSecret")
	}
	require.Equal(t, "0", field(renderWith(t, strings.TrimPrefix(external, "\n---\n")+"\n---\nsecrets: {externalSecret: {refreshInterval: '0'}}"), "r-stemedb-secrets", "spec", "refreshInterval"))
}

// Tools that run no hooks get an ordinary Job, whose name changes with its
// content, since a Job is immutable.
func TestWithoutHooksTheJobIsAnOrdinaryOne(t *testing.T) {
	plain := "secrets: {job: {hook: false}}"
	jobs := func(values string) string {
		got := renderWith(t, values)
		for _, o := range got.objects {
			require.True(t, o.hook() == "" || strings.HasPrefix(o.hook(), "test"), "%s is a hook", o)
		}
		found := all[*batchv1.Job](got)
		require.Len(t, found, 1)
		require.Equal(t, "r-stemedb-ensure-secret", found[0].Spec.Template.Spec.ServiceAccountName)
		return found[0].Name
	}
	name := jobs(plain)
	require.Regexp(t, `^r-stemedb-secret-[0-9a-f]{8}$`, name)
	require.Equal(t, name, jobs(plain+"\nreplicas: 5"), "nothing that it runs has changed")
	for _, change := range []string{"image: {tag: v2}", "podLabels: {a: b}", "merge: {secretJob: {spec: {backoffLimit: 1}}}", "patch: {secretJob: [{op: add, path: /spec/backoffLimit, value: 1}]}"} {
		require.NotEqual(t, name, jobs(plain+"\n"+change), change)
	}
	require.Empty(t, all[*batchv1.Job](renderWith(t, existingMine+"\n---\n"+plain)), "nothing would be compared before the change")
}

// The Job has the image, placement and labels of the server, and enough time.
func TestTheJobRunsWhereTheServerRuns(t *testing.T) {
	got := renderWith(t, "podLabels: {a: b}\npodAnnotations: {c: d}\ntolerations: [{operator: Exists}]\nnodeSelector: {disk: ssd}\nimage: {pullSecrets: [{name: p}]}\npriorityClassName: high")
	for _, template := range podTemplates(got) {
		require.Equal(t, "b", template.Labels["a"])
		require.Equal(t, "d", template.Annotations["c"])
		require.Len(t, template.Spec.Tolerations, 1)
		require.Equal(t, "ssd", template.Spec.NodeSelector["disk"])
		require.Equal(t, "p", template.Spec.ImagePullSecrets[0].Name)
		require.Equal(t, "high", template.Spec.PriorityClassName)
	}
	require.EqualValues(t, 600, *one[*batchv1.Job](t, got, "r-stemedb-ensure-secret").Spec.ActiveDeadlineSeconds)
}

// A rejection is final: the Job stops at the exit code of stemedb-k8s for it
// (server/cmd/stemedb-k8s/main.go), and retries after any other failure.
func TestARefusalEndsTheJobAtOnce(t *testing.T) {
	spec := one[*batchv1.Job](t, renderWith(t), "r-stemedb-ensure-secret").Spec
	require.Positive(t, *spec.BackoffLimit)
	rule := spec.PodFailurePolicy.Rules[0]
	require.Equal(t, batchv1.PodFailurePolicyActionFailJob, rule.Action)
	require.Equal(t, spec.Template.Spec.Containers[0].Name, *rule.OnExitCodes.ContainerName)
	require.Equal(t, []int32{2}, rule.OnExitCodes.Values)
	require.Contains(t, readFile(t, "../../server/cmd/stemedb-k8s/main.go"), "\texitRefused = 2 ")
}
