package chart

import (
	"os/exec"
	"regexp"
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
)

// Helm 3 merges a Service's ports by their number alone: two of a member's ports
// share 18183, and renaming one of them would lose the other on upgrade.
func TestPortsAreFrozen(t *testing.T) {
	type port struct {
		name     string
		number   int32
		protocol corev1.Protocol
	}
	want := []port{{"gateway", 18181, "TCP"}, {"http-api", 18180, "TCP"}, {"replication", 18182, "TCP"}, {"swim-tcp", 18183, "TCP"}, {"swim-udp", 18183, "UDP"}}
	got := renderWith(t)
	var service, container []port
	for _, p := range one[*corev1.Service](t, got, "r-stemedb-headless").Spec.Ports {
		service = append(service, port{p.Name, p.Port, p.Protocol})
	}
	for _, p := range serverContainer(t, got).Ports {
		container = append(container, port{p.Name, p.ContainerPort, p.Protocol})
	}
	require.Equal(t, want, service)
	require.Equal(t, want, container)
}

func TestBudgetsTakePercentagesAndMinimums(t *testing.T) {
	budget := func(values string) policyv1.PodDisruptionBudgetSpec {
		return one[*policyv1.PodDisruptionBudget](t, renderWith(t, values), "r-stemedb").Spec
	}
	require.Equal(t, "33%", budget("podDisruptionBudget: {maxUnavailable: 33%}").MaxUnavailable.StrVal)
	least := budget("podDisruptionBudget: {minAvailable: 2}")
	require.EqualValues(t, 2, least.MinAvailable.IntVal)
	require.Nil(t, least.MaxUnavailable)
	require.Equal(t, "51%", budget("podDisruptionBudget: {minAvailable: 51%}").MinAvailable.StrVal)
}

// The chart honours the values that users set globally for several charts.
func TestGlobalStorageClassIsHonoured(t *testing.T) {
	classes := func(values string) []string {
		var found []string
		for _, claim := range statefulSet(t, renderWith(t, values)).Spec.VolumeClaimTemplates {
			found = append(found, *claim.Spec.StorageClassName)
		}
		return found
	}
	own := "\npersistence: {wal: {storageClassName: own}}"
	require.Equal(t, []string{"all", "all"}, classes("global: {storageClass: all, defaultStorageClass: x}"+own))
	require.Equal(t, []string{"own", "all"}, classes("global: {defaultStorageClass: all}"+own))
}

func TestHostsMayHaveCertificatesOfTheirOwn(t *testing.T) {
	tls := one[*networkingv1.Ingress](t, renderWith(t, published+"ingress: {extraHosts: [b.example, c.example], tls: {secretNames: {b.example: b-tls, c.example: null}}}"), "r-stemedb").Spec.TLS
	require.Equal(t, []networkingv1.IngressTLS{
		{Hosts: []string{"b.example"}, SecretName: "b-tls"},
		{Hosts: []string{"a.example", "c.example"}, SecretName: "r-stemedb-tls"},
	}, tls)
}

func TestSmallOffers(t *testing.T) {
	got := renderWith(t, `
topologySpread: {zone: {maxSkew: 1, whenUnsatisfiable: ScheduleAnyway, matchLabelKeys: [controller-revision-hash]}}
extraVolumes: {side: {source: {emptyDir: {}}}}
extraContainers: {side: {image: a, volumeMounts: [{name: side, mountPath: /side}]}}
monitoring: {serviceMonitor: {enabled: true, honorLabels: true}}
`)
	spec := statefulSet(t, got).Spec.Template.Spec
	require.Equal(t, []string{"controller-revision-hash"}, spec.TopologySpreadConstraints[0].MatchLabelKeys)
	require.Equal(t, "side", spec.Volumes[len(spec.Volumes)-1].Name)
	for _, mount := range spec.Containers[0].VolumeMounts {
		require.NotEqual(t, "side", mount.Name, "a volume without mountPath is not the server's")
	}
	require.True(t, one[*monitoringv1.ServiceMonitor](t, got, "r-stemedb").Spec.Endpoints[0].HonorLabels)
}

// The notes contain the address that follows from the values, in valid shell commands.
func TestNotesTellTheWay(t *testing.T) {
	digest := "sha256:" + strings.Repeat("0", 64)
	for values, want := range map[string][]string{
		"tls: {secretName: cert}": {
			"URL=https://r-stemedb.ns.svc.cluster.local:18181", `get secret cert -o jsonpath='{.data.ca\.crt}' | base64 -d > stemedb-ca.crt`,
			`curl --connect-to "::$ADDRESS:$PORT" --cacert stemedb-ca.crt "$URL/v1/health"`,
		},
		"tls: {secretName: cert, caKey: ''}":                         {`curl --connect-to "::$ADDRESS:$PORT" "$URL/v1/health"`},
		"service: {gateway: {type: LoadBalancer, port: 80}}":         {"status.loadBalancer.ingress[0].ip", "PORT=80", "WARNING: the Service of type LoadBalancer speaks plain HTTP"},
		"service: {gateway: {type: NodePort}}\ntls: {secretName: c}": {"nodePort}'", "InternalIP", "https, port $PORT (below) of every node"},
		"image: {digest: '" + digest + "'}":                          {"StemeDB " + digest + " is installed", "stemedb/stemedb@" + digest},
		"replicas: 1":                                                {"members        1; the failure of any member is an outage", "Wait until the member is ready"},
		published:                                                    {"URL=https://a.example"},
	} {
		notes := renderWith(t, values).notes
		for _, words := range want {
			require.Contains(t, notes, words, values)
		}
		require.NotContains(t, notes, "127.0.0.1:18181\n", values)
		for _, line := range regexp.MustCompile(`(?m)^     (.+)$`).FindAllStringSubmatch(notes, -1) {
			out, err := exec.CommandContext(t.Context(), "sh", "-n", "-c", line[1]).CombinedOutput()
			require.NoError(t, err, "%s\n%s", line[1], out)
		}
	}
	require.NotContains(t, renderWith(t, "service: {gateway: {type: LoadBalancer}}").notes, "port-forward")
}
