package main

import (
	"context"
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The chart defines these: the annotation of the StatefulSet that names the
// source, the volume of the Secret, and the two files in it.
const (
	sourceAnnotation  = "stemedb.io/secrets-source"
	secretsVolume     = "secrets"
	rootKeyFile       = "root-api-key"
	clusterSecretFile = "cluster-secret"
)

// managedLabel marks Secrets written by External Secrets.
const managedLabel = "reconcile.external-secrets.io/managed"

// inUse is the Secret that the members' StatefulSet mounts now.
type inUse struct {
	source   source
	name     string
	fields   map[string]string // file in the pod to field of the Secret
	secret   *corev1.Secret    // nil when it no longer exists
	selector string            // of the members' pods
	running  bool              // members may run, with the values in their memory
}

// readInUse returns nil when there is no StatefulSet: before an install.
func readInUse(ctx context.Context, k cluster, spec secretSpec) (*inUse, error) {
	set, err := k.statefulSets.StatefulSets(spec.namespace).Get(ctx, spec.statefulSet, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read StatefulSet %s/%s: %w", spec.namespace, spec.statefulSet, err)
	}
	used := &inUse{source: source(set.Annotations[sourceAnnotation]), running: mayRun(set, spec.hook), selector: metav1.FormatLabelSelector(set.Spec.Selector)}
	if used.name, used.fields = mountedSecret(set); used.name == "" {
		return nil, fmt.Errorf("%w: StatefulSet %s/%s has no volume %q of a Secret, so the values that its members use are unknown; give the volume its name back (merge.pod, patch.pod)",
			errUnusable, spec.namespace, spec.statefulSet, secretsVolume)
	}
	if used.secret, err = getSecret(ctx, k, spec.namespace, used.name); err != nil {
		return nil, err
	}
	if used.source == "" {
		used.source = guessSource(used, spec)
	}
	return used, nil
}

// mayRun reports whether a member may hold the values in its memory. A member
// that is not ready holds them too. Pods that wait for their first Secret do
// not, but the status looks the same: that is possible only where the Job is no
// hook, so that an install creates the StatefulSet beside it, in its first
// generation.
func mayRun(set *appsv1.StatefulSet, hook bool) bool {
	status := &set.Status
	if status.ReadyReplicas > 0 {
		return true
	}
	pods := max(status.Replicas, status.CurrentReplicas, status.UpdatedReplicas)
	return pods > 0 && (hook || set.Generation > 1)
}

func mountedSecret(set *appsv1.StatefulSet) (string, map[string]string) {
	for _, volume := range set.Spec.Template.Spec.Volumes {
		if volume.Name != secretsVolume || volume.Secret == nil {
			continue
		}
		fields := map[string]string{rootKeyFile: rootKeyFile, clusterSecretFile: clusterSecretFile}
		for _, item := range volume.Secret.Items {
			fields[item.Path] = item.Key
		}
		return volume.Secret.SecretName, fields
	}
	return "", nil
}

// guessSource is for releases of older charts, which did not record the source.
func guessSource(used *inUse, spec secretSpec) source {
	if used.name != spec.statefulSet+"-secrets" {
		return existing
	}
	if used.secret != nil && (used.secret.Labels[managedLabel] != "" || ownedByExternalSecret(used.secret)) {
		return external
	}
	return generated
}

func ownedByExternalSecret(secret *corev1.Secret) bool {
	owner := metav1.GetControllerOf(secret)
	return owner != nil && owner.Kind == "ExternalSecret" && strings.HasPrefix(owner.APIVersion, "external-secrets.io/")
}

// value returns the members' value from that file, empty when it is lost.
func (u *inUse) value(file string) string {
	if u == nil || u.secret == nil {
		return ""
	}
	return fieldOf(u.secret, u.fields[file])
}
