package chart

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

// Values that the schema must reject, and the words that show the user the
// place and the reason.
var badValues = []struct{ values, says string }{
	{"replcas: 3", "additional properties 'replcas' not allowed"},
	{"replicas: 0", "'/replicas': minimum: got 0, want 1"},
	{"replicas: 100", "'/replicas': maximum: got 100, want 99"},
	{"replicas: 2.5", "'/replicas': got number, want integer"},
	{"replicas: three", "'/replicas': got string, want integer"},
	{"nameOverride: Stem", "'/nameOverride': 'Stem' does not match pattern"},
	{"fullnameOverride: a_b", "'/fullnameOverride': 'a_b' does not match pattern"},
	{"clusterDomain: ''", "'/clusterDomain': '' does not match pattern"},
	{"clusterDomain: .local", "'/clusterDomain': '.local' does not match pattern"},
	{"commonLabels: {a b: c}", "'/commonLabels': additional properties 'a b' not allowed"},
	{"commonLabels: {a: 'b c'}", "'b c' does not match pattern"},
	{"commonAnnotations: {a: 1}", "'/commonAnnotations/a': got number, want null or string"},
	{"image: {tag: 'a b'}", "'/image/tag': 'a b' does not match pattern"},
	{"image: {tag: 1.2}", "'/image/tag': got number, want string"},
	{"image: {registry: 'https://x'}", "'/image/registry': 'https://x' does not match pattern"},
	{"image: {repository: Stem}", "'/image/repository': 'Stem' does not match pattern"},
	{"image: {digest: 'md5:0'}", "'/image/digest': 'md5:0' does not match pattern"},
	{"image: {pullPolicy: Sometimes}", "'/image/pullPolicy': value must be one of 'Always', 'IfNotPresent', 'Never'"},
	{"image: {pullSecrets: [a, a]}", "'/image/pullSecrets': items at 0 and 1 are equal"},
	{"server: {authEnabled: 'yes'}", "'/server/authEnabled': got string, want boolean"},
	{"server: {logLevel: verbose}", "'/server/logLevel': value must be one of"},
	{"server: {shutdownGrace: 15}", "'/server/shutdownGrace': got number, want string"},
	{"server: {shutdownGrace: 15 seconds}", "'/server/shutdownGrace': '15 seconds' does not match pattern"},
	{"server: {allowedOrigins: ['https://a/b']}", "'/server/allowedOrigins/0': 'https://a/b' does not match pattern"},
	{"server: {loglevel: info}", "'/server': additional properties 'loglevel' not allowed"},
	{"terminationGracePeriodSeconds: 40", "'/terminationGracePeriodSeconds': minimum: got 40, want 41"},
	{"extraEnv: {'A-B': x}", "'/extraEnv': additional properties 'A-B' not allowed"},
	{"extraEnv: [{name: A, value: x}]", "'/extraEnv': got array, want object"},
	{"extraEnv: {A: {valueFrom: {secret: x}}}", "additional properties 'secret' not allowed"},
	{"resources: {limits: {memory: 1 GB}}", "'/resources/limits/memory': '1 GB' does not match pattern"},
	{"resources: {limits: {memory: 500m}}", "'/resources/limits/memory': '500m' does not match pattern"},
	{"resources: {limits: {cpus: 1}}", "'/resources/limits': additional properties 'cpus' not allowed"},
	{"resources: {requests: {cpu: fast}}", "'/resources/requests/cpu': 'fast' does not match pattern"},
	{"persistence: {wal: {size: 10}}", "'/persistence/wal/size': minimum"},
	{"persistence: {db: {size: 0Gi}}", "'/persistence/db/size': '0Gi' does not match pattern"},
	{"persistence: {db: {accessModes: [ReadWriteMany]}}", "'/persistence/db/accessModes/0': value must be one of"},
	{"persistence: {db: {accessModes: []}}", "'/persistence/db/accessModes': minItems: got 0, want 1"},
	{"persistence: {retention: {whenDeleted: Keep}}", "'/persistence/retention/whenDeleted': value must be one of 'Retain', 'Delete'"},
	{"secrets: {source: vault}", "'/secrets/source': value must be one of 'generated', 'existing', 'externalSecret'"},
	{"secrets: {source: existing}", "'/secrets/existing/name': minLength: got 0, want 1"},
	{"secrets: {source: externalSecret}", "'/secrets/externalSecret/secretStoreRef/name': minLength: got 0, want 1"},
	{"secrets: {source: externalSecret, externalSecret: {secretStoreRef: {name: a}}}", "'/secrets/externalSecret/rootApiKey/key': minLength"},
	{"secrets: {rootApiKey: steme_live_00}", "'/secrets': additional properties 'rootApiKey' not allowed"},
	{"secrets: {keys: {rootApiKey: 'a/b'}}", "'/secrets/keys/rootApiKey': 'a/b' does not match pattern"},
	{"secrets: {externalSecret: {apiVersion: v1}}", "'/secrets/externalSecret/apiVersion': 'v1' does not match pattern"},
	{"secrets: {externalSecret: {refreshInterval: hourly}}", "'/secrets/externalSecret/refreshInterval': 'hourly' does not match pattern"},
	{"tls: {secretName: 'A B'}", "'/tls/secretName': 'A B' does not match pattern"},
	{"service: {gateway: {type: ExternalName}}", "'/service/gateway/type': value must be one of"},
	{"service: {gateway: {port: 70000}}", "'/service/gateway/port': maximum"},
	{"service: {gateway: {loadBalancerSourceRanges: [10.0.0.0]}}", "'/service/gateway/loadBalancerSourceRanges/0': '10.0.0.0' does not match pattern"},
	{"service: {ipFamilies: [IPv5]}", "'/service/ipFamilies/0': value must be one of 'IPv4', 'IPv6'"},
	{"ingress: {enabled: true}", "'/ingress/host': minLength: got 0, want 1"},
	{"ingress: {host: 'https://a.example'}", "'/ingress/host': 'https://a.example' does not match pattern"},
	{"ingress: {traefik: {rateLimit: {average: 0}}}", "'/ingress/traefik/rateLimit/average': minimum: got 0, want 1"},
	{"ingress: {traefik: {rateLimit: {sourceCriterion: {requestHost: true, requestHeaderName: X}}}}", "'/ingress/traefik/rateLimit/sourceCriterion/requestHost': got boolean, want null"},
	{"networkPolicy: {clients: [{podSelector: {}}]}", "'/networkPolicy/clients': got array, want object"},
	{"networkPolicy: {clients: {a: {}}}", "'/networkPolicy/clients/a': minProperties: got 0, want 1"},
	{"networkPolicy: {scrapers: {a: {ipBlock: {cidr: 10.0.0.0/33}}}}", "'10.0.0.0/33' does not match pattern"},
	{"networkPolicy: {scrapers: {a: {enabled: true}}}", "'/networkPolicy/scrapers/a/enabled': value must be false"},
	{"networkPolicy: {scrapers: {a: {enabled: 'no'}}}", "'/networkPolicy/scrapers/a/enabled': got string, want null or boolean"},
	{"networkPolicy: {extraIngress: {a: {from: [], ports: [{port: 1}]}}}", "'/networkPolicy/extraIngress/a/from': minItems: got 0, want 1"},
	{"networkPolicy: {kubeAPI: {ports: []}}", "'/networkPolicy/kubeAPI/ports': minItems"},
	{"monitoring: {serviceMonitor: {interval: 15}}", "'/monitoring/serviceMonitor/interval': got number, want string"},
	{"podDisruptionBudget: {maxUnavailable: 0}", "'/podDisruptionBudget/maxUnavailable': minimum: got 0, want 1"},
	{"podDisruptionBudget: {maxUnavailable: 100%}", "'/podDisruptionBudget/maxUnavailable': '100%' does not match pattern"},
	{"podDisruptionBudget: {minAvailable: 0%}", "'/podDisruptionBudget/minAvailable': '0%' does not match pattern"},
	{"updateStrategy: {type: Recreate}", "'/updateStrategy/type': value must be one of 'RollingUpdate', 'OnDelete'"},
	{"probes: {liveness: {path: /}}", "'/probes/liveness': additional properties 'path' not allowed"},
	{"probes: {startup: {failureThreshold: 0}}", "'/probes/startup/failureThreshold': minimum: got 0, want 1"},
	{"probes: {liveness: {successThreshold: 2}}", "'/probes/liveness': additional properties 'successThreshold' not allowed"},
	{"podAntiAffinity: strict", "'/podAntiAffinity': value must be one of 'soft', 'hard', 'none'"},
	{"affinity: {zone: a}", "'/affinity': additional properties 'zone' not allowed"},
	{"topologySpread: {topology.kubernetes.io/zone: {maxSkew: 1}}", "missing property 'whenUnsatisfiable'"},
	{"tolerations: [{key: a, operator: Is}]", "'/tolerations/0/operator': value must be one of 'Exists', 'Equal'"},
	{"extraVolumes: {a: {readOnly: true, source: {emptyDir: {}}}}", "missing property 'mountPath'"},
	{"secrets: {source: generated, externalSecret: {staged: true}}", "'/secrets/externalSecret/secretStoreRef/name': minLength: got 0, want 1"},
	{"ingress: {tls: {secretNames: {'a b': c}}}", "'/ingress/tls/secretNames': additional properties 'a b' not allowed"},
	{"patch: {statefulSet: [{op: put, path: /a}]}", "'/patch/statefulSet/0/op': value must be one of"},
	{"patch: {statefulSet: [{op: add, path: a, value: 1}]}", "'/patch/statefulSet/0/path': 'a' does not match pattern"},
	{"patch: {statefulSet: [{op: add, path: /a}]}", "missing property 'value'"},
	{"patch: {statefulSet: [{op: move, path: /a}]}", "missing property 'from'"},
	{"patch: {statefulset: []}", "'/patch': additional properties 'statefulset' not allowed"},
	{"global: {storageClass: '-'}", "'/global/storageClass': '-' does not match pattern"},
	{"global: {image: {registry: 'https://x'}}", "'/global/image/registry': 'https://x' does not match pattern"},
	{"extraVolumes: {a: {mountPath: tmp, source: {emptyDir: {}}}}", "'tmp' does not match pattern"},
	{"extraVolumes: {a: {mountPath: /a, source: {}}}", "'/extraVolumes/a/source': minProperties: got 0, want 1"},
	{"extraEnv: {A: {valueFrom: {secretKeyRef: null}}}", "'/extraEnv/A/valueFrom/secretKeyRef': got null, want object"},
	{"networkPolicy: {scrapers: {a: {podSelector: null}}}", "'/networkPolicy/scrapers/a/podSelector': got null, want object"},
	{"networkPolicy: {clients: {'a b': null}}", "'a b' does not match pattern"},
	{"extraContainers: {a: {args: [x]}}", "missing property 'image'"},
	{"podSecurityContext: {runAsUser: 0}", "'/podSecurityContext/runAsUser': minimum: got 0, want 1"},
	{"containerSecurityContext: {readonlyRootFilesystem: true}", "additional properties 'readonlyRootFilesystem' not allowed"},
	{"openshift: {adaptSecurityContext: never}", "'/openshift/adaptSecurityContext': value must be one of 'auto', 'force', 'disabled'"},
	{"merge: {statefulset: {}}", "'/merge': additional properties 'statefulset' not allowed"},
	{"global: {imageRegistry: 'a b'}", "'/global/imageRegistry': 'a b' does not match pattern"},
}

func TestSchemaRefuses(t *testing.T) {
	require.GreaterOrEqual(t, len(badValues), 40)
	for _, bad := range badValues {
		t.Run(bad.values, func(t *testing.T) {
			_, err := tryRender(t, options{values: []string{bad.values}})
			require.ErrorContains(t, err, "don't meet the specifications of the schema")
			require.ErrorContains(t, err, bad.says)
		})
	}
}

// Values at the edge of the allowed range, so that the schema is not merely strict.
func TestSchemaAccepts(t *testing.T) {
	for _, good := range []string{
		"enabled: true",
		"global: {other: {chart: [1]}, imagePullSecrets: [a, {name: b}]}",
		"image: {registry: 'localhost:5000/mirror', tag: v1.2.3-rc.1_x, digest: 'sha256:" + strings.Repeat("0", 64) + "'}",
		"server: {allowedOrigins: ['*', 'http://localhost:3000', 'https://a.example']}",
		"extraEnv: {A: x, B: 1, C: true, D: null, E: {valueFrom: {secretKeyRef: {name: a, key: b}}}}",
		"resources: {requests: {cpu: 0.5, memory: 1e9}, limits: {cpu: 2000m, memory: 4294967296}}",
		"persistence: {wal: {size: 1.5Ti, accessModes: [ReadWriteOncePod]}}",
		"ingress: {enabled: true, host: '*.a.example', extraHosts: [b.example]}",
		"networkPolicy: {enabled: true, clients: {any: {ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}}, six: {ipBlock: {cidr: '2001:db8::/32'}}}}",
		"service: {gateway: {type: LoadBalancer, loadBalancerSourceRanges: [10.0.0.0/8], externalTrafficPolicy: Local}}",
		"tolerations: [{operator: Exists}]",
		"merge: {pod: {spec: {hostUsers: false}}}",
	} {
		t.Run(good, func(t *testing.T) { renderWith(t, good) })
	}
}

// freeMaps are the only objects that accept any key: they are listed here so
// that a new one is a deliberate decision. "*" represents the names of a map.
var freeMaps = []string{
	"/properties/global",
	"/properties/global/properties/compatibility",
	"/properties/global/properties/compatibility/properties/openshift",
	"/properties/global/properties/image",
	"/properties/monitoring/properties/serviceMonitor/properties/tlsConfig",
	"/properties/monitoring/properties/serviceMonitor/properties/relabelings/items",
	"/properties/monitoring/properties/serviceMonitor/properties/metricRelabelings/items",
	"/properties/affinity/properties/nodeAffinity",
	"/properties/affinity/properties/podAffinity",
	"/properties/affinity/properties/podAntiAffinity",
	"/properties/extraVolumes/patternProperties/*/anyOf/1/properties/source/additionalProperties",
	"/properties/extraObjects/patternProperties/*/anyOf/1",
	"/$defs/patch",
	"/$defs/container",
}

func TestSchemaIsClosed(t *testing.T) {
	schema := readSchema(t)
	var open []string
	walkSchema("", schema, func(path string, node map[string]any) {
		if isObject(node) && node["additionalProperties"] == nil {
			open = append(open, path)
		}
	})
	slices.Sort(open)
	want := slices.Sorted(slices.Values(freeMaps))
	require.Equal(t, want, open)
}

// isObject reports whether the schema is that of an object, perhaps or null.
func isObject(node map[string]any) bool {
	types, _ := node["type"].([]any)
	return node["type"] == "object" || slices.Contains(types, any("object"))
}

// resolved follows references, and alternatives to the one that is an object.
func resolved(root, node map[string]any) map[string]any {
	if ref, ok := node["$ref"].(string); ok {
		return resolved(root, asMap(asMap(root["$defs"])[strings.TrimPrefix(ref, "#/$defs/")]))
	}
	branches, _ := node["anyOf"].([]any)
	for _, branch := range branches {
		if found := resolved(root, asMap(branch)); !isObject(node) && isObject(found) {
			return found
		}
	}
	return node
}

// walkSchema visits every schema that describes values; the branches of if,
// oneOf and allOf only narrow a schema that is already closed.
func walkSchema(path string, node map[string]any, visit func(string, map[string]any)) {
	visit(path, node)
	for _, key := range []string{"properties", "patternProperties", "$defs"} {
		for name, child := range asMap(node[key]) {
			if key == "patternProperties" {
				name = "*" // one pattern per map; its text does not identify the place
			}
			walkSchema(path+"/"+key+"/"+name, asMap(child), visit)
		}
	}
	for _, key := range []string{"items", "additionalProperties"} {
		if child, ok := node[key].(map[string]any); ok {
			walkSchema(path+"/"+key, child, visit)
		}
	}
	if branches, ok := node["anyOf"].([]any); ok {
		for i, branch := range branches {
			walkSchema(path+"/anyOf/"+string(rune('0'+i)), asMap(branch), visit)
		}
	}
}

// A value that is not in the schema cannot be set, and a property that is not
// in values.yaml is undocumented.
func TestSchemaAndValuesNameTheSame(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(chartDir, "values.yaml"))
	require.NoError(t, err)
	var vals map[string]any
	require.NoError(t, yaml.Unmarshal(raw, &vals))
	schema := readSchema(t)
	delete(asMap(schema["properties"]), "enabled") // a parent chart's, never ours
	compareNames(t, "", schema, schema, vals)
}

// unlisted are properties that values.yaml leaves out since Kubernetes has them
// too: parts of a resource list, a security context, a selector or a probe.
var unlisted = []string{
	"/resources", "/secrets/generated/resources", "/test/resources", "/podSecurityContext",
	"/containerSecurityContext", "/networkPolicy", "/affinity", "/probes",
	"/ingress/traefik/rateLimit/sourceCriterion", "/global", "/patch",
}

func compareNames(t *testing.T, path string, root, schema, vals map[string]any) {
	t.Helper()
	schema = resolved(root, schema)
	props := asMap(schema["properties"])
	if len(props) == 0 {
		return
	}
	for name, value := range vals {
		require.Contains(t, props, name, "values.yaml has %s/%s", path, name)
		if child, ok := value.(map[string]any); ok {
			compareNames(t, path+"/"+name, root, asMap(props[name]), child)
		}
	}
	if slices.ContainsFunc(unlisted, func(p string) bool { return strings.HasPrefix(path, p) }) {
		return
	}
	for name := range props {
		require.Contains(t, vals, name, "values.schema.json has %s/%s", path, name)
	}
}

func readSchema(t *testing.T) map[string]any {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(chartDir, "values.schema.json"))
	require.NoError(t, err)
	var schema map[string]any
	require.NoError(t, json.Unmarshal(raw, &schema))
	return schema
}

func asMap(v any) map[string]any {
	m, _ := v.(map[string]any)
	return m
}
