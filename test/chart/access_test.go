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

func TestServices(t *testing.T) {
	got := renderWith(t)
	headless := one[*corev1.Service](t, got, "r-stemedb-headless")
	require.Equal(t, corev1.ClusterIPNone, headless.Spec.ClusterIP)
	require.True(t, headless.Spec.PublishNotReadyAddresses, "members meet before they are ready")
	require.Equal(t, selector, headless.Spec.Selector)
	ports := map[string]string{}
	for _, p := range headless.Spec.Ports {
		ports[p.Name] = string(p.Protocol) + "/" + p.TargetPort.StrVal
	}
	require.Equal(t, map[string]string{
		"http-api": "TCP/http-api", "gateway": "TCP/gateway", "replication": "TCP/replication",
		"swim-tcp": "TCP/swim-tcp", "swim-udp": "UDP/swim-udp",
	}, ports)

	gateway := one[*corev1.Service](t, got, "r-stemedb")
	require.False(t, gateway.Spec.PublishNotReadyAddresses, "clients reach ready members only")
	require.Equal(t, corev1.ServiceTypeClusterIP, gateway.Spec.Type)
	require.Equal(t, selector, gateway.Spec.Selector)
	require.Len(t, gateway.Spec.Ports, 1)
	require.Equal(t, "gateway", gateway.Spec.Ports[0].Name)
	require.EqualValues(t, 18181, gateway.Spec.Ports[0].Port)

	balanced := one[*corev1.Service](t, renderWith(t, "service: {gateway: {type: LoadBalancer, nodePort: 30001, loadBalancerClass: a/b, loadBalancerSourceRanges: [10.0.0.0/8], externalTrafficPolicy: Local}, ipFamilyPolicy: PreferDualStack, ipFamilies: [IPv6, IPv4]}"), "r-stemedb")
	require.EqualValues(t, 30001, balanced.Spec.Ports[0].NodePort)
	require.Equal(t, "a/b", *balanced.Spec.LoadBalancerClass)
	require.Equal(t, []corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}, balanced.Spec.IPFamilies)
}

// Each name that a Service, monitor, probe or Ingress uses is a port of the container.
func TestPortNamesExist(t *testing.T) {
	for _, name := range environments(t) {
		got := render(t, options{env: name})
		ports := map[string]corev1.ContainerPort{}
		for _, p := range serverContainer(t, got).Ports {
			ports[p.Name] = p
		}
		for _, service := range all[*corev1.Service](got) {
			for _, p := range service.Spec.Ports {
				require.Equal(t, ports[p.TargetPort.StrVal].Protocol, p.Protocol, p.Name)
			}
		}
	}
}

func TestDisruptionBudget(t *testing.T) {
	budget := one[*policyv1.PodDisruptionBudget](t, renderWith(t), "r-stemedb").Spec
	require.EqualValues(t, 1, budget.MaxUnavailable.IntVal)
	require.Nil(t, budget.MinAvailable)
	require.Equal(t, policyv1.AlwaysAllow, *budget.UnhealthyPodEvictionPolicy)
	require.Equal(t, selector, budget.Selector.MatchLabels)
	require.True(t, renderWith(t, "replicas: 2").has("PodDisruptionBudget", "r-stemedb"))
	require.False(t, renderWith(t, "replicas: 1").has("PodDisruptionBudget", "r-stemedb"), "one replica: it would block every drain")
	require.False(t, renderWith(t, "podDisruptionBudget: {enabled: false}").has("PodDisruptionBudget", "r-stemedb"))
}

func TestIngressPublishesTheAPIAlone(t *testing.T) {
	ingress := one[*networkingv1.Ingress](t, renderWith(t, published+"ingress: {className: traefik, extraHosts: [b.example, a.example]}"), "r-stemedb")
	require.Equal(t, "traefik", *ingress.Spec.IngressClassName)
	require.Len(t, ingress.Spec.Rules, 2)
	for _, rule := range ingress.Spec.Rules {
		paths := map[string]networkingv1.PathType{}
		for _, p := range rule.HTTP.Paths {
			paths[p.Path] = *p.PathType
			require.Equal(t, "r-stemedb", p.Backend.Service.Name)
			require.Equal(t, "gateway", p.Backend.Service.Port.Name)
		}
		require.Equal(t, map[string]networkingv1.PathType{"/v1": networkingv1.PathTypePrefix, "/openapi.json": networkingv1.PathTypeExact}, paths)
	}
	require.Equal(t, []networkingv1.IngressTLS{{Hosts: []string{"a.example", "b.example"}, SecretName: "r-stemedb-tls"}}, ingress.Spec.TLS)
	plain := one[*networkingv1.Ingress](t, renderWith(t, published+"ingress: {tls: {enabled: false}}"), "r-stemedb")
	require.Empty(t, plain.Spec.TLS)
	require.Nil(t, plain.Spec.IngressClassName)
}

const middlewares = "traefik.ingress.kubernetes.io/router.middlewares"

func TestRateLimitIsReferencedByItsFullName(t *testing.T) {
	limited := published + "ingress: {traefik: {rateLimit: {enabled: true}}}"
	got := renderWith(t, limited)
	middleware := one[*unstructured.Unstructured](t, got, "r-stemedb-ratelimit")
	require.Equal(t, "traefik.io/v1alpha1", middleware.GetAPIVersion())
	spec, _, err := unstructured.NestedMap(middleware.Object, "spec", "rateLimit")
	require.NoError(t, err)
	require.EqualValues(t, map[string]any{"average": 500.0, "burst": 1000.0, "period": "1s"}, spec)
	require.Equal(t, "ns-r-stemedb-ratelimit@kubernetescrd", one[*networkingv1.Ingress](t, got, "r-stemedb").Annotations[middlewares])

	beside := renderWith(t, limited, "ingress: {annotations: {"+middlewares+": own-one@file}}")
	require.Equal(t, "ns-r-stemedb-ratelimit@kubernetescrd,own-one@file", one[*networkingv1.Ingress](t, beside, "r-stemedb").Annotations[middlewares])
	require.False(t, renderWith(t, "ingress: {traefik: {rateLimit: {enabled: true}}}").has("Middleware", "r-stemedb-ratelimit"), "without an Ingress nothing uses it")
}

func TestTLSInTheServer(t *testing.T) {
	got := renderWith(t, published+"tls: {secretName: cert, behindIngress: true, peer: {secretName: peer-cert}}\nmonitoring: {serviceMonitor: {enabled: true}}")
	c := serverContainer(t, got)
	require.Equal(t, "/etc/stemedb/tls/tls.crt", env(c)["STEMEDB_TLS_CERT_PATH"])
	require.Equal(t, "/etc/stemedb/peer-tls/ca.crt", env(c)["STEMEDB_PEER_TLS_CA_PATH"])
	require.Equal(t, corev1.URISchemeHTTPS, c.ReadinessProbe.HTTPGet.Scheme)

	service := one[*corev1.Service](t, got, "r-stemedb")
	require.Equal(t, "https", *service.Spec.Ports[0].AppProtocol)
	require.Equal(t, "https", service.Annotations["traefik.ingress.kubernetes.io/service.serversscheme"])
	require.Equal(t, "HTTPS", one[*networkingv1.Ingress](t, got, "r-stemedb").Annotations["nginx.ingress.kubernetes.io/backend-protocol"])

	endpoint := one[*monitoringv1.ServiceMonitor](t, got, "r-stemedb").Spec.Endpoints[0]
	require.EqualValues(t, "https", endpoint.Scheme.String())
	require.Equal(t, "r-stemedb.ns.svc.cluster.local", *endpoint.TLSConfig.ServerName)
	require.Equal(t, "cert", endpoint.TLSConfig.CA.Secret.Name)

	test := one[*corev1.Pod](t, got, "r-stemedb-test").Spec
	require.Equal(t, []string{"smoke", "--url=https://r-stemedb.ns.svc.cluster.local:18181", "--members=3", "--ca-file=/etc/stemedb/ca/ca.crt"}, test.Containers[0].Args)
	require.Equal(t, "cert", test.Volumes[0].Secret.SecretName)

	roots := renderWith(t, "tls: {secretName: cert, caKey: ''}\nmonitoring: {serviceMonitor: {enabled: true, tlsConfig: {insecureSkipVerify: true}}}")
	require.Empty(t, one[*corev1.Pod](t, roots, "r-stemedb-test").Spec.Volumes)
	require.True(t, *one[*monitoringv1.ServiceMonitor](t, roots, "r-stemedb").Spec.Endpoints[0].TLSConfig.InsecureSkipVerify)
}

func TestServiceMonitorScrapesEveryMemberOnce(t *testing.T) {
	got := renderWith(t, "monitoring: {serviceMonitor: {enabled: true, labels: {release: prometheus}}}")
	monitor := one[*monitoringv1.ServiceMonitor](t, got, "r-stemedb")
	require.Equal(t, "prometheus", monitor.Labels["release"])
	require.Equal(t, []string{"ns"}, monitor.Spec.NamespaceSelector.MatchNames)
	var selected []string
	for _, service := range all[*corev1.Service](got) {
		if matches(monitor.Spec.Selector.MatchLabels, service.Labels) {
			selected = append(selected, service.Name)
			for _, endpoint := range monitor.Spec.Endpoints {
				require.True(t, hasPort(service, endpoint.Port), "%s names no port of %s", endpoint.Port, service.Name)
			}
		}
	}
	require.Equal(t, []string{"r-stemedb-headless"}, selected, "one Service, or each member would be scraped twice")
}

func hasPort(service *corev1.Service, name string) bool {
	for _, p := range service.Spec.Ports {
		if p.Name == name {
			return true
		}
	}
	return false
}

func matches(want, labels map[string]string) bool {
	for key, value := range want {
		if labels[key] != value {
			return false
		}
	}
	return true
}

const closed = "networkPolicy: {enabled: true, scrapers: {prometheus: {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}}}"

// One rule per port, each with its peers, so that no rule can widen another.
func TestNetworkPolicyHasOneRuleAPort(t *testing.T) {
	policy := one[*networkingv1.NetworkPolicy](t, renderWith(t, closed), "r-stemedb").Spec
	require.Equal(t, selector, policy.PodSelector.MatchLabels)
	require.ElementsMatch(t, []networkingv1.PolicyType{"Ingress", "Egress"}, policy.PolicyTypes)
	seen := map[string][]networkingv1.NetworkPolicyPeer{}
	for _, rule := range policy.Ingress {
		require.NotEmpty(t, rule.From, "an empty from allows all peers")
		require.NotEmpty(t, rule.Ports, "no ports are all ports")
		for _, port := range rule.Ports {
			key := string(*port.Protocol) + "/" + port.Port.String()
			require.NotContains(t, seen, key)
			seen[key] = rule.From
		}
	}
	require.Len(t, seen, 5)
	for _, key := range []string{"TCP/18182", "TCP/18183", "UDP/18183"} {
		require.Len(t, seen[key], 1, key)
		require.Equal(t, selector, seen[key][0].PodSelector.MatchLabels, "members only")
	}
	require.Equal(t, "monitoring", seen["TCP/18180"][1].NamespaceSelector.MatchLabels["kubernetes.io/metadata.name"])
	require.Equal(t, "test", seen["TCP/18181"][0].PodSelector.MatchLabels["app.kubernetes.io/component"])
	require.Empty(t, seen["TCP/18181"][1].PodSelector.MatchLabels, "the namespace, by default")
}

func TestNetworkPolicyNamesWhatGoesOut(t *testing.T) {
	policy := one[*networkingv1.NetworkPolicy](t, renderWith(t, closed), "r-stemedb").Spec
	require.Len(t, policy.Egress, 2)
	var dns []string
	for _, port := range policy.Egress[0].Ports {
		dns = append(dns, string(*port.Protocol)+"/"+port.Port.String())
	}
	require.ElementsMatch(t, []string{"UDP/53", "TCP/53"}, dns)
	require.Equal(t, "kube-dns", policy.Egress[0].To[0].PodSelector.MatchLabels["k8s-app"])
	require.Equal(t, selector, policy.Egress[1].To[0].PodSelector.MatchLabels)
	for _, rule := range policy.Egress {
		require.NotEmpty(t, rule.To, "an empty to is everywhere")
		for _, port := range rule.Ports {
			require.NotEqual(t, "443", port.Port.String(), "the server opens no connections to the outside")
		}
	}
}

func TestNetworkPolicyOverlays(t *testing.T) {
	policy := one[*networkingv1.NetworkPolicy](t, renderWith(t, closed,
		"networkPolicy: {clients: {sameNamespace: null, lan: {ipBlock: {cidr: 10.0.0.0/8}}}, scrapers: {prometheus: null}, dns: {ports: [53, 5353]},"+
			" extraEgress: {a: {to: [{podSelector: {}}], ports: [{port: 9}]}}, extraIngress: {b: {from: [{podSelector: {}}], ports: [{port: 8}]}}}"), "r-stemedb").Spec
	require.Len(t, policy.Ingress[0].From, 1, "the scraper is removed")
	require.Len(t, policy.Ingress[1].From, 2)
	require.Equal(t, "10.0.0.0/8", policy.Ingress[1].From[1].IPBlock.CIDR)
	require.Len(t, policy.Egress[0].Ports, 4)
	require.Len(t, policy.Egress, 3)
	require.Len(t, policy.Ingress, 5)
}

// Exactly one policy selects each pod of a closed release.
func TestEveryPodHasItsPolicy(t *testing.T) {
	got := renderWith(t, closed)
	policies := all[*networkingv1.NetworkPolicy](got)
	for _, template := range podTemplates(got) {
		var by []string
		for _, policy := range policies {
			if matches(policy.Spec.PodSelector.MatchLabels, template.Labels) {
				by = append(by, policy.Name)
			}
		}
		require.Len(t, by, 1, "%v", template.Labels)
	}
	require.Len(t, policies, 3)
	job := one[*networkingv1.NetworkPolicy](t, got, "r-stemedb-ensure-secret").Spec
	require.Empty(t, job.Ingress)
	require.Len(t, job.Egress, 1)
	require.Len(t, job.Egress[0].Ports, 2)
	require.Empty(t, job.Egress[0].To)
	named := one[*networkingv1.NetworkPolicy](t, renderWith(t, closed, "networkPolicy: {kubeAPI: {peers: {api: {ipBlock: {cidr: 10.0.0.1/32}}}}}"), "r-stemedb-ensure-secret").Spec
	require.Equal(t, "10.0.0.1/32", named.Egress[0].To[0].IPBlock.CIDR)
}

// The Services and the budget select the server's pods and nothing else.
func TestSelectorsChooseTheServerAlone(t *testing.T) {
	got := renderWith(t, closed)
	chosen := 0
	for _, template := range podTemplates(got) {
		if matches(selector, template.Labels) {
			chosen++
		}
	}
	require.Equal(t, 1, chosen)
	require.False(t, strings.Contains(strings.Join(serverContainer(t, got).Args, " "), "ensure-secret"))
}
