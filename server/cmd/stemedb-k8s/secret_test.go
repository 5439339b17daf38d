package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	clienttesting "k8s.io/client-go/testing"
)

var (
	spec       = secretSpec{source: generated, namespace: "ns", name: "s", rootKeyField: "root", clusterSecretField: "cluster", statefulSet: "r"}
	goodRoot   = "steme_live_000102030405060708090a0b0c0d0e0f1011121314151617"
	goodSecret = "0123456789abcdef0123456789abcdef"
	resource   = schema.GroupResource{Resource: "secrets"}
)

func secretWith(data map[string]string) *corev1.Secret {
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s", Labels: map[string]string{"own": "label"}}, Data: map[string][]byte{}}
	for field, value := range data {
		s.Data[field] = []byte(value)
	}
	return s
}

func clusterOf(client *fake.Clientset) cluster {
	return cluster{secrets: client.CoreV1(), statefulSets: client.AppsV1()}
}

// ensure runs ensureSecret under virtual time and returns the Secret and the log.
func ensure(t *testing.T, client *fake.Clientset) (done result, stored *corev1.Secret, log string, err error) {
	t.Helper()
	return ensureAs(t, client, spec)
}

func ensureAs(t *testing.T, client *fake.Clientset, spec secretSpec) (done result, stored *corev1.Secret, log string, err error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		done, err = ensureSecret(t.Context(), clusterOf(client), spec, slog.New(slog.NewTextHandler(&out, nil)))
		log = out.String()
	})
	if object, getErr := client.Tracker().Get(schema.GroupVersionResource{Version: "v1", Resource: "secrets"}, "ns", spec.name); getErr == nil {
		stored = object.(*corev1.Secret)
	}
	return done, stored, log, err
}

func TestMakesTheSecretOnce(t *testing.T) {
	client := fake.NewClientset()
	done, first, _, err := ensure(t, client)
	require.NoError(t, err)
	require.Equal(t, created, done)
	require.Regexp(t, `^steme_live_[0-9a-f]{48}$`, string(first.Data["root"]))
	require.Regexp(t, `^[0-9a-f]{64}$`, string(first.Data["cluster"]))
	require.NotContains(t, first.Labels, "app.kubernetes.io/instance")

	done, second, log, err := ensure(t, client)
	require.NoError(t, err)
	require.Equal(t, unchanged, done)
	require.Equal(t, first.Data, second.Data)
	require.NotContains(t, log, string(first.Data["root"]))

	_, other, _, err := ensure(t, fake.NewClientset())
	require.NoError(t, err)
	require.NotEqual(t, first.Data, other.Data)
}

func TestAddsOnlyWhatIsMissing(t *testing.T) {
	for name, held := range map[string]map[string]string{
		"root only":     {"root": goodRoot, "more": "x"},
		"with newline":  {"root": goodRoot + "\n"},
		"cluster only":  {"cluster": goodSecret},
		"empty":         {},
		"empty field":   {"root": "", "cluster": goodSecret},
		"blank cluster": {"root": goodRoot, "cluster": "\n"},
	} {
		t.Run(name, func(t *testing.T) {
			done, stored, _, err := ensure(t, fake.NewClientset(secretWith(held)))
			require.NoError(t, err)
			require.Equal(t, completed, done)
			for field, value := range held {
				if len(value) > 1 {
					require.Equal(t, value, string(stored.Data[field]))
				}
			}
			require.NotEmpty(t, stored.Data["root"])
			require.GreaterOrEqual(t, len(stored.Data["cluster"]), 32)
			require.Equal(t, map[string]string{"own": "label"}, stored.Labels)
		})
	}
}

func TestRefusesToReplaceWhatIsThere(t *testing.T) {
	frozen := true
	immutable := secretWith(map[string]string{"root": goodRoot})
	immutable.Immutable = &frozen
	for says, held := range map[string]*corev1.Secret{
		`field "root" of Secret ns/s is not steme_live_`:          secretWith(map[string]string{"root": "secret"}),
		`field "cluster" of Secret ns/s is shorter than 32 bytes`: secretWith(map[string]string{"root": goodRoot, "cluster": "short"}),
		"lacks a field and is immutable":                          immutable,
	} {
		client := fake.NewClientset(held)
		_, stored, log, err := ensure(t, client)
		require.ErrorContains(t, err, says)
		require.Empty(t, log, "no second attempt")
		require.Equal(t, held.Data, stored.Data)
		require.Len(t, client.Actions(), 2, "StatefulSet and Secret are read; nothing is written")
	}
}

// failing makes the first n calls of a verb fail.
func failing(client *fake.Clientset, verb string, n int32, err error) {
	var calls atomic.Int32
	client.PrependReactor(verb, "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		return calls.Add(1) <= n, nil, err
	})
}

func TestPassingFaultsAreRepeated(t *testing.T) {
	for name, c := range map[string]struct {
		verb string
		err  error
	}{
		"no connection":  {"get", errors.New("connection refused")},
		"unavailable":    {"get", apierrors.NewServiceUnavailable("starting")},
		"too many":       {"create", apierrors.NewTooManyRequests("later", 1)},
		"internal":       {"create", apierrors.NewInternalError(errors.New("etcd"))},
		"webhook":        {"create", apierrors.NewTimeoutError("webhook", 1)},
		"role not known": {"get", apierrors.NewForbidden(resource, "s", errors.New("no role"))},
		"other writer":   {"create", apierrors.NewAlreadyExists(resource, "s")},
	} {
		t.Run(name, func(t *testing.T) {
			client := fake.NewClientset()
			failing(client, c.verb, attempts-1, c.err)
			done, _, log, err := ensure(t, client)
			require.NoError(t, err)
			require.Equal(t, created, done)
			require.Contains(t, log, "trying again")

			client = fake.NewClientset()
			failing(client, c.verb, attempts, c.err)
			_, _, _, err = ensure(t, client)
			require.ErrorContains(t, err, "gave up after 6 attempts")
			require.ErrorIs(t, err, c.err)
		})
	}
}

// A writer between our read and our update wins; the next attempt sees its
// values.
func TestConflictReadsAgain(t *testing.T) {
	client := fake.NewClientset(secretWith(map[string]string{"root": goodRoot}))
	var raced atomic.Bool
	client.PrependReactor("update", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		if raced.Swap(true) {
			return false, nil, nil
		}
		theirs := secretWith(map[string]string{"root": goodRoot, "cluster": goodSecret})
		err := client.Tracker().Update(schema.GroupVersionResource{Version: "v1", Resource: "secrets"}, theirs, "ns")
		return true, nil, errors.Join(err, apierrors.NewConflict(resource, "s", errors.New("changed")))
	})
	done, stored, _, err := ensure(t, client)
	require.NoError(t, err)
	require.Equal(t, unchanged, done)
	require.Equal(t, goodSecret, string(stored.Data["cluster"]))
}

func TestLastingFaultsEndAtOnce(t *testing.T) {
	for says, fault := range map[string]error{
		"automountServiceAccountToken": apierrors.NewUnauthorized("no token"),
		"too long":                     apierrors.NewBadRequest("too long"),
	} {
		client := fake.NewClientset()
		failing(client, "get", 1, fault)
		_, _, log, err := ensure(t, client)
		require.ErrorContains(t, err, says)
		require.Empty(t, log)
	}
}

func TestForbiddenNamesTheRights(t *testing.T) {
	client := fake.NewClientset()
	failing(client, "get", attempts, apierrors.NewForbidden(resource, "s", errors.New("no role")))
	_, _, _, err := ensure(t, client)
	require.ErrorContains(t, err, `needs get on StatefulSet "r" and on Secret "s" in namespace "ns"`)
	require.ErrorContains(t, err, "secrets.previous.name")
}

func TestTimeoutEndsThePauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		failing(client, "get", 100, apierrors.NewServiceUnavailable("starting"))
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, err := ensureSecret(ctx, clusterOf(client), spec, slog.New(slog.DiscardHandler))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.True(t, apierrors.IsServiceUnavailable(err), "the cause is reported too: %v", err)
	})
}

// Over real HTTP: the paths and bodies that the API receives.
func TestOverHTTP(t *testing.T) {
	var made corev1.Secret
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/namespaces/ns/secrets/s", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusNotFound, apierrors.NewNotFound(resource, "s").Status())
	})
	mux.HandleFunc("GET /apis/apps/v1/namespaces/ns/statefulsets/r", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusNotFound, apierrors.NewNotFound(schema.GroupResource{Group: "apps", Resource: "statefulsets"}, "r").Status())
	})
	mux.HandleFunc("POST /api/v1/namespaces/ns/secrets", func(w http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&made); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		answer(w, http.StatusCreated, &made)
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	connect := func() (cluster, error) {
		return newCluster(&rest.Config{Host: server.URL, ContentConfig: rest.ContentConfig{ContentType: "application/json"}})
	}
	var log bytes.Buffer
	command := newCommand(slog.New(slog.NewJSONHandler(&log, nil)), connect)
	command.SetArgs([]string{"ensure-secret", "--namespace=ns", "--name=s", "--statefulset=r", "--root-key-field=root", "--cluster-secret-field=cluster"})
	require.NoError(t, command.ExecuteContext(t.Context()))
	require.Equal(t, "s", made.Name)
	require.Len(t, made.Data, 2)
	require.Contains(t, log.String(), `"result":"created"`)
	require.NotContains(t, log.String(), string(made.Data["root"]))
}

func answer(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if status, ok := body.(metav1.Status); ok {
		status.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
		body = status
	}
	_ = json.NewEncoder(w).Encode(body)
}

func TestBadFlagsNameThemselves(t *testing.T) {
	refuse := func() (cluster, error) { return cluster{}, errors.New("must not connect") }
	for says, args := range map[string][]string{
		"--name is empty":        {"--namespace=a"},
		"--statefulset is empty": {"--name=a"},
		"--namespace is empty":   {"--name=a", "--statefulset=r"},
		"--source is \"vault\"":  {"--name=a", "--statefulset=r", "--source=vault"},
		"--staged-name is empty": {"--name=a", "--statefulset=r", "--source=externalSecret"},
		"--root-key-field is":    {"--name=a", "--statefulset=r", "--namespace=b", "--root-key-field="},
		"--cluster-secret-fiel":  {"--name=a", "--statefulset=r", "--namespace=b", "--cluster-secret-field="},
		"are both \"x\"":         {"--name=a", "--statefulset=r", "--namespace=b", "--root-key-field=x", "--cluster-secret-field=x"},
		"unknown flag: --nam":    {"--nam=a"},
		"unknown command \"y\"":  {"y"},
	} {
		command := newCommand(slog.New(slog.DiscardHandler), refuse)
		command.SetArgs(append([]string{"ensure-secret"}, args...))
		require.ErrorContains(t, command.ExecuteContext(t.Context()), says)
	}
}

func TestOutsideAClusterSaysSo(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	_, err := connect()
	require.ErrorContains(t, err, "run this command in a pod")
}
