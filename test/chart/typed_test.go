package chart

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// newTyped returns an empty object of Kubernetes' or an operator's Go type, nil
// when only the operator's CRD is available.
func newTyped(apiVersion, kind string) any {
	switch apiVersion + " " + kind {
	case "apps/v1 StatefulSet":
		return &appsv1.StatefulSet{}
	case "batch/v1 Job":
		return &batchv1.Job{}
	case "v1 ConfigMap":
		return &corev1.ConfigMap{}
	case "v1 Pod":
		return &corev1.Pod{}
	case "v1 Service":
		return &corev1.Service{}
	case "v1 ServiceAccount":
		return &corev1.ServiceAccount{}
	case "networking.k8s.io/v1 Ingress":
		return &networkingv1.Ingress{}
	case "networking.k8s.io/v1 NetworkPolicy":
		return &networkingv1.NetworkPolicy{}
	case "policy/v1 PodDisruptionBudget":
		return &policyv1.PodDisruptionBudget{}
	case "rbac.authorization.k8s.io/v1 Role":
		return &rbacv1.Role{}
	case "rbac.authorization.k8s.io/v1 RoleBinding":
		return &rbacv1.RoleBinding{}
	case "monitoring.coreos.com/v1 PrometheusRule":
		return &monitoringv1.PrometheusRule{}
	case "monitoring.coreos.com/v1 ServiceMonitor":
		return &monitoringv1.ServiceMonitor{}
	}
	return nil
}

// decodeTyped reads an object strictly: fields are matched by case, unknown and
// duplicate ones fail. Objects without a Go type are checked against their CRD.
func decodeTyped(t testing.TB, o object) any {
	t.Helper()
	typed := newTyped(o.apiVersion, o.kind)
	if typed == nil {
		custom := &unstructured.Unstructured{Object: o.fields}
		checkAgainstCRD(t, custom)
		return custom
	}
	raw, err := yaml.YAMLToJSONStrict([]byte(o.text))
	require.NoError(t, err, o.file)
	strict, err := kjson.UnmarshalStrict(raw, typed)
	require.NoError(t, err, "%s:\n%s", o.file, o.text)
	require.Empty(t, strict, "%s:\n%s", o.file, o.text)
	return typed
}

// crdFiles are the CRDs that the chart's objects need, by module of test/crds.
var crdFiles = map[string][]string{
	"github.com/traefik/traefik/v3": {
		"docs/content/reference/dynamic-configuration/traefik.io_middlewares.yaml",
	},
	"github.com/external-secrets/external-secrets": {
		"config/crds/bases/external-secrets.io_externalsecrets.yaml",
		"config/crds/bases/external-secrets.io_clustersecretstores.yaml",
	},
	"github.com/cert-manager/cert-manager": {
		"deploy/crds/cert-manager.io_certificates.yaml",
		"deploy/crds/cert-manager.io_clusterissuers.yaml",
	},
	"github.com/prometheus-operator/prometheus-operator": {
		"example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml",
		"example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
	},
}

// crds returns the CRDs from the Go module cache, read once.
var crds = sync.OnceValues(func() ([]*apiextensionsv1.CustomResourceDefinition, error) {
	var found []*apiextensionsv1.CustomResourceDefinition
	for module, files := range crdFiles {
		dir, err := moduleDir(module)
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			raw, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil {
				return nil, err
			}
			crd := &apiextensionsv1.CustomResourceDefinition{}
			if err := yaml.Unmarshal(raw, crd); err != nil {
				return nil, err
			}
			found = append(found, crd)
		}
	}
	return found, nil
})

// moduleDir returns the folder of a module of test/crds in the module cache.
func moduleDir(module string) (string, error) {
	for _, args := range [][]string{{"mod", "download", module}, {"list", "-m", "-f", "{{.Dir}}", module}} {
		command := exec.Command("go", args...)
		command.Dir = "../crds"
		command.Env = append(os.Environ(), "GOFLAGS=-mod=readonly", "GOWORK=off")
		command.Stderr = os.Stderr
		out, err := command.Output()
		if err != nil {
			return "", err
		}
		if args[0] == "list" {
			return strings.TrimSpace(string(out)), nil
		}
	}
	return "", nil
}

// checkAgainstCRD validates an object with its CRD's schema, as the apiserver
// does with --validate=strict.
func checkAgainstCRD(t testing.TB, o *unstructured.Unstructured) {
	t.Helper()
	gvk := o.GroupVersionKind()
	version, err := crdVersion(gvk.Group, gvk.Kind, gvk.Version)
	require.NoError(t, err)
	validateCustom(t, o, *version)
}

// crdVersion returns a version that an operator's CRD serves.
func crdVersion(group, kind, name string) (*apiextensionsv1.CustomResourceDefinitionVersion, error) {
	known, err := crds()
	if err != nil {
		return nil, fmt.Errorf("read the CRDs of test/crds: %w", err)
	}
	for _, crd := range known {
		if crd.Spec.Group != group || crd.Spec.Names.Kind != kind {
			continue
		}
		for _, version := range crd.Spec.Versions {
			if version.Name == name && version.Served {
				return &version, nil
			}
		}
		return nil, fmt.Errorf("%s/%s of %s is not served", group, name, kind)
	}
	return nil, fmt.Errorf("%s/%s %s has neither a Go type nor a CRD here", group, name, kind)
}

func validateCustom(t testing.TB, o *unstructured.Unstructured, version apiextensionsv1.CustomResourceDefinitionVersion) {
	t.Helper()
	props := &apiextensions.JSONSchemaProps{}
	require.NoError(t, apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(version.Schema.OpenAPIV3Schema, props, nil))
	structural, err := structuralschema.NewStructural(props)
	require.NoError(t, err)
	unknown := pruning.PruneWithOptions(o.DeepCopy().Object, structural, true,
		structuralschema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true})
	require.Empty(t, unknown, "unknown fields of %s", o.GetKind())
	validator, _, err := validation.NewSchemaValidator(props)
	require.NoError(t, err)
	require.Empty(t, validation.ValidateCustomResource(nil, o.Object, validator), o.GetKind())
}
