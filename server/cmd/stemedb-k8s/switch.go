package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// step is one attempt: the spec, the Secret that the members use now (nil
// before an install), and the Secret that they will mount (nil when there is
// none).
type step struct {
	spec   secretSpec
	used   *inUse
	found  *corev1.Secret
	logger *slog.Logger
}

// field pairs a field of the Secret with the file that the members read.
type field struct{ name, file string }

func (s step) fields() []field {
	return []field{{s.spec.rootKeyField, rootKeyFile}, {s.spec.clusterSecretField, clusterSecretFile}}
}

// makeGenerated makes the Secret or adds missing fields. The members' current
// values take precedence; new values are only for clusters that have none yet.
func (s step) makeGenerated(ctx context.Context, k cluster) (result, error) {
	if err := s.refuseOwned(); err != nil {
		return "", err
	}
	held := s.found
	if held == nil {
		held = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: s.spec.name}}
	}
	if err := s.spec.checkForm(held); err != nil {
		return "", err
	}
	if err := s.compare(held, fmt.Sprintf("delete it (kubectl -n %s delete secret %s) and upgrade again: it is then made with the values in use", s.spec.namespace, s.spec.name)); err != nil {
		return "", err
	}
	missing := map[string][]byte{}
	for _, f := range s.fields() {
		if fieldOf(held, f.name) != "" {
			continue
		}
		value, err := s.wanted(f)
		if err != nil {
			return "", err
		}
		missing[f.name] = value
	}
	return s.write(ctx, k, missing)
}

// wanted is the value for a field that the Secret lacks.
func (s step) wanted(f field) ([]byte, error) {
	if value := s.used.value(f.file); value != "" {
		return []byte(value), nil
	}
	if s.used != nil && s.used.running {
		if !s.spec.acceptNew {
			return nil, s.lost(f)
		}
		s.warnNew()
	}
	if f.file == rootKeyFile {
		return newRootKey(), nil
	}
	return newClusterSecret(), nil
}

// write makes the Secret or adds the fields. An update carries the version that
// was read: another writer in between causes a conflict, so no value is
// overwritten.
func (s step) write(ctx context.Context, k cluster, missing map[string][]byte) (result, error) {
	secrets, where := k.secrets.Secrets(s.spec.namespace), s.spec.namespace+"/"+s.spec.name
	switch {
	case s.found == nil:
		if _, err := secrets.Create(ctx, newSecret(s.spec, missing), metav1.CreateOptions{}); err != nil {
			return "", fmt.Errorf("create Secret %s: %w", where, err)
		}
		return created, nil
	case len(missing) == 0:
		return unchanged, nil
	case s.found.Immutable != nil && *s.found.Immutable:
		return "", fmt.Errorf("%w: Secret %s lacks a field and is immutable; delete it and make it again with both fields %q and %q", errUnusable, where, s.spec.rootKeyField, s.spec.clusterSecretField)
	}
	changed := s.found.DeepCopy()
	if changed.Data == nil {
		changed.Data = map[string][]byte{}
	}
	for name, value := range missing {
		changed.Data[name] = value
	}
	if _, err := secrets.Update(ctx, changed, metav1.UpdateOptions{}); err != nil {
		return "", fmt.Errorf("add fields to Secret %s: %w", where, err)
	}
	return completed, nil
}

// checkExisting requires a usable Secret with the values that the members use.
func (s step) checkExisting() error {
	if err := s.refuseOwned(); err != nil {
		return err
	}
	if s.found == nil {
		return fmt.Errorf("%w: Secret %s/%s does not exist; %s", errUnusable, s.spec.namespace, s.spec.name, s.howToFill(true))
	}
	if err := s.spec.checkForm(s.found); err != nil {
		return err
	}
	for _, f := range s.fields() {
		if fieldOf(s.found, f.name) == "" {
			return fmt.Errorf("%w: Secret %s/%s has no field %q; %s", errUnusable, s.spec.namespace, s.spec.name, f.name, s.howToFill(false))
		}
	}
	return s.compare(s.found, s.howToFill(false))
}

// checkExternal requires a staged switch: External Secrets overwrites the
// members' Secret immediately, so the store's values must be known before.
func (s step) checkExternal(ctx context.Context, k cluster) error {
	if s.used == nil || (s.used.source == external && s.used.name == s.spec.name) {
		return nil
	}
	staged, err := getSecret(ctx, k, s.spec.namespace, s.spec.staged)
	if err != nil {
		return err
	}
	if staged == nil {
		if s.spec.acceptNew {
			s.warnNew()
			return nil
		}
		return fmt.Errorf("%w: the members use the Secret of source %q, and the values in the store are not known. %s", errUnusable, s.used.source, s.howToStage())
	}
	if err := s.spec.checkForm(staged); err != nil {
		return err
	}
	for _, f := range s.fields() {
		if fieldOf(staged, f.name) == "" {
			return fmt.Errorf("%w: Secret %s/%s has no field %q yet. %s", errUnusable, s.spec.namespace, staged.Name, f.name, s.howToStage())
		}
	}
	return s.compare(staged, s.howToStage())
}

// compare refuses a Secret whose values differ from those that the members use.
func (s step) compare(next *corev1.Secret, remedy string) error {
	for _, f := range s.fields() {
		value := fieldOf(next, f.name)
		if s.used == nil || value == "" || (s.used.name == next.Name && s.used.fields[f.file] == f.name) {
			continue // no members yet, nothing to compare, or it is the field in use
		}
		inUse := s.used.value(f.file)
		if inUse == value || (inUse == "" && !s.used.running) {
			continue
		}
		if s.spec.acceptNew {
			s.warnNew()
			continue
		}
		if inUse == "" {
			return s.lost(f)
		}
		return fmt.Errorf("%w: field %q of Secret %s/%s differs from field %q of Secret %s, which the members use; %s",
			errUnusable, f.name, s.spec.namespace, next.Name, s.used.fields[f.file], s.used.name, remedy)
	}
	return nil
}

// refuseOwned keeps a Secret from being deleted together with its ExternalSecret.
func (s step) refuseOwned() error {
	if s.found == nil || !ownedByExternalSecret(s.found) {
		return nil
	}
	return fmt.Errorf("%w: Secret %s/%s is owned by an ExternalSecret and would be deleted with it. Upgrade once more with secrets.source=%s, "+
		"which gives up the ownership; when `kubectl -n %s get secret %s -o jsonpath='{.metadata.ownerReferences}'` prints nothing, switch",
		errUnusable, s.spec.namespace, s.spec.name, external, s.spec.namespace, s.spec.name)
}

func (s step) lost(f field) error {
	return fmt.Errorf("%w: the members have pods, ready or not, that may run with a value of field %q that Secret %s/%s does not hold. Put the Secret back from your copy, or accept new values: "+
		"set secrets.acceptNewValues=true for one upgrade and then restart all members together, which is an outage of seconds: %s",
		errUnusable, s.used.fields[f.file], s.spec.namespace, s.used.name, s.restartAll())
}

func (s step) warnNew() {
	s.logger.Warn("the members' new values differ from those in use: restart all members together", "command", s.restartAll())
}

func (s step) restartAll() string {
	return fmt.Sprintf("kubectl -n %s delete pod --selector=%s", s.spec.namespace, s.used.selector)
}

// howToFill returns the commands that copy the values in use, still in base64.
func (s step) howToFill(create bool) string {
	if s.used == nil {
		return fmt.Sprintf("make it with the fields %q and %q", s.spec.rootKeyField, s.spec.clusterSecretField)
	}
	steps := []string{"give it the values in use and upgrade again:"}
	if create {
		steps = append(steps, fmt.Sprintf("kubectl -n %s create secret generic %s;", s.spec.namespace, s.spec.name))
	}
	for _, f := range s.fields() {
		key := strings.ReplaceAll(s.used.fields[f.file], ".", `\.`)
		steps = append(steps, fmt.Sprintf(`kubectl -n %s patch secret %s --type merge -p "{\"data\":{\"%s\":\"$(kubectl -n %s get secret %s -o jsonpath='{.data.%s}')\"}}";`,
			s.spec.namespace, s.spec.name, f.name, s.spec.namespace, s.used.name, key))
	}
	return strings.TrimSuffix(strings.Join(steps, " "), ";")
}

func (s step) howToStage() string {
	return fmt.Sprintf("Write the values of Secret %[1]s into the store, upgrade with secrets.source=%[2]s and secrets.externalSecret.staged=true, "+
		"wait for `kubectl -n %[3]s wait externalsecret/%[4]s --for=condition=Ready`, and then switch to secrets.source=%[5]s",
		s.used.name, s.used.source, s.spec.namespace, s.spec.staged, external)
}
