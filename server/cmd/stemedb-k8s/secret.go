package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// source is the creator of the Secret; the names are those of the chart's
// values.
type source string

const (
	generated source = "generated"
	existing  source = "existing"
	external  source = "externalSecret"
)

// secretSpec names the Secret that the members will mount, its two fields, and
// the members.
type secretSpec struct {
	source             source
	namespace          string
	name               string
	rootKeyField       string
	clusterSecretField string
	statefulSet        string
	staged             string // filled by External Secrets before a switch to it
	acceptNew          bool
	hook               bool // the Job ran before the StatefulSet's first pod, so that pod had a Secret
}

// result is the outcome of ensureSecret.
type result string

const (
	created   result = "created"
	completed result = "completed" // a missing field was added
	unchanged result = "unchanged"
)

const (
	attempts   = 6
	firstPause = 500 * time.Millisecond // doubled after each attempt: 15.5 s in total
)

// ensureSecret makes or checks the Secret, depending on spec.source. Attempts
// that conflict with another writer or fail temporarily are retried a few
// times.
func ensureSecret(ctx context.Context, k cluster, spec secretSpec, logger *slog.Logger) (result, error) {
	pause := firstPause
	for attempt := 1; ; attempt++ {
		done, err := ensureOnce(ctx, k, spec, logger)
		if err == nil {
			return done, nil
		}
		if !passing(err) {
			return "", explain(err, spec)
		}
		if attempt == attempts {
			return "", fmt.Errorf("gave up after %d attempts: %w", attempts, explain(err, spec))
		}
		logger.Warn("trying again", "attempt", attempt, "pause", pause.String(), "error", err.Error())
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("gave up after %d attempts (%w): %w", attempt, context.Cause(ctx), explain(err, spec))
		case <-time.After(pause):
		}
		pause *= 2
	}
}

func ensureOnce(ctx context.Context, k cluster, spec secretSpec, logger *slog.Logger) (result, error) {
	used, err := readInUse(ctx, k, spec)
	if err != nil {
		return "", err
	}
	found, err := getSecret(ctx, k, spec.namespace, spec.name)
	if err != nil {
		return "", err
	}
	s := step{spec: spec, used: used, found: found, logger: logger}
	switch spec.source {
	case existing:
		return unchanged, s.checkExisting()
	case external:
		return unchanged, s.checkExternal(ctx, k)
	default:
		return s.makeGenerated(ctx, k)
	}
}

// getSecret returns nil when there is no such Secret.
func getSecret(ctx context.Context, k cluster, namespace, name string) (*corev1.Secret, error) {
	found, err := k.secrets.Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read Secret %s/%s: %w", namespace, name, err)
	}
	return found, nil
}

// newSecret sets no instance label on purpose: some GitOps tools delete objects
// that carry the label of a release and are not in its manifests.
func newSecret(spec secretSpec, values map[string][]byte) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name:      spec.name,
			Namespace: spec.namespace,
			Labels: map[string]string{
				"app.kubernetes.io/part-of":    "stemedb",
				"app.kubernetes.io/managed-by": "stemedb-k8s",
			},
			Annotations: map[string]string{
				"stemedb.io/keep": "Made once by the chart's Job and kept on uninstall. Members of a cluster know each other by it.",
			},
		},
		Type: corev1.SecretTypeOpaque,
		Data: values,
	}
}

// newRootKey returns steme_live_ and 24 random bytes in hex.
func newRootKey() []byte { return []byte("steme_live_" + randomHex(24)) }

// newClusterSecret returns 32 random bytes in hex.
func newClusterSecret() []byte { return []byte(randomHex(32)) }

func randomHex(bytes int) string {
	raw := make([]byte, bytes)
	_, _ = rand.Read(raw) // never fails: the runtime ends the process instead
	return hex.EncodeToString(raw)
}

var rootKeyForm = regexp.MustCompile(`^steme_(live|test)_[0-9a-f]{48}$`)

// errUnusable means that the server cannot start with the Secret.
var errUnusable = errors.New("the Secret cannot be used as it is")

// checkForm fails when the server would refuse a value.
func (s secretSpec) checkForm(secret *corev1.Secret) error {
	where := func(field string) string {
		return fmt.Sprintf("field %q of Secret %s/%s", field, s.namespace, secret.Name)
	}
	if value := fieldOf(secret, s.rootKeyField); value != "" && !rootKeyForm.MatchString(value) {
		return fmt.Errorf("%w: %s is not steme_live_ or steme_test_ followed by 48 hex digits; correct it, or remove the field to have a key made", errUnusable, where(s.rootKeyField))
	}
	if value := fieldOf(secret, s.clusterSecretField); value != "" && len(value) < 32 {
		return fmt.Errorf("%w: %s is shorter than 32 bytes; correct it, or remove the field to have one made", errUnusable, where(s.clusterSecretField))
	}
	return nil
}

// fieldOf reads a field like the server: without surrounding space.
func fieldOf(secret *corev1.Secret, field string) string {
	return strings.TrimSpace(string(secret.Data[field]))
}

// passing reports whether the same attempt may succeed later.
func passing(err error) bool {
	if errors.Is(err, errUnusable) || errors.Is(err, context.Canceled) {
		return false
	}
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return true // no answer: the connection failed
	}
	switch {
	case apierrors.IsAlreadyExists(err), apierrors.IsConflict(err):
		return true // another writer was faster; the next attempt reads its values
	case apierrors.IsForbidden(err):
		return true // a new Role may not have reached all API servers yet
	case apierrors.IsNotFound(err):
		return true // deleted between our read and our write
	}
	code := status.Status().Code
	return code == 429 || code >= 500
}

// explain adds the remedy to errors of the API that lack one.
func explain(err error, spec secretSpec) error {
	switch {
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%w; the service account needs get on StatefulSet %q and on Secret %q in namespace %q, and to make the Secret also create on secrets and update on it. "+
			"When the refused Secret is the one that the members use now, name it in the chart's value secrets.previous.name", err, spec.statefulSet, spec.name, spec.namespace)
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("%w; the service account's token was refused: is automountServiceAccountToken true?", err)
	}
	return err
}
