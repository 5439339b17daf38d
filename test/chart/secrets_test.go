package chart

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func secretVolume(t *testing.T, r *release) *corev1.SecretVolumeSource {
	t.Helper()
	for _, v := range statefulSet(t, r).Spec.Template.Spec.Volumes {
		if v.Name == "secrets" {
			return v.Secret
		}
	}
	require.Fail(t, "no volume of secrets")
	return nil
}

func TestNoSourceRendersASecret(t *testing.T) {
	for _, values := range []string{
		"",
		"secrets: {source: existing, existing: {name: mine}}",
		"secrets: {source: externalSecret, externalSecret: {secretStoreRef: {name: s}, rootApiKey: {key: a}, clusterSecret: {key: b, property: p}}}",
	} {
		got := renderWith(t, values)
		for _, o := range got.objects {
			require.NotEqual(t, "Secret", o.kind)
		}
	}
}

func TestExistingSecret(t *testing.T) {
	got := renderWith(t, "secrets: {source: existing, existing: {name: mine}, keys: {rootApiKey: root.key, clusterSecret: gossip}}")
	volume := secretVolume(t, got)
	require.Equal(t, "mine", volume.SecretName)
	require.EqualValues(t, 0o440, *volume.DefaultMode)
	require.Equal(t, []corev1.KeyToPath{{Key: "root.key", Path: "root-api-key"}, {Key: "gossip", Path: "cluster-secret"}}, volume.Items)
	test := one[*corev1.Pod](t, got, "r-stemedb-test").Spec.Containers[0].Env[0].ValueFrom.SecretKeyRef
	require.Equal(t, "mine", test.Name)
	require.Equal(t, "root.key", test.Key)
	require.Contains(t, got.notes, `get secret mine -o jsonpath='{.data.root\.key}'`)
}

func TestExternalSecret(t *testing.T) {
	got := renderWith(t, "secrets: {source: externalSecret, externalSecret: {secretStoreRef: {name: store}, rootApiKey: {key: a}, clusterSecret: {key: b, property: p}}}")
	external := one[*unstructured.Unstructured](t, got, "r-stemedb-secrets")
	require.Equal(t, "external-secrets.io/v1", external.GetAPIVersion())
	target, _, _ := unstructured.NestedString(external.Object, "spec", "target", "name")
	require.Equal(t, secretVolume(t, got).SecretName, target)
	data, _, _ := unstructured.NestedSlice(external.Object, "spec", "data")
	require.Len(t, data, 2)
	first, second := data[0].(map[string]any), data[1].(map[string]any)
	require.Equal(t, "root-api-key", first["secretKey"])
	require.Equal(t, "a", first["remoteRef"].(map[string]any)["key"])
	require.NotContains(t, first["remoteRef"], "property")
	require.Equal(t, "p", second["remoteRef"].(map[string]any)["property"])
}

// A Job creates the Secret in the cluster, with the narrowest permissions that
// Kubernetes can express, and Helm never owns it: an uninstall keeps it.
func TestGeneratedSecret(t *testing.T) {
	got := renderWith(t)
	require.Equal(t, "r-stemedb-secrets", secretVolume(t, got).SecretName)
	job := one[*batchv1.Job](t, got, "r-stemedb-ensure-secret")
	pod := job.Spec.Template.Spec
	require.Equal(t, []string{"/usr/local/bin/stemedb-k8s", "ensure-secret"}, pod.Containers[0].Command)
	require.Equal(t, []string{
		"--source=generated", "--namespace=ns", "--statefulset=r-stemedb", "--name=r-stemedb-secrets",
		"--root-key-field=root-api-key", "--cluster-secret-field=cluster-secret", "--hook",
	}, pod.Containers[0].Args)
	require.True(t, *pod.AutomountServiceAccountToken)
	require.Equal(t, "r-stemedb-ensure-secret", pod.ServiceAccountName)
	require.EqualValues(t, 600, *job.Spec.ActiveDeadlineSeconds)

	role := one[*rbacv1.Role](t, got, "r-stemedb-ensure-secret")
	require.Equal(t, []rbacv1.PolicyRule{
		{APIGroups: []string{"apps"}, Resources: []string{"statefulsets"}, ResourceNames: []string{"r-stemedb"}, Verbs: []string{"get"}},
		{APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: []string{"r-stemedb-secrets"}, Verbs: []string{"get"}},
		{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"create"}},
		{APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: []string{"r-stemedb-secrets"}, Verbs: []string{"update"}},
	}, role.Rules)
	binding := one[*rbacv1.RoleBinding](t, got, "r-stemedb-ensure-secret")
	require.Equal(t, role.Name, binding.RoleRef.Name)
	require.Equal(t, []rbacv1.Subject{{Kind: "ServiceAccount", Name: pod.ServiceAccountName, Namespace: "ns"}}, binding.Subjects)
}

// Jobs are hooks that are recreated each time (a Job's template is immutable),
// and a Job's dependencies precede it.
func TestHooks(t *testing.T) {
	weights := map[string][]string{}
	for _, o := range renderWith(t, closed).objects {
		if o.kind == "Job" {
			require.NotEmpty(t, o.hook(), "%s must be a hook", o)
		}
		if o.hook() == "" {
			continue
		}
		annotations := o.metadata("annotations")
		require.Equal(t, "before-hook-creation,hook-succeeded", annotations["helm.sh/hook-delete-policy"], o)
		key := o.hook() + " " + annotations["helm.sh/hook-weight"]
		weights[key] = append(weights[key], o.kind)
	}
	require.Equal(t, map[string][]string{
		"pre-install,pre-upgrade,pre-rollback -20": {"Role", "ServiceAccount"},
		"pre-install,pre-upgrade,pre-rollback -19": {"NetworkPolicy", "RoleBinding"},
		"pre-install,pre-upgrade,pre-rollback -10": {"Job"},
		"test -10": {"NetworkPolicy"},
		"test 0":   {"Pod"},
	}, weights)
}

func TestNotes(t *testing.T) {
	notes := renderWith(t).notes
	for _, want := range []string{
		"installed as r-stemedb in namespace ns", "which 1 can fail at once",
		"http://r-stemedb.ns.svc.cluster.local:18181",
		"kubectl -n ns get secret r-stemedb-secrets -o jsonpath='{.data.root-api-key}' | base64 -d",
		`curl "$URL/v1/health"`, `curl -H "X-API-Key: $KEY" "$URL/v1/whoami"`, `curl -H "X-API-Key: $KEY" "$URL/v1/cluster/status"`,
		"port-forward service/r-stemedb",
	} {
		require.Contains(t, notes, want)
	}
	require.NotContains(t, notes, "WARNING")
	require.Equal(t, 3, strings.Count(notes, "curl "))

	for values, want := range map[string]string{
		"replicas: 1": "WARNING: one replica.",
		"replicas: 4": "WARNING: 4 replicas tolerate as many failures as 3.",
		"server: {authEnabled: false}\nextraEnv: {STEMEDB_UNSAFE_SKIP_SIGNATURES: true}": "WARNING: authentication is off.",
		"resources: {limits: {memory: null}}":                                            "WARNING: no memory limit",
		"persistence: {retention: {whenDeleted: Delete}}":                                "WARNING: uninstalling deletes the data",
		"persistence: {retention: {whenScaled: Delete}}":                                 "WARNING: scaling down deletes",
		"podAntiAffinity: none":                                                          "WARNING: nothing spreads the members",
		published + "ingress: {tls: {enabled: false}}":                                   "WARNING: the Ingress speaks plain HTTP",
		published: "URL=https://a.example",
	} {
		require.Contains(t, renderWith(t, values).notes, want, values)
	}
	for _, env := range environments(t) {
		notes := render(t, options{env: env, strict: true}).notes
		require.NotContains(t, notes, "{{")
		require.Equal(t, env == "single-node", strings.Contains(notes, "WARNING"), "%s:\n%s", env, notes)
	}
}

// The chart cannot see the previous number of members, so the notes of an
// upgrade to fewer than three explain the consequence and the way back.
func TestNotesWarnOfTooFewMembers(t *testing.T) {
	const warning = "the removed ones still count for the majority"
	notes := func(upgrade bool, values string) string {
		return render(t, options{upgrade: upgrade, values: []string{values}}).notes
	}
	for _, few := range []string{"replicas: 1", "replicas: 2"} {
		require.Contains(t, notes(true, few), warning)
		require.Contains(t, notes(true, few), "Set replicas back to its previous value; the volumes of the removed members are kept.")
		require.Contains(t, notes(true, few+"\npersistence: {retention: {whenScaled: Delete}}"), "records that were only on the volumes of the removed members are lost")
		require.NotContains(t, notes(false, few), warning, "an install has no previous members")
	}
	require.NotContains(t, notes(true, ""), warning)
}
