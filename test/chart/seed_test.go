package chart

import (
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// The manifests that this chart replaces had errors; each test here names one
// and checks that production is correct. The errors in alerts, backup and
// provisioning are tested next to those features.

func production(t *testing.T, overlays ...string) *release {
	t.Helper()
	return render(t, options{release: "stemedb", namespace: "stemedb", env: "production", values: overlays})
}

// It was `port: "18180"`, which names no port: nothing was ever scraped.
func TestServiceMonitorNamesAPort(t *testing.T) {
	got := production(t)
	monitor := one[*monitoringv1.ServiceMonitor](t, got, "stemedb")
	require.Equal(t, "prometheus", monitor.Labels["release"])
	require.Equal(t, "http-api", monitor.Spec.Endpoints[0].Port)
	require.True(t, hasPort(one[*corev1.Service](t, got, "stemedb-headless"), "http-api"))
}

// It opened 18180 alone: gateway, replication, SWIM and DNS over UDP were cut,
// and 443 to anywhere was open.
func TestNetworkPolicyOpensWhatIsNeeded(t *testing.T) {
	policy := one[*networkingv1.NetworkPolicy](t, production(t), "stemedb").Spec
	in, out := map[string]bool{}, map[string]bool{}
	for _, rule := range policy.Ingress {
		for _, port := range rule.Ports {
			in[string(*port.Protocol)+"/"+port.Port.String()] = true
		}
		for _, peer := range rule.From {
			require.NotNil(t, peer.PodSelector, "a whole namespace may come in")
		}
	}
	for _, rule := range policy.Egress {
		require.NotEmpty(t, rule.To)
		for _, port := range rule.Ports {
			out[string(*port.Protocol)+"/"+port.Port.String()] = true
		}
	}
	require.Equal(t, map[string]bool{"TCP/18180": true, "TCP/18181": true, "TCP/18182": true, "TCP/18183": true, "UDP/18183": true}, in)
	require.Equal(t, map[string]bool{"UDP/53": true, "TCP/53": true, "TCP/18180": true, "TCP/18182": true, "TCP/18183": true, "UDP/18183": true}, out)
}

// It was maxUnavailable 0, which blocks every drain permanently.
func TestBudgetLetsANodeDrain(t *testing.T) {
	require.EqualValues(t, 1, one[*policyv1.PodDisruptionBudget](t, production(t), "stemedb").Spec.MaxUnavailable.IntVal)
}

// traefik.containo.us was removed in Traefik 3, external-secrets.io/v1beta1 is no
// longer served; decoding has checked both against the operators' CRDs.
func TestOperatorsServeTheAPIs(t *testing.T) {
	got := production(t)
	require.Equal(t, "traefik.io/v1alpha1", one[*unstructured.Unstructured](t, got, "stemedb-ratelimit").GetAPIVersion())
	require.Equal(t, "external-secrets.io/v1", one[*unstructured.Unstructured](t, got, "stemedb-secrets").GetAPIVersion())
	_, err := crdVersion("external-secrets.io", "ExternalSecret", "v1beta1")
	require.ErrorContains(t, err, "not served")
}

// The annotation named a Middleware of another namespace form than Traefik's
// NAMESPACE-NAME@kubernetescrd with the chart's own names.
func TestMiddlewareIsReferenced(t *testing.T) {
	ingress := one[*networkingv1.Ingress](t, production(t), "stemedb")
	require.Equal(t, "stemedb-stemedb-ratelimit@kubernetescrd", ingress.Annotations[middlewares])
	require.Equal(t, "websecure", ingress.Annotations["traefik.ingress.kubernetes.io/router.entrypoints"])
	require.Equal(t, "letsencrypt-prod", ingress.Annotations["cert-manager.io/cluster-issuer"])
	require.Equal(t, "traefik", *ingress.Spec.IngressClassName)
}

// It published "/", and with it the metrics.
func TestIngressHidesMetrics(t *testing.T) {
	for _, rule := range one[*networkingv1.Ingress](t, production(t), "stemedb").Spec.Rules {
		for _, path := range rule.HTTP.Paths {
			require.NotEqual(t, "/", path.Path)
			require.False(t, strings.HasPrefix("/metrics", path.Path), path.Path)
		}
	}
}

// The start window was the replay time itself, and one path answered all three
// probes, so that a peer's absence could kill a healthy process.
func TestProbesHaveSlackAndPathsOfTheirOwn(t *testing.T) {
	c := serverContainer(t, production(t))
	require.GreaterOrEqual(t, c.StartupProbe.PeriodSeconds*c.StartupProbe.FailureThreshold, int32(10*60))
	paths := map[string]bool{c.StartupProbe.HTTPGet.Path: true, c.ReadinessProbe.HTTPGet.Path: true, c.LivenessProbe.HTTPGet.Path: true}
	require.Len(t, paths, 3)
}

// The root was writable, no capability was dropped, seccomp was off, and
// readOnlyRootFilesystem was in a place where Kubernetes ignores it.
func TestProductionIsHardened(t *testing.T) {
	for _, template := range podTemplates(production(t)) {
		security := template.Spec.Containers[0].SecurityContext
		require.True(t, *security.ReadOnlyRootFilesystem)
		require.Equal(t, []corev1.Capability{"ALL"}, security.Capabilities.Drop)
		require.Equal(t, corev1.SeccompProfileTypeRuntimeDefault, template.Spec.SecurityContext.SeccompProfile.Type)
	}
}

// prometheus.io annotations in addition to a ServiceMonitor cause a second scrape.
func TestNoScrapeAnnotations(t *testing.T) {
	for _, o := range production(t).objects {
		require.NotContains(t, o.text, "prometheus.io/")
	}
}

// :latest and `kubectl set image` drift from the chart.
func TestImageIsAVersion(t *testing.T) {
	for _, env := range environments(t) {
		for _, template := range podTemplates(render(t, options{env: env})) {
			require.NotContains(t, template.Spec.Containers[0].Image, "latest")
		}
	}
	require.Equal(t, "registry.threesix.ai/stemedb:0.1.0", serverContainer(t, production(t)).Image)
	_, err := tryRender(t, options{env: "production", values: []string{"image: {tag: latest}"}})
	require.ErrorContains(t, err, "image.tag")
}

// fsGroup without a change policy walks the whole volume at each start.
func TestVolumesMountFast(t *testing.T) {
	require.Equal(t, corev1.FSGroupChangeOnRootMismatch, *statefulSet(t, production(t)).Spec.Template.Spec.SecurityContext.FSGroupChangePolicy)
}

// It had claims with fixed names and a second pod on a ReadWriteOnce volume:
// only the server's own pods may mount its claims.
func TestNobodyElseMountsTheClaims(t *testing.T) {
	got := production(t)
	for _, template := range podTemplates(got) {
		for _, volume := range template.Spec.Volumes {
			require.Nil(t, volume.PersistentVolumeClaim)
		}
	}
	require.False(t, got.has("PersistentVolumeClaim", "stemedb-wal"))
}

func TestProductionIsTheSeedsEnvironment(t *testing.T) {
	set := statefulSet(t, production(t))
	c := set.Spec.Template.Spec.Containers[0]
	require.Equal(t, "500m", c.Resources.Requests.Cpu().String())
	require.Equal(t, "2", c.Resources.Limits.Cpu().String())
	require.Equal(t, "1Gi", c.Resources.Requests.Memory().String())
	require.Equal(t, "4Gi", c.Resources.Limits.Memory().String())
	for i, size := range []string{"20Gi", "50Gi"} {
		claim := set.Spec.VolumeClaimTemplates[i].Spec
		require.Equal(t, size, claim.Resources.Requests.Storage().String())
		require.Equal(t, "longhorn", *claim.StorageClassName)
	}
	require.EqualValues(t, 3, *set.Spec.Replicas)
	host := one[*networkingv1.Ingress](t, production(t, "ingress: {host: facts.example}"), "stemedb").Spec.Rules[0].Host
	require.Equal(t, "facts.example", host)
	require.Equal(t, "r.example/x:0.1.0", serverContainer(t, production(t, "image: {registry: r.example, repository: x}")).Image)
}
