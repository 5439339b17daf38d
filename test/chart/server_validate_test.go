package chart

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"helm.sh/helm/v3/pkg/chart"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"
)

// kubeconfigEnv names the cluster to validate against. Nothing else is ever
// used, neither KUBECONFIG nor the user's current context. The cluster keeps
// the CRDs that the tests install; the tests remove their namespaces.
const kubeconfigEnv = "STEMEDB_KUBECONFIG"

// server is a real apiserver with the warnings that it returned.
type server struct {
	config  *rest.Config
	typed   kubernetes.Interface
	dynamic dynamic.Interface
	mapper  *restmapper.DeferredDiscoveryRESTMapper

	mu       sync.Mutex
	warnings []string
}

// HandleWarningHeader collects; the tests fail on any.
func (s *server) HandleWarningHeader(_ int, _, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.warnings = append(s.warnings, text)
}

func (s *server) takeWarnings() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := s.warnings
	s.warnings = nil
	return taken
}

// connectServer returns the server that STEMEDB_KUBECONFIG names, with the CRDs
// of test/crds installed, or skips the test with a visible message.
func connectServer(t *testing.T) *server {
	t.Helper()
	file := os.Getenv(kubeconfigEnv)
	if file == "" {
		message := t.Name() + " did not run: it needs a real apiserver; set " + kubeconfigEnv + " to its kubeconfig"
		fmt.Fprintln(os.Stderr, "SKIPPED: "+message)
		t.Skip(message)
	}
	config, err := clientcmd.BuildConfigFromFlags("", file)
	require.NoError(t, err)
	s := &server{config: config}
	config.WarningHandler = s
	config.QPS, config.Burst = 200, 200
	s.typed, err = kubernetes.NewForConfig(config)
	require.NoError(t, err)
	s.dynamic, err = dynamic.NewForConfig(config)
	require.NoError(t, err)
	s.installCRDs(t)
	s.mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(discovery.NewDiscoveryClient(s.typed.Discovery().RESTClient())))
	return s
}

var crdResource = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

func (s *server) installCRDs(t *testing.T) {
	t.Helper()
	known, err := crds()
	require.NoError(t, err)
	force := true
	for _, crd := range known {
		raw, err := yaml.Marshal(map[string]any{
			"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
			"metadata": map[string]any{"name": crd.Name, "annotations": crd.Annotations}, "spec": crd.Spec,
		})
		require.NoError(t, err)
		_, err = s.dynamic.Resource(crdResource).Patch(t.Context(), crd.Name, types.ApplyPatchType, raw,
			metav1.PatchOptions{FieldManager: "stemedb-chart-test", Force: &force})
		require.NoError(t, err, "install %s", crd.Name)
	}
	for _, crd := range known {
		require.Eventually(t, func() bool {
			found, err := s.dynamic.Resource(crdResource).Get(t.Context(), crd.Name, metav1.GetOptions{})
			if err != nil {
				return false
			}
			conditions, _, _ := unstructured.NestedSlice(found.Object, "status", "conditions")
			return slices.ContainsFunc(conditions, func(c any) bool {
				return asMap(c)["type"] == "Established" && asMap(c)["status"] == "True"
			})
		}, time.Minute, 100*time.Millisecond, "%s is not established", crd.Name)
	}
	s.takeWarnings() // of the operators' CRDs, not ours
}

// restrictedNamespace creates a namespace that enforces and warns "restricted".
func (s *server) restrictedNamespace(t *testing.T) string {
	t.Helper()
	namespace, err := s.typed.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		GenerateName: "stemedb-validate-",
		Labels: map[string]string{
			"pod-security.kubernetes.io/enforce": "restricted",
			"pod-security.kubernetes.io/warn":    "restricted",
		},
	}}, metav1.CreateOptions{})
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		_ = s.typed.CoreV1().Namespaces().Delete(ctx, namespace.Name, metav1.DeleteOptions{})
	})
	return namespace.Name
}

// resource returns the API resource of that kind.
func (s *server) resource(t *testing.T, o *unstructured.Unstructured) dynamic.ResourceInterface {
	t.Helper()
	gvk := o.GroupVersionKind()
	mapping, err := s.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	require.NoError(t, err)
	return s.dynamic.Resource(mapping.Resource).Namespace(o.GetNamespace())
}

// dryRun is `kubectl create --dry-run=server --validate=strict`.
func (s *server) dryRun(t *testing.T, o *unstructured.Unstructured) error {
	t.Helper()
	_, err := s.resource(t, o).Create(t.Context(), o, metav1.CreateOptions{
		DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationStrict, FieldManager: "stemedb-chart-test",
	})
	return err
}

func (s *server) create(t *testing.T, o *unstructured.Unstructured) {
	t.Helper()
	_, err := s.resource(t, o).Create(t.Context(), o, metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict})
	require.NoError(t, err)
}

func custom(o object) *unstructured.Unstructured {
	return (&unstructured.Unstructured{Object: runtime.DeepCopyJSON(jsonNumbers(o.fields).(map[string]any))}).DeepCopy()
}

// jsonNumbers turns integral floats into integers, as decoding JSON into an
// unstructured object does.
func jsonNumbers(v any) any {
	switch v := v.(type) {
	case map[string]any:
		copied := make(map[string]any, len(v))
		for key, value := range v {
			copied[key] = jsonNumbers(value)
		}
		return copied
	case []any:
		copied := make([]any, len(v))
		for i, value := range v {
			copied[i] = jsonNumbers(value)
		}
		return copied
	case float64:
		if v == float64(int64(v)) {
			return int64(v)
		}
	}
	return v
}

// asPod creates a Pod from an object's pod template, since admission checks Pods;
// with its claims as volumes, as the StatefulSet's controller adds them.
func asPod(t *testing.T, o object) *unstructured.Unstructured {
	t.Helper()
	template := podTemplate(o).DeepCopy()
	if set, ok := o.typed.(*appsv1.StatefulSet); ok {
		template.Spec.Hostname, template.Spec.Subdomain = set.Name+"-0", set.Spec.ServiceName
		for _, claim := range set.Spec.VolumeClaimTemplates {
			source := &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim.Name + "-" + set.Name + "-0"}
			template.Spec.Volumes = append(template.Spec.Volumes, corev1.Volume{
				Name: claim.Name, VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: source},
			})
		}
	}
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: o.name + "-0", Namespace: custom(o).GetNamespace(), Labels: template.Labels},
		Spec:       template.Spec,
	})
	require.NoError(t, err)
	delete(fields, "status")
	return &unstructured.Unstructured{Object: fields}
}

// variants are renderings of features that no environment uses.
var variants = map[string]string{
	"defaults":   "",
	"everything": everything,
	"external":   everything + external,
	"existing":   "secrets: {source: existing, existing: {name: mine}}",
	"TLS":        everything + "\n---\ntls: {secretName: cert, behindIngress: true, peer: {secretName: peer}}",
	"balanced":   "service: {gateway: {type: LoadBalancer, loadBalancerSourceRanges: [10.0.0.0/8], externalTrafficPolicy: Local}, ipFamilyPolicy: SingleStack, ipFamilies: [IPv4]}",
	"placed": "podAntiAffinity: hard\ntopologySpread: {topology.kubernetes.io/zone: {maxSkew: 1, whenUnsatisfiable: DoNotSchedule}}\n" +
		"nodeSelector: {disk: ssd}\ntolerations: [{operator: Exists}]\nextraVolumes: {cache: {mountPath: /cache, source: {emptyDir: {}}}}",
	"long names": "fullnameOverride: " + strings.Repeat("a", 63),
}

// Every environment, object by object, on a real apiserver with every CRD: it
// rejects unknown fields, and a warning fails the test too.
func TestServerAcceptsEveryEnvironment(t *testing.T) {
	s := connectServer(t)
	cases := map[string]options{}
	for _, env := range environments(t) {
		cases[env] = options{release: "stemedb", env: env}
	}
	for name, values := range variants {
		cases[name] = options{values: []string{values}}
	}
	for name, o := range cases {
		t.Run(name, func(t *testing.T) {
			o.namespace = s.restrictedNamespace(t)
			got := render(t, o)
			for _, o := range got.objects { // a Pod is rejected before its ServiceAccount exists
				if o.kind == "ServiceAccount" {
					s.create(t, custom(o))
				}
			}
			pods := 0
			for _, rendered := range got.objects {
				if rendered.kind != "ServiceAccount" {
					require.NoError(t, s.dryRun(t, custom(rendered)), "%s:\n%s", rendered, rendered.text)
				}
				if podTemplate(rendered) != nil {
					pods++
					require.NoError(t, s.dryRun(t, asPod(t, rendered)), "the pod of %s", rendered)
				}
				require.Empty(t, s.takeWarnings(), rendered)
			}
			require.GreaterOrEqual(t, pods, 2)
		})
	}
}

// The checks above can fail: the same server rejects pods that are not
// restricted and unknown fields, and warns about a template.
func TestServerRefusesWhatItShould(t *testing.T) {
	s := connectServer(t)
	namespace := s.restrictedNamespace(t)
	got := render(t, options{namespace: namespace})
	for _, o := range got.objects {
		if o.kind == "ServiceAccount" {
			s.create(t, custom(o))
		}
	}
	for _, o := range got.objects {
		if set, ok := o.typed.(*appsv1.StatefulSet); ok {
			set.Spec.Template.Spec.Containers[0].SecurityContext.Capabilities = nil
			require.ErrorContains(t, s.dryRun(t, asPod(t, o)), `violates PodSecurity "restricted:latest"`)
		}
	}

	looseSet := customObject(t, got, "StatefulSet")
	require.NoError(t, unstructured.SetNestedField(looseSet.Object, false, "spec", "template", "spec", "securityContext", "runAsNonRoot"))
	require.NoError(t, s.dryRun(t, looseSet))
	require.Contains(t, strings.Join(s.takeWarnings(), " "), "would violate PodSecurity")

	unknown := customObject(t, got, "StatefulSet")
	require.NoError(t, unstructured.SetNestedField(unknown.Object, "x", "spec", "serviceNam"))
	require.ErrorContains(t, s.dryRun(t, unknown), `unknown field "spec.serviceNam"`)
}

func customObject(t *testing.T, r *release, kind string) *unstructured.Unstructured {
	t.Helper()
	for _, o := range r.objects {
		if o.kind == kind && o.hook() == "" {
			return custom(o)
		}
	}
	require.Failf(t, "no such object", "%s", kind)
	return nil
}

// The server decides which fields are immutable: the next chart version can
// replace the installed one, and the README's statement about a bigger volume
// is true.
func TestServerAcceptsTheNextVersion(t *testing.T) {
	s := connectServer(t)
	for _, env := range environments(t) {
		t.Run(env, func(t *testing.T) {
			o := options{env: env, namespace: s.restrictedNamespace(t)}
			installed := customObject(t, render(t, o), "StatefulSet")
			require.NoError(t, unstructured.SetNestedField(installed.Object, int64(0), "spec", "replicas")) // start no pods
			s.create(t, installed)
			update := func(o options) error {
				next := customObject(t, render(t, o), "StatefulSet")
				current, err := s.resource(t, next).Get(t.Context(), next.GetName(), metav1.GetOptions{})
				require.NoError(t, err)
				next.SetResourceVersion(current.GetResourceVersion())
				_, err = s.resource(t, next).Update(t.Context(), next, metav1.UpdateOptions{DryRun: []string{metav1.DryRunAll}})
				return err
			}
			newer := o
			newer.edit = func(c *chart.Chart) { c.Metadata.Version, c.Metadata.AppVersion = "9.9.9", "9.9.9" }
			newer.values = []string{"replicas: 5\ncommonLabels: {new: label}\nresources: {limits: {memory: 3Gi}}\nserver: {logLevel: debug}"}
			require.NoError(t, update(newer))

			bigger := o
			bigger.values = []string{"persistence: {db: {size: 500Gi}}"}
			require.True(t, apierrors.IsInvalid(update(bigger)), "claims are immutable")
		})
	}
}

// The Job's permissions according to RBAC: its own Secret, and no other.
func TestServerLimitsTheSecretJob(t *testing.T) {
	s := connectServer(t)
	namespace := s.restrictedNamespace(t)
	made := 0
	for _, o := range render(t, options{namespace: namespace}).objects {
		if strings.HasSuffix(o.name, "ensure-secret") && o.kind != "Job" {
			s.create(t, custom(o))
			made++
		}
	}
	require.Equal(t, 3, made, "ServiceAccount, Role and RoleBinding")
	config := rest.CopyConfig(s.config)
	config.Impersonate.UserName = "system:serviceaccount:" + namespace + ":r-stemedb-ensure-secret"
	client, err := kubernetes.NewForConfig(config)
	require.NoError(t, err)
	secrets := client.CoreV1().Secrets(namespace)
	mine := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "r-stemedb-secrets"}}
	require.Eventually(t, func() bool { // the authorizer learns of a new Role a moment later
		mine, err = secrets.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "r-stemedb-secrets"}}, metav1.CreateOptions{})
		return err == nil
	}, 30*time.Second, 100*time.Millisecond)
	_, err = secrets.Get(t.Context(), mine.Name, metav1.GetOptions{})
	require.NoError(t, err)
	_, err = secrets.Update(t.Context(), mine, metav1.UpdateOptions{})
	require.NoError(t, err)

	_, err = s.typed.CoreV1().Secrets(namespace).Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "other"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	_, err = secrets.Get(t.Context(), "other", metav1.GetOptions{})
	require.True(t, apierrors.IsForbidden(err), "%v", err)
	_, err = secrets.List(t.Context(), metav1.ListOptions{})
	require.True(t, apierrors.IsForbidden(err), "%v", err)
	require.True(t, apierrors.IsForbidden(secrets.Delete(t.Context(), mine.Name, metav1.DeleteOptions{})))
	_, err = client.AppsV1().StatefulSets(namespace).Create(t.Context(), &appsv1.StatefulSet{}, metav1.CreateOptions{})
	require.True(t, apierrors.IsForbidden(err), "%v", err)
}
