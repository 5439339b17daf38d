package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

const (
	ownName      = "r-secrets" // of generated and externalSecret
	otherName    = "mine"      // of existing
	stagedName   = "r-secrets-staged"
	otherRoot    = "steme_live_171615141312111009080706050403020100ffeeddccbbaa"
	otherCluster = "fedcba9876543210fedcba9876543210"
)

func secretNamed(name, root, cluster string) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
		Data:       map[string][]byte{"root": []byte(root), "cluster": []byte(cluster)},
	}
}

// members are three members that run with a Secret of that source and name.
func members(from source, secret string, ready int32) *appsv1.StatefulSet {
	set := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "r", Annotations: map[string]string{}}}
	if from != "" {
		set.Annotations[sourceAnnotation] = string(from)
	}
	set.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "r"}}
	set.Spec.Template.Spec.Volumes = []corev1.Volume{{Name: secretsVolume, VolumeSource: corev1.VolumeSource{
		Secret: &corev1.SecretVolumeSource{SecretName: secret, Items: []corev1.KeyToPath{
			{Key: "root", Path: rootKeyFile}, {Key: "cluster", Path: clusterSecretFile},
		}},
	}}}
	set.Status.ReadyReplicas = ready
	return set
}

func specFor(to source) secretSpec {
	s := spec
	s.source, s.name, s.staged = to, ownName, stagedName
	if to == existing {
		s.name = otherName
	}
	return s
}

// Each of the six changes of secrets.source keeps the values when it can and is
// otherwise refused with the steps to take. No existing Secret is changed.
func TestSixChangesOfTheSource(t *testing.T) {
	held := func(name string) *corev1.Secret { return secretNamed(name, goodRoot, goodSecret) }
	differs := func(name string) *corev1.Secret { return secretNamed(name, goodRoot, otherCluster) }
	for name, c := range map[string]struct {
		from, to source
		secrets  []runtime.Object
		done     result // empty: refused
		says     []string
	}{
		"generated to existing, same values":  {generated, existing, []runtime.Object{held(ownName), held(otherName)}, unchanged, nil},
		"generated to existing, other values": {generated, existing, []runtime.Object{held(ownName), differs(otherName)}, "", []string{`field "cluster" of Secret ns/mine differs from field "cluster" of Secret r-secrets`, "kubectl -n ns patch secret mine", "get secret r-secrets -o jsonpath='{.data.cluster}'"}},
		"generated to existing, none there":   {generated, existing, []runtime.Object{held(ownName)}, "", []string{"Secret ns/mine does not exist", "kubectl -n ns create secret generic mine"}},
		"generated to external, staged":       {generated, external, []runtime.Object{held(ownName), held(stagedName)}, unchanged, nil},
		"generated to external, not staged":   {generated, external, []runtime.Object{held(ownName)}, "", []string{"values in the store are not known", "secrets.source=generated and secrets.externalSecret.staged=true", "wait externalsecret/r-secrets-staged --for=condition=Ready"}},
		"generated to external, other values": {generated, external, []runtime.Object{held(ownName), differs(stagedName)}, "", []string{"Secret ns/r-secrets-staged differs", "Write the values of Secret r-secrets into the store"}},
		"generated to external, half staged":  {generated, external, []runtime.Object{held(ownName), secretNamed(stagedName, goodRoot, "")}, "", []string{`Secret ns/r-secrets-staged has no field "cluster" yet`}},
		"existing to generated":               {existing, generated, []runtime.Object{held(otherName)}, created, nil},
		"existing to generated, stale Secret": {existing, generated, []runtime.Object{held(otherName), differs(ownName)}, "", []string{"kubectl -n ns delete secret r-secrets"}},
		"existing to external, staged":        {existing, external, []runtime.Object{held(otherName), held(stagedName)}, unchanged, nil},
		"existing to external, not staged":    {existing, external, []runtime.Object{held(otherName)}, "", []string{"secrets.source=existing and secrets.externalSecret.staged=true"}},
		"external to generated":               {external, generated, []runtime.Object{held(ownName)}, unchanged, nil},
		"external to existing, same values":   {external, existing, []runtime.Object{held(ownName), held(otherName)}, unchanged, nil},
		"external to existing, other values":  {external, existing, []runtime.Object{held(ownName), differs(otherName)}, "", []string{"kubectl -n ns patch secret mine"}},
	} {
		t.Run(name, func(t *testing.T) {
			in := ownName
			if c.from == existing {
				in = otherName
			}
			client := fake.NewClientset(append(c.secrets, members(c.from, in, 3))...)
			done, stored, log, err := ensureAs(t, client, specFor(c.to))
			if c.done == "" {
				require.ErrorIs(t, err, errUnusable)
				require.Equal(t, exitRefused, exitCode(err))
				for _, words := range c.says {
					require.ErrorContains(t, err, words)
				}
				require.NotContains(t, err.Error()+log, goodSecret)
				require.NotContains(t, err.Error()+log, goodRoot)
			} else {
				require.NoError(t, err)
				require.Equal(t, c.done, done)
			}
			if c.done == created {
				require.Equal(t, secretNamed("", goodRoot, goodSecret).Data, stored.Data, "the values in use were not kept")
			}
			for _, action := range client.Actions() {
				require.False(t, action.GetVerb() == "update" || action.GetVerb() == "delete", "%v", action)
			}
		})
	}
}

// The same Secret under another source's name is not a change of values.
func TestTakingOverTheSecretByNameKeepsIt(t *testing.T) {
	for _, from := range []source{generated, external} {
		s := specFor(existing)
		s.name = ownName
		_, _, _, err := ensureAs(t, fake.NewClientset(members(from, ownName, 3), secretNamed(ownName, goodRoot, goodSecret)), s)
		require.NoError(t, err)
	}
}

// A Secret that its ExternalSecret owns is deleted with it, even when it is
// still in use.
func TestAnOwnedSecretIsNotTakenOver(t *testing.T) {
	controls := true
	owned := secretNamed(ownName, goodRoot, goodSecret)
	owned.OwnerReferences = []metav1.OwnerReference{{APIVersion: "external-secrets.io/v1", Kind: "ExternalSecret", Name: ownName, Controller: &controls}}
	byName := specFor(existing)
	byName.name = ownName
	for _, to := range []secretSpec{specFor(generated), byName} {
		_, _, _, err := ensureAs(t, fake.NewClientset(members("", ownName, 3), owned), to)
		require.ErrorContains(t, err, "would be deleted with it. Upgrade once more with secrets.source=externalSecret")
	}
	_, _, _, err := ensureAs(t, fake.NewClientset(members("", ownName, 3), owned), specFor(external))
	require.NoError(t, err, "the release of a chart that did not record the source")
}

// Older charts did not record the source.
func TestTheSourceIsGuessedWhereNoneIsNoted(t *testing.T) {
	_, _, _, err := ensureAs(t, fake.NewClientset(members("", ownName, 3), secretNamed(ownName, goodRoot, goodSecret)), specFor(external))
	require.ErrorContains(t, err, "secrets.source=generated and secrets.externalSecret.staged=true")
	_, _, _, err = ensureAs(t, fake.NewClientset(members("", otherName, 3), secretNamed(otherName, goodRoot, goodSecret)), specFor(external))
	require.ErrorContains(t, err, "secrets.source=existing and secrets.externalSecret.staged=true")
	managed := secretNamed(ownName, goodRoot, goodSecret)
	managed.Labels = map[string]string{managedLabel: "true"}
	_, _, _, err = ensureAs(t, fake.NewClientset(members("", ownName, 3), managed), specFor(external))
	require.NoError(t, err)
}

// New values in place of lost ones split a running cluster: the members hold
// the old ones, and a member that restarts cannot join them.
func TestALostSecretIsNotReplacedUnderRunningMembers(t *testing.T) {
	half := secretNamed(ownName, goodRoot, "")
	renamed := specFor(generated)
	renamed.clusterSecretField = "renamed"
	for name, c := range map[string]struct {
		spec secretSpec
		held []runtime.Object
	}{
		"the Secret": {specFor(generated), nil},
		"one field":  {specFor(generated), []runtime.Object{half}},
		"existing":   {specFor(existing), []runtime.Object{secretNamed(otherName, goodRoot, goodSecret)}},
	} {
		t.Run(name, func(t *testing.T) {
			client := fake.NewClientset(append(c.held, members(generated, ownName, 1))...)
			_, _, _, err := ensureAs(t, client, c.spec)
			require.ErrorContains(t, err, "Put the Secret back from your copy")
			require.ErrorContains(t, err, "secrets.acceptNewValues=true")
			require.ErrorContains(t, err, "kubectl -n ns delete pod --selector=app=r")

			c.spec.acceptNew = true
			_, stored, log, err := ensureAs(t, client, c.spec)
			require.NoError(t, err)
			require.Contains(t, log, "restart all members together")
			require.NotEmpty(t, stored.Data["cluster"])

			c.spec.acceptNew = false
			_, _, _, err = ensureAs(t, fake.NewClientset(append(c.held, members(generated, ownName, 0))...), c.spec)
			require.NoError(t, err, "no member runs with the old values")
		})
	}
	// A renamed key is not a loss: the value in use moves with it.
	client := fake.NewClientset(members(generated, ownName, 3), secretNamed(ownName, goodRoot, goodSecret))
	done, stored, _, err := ensureAs(t, client, renamed)
	require.NoError(t, err)
	require.Equal(t, completed, done)
	require.Equal(t, goodSecret, string(stored.Data["renamed"]))
}

// A member that is not ready holds the old values too. Only beside an ordinary
// Job may the pods of a new StatefulSet wait for their first Secret.
func TestMembersThatAreNotReadyKeepTheirValues(t *testing.T) {
	for name, c := range map[string]struct {
		hook       bool
		generation int64
		status     appsv1.StatefulSetStatus
		refused    bool
	}{
		"pods, hook":                 {true, 1, appsv1.StatefulSetStatus{Replicas: 3}, true},
		"current pods, hook":         {true, 1, appsv1.StatefulSetStatus{CurrentReplicas: 1}, true},
		"updated pods, hook":         {true, 1, appsv1.StatefulSetStatus{UpdatedReplicas: 1}, true},
		"pods, no hook, changed":     {false, 2, appsv1.StatefulSetStatus{Replicas: 3}, true},
		"pods, no hook, new":         {false, 1, appsv1.StatefulSetStatus{Replicas: 3}, false},
		"a ready pod, no hook, new":  {false, 1, appsv1.StatefulSetStatus{ReadyReplicas: 1}, true},
		"no pods, hook, scaled to 0": {true, 2, appsv1.StatefulSetStatus{}, false},
		"no pods, no hook":           {false, 2, appsv1.StatefulSetStatus{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			set := members(generated, ownName, 0)
			set.Generation, set.Status = c.generation, c.status
			s := specFor(generated)
			s.hook = c.hook
			client := fake.NewClientset(set)
			done, stored, _, err := ensureAs(t, client, s)
			if !c.refused {
				require.NoError(t, err)
				require.Equal(t, created, done)
				return
			}
			require.ErrorContains(t, err, "Put the Secret back from your copy")
			require.Equal(t, exitRefused, exitCode(err))
			require.Nil(t, stored)
			s.acceptNew = true
			done, _, log, err := ensureAs(t, client, s)
			require.NoError(t, err)
			require.Equal(t, created, done)
			require.Contains(t, log, "restart all members together")
		})
	}
}

// A Secret that the Job may not read is named, with the chart value that grants
// it access.
func TestASecretOfAnotherNameMustBeNamedToBeRead(t *testing.T) {
	client := fake.NewClientset(members(existing, otherName, 3))
	client.PrependReactor("get", "secrets", func(action clienttesting.Action) (bool, runtime.Object, error) {
		if action.(clienttesting.GetAction).GetName() == otherName {
			return true, nil, apierrors.NewForbidden(resource, otherName, nil)
		}
		return false, nil, nil
	})
	_, stored, _, err := ensureAs(t, client, specFor(generated))
	require.ErrorContains(t, err, "read Secret ns/mine")
	require.ErrorContains(t, err, "secrets.previous.name")
	require.Nil(t, stored)
}

// The commands in the refusals are complete.
func TestStepsCanBePasted(t *testing.T) {
	s := step{spec: specFor(existing), used: &inUse{name: "a", fields: map[string]string{rootKeyFile: "root.key", clusterSecretFile: "c"}}}
	steps := s.howToFill(true)
	require.Contains(t, steps, `-p "{\"data\":{\"root\":\"$(kubectl -n ns get secret a -o jsonpath='{.data.root\.key}')\"}}"`)
	require.Equal(t, 3, strings.Count(steps, "kubectl -n ns create ")+strings.Count(steps, "kubectl -n ns patch "))
}
