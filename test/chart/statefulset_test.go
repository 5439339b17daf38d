package chart

import (
	"fmt"
	"maps"
	"math/big"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"helm.sh/helm/v3/pkg/chart"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func statefulSet(t testing.TB, r *release) *appsv1.StatefulSet {
	t.Helper()
	sets := all[*appsv1.StatefulSet](r)
	require.Len(t, sets, 1)
	return sets[0]
}

func serverContainer(t testing.TB, r *release) corev1.Container {
	t.Helper()
	containers := statefulSet(t, r).Spec.Template.Spec.Containers
	require.NotEmpty(t, containers)
	require.Equal(t, "stemedb", containers[0].Name)
	return containers[0]
}

func env(c corev1.Container) map[string]string {
	found := map[string]string{}
	for _, v := range c.Env {
		found[v.Name] = v.Value
	}
	return found
}

var selector = map[string]string{
	"app.kubernetes.io/name":      "stemedb",
	"app.kubernetes.io/instance":  "r",
	"app.kubernetes.io/component": "server",
}

// These fields are immutable after the first install and can never be changed.
func TestImmutableFieldsAreFrozen(t *testing.T) {
	spec := statefulSet(t, renderWith(t)).Spec
	require.Equal(t, "r-stemedb-headless", spec.ServiceName)
	require.Equal(t, selector, spec.Selector.MatchLabels)
	require.Empty(t, spec.Selector.MatchExpressions)
	require.Equal(t, appsv1.ParallelPodManagement, spec.PodManagementPolicy)
	require.Len(t, spec.VolumeClaimTemplates, 2)
	filesystem := corev1.PersistentVolumeFilesystem
	for i, want := range []struct{ name, size string }{{"wal", "10Gi"}, {"db", "20Gi"}} {
		claim := spec.VolumeClaimTemplates[i]
		require.Equal(t, "v1", claim.APIVersion)
		require.Equal(t, "PersistentVolumeClaim", claim.Kind)
		require.Equal(t, want.name, claim.Name)
		require.Equal(t, selector, claim.Labels, "nothing that changes with a version")
		require.Empty(t, claim.Annotations)
		require.Equal(t, corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			VolumeMode:  &filesystem,
			Resources: corev1.VolumeResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(want.size)},
			},
		}, claim.Spec)
	}
}

// A new version of chart and server must be installable over the old one, and
// with the same image it must restart no pod.
func TestNewChartVersionChangesNothingImmutable(t *testing.T) {
	for _, name := range environments(t) {
		older := statefulSet(t, render(t, options{env: name})).Spec
		newer := statefulSet(t, render(t, options{env: name, edit: func(c *chart.Chart) {
			c.Metadata.Version, c.Metadata.AppVersion = "9.9.9+build", "9.9.9"
		}})).Spec
		require.Equal(t, older.ServiceName, newer.ServiceName)
		require.Equal(t, older.Selector, newer.Selector)
		require.Equal(t, older.PodManagementPolicy, newer.PodManagementPolicy)
		require.Equal(t, older.VolumeClaimTemplates, newer.VolumeClaimTemplates)

		same := statefulSet(t, render(t, options{env: name, edit: func(c *chart.Chart) {
			c.Metadata.Version = "9.9.9"
		}})).Spec
		require.Equal(t, older.Template, same.Template, "a chart version alone restarts pods")
	}
}

// The user's own labels and annotations never reach immutable fields.
func TestCommonLabelsStayOutOfSelectors(t *testing.T) {
	got := renderWith(t, "commonLabels: {team: a}\npodLabels: {x: z}\ncommonAnnotations: {note: b}")
	set := statefulSet(t, got)
	require.Equal(t, "a", set.Labels["team"])
	require.Equal(t, "a", set.Spec.Template.Labels["team"])
	require.Equal(t, "z", set.Spec.Template.Labels["x"])
	require.Equal(t, selector, set.Spec.Selector.MatchLabels)
	require.Equal(t, selector, set.Spec.VolumeClaimTemplates[0].Labels)
	for _, o := range got.objects {
		require.Equal(t, "a", o.metadata("labels")["team"], o)
		require.Equal(t, "b", o.metadata("annotations")["note"], o)
	}
}

// Scaling changes the replica count and the file of members, never the pods.
func TestScalingRestartsNobody(t *testing.T) {
	three, five := renderWith(t), renderWith(t, "replicas: 5")
	require.Equal(t, statefulSet(t, three).Spec.Template, statefulSet(t, five).Spec.Template)
	require.EqualValues(t, 5, *statefulSet(t, five).Spec.Replicas)

	members := one[*corev1.ConfigMap](t, renderWith(t, "replicas: 2\nclusterDomain: k8s.example"), "r-stemedb-members").Data["members"]
	require.Equal(t, "r-stemedb-0.r-stemedb-headless.ns.svc.k8s.example\nr-stemedb-1.r-stemedb-headless.ns.svc.k8s.example", members)
}

func TestServerEnvironment(t *testing.T) {
	c := serverContainer(t, renderWith(t))
	require.Equal(t, "POD_NAME", c.Env[0].Name, "$(POD_NAME) resolves only preceding variables")
	require.Equal(t, "metadata.name", c.Env[0].ValueFrom.FieldRef.FieldPath)
	require.Equal(t, map[string]string{
		"POD_NAME":                    "",
		"GOMEMLIMIT":                  "966367641",
		"STEMEDB_NODE_NAME":           "",
		"STEMEDB_ADVERTISE_ADDR":      "$(POD_NAME).r-stemedb-headless.ns.svc.cluster.local",
		"STEMEDB_BIND_ADDR":           ":18180",
		"STEMEDB_GATEWAY_ADDR":        ":18181",
		"STEMEDB_REPLICATION_ADDR":    ":18182",
		"STEMEDB_GOSSIP_ADDR":         ":18183",
		"STEMEDB_WAL_DIR":             "/data/wal",
		"STEMEDB_DB_DIR":              "/data/db",
		"STEMEDB_CLUSTER_JOIN_FILE":   "/etc/stemedb/cluster/members",
		"STEMEDB_CLUSTER_SECRET_FILE": "/etc/stemedb/secrets/cluster-secret",
		"STEMEDB_ROOT_API_KEY_FILE":   "/etc/stemedb/secrets/root-api-key",
		"STEMEDB_AUTH_ENABLED":        "true",
		"STEMEDB_LOG_LEVEL":           "info",
		"STEMEDB_LOG_FORMAT":          "json",
		"STEMEDB_SHUTDOWN_GRACE":      "15s",
	}, env(c))
	require.Equal(t, []string{"serve"}, c.Args)
	require.Empty(t, c.Command, "the image's entrypoint")
}

// The server refuses to start with an unknown STEMEDB_ name, so the chart may
// set and reserve only names from the server's settings.
func TestTheServerKnowsEveryVariable(t *testing.T) {
	source, err := os.ReadFile("../../server/internal/config/settings.go")
	require.NoError(t, err)
	known := map[string]bool{}
	for _, m := range regexp.MustCompile(`name: +"([A-Z_]+)"`).FindAllSubmatch(source, -1) {
		known["STEMEDB_"+string(m[1])] = true
	}
	require.Greater(t, len(known), 15, "settings.go no longer lists names where this test looks")
	own := regexp.MustCompile(`\bSTEMEDB_[A-Z_]+`)
	for _, file := range []string{"server/_env.tpl", "_checks.tpl"} {
		text, err := os.ReadFile(filepath.Join(chartDir, "templates", file))
		require.NoError(t, err)
		for _, name := range own.FindAllString(string(text), -1) {
			require.True(t, known[strings.TrimSuffix(name, "_FILE")], "%s sets %s", file, name)
		}
	}
}

// An overlay adds, changes or removes one variable.
func TestEnvironmentOverlaysCombine(t *testing.T) {
	c := serverContainer(t, renderWith(t,
		"extraEnv: {A: '1', B: x, GOMEMLIMIT: null}\nserver: {allowedOrigins: [https://a.example, https://b.example]}",
		"extraEnv: {A: null, B: 4294967296, C: true, D: {valueFrom: {fieldRef: {fieldPath: status.hostIP}}}}"))
	got := env(c)
	require.NotContains(t, got, "A")
	require.NotContains(t, got, "GOMEMLIMIT")
	require.Equal(t, "4294967296", got["B"])
	require.Equal(t, "true", got["C"])
	require.Contains(t, got, "D")
	require.Equal(t, "https://a.example,https://b.example", got["STEMEDB_ALLOWED_ORIGINS"])
}

func memLimit(t *testing.T, memory string) string {
	t.Helper()
	return env(serverContainer(t, renderWith(t, "resources: {requests: {memory: null}, limits: {memory: "+memory+"}}")))["GOMEMLIMIT"]
}

func TestGoMemLimitIsNineTenths(t *testing.T) {
	for memory, want := range map[string]string{
		"4Gi": "3865470566", "1Gi": "966367641", "1.5Gi": "1449551462", "512Mi": "483183820",
		"500M": "450000000", "2G": "1800000000", "1e9": "900000000", "1E9": "900000000", "'1e+9'": "900000000",
		"128974848": "116077363", "'128974848'": "116077363", "4294967296": "3865470566", "1k": "900",
		"0.5Gi": "483183820", "1.999999999Ti": "1979120929006", "1Pi": "1013309916158361", "1": "0", "10": "9",
	} {
		require.Equal(t, want, memLimit(t, memory), memory)
	}
	require.NotContains(t, env(serverContainer(t, renderWith(t, "resources: {limits: {memory: null}}"))), "GOMEMLIMIT")
	require.NotContains(t, env(serverContainer(t, renderWith(t, "resources: {limits: null}"))), "GOMEMLIMIT")
}

// Compares the helper with Kubernetes' own parsing of a quantity.
func TestGoMemLimitAgreesWithKubernetes(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 0))
	suffixes := []string{"", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti", "e3", "e6"}
	for range 40 {
		text := fmt.Sprint(1 + random.IntN(4000))
		suffix := suffixes[random.IntN(len(suffixes))]
		if suffix != "" && random.IntN(2) == 0 {
			text += fmt.Sprintf(".%0*d", 1+random.IntN(3), random.IntN(10))
		}
		text += suffix
		quantity := resource.MustParse(text)
		// Kubernetes rounds a fraction of a byte up, the helper down: compare exactly.
		exact, ok := new(big.Rat).SetString(quantity.AsDec().String())
		require.True(t, ok)
		bytes := new(big.Int).Quo(exact.Num(), exact.Denom())
		want := bytes.Mul(bytes, big.NewInt(9)).Quo(bytes, big.NewInt(10)).String()
		require.Equal(t, want, memLimit(t, "'"+text+"'"), text)
	}
}

func TestPodIsRestricted(t *testing.T) {
	for _, name := range environments(t) {
		got := render(t, options{env: name})
		for _, template := range podTemplates(got) {
			spec := template.Spec
			require.True(t, *spec.SecurityContext.RunAsNonRoot)
			require.EqualValues(t, 65532, *spec.SecurityContext.RunAsUser)
			require.EqualValues(t, 65532, *spec.SecurityContext.FSGroup)
			require.Equal(t, corev1.FSGroupChangeOnRootMismatch, *spec.SecurityContext.FSGroupChangePolicy)
			require.Equal(t, corev1.SeccompProfileTypeRuntimeDefault, spec.SecurityContext.SeccompProfile.Type)
			require.False(t, *spec.EnableServiceLinks)
			for _, c := range spec.Containers {
				require.False(t, *c.SecurityContext.AllowPrivilegeEscalation)
				require.True(t, *c.SecurityContext.ReadOnlyRootFilesystem)
				require.Equal(t, []corev1.Capability{"ALL"}, c.SecurityContext.Capabilities.Drop)
				require.NotEmpty(t, c.Resources.Limits.Memory())
			}
		}
		require.False(t, *statefulSet(t, got).Spec.Template.Spec.AutomountServiceAccountToken)
	}
}

// podTemplates returns every pod that a release would start.
func podTemplates(r *release) []corev1.PodTemplateSpec {
	var found []corev1.PodTemplateSpec
	for _, o := range r.objects {
		if template := podTemplate(o); template != nil {
			found = append(found, *template)
		}
	}
	return found
}

func TestOpenShiftGivesTheIds(t *testing.T) {
	hasIDs := func(values string, apis ...string) bool {
		spec := statefulSet(t, render(t, options{values: []string{values}, apis: apis})).Spec.Template.Spec
		require.True(t, *spec.SecurityContext.RunAsNonRoot)
		require.Equal(t, spec.SecurityContext.RunAsUser == nil, spec.SecurityContext.FSGroup == nil)
		return spec.SecurityContext.RunAsUser != nil
	}
	const openshift = "security.openshift.io/v1"
	require.True(t, hasIDs(""))
	require.False(t, hasIDs("", openshift))
	require.True(t, hasIDs("openshift: {adaptSecurityContext: disabled}", openshift))
	require.False(t, hasIDs("openshift: {adaptSecurityContext: force}"))
	require.False(t, hasIDs("global: {compatibility: {openshift: {adaptSecurityContext: force}}}"))
	require.True(t, hasIDs("global: {compatibility: {openshift: {adaptSecurityContext: ''}}}"))
}

func TestProbesAskThreeQuestions(t *testing.T) {
	for scheme, values := range map[corev1.URIScheme]string{"HTTP": "", "HTTPS": "tls: {secretName: cert}"} {
		c := serverContainer(t, renderWith(t, values))
		for path, probe := range map[string]*corev1.Probe{
			"/v1/health/startup": c.StartupProbe, "/v1/health/ready": c.ReadinessProbe, "/v1/health/live": c.LivenessProbe,
		} {
			require.Equal(t, path, probe.HTTPGet.Path)
			require.Equal(t, "http-api", probe.HTTPGet.Port.StrVal)
			require.Equal(t, scheme, probe.HTTPGet.Scheme)
		}
		require.GreaterOrEqual(t, c.StartupProbe.PeriodSeconds*c.StartupProbe.FailureThreshold, int32(900))
	}
}

func TestSpreading(t *testing.T) {
	spec := func(values string) corev1.PodSpec { return statefulSet(t, renderWith(t, values)).Spec.Template.Spec }
	soft := spec("").Affinity.PodAntiAffinity
	require.Empty(t, soft.RequiredDuringSchedulingIgnoredDuringExecution)
	require.Equal(t, selector, soft.PreferredDuringSchedulingIgnoredDuringExecution[0].PodAffinityTerm.LabelSelector.MatchLabels)
	hard := spec("podAntiAffinity: hard").Affinity.PodAntiAffinity
	require.Equal(t, "kubernetes.io/hostname", hard.RequiredDuringSchedulingIgnoredDuringExecution[0].TopologyKey)
	require.Nil(t, spec("podAntiAffinity: none").Affinity)
	both := spec("affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: a, operator: Exists}]}]}}}").Affinity
	require.NotNil(t, both.NodeAffinity)
	require.NotNil(t, both.PodAntiAffinity, "the preset stays")
	own := spec("affinity: {podAntiAffinity: {}}").Affinity.PodAntiAffinity
	require.Empty(t, own.PreferredDuringSchedulingIgnoredDuringExecution, "the user's wins")

	spread := spec("topologySpread: {topology.kubernetes.io/zone: {maxSkew: 1, whenUnsatisfiable: DoNotSchedule}, x: null}").TopologySpreadConstraints
	require.Len(t, spread, 1)
	require.Equal(t, "topology.kubernetes.io/zone", spread[0].TopologyKey)
	require.Equal(t, selector, spread[0].LabelSelector.MatchLabels)
}

func TestMapsBecomeLists(t *testing.T) {
	spec := statefulSet(t, renderWith(t,
		"extraVolumes: {cache: {mountPath: /cache, source: {emptyDir: {}}}, gone: {mountPath: /x, source: {emptyDir: {}}}}\n"+
			"extraContainers: {side: {image: a}}\ninitContainers: {first: {image: b}}",
		"extraVolumes: {gone: null}")).Spec.Template.Spec
	require.Equal(t, "side", spec.Containers[1].Name)
	require.Equal(t, "first", spec.InitContainers[0].Name)
	names := map[string]bool{}
	for _, v := range spec.Volumes {
		names[v.Name] = true
	}
	require.Equal(t, []string{"cache", "members", "secrets"}, slices.Sorted(maps.Keys(names)))
	mounts := spec.Containers[0].VolumeMounts
	require.Equal(t, "/cache", mounts[len(mounts)-1].MountPath)
}

func TestImage(t *testing.T) {
	digest := "sha256:" + fmt.Sprintf("%064d", 7)
	for values, want := range map[string]string{
		"": "docker.io/stemedb/stemedb:0.1.0",
		"image: {registry: '', repository: a/b, tag: '1'}":                     "a/b:1",
		"image: {digest: '" + digest + "'}":                                    "docker.io/stemedb/stemedb@" + digest,
		"image: {tag: '1', digest: '" + digest + "'}":                          "docker.io/stemedb/stemedb:1@" + digest,
		"global: {image: {registry: mirror}}":                                  "mirror/stemedb/stemedb:0.1.0",
		"global: {imageRegistry: 'mirror:5000/x'}\nimage: {registry: ignored}": "mirror:5000/x/stemedb/stemedb:0.1.0",
	} {
		got := renderWith(t, values)
		for _, template := range podTemplates(got) {
			require.Equal(t, want, template.Spec.Containers[0].Image, "all pods use one image")
		}
	}
	secrets := statefulSet(t, renderWith(t, "global: {imagePullSecrets: [a, {name: b}], image: {pullSecrets: [d]}}\nimage: {pullSecrets: [b, {name: c}]}")).Spec.Template.Spec.ImagePullSecrets
	require.Equal(t, []corev1.LocalObjectReference{{Name: "a"}, {Name: "b"}, {Name: "d"}, {Name: "c"}}, secrets)
}

func TestRollout(t *testing.T) {
	spec := statefulSet(t, renderWith(t, "updateStrategy: {partition: 2}\npriorityClassName: high\nnodeSelector: {disk: ssd}\ntolerations: [{operator: Exists}]")).Spec
	require.EqualValues(t, 2, *spec.UpdateStrategy.RollingUpdate.Partition)
	require.EqualValues(t, 5, spec.MinReadySeconds)
	require.EqualValues(t, 10, *spec.RevisionHistoryLimit)
	require.EqualValues(t, 60, *spec.Template.Spec.TerminationGracePeriodSeconds)
	require.Equal(t, "high", spec.Template.Spec.PriorityClassName)
	require.Equal(t, map[string]string{"disk": "ssd"}, spec.Template.Spec.NodeSelector)
	require.Len(t, spec.Template.Spec.Tolerations, 1)
	require.Equal(t, appsv1.RetainPersistentVolumeClaimRetentionPolicyType, spec.PersistentVolumeClaimRetentionPolicy.WhenDeleted)
	require.Equal(t, appsv1.RetainPersistentVolumeClaimRetentionPolicyType, spec.PersistentVolumeClaimRetentionPolicy.WhenScaled)
	onDelete := statefulSet(t, renderWith(t, "updateStrategy: {type: OnDelete}")).Spec.UpdateStrategy
	require.Nil(t, onDelete.RollingUpdate)
}
