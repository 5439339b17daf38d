package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

var externalSecretResource = schema.GroupVersionResource{Group: "external-secrets.io", Version: "v1", Resource: "externalsecrets"}

// externalSecrets simulates the External Secrets operator with one store. It
// follows the operator's documented rules for spec.target: it creates a missing
// Secret and overwrites one that differs from the store, creationPolicy Owner
// makes the ExternalSecret its owner (the cluster's garbage collector then
// deletes it), Orphan sets no owner. It refreshes continuously, regardless of
// refreshInterval. It reads the store by remoteRef.key.
type externalSecrets struct {
	namespace string
	typed     kubernetes.Interface
	dynamic   dynamic.Interface
	store     func(key string) string // empty: the store has no such key
}

// runExternalSecrets starts the simulated operator; it ends with the test.
func (r *release) runExternalSecrets(t *testing.T, store func(key string) string) {
	t.Helper()
	r.kubectl(t, "get", "crd", "externalsecrets.external-secrets.io") // the chart's tests on a server install it
	config, err := clientcmd.BuildConfigFromFlags("", r.kubeconfig)
	require.NoError(t, err)
	o := &externalSecrets{namespace: r.opts.Namespace, store: store}
	o.typed, err = kubernetes.NewForConfig(config)
	require.NoError(t, err)
	o.dynamic, err = dynamic.NewForConfig(config)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			if err := o.reconcile(ctx); err != nil && ctx.Err() == nil {
				t.Logf("external secrets, tried again: %v", err)
			}
			time.Sleep(500 * time.Millisecond)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
}

func (o *externalSecrets) reconcile(ctx context.Context) error {
	list, err := o.dynamic.Resource(externalSecretResource).Namespace(o.namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for i := range list.Items {
		found := &list.Items[i]
		data := o.fetch(found)
		if found.GetDeletionTimestamp() != nil || data == nil {
			continue
		}
		if err := o.sync(ctx, found, data); err != nil {
			return err
		}
		if err := o.setReady(ctx, found); err != nil {
			return err
		}
	}
	return nil
}

// fetch returns the values that spec.data names, or nil if the store lacks a key.
func (o *externalSecrets) fetch(found *unstructured.Unstructured) map[string][]byte {
	data := map[string][]byte{}
	items, _, _ := unstructured.NestedSlice(found.Object, "spec", "data")
	for _, item := range items {
		fields := item.(map[string]any)
		key, _, _ := unstructured.NestedString(fields, "remoteRef", "key")
		value := o.store(key)
		if value == "" {
			return nil
		}
		data[fields["secretKey"].(string)] = []byte(value)
	}
	return data
}

func (o *externalSecrets) sync(ctx context.Context, found *unstructured.Unstructured, data map[string][]byte) error {
	name, _, _ := unstructured.NestedString(found.Object, "spec", "target", "name")
	policy, _, _ := unstructured.NestedString(found.Object, "spec", "target", "creationPolicy")
	secrets := o.typed.CoreV1().Secrets(o.namespace)
	secret, err := secrets.Get(ctx, name, metav1.GetOptions{})
	missing := apierrors.IsNotFound(err)
	if err != nil && !missing {
		return err
	}
	if missing {
		secret = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}}
	}
	if secret.Data == nil {
		secret.Data = map[string][]byte{}
	}
	for key, value := range data {
		secret.Data[key] = value
	}
	secret.OwnerReferences = nil
	if policy == "Owner" {
		secret.OwnerReferences = []metav1.OwnerReference{{
			APIVersion: found.GetAPIVersion(), Kind: found.GetKind(), Name: found.GetName(), UID: found.GetUID(),
		}}
	}
	if missing {
		_, err = secrets.Create(ctx, secret, metav1.CreateOptions{})
	} else {
		_, err = secrets.Update(ctx, secret, metav1.UpdateOptions{})
	}
	return err
}

func (o *externalSecrets) setReady(ctx context.Context, found *unstructured.Unstructured) error {
	if conditions, _, _ := unstructured.NestedSlice(found.Object, "status", "conditions"); len(conditions) > 0 {
		return nil
	}
	if err := unstructured.SetNestedSlice(found.Object, []any{map[string]any{"type": "Ready", "status": "True", "reason": "SecretSynced"}}, "status", "conditions"); err != nil {
		return err
	}
	_, err := o.dynamic.Resource(externalSecretResource).Namespace(o.namespace).UpdateStatus(ctx, found, metav1.UpdateOptions{})
	return err
}
