package chart

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// published is a separate overlay in front of the following one.
const published = "ingress: {enabled: true, host: a.example}\n---\n"

// Errors that the schema cannot detect are reported by a sentence that names
// the value and the remedy.
var impossible = []struct{ name, values, says string }{
	{"existing is not chosen", "secrets: {existing: {name: a}}", `secrets.existing.name is set but secrets.source is "generated"`},
	{"store is not chosen", "secrets: {externalSecret: {secretStoreRef: {name: a}}}", `secrets.externalSecret.secretStoreRef.name is set but secrets.source is "generated"`},
	{"one key for two secrets", "secrets: {keys: {rootApiKey: a, clusterSecret: a}}", `secrets.keys.rootApiKey and secrets.keys.clusterSecret are both "a"`},
	{"latest", "image: {tag: latest}", `image.tag is "latest": each restart could run a different server version`},
	{"no DNS", "networkPolicy: {enabled: true, dns: {peers: {kubeDNS: {enabled: false}}}}", "networkPolicy.dns.peers lists no peer"},
	{"no DNS by null", "networkPolicy: {enabled: true, dns: {peers: {kubeDNS: null}}}", "networkPolicy.dns.peers lists no peer"},
	{"scraped and closed", "networkPolicy: {enabled: true}\nmonitoring: {serviceMonitor: {enabled: true}}", "networkPolicy.scrapers lists no peer, so every target would be down permanently. Add Prometheus, for example networkPolicy.scrapers.prometheus"},
	{"scrapers off", closed + "\n---\nnetworkPolicy: {scrapers: {prometheus: {enabled: false}}}\nmonitoring: {serviceMonitor: {enabled: true}}", "networkPolicy.scrapers lists no peer"},
	{"published and closed", published + "networkPolicy: {enabled: true}", "networkPolicy.clients does not list the Ingress controller, so no request would get through"},
	{"balanced and closed", "networkPolicy: {enabled: true}\nservice: {gateway: {type: LoadBalancer}}", "service.gateway.type is LoadBalancer, but networkPolicy.clients lists no address outside the cluster"},
	{"node port and closed", "networkPolicy: {enabled: true}\nservice: {gateway: {type: NodePort}}", "service.gateway.type is NodePort, but"},
	{"certificate of no host", published + "ingress: {tls: {secretNames: {b.example: b}}}", "ingress.tls.secretNames has b.example, which is neither ingress.host nor in ingress.extraHosts"},
	{"nobody makes the Secret", "secrets: {job: {enabled: false}}", "secrets.job.enabled is false, so nothing creates the Secret"},
	{"two budgets", "podDisruptionBudget: {maxUnavailable: 2, minAvailable: 2}", "are both set, and Kubernetes takes one"},
	{"budget of nobody", "podDisruptionBudget: {minAvailable: 3}", "none of the 3 pods may be evicted, so every drain of a node would be blocked"},
	{"budget that stays by percent", "podDisruptionBudget: {minAvailable: 70%}", "none of the 3 pods may be evicted"},
	{"budget below the majority", "replicas: 5\npodDisruptionBudget: {minAvailable: 2}", "Set it to 3 or more or raise replicas to 7."},
	{"budget by percent", "podDisruptionBudget: {maxUnavailable: 34%}", "podDisruptionBudget.maxUnavailable is 34%, but 3 replicas keep their majority only while at most 1 are unavailable"},
	{"budget", "podDisruptionBudget: {maxUnavailable: 2}", "3 replicas keep their majority only while at most 1 are unavailable. Set it to 1 or raise replicas to 5."},
	{"partition", "updateStrategy: {partition: 4}", "updateStrategy.partition is 4, beyond the 3 replicas"},
	{"kill before goodbye", "terminationGracePeriodSeconds: 54", "Set it to 55 or more, or lower server.shutdownGrace."},
	{"grace in minutes", "server: {shutdownGrace: 2m}", "continues to serve for 120 s"},
	{"scrape", "monitoring: {serviceMonitor: {interval: 5s}}", "scrapeTimeout is 10s, longer than the interval of 5s"},
	{"memory", "resources: {requests: {memory: 2Gi}, limits: {memory: 2G}}", "resources.requests.memory (2Gi) is more than resources.limits.memory (2G)"},
	{"port", "extraEnv: {STEMEDB_BIND_ADDR: ':1'}", "extraEnv.STEMEDB_BIND_ADDR is set by the chart. Change nothing (the port is fixed) instead."},
	{"secret in values", "extraEnv: {STEMEDB_ROOT_API_KEY: steme_live_1}", "extraEnv.STEMEDB_ROOT_API_KEY is set by the chart. Change secrets instead."},
	{"signatures", "extraEnv: {STEMEDB_UNSAFE_SKIP_SIGNATURES: true}", "the server refuses to start with both"},
	{"selector label", "podLabels: {app.kubernetes.io/name: x}", "podLabels holds app.kubernetes.io/name"},
	{"chart label", "commonLabels: {helm.sh/chart: x}", "commonLabels holds helm.sh/chart"},
	{"TLS twice", published + "tls: {secretName: a}", "set tls.behindIngress to true if both are intended"},
	{"open to the world", published + "server: {authEnabled: false}", "published by an Ingress: anyone could write"},
	{"open by load balancer", "service: {gateway: {type: LoadBalancer}}\nserver: {authEnabled: false}", "published by a Service of type LoadBalancer"},
	{"node port", "service: {gateway: {nodePort: 30000}}", "have no effect on a Service of type ClusterIP"},
	{"class", "service: {gateway: {type: NodePort, loadBalancerClass: a}}", "need service.gateway.type LoadBalancer, not NodePort"},
	{"volume name", "extraVolumes: {wal: {mountPath: /x, source: {emptyDir: {}}}}", "extraVolumes.wal has the name of one of the chart's own volumes"},
	{"volume place", "extraVolumes: {x: {mountPath: /data/wal/x, source: {emptyDir: {}}}}", "mounted at /data/wal/x, inside the server's own directories"},
	{"no volume source", "extraVolumes: {x: {source: {emptyDir: null}}}", "extraVolumes.x.source has 0 volume sources (none)"},
	{"two volume sources", "extraVolumes: {x: {source: {emptyDir: {}, configMap: {name: a}}}}", "extraVolumes.x.source has 2 volume sources (configMap, emptyDir). Leave one and set the others to null."},
	{"container name", "extraContainers: {stemedb: {image: a}}", "must not contain a container named stemedb"},
	{"name", "fullnameOverride: 1a", `The base name "1a" is not a valid Service name`},
}

func TestImpossibleValuesAreExplained(t *testing.T) {
	for _, c := range impossible {
		t.Run(c.name, func(t *testing.T) {
			_, err := tryRender(t, options{values: []string{c.values}})
			require.ErrorContains(t, err, "These values cannot work:")
			require.ErrorContains(t, err, c.says)
		})
	}
}

func TestEverythingWrongIsSaidAtOnce(t *testing.T) {
	_, err := tryRender(t, options{values: []string{"image: {tag: latest}\nsecrets: {existing: {name: a}}"}})
	require.ErrorContains(t, err, "image.tag")
	require.ErrorContains(t, err, "secrets.existing.name")
}

func TestWhatIsPossibleIsNotRefused(t *testing.T) {
	for _, ok := range []string{
		"replicas: 5\npodDisruptionBudget: {maxUnavailable: 2}",
		"replicas: 2",
		"podDisruptionBudget: {maxUnavailable: 33%}",
		"podDisruptionBudget: {minAvailable: 51%}",
		"replicas: 5\npodDisruptionBudget: {minAvailable: 3}",
		"networkPolicy: {enabled: true, extraIngress: {scrape: {from: [{podSelector: {}}], ports: [{port: http-api}]}}}\nmonitoring: {serviceMonitor: {enabled: true}}",
		published + "networkPolicy: {enabled: true, extraIngress: {lan: {from: [{podSelector: {}}], ports: [{port: 18000, endPort: 19000}]}}}",
		published + "networkPolicy: {enabled: true, clients: {ingress: {podSelector: {}}}}",
		"networkPolicy: {dns: {peers: {kubeDNS: {enabled: false}}}}",
		"terminationGracePeriodSeconds: 55",
		"terminationGracePeriodSeconds: 41\nserver: {shutdownGrace: 1s}",
		"image: {tag: latest, digest: 'sha256:" + strings.Repeat("a", 64) + "'}",
		published + "tls: {secretName: a, behindIngress: true}",
		published + "tls: {secretName: a}\n" + "server: {logLevel: debug}\n" + "merge: {}\n" + "minReadySeconds: 1\n" + "revisionHistoryLimit: 1\n",
		"server: {authEnabled: false}\nextraEnv: {STEMEDB_UNSAFE_SKIP_SIGNATURES: true}",
		"updateStrategy: {partition: 3}",
	} {
		_, err := tryRender(t, options{values: []string{ok}})
		if strings.Contains(ok, "secretName: a}\n") {
			require.Error(t, err, "TLS twice must not pass only because other values are set")
			continue
		}
		require.NoError(t, err, ok)
	}
}
