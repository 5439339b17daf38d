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
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
)

// secretSpec names a Secret and the two fields that the server reads.
type secretSpec struct {
	namespace          string
	name               string
	rootKeyField       string
	clusterSecretField string
}

// result says what ensureSecret did.
type result string

const (
	created   result = "created"
	completed result = "completed" // a missing field was added
	unchanged result = "unchanged"
)

const (
	attempts   = 6
	firstPause = 500 * time.Millisecond // doubled after each attempt: 15.5 s in all
)

// ensureSecret makes the Secret unless it is there, and adds a field that it
// lacks. What the Secret holds is never changed: a present value that the
// server would refuse is an error, not a reason to replace it. Attempts that
// meet another writer or a fault that may pass are repeated, a few times.
func ensureSecret(ctx context.Context, client corev1client.SecretsGetter, spec secretSpec, logger *slog.Logger) (result, error) {
	pause := firstPause
	for attempt := 1; ; attempt++ {
		done, err := ensureOnce(ctx, client, spec)
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

func ensureOnce(ctx context.Context, client corev1client.SecretsGetter, spec secretSpec) (result, error) {
	secrets := client.Secrets(spec.namespace)
	found, err := secrets.Get(ctx, spec.name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = secrets.Create(ctx, newSecret(spec), metav1.CreateOptions{})
		if err != nil {
			return "", fmt.Errorf("create Secret %s/%s: %w", spec.namespace, spec.name, err)
		}
		return created, nil
	}
	if err != nil {
		return "", fmt.Errorf("read Secret %s/%s: %w", spec.namespace, spec.name, err)
	}
	missing, err := missingFields(found, spec)
	if err != nil {
		return "", err
	}
	if len(missing) == 0 {
		return unchanged, nil
	}
	// The update carries the version that was read: a writer in between is
	// answered with a conflict, so nobody's value is overwritten.
	if found.Data == nil {
		found.Data = map[string][]byte{}
	}
	for field, value := range missing {
		found.Data[field] = value
	}
	if _, err := secrets.Update(ctx, found, metav1.UpdateOptions{}); err != nil {
		return "", fmt.Errorf("add fields to Secret %s/%s: %w", spec.namespace, spec.name, err)
	}
	return completed, nil
}

// newSecret has no instance label on purpose: some GitOps tools take whatever
// carries the label of a release, and is not in its manifests, for a left-over
// and delete it.
func newSecret(spec secretSpec) *corev1.Secret {
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
		Data: map[string][]byte{
			spec.rootKeyField:       newRootKey(),
			spec.clusterSecretField: newClusterSecret(),
		},
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

// errUnusable is a Secret that the server could not start with.
var errUnusable = errors.New("the Secret cannot be used as it is")

// missingFields returns fresh values for the fields that the Secret lacks or
// holds empty. It fails when a present one is not what the server takes.
func missingFields(secret *corev1.Secret, spec secretSpec) (map[string][]byte, error) {
	missing := map[string][]byte{}
	where := func(field string) string {
		return fmt.Sprintf("field %q of Secret %s/%s", field, spec.namespace, spec.name)
	}
	switch value := strings.TrimSpace(string(secret.Data[spec.rootKeyField])); {
	case value == "":
		missing[spec.rootKeyField] = newRootKey()
	case !rootKeyForm.MatchString(value):
		return nil, fmt.Errorf("%w: %s is not steme_live_ or steme_test_ followed by 48 hex digits; correct it, or remove the field to have a key made", errUnusable, where(spec.rootKeyField))
	}
	switch value := strings.TrimSpace(string(secret.Data[spec.clusterSecretField])); {
	case value == "":
		missing[spec.clusterSecretField] = newClusterSecret()
	case len(value) < 32:
		return nil, fmt.Errorf("%w: %s is shorter than 32 bytes; correct it, or remove the field to have one made", errUnusable, where(spec.clusterSecretField))
	}
	if len(missing) > 0 && secret.Immutable != nil && *secret.Immutable {
		return nil, fmt.Errorf("%w: Secret %s/%s lacks a field and is immutable; delete it and make it again with both fields %q and %q", errUnusable, spec.namespace, spec.name, spec.rootKeyField, spec.clusterSecretField)
	}
	return missing, nil
}

// passing says whether the same attempt may succeed a little later.
func passing(err error) bool {
	if errors.Is(err, errUnusable) || errors.Is(err, context.Canceled) {
		return false
	}
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return true // no answer at all: the connection failed
	}
	switch {
	case apierrors.IsAlreadyExists(err), apierrors.IsConflict(err):
		return true // another writer was faster; the next attempt reads what it wrote
	case apierrors.IsForbidden(err):
		return true // a Role that was made a moment ago may not be known everywhere yet
	case apierrors.IsNotFound(err):
		return true // deleted between our read and our write
	}
	code := status.Status().Code
	return code == 429 || code >= 500
}

// explain adds the remedy where the API's own words do not hold one.
func explain(err error, spec secretSpec) error {
	switch {
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%w; the service account needs create on secrets, and get and update on %q, in namespace %q", err, spec.name, spec.namespace)
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("%w; the service account's token was refused: is automountServiceAccountToken true?", err)
	}
	return err
}
