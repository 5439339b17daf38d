package pipeline

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/ci/process"
	"github.com/stemedb/stemedb/ci/process/processtest"
	"github.com/stemedb/stemedb/ci/progress"
	"github.com/stemedb/stemedb/ci/tools"
)

// machine runs nothing; the output files of a build appear, empty.
type machine struct{ processtest.Recorder }

func (m *machine) Run(ctx context.Context, c process.Command) (string, error) {
	if i := slices.Index(c.Args, "-o"); c.Name == "go" && i > 0 {
		if err := os.MkdirAll(filepath.Dir(c.Args[i+1]), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(c.Args[i+1], nil, 0o755); err != nil {
			return "", err
		}
	}
	return m.Recorder.Run(ctx, c)
}

// spoken lists the commands sent to the cluster, without builds and without
// kubectl's address arguments.
func (m *machine) spoken(p *Pipeline) []string {
	var lines []string
	for _, line := range m.Commands() {
		line = strings.ReplaceAll(line, filepath.Join(p.State, "bin")+"/", "")
		if !strings.HasPrefix(line, "go ") && !strings.HasPrefix(line, "git ") {
			lines = append(lines, line)
		}
	}
	return lines
}

func testPipeline(t *testing.T, provider string) (*Pipeline, *machine) {
	t.Helper()
	root, err := tools.CheckoutDir()
	require.NoError(t, err)
	t.Setenv("STEMEDB_STATE", t.TempDir())
	t.Setenv("STEMEDB_CLUSTER_IMAGE", "")
	t.Setenv("PATH", os.Getenv("PATH")) // the pipeline changes it
	m, reporter := &machine{}, progress.New(io.Discard)
	p := &Pipeline{Root: root, State: t.TempDir(), Runner: m, Reporter: reporter, Provider: provider}
	p.Tools = &tools.Builder{Dir: filepath.Join(root, "ci", "tools"), Cache: t.TempDir(), Runner: m, Reporter: reporter}
	m.On(filepath.Join(p.State, "bin", "cluster")+" kubeconfig", "/state/kubeconfig\n")
	return p, m
}

// recordExisting writes the state that `cluster up` leaves with the provider existing.
func recordExisting(t *testing.T) {
	t.Helper()
	dir := filepath.Join(os.Getenv("STEMEDB_STATE"), "cluster")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "cluster.json"), []byte(`{"provider":"existing","context":"mine"}`), 0o600))
}

// ownerID is the id of the test's state folder.
func ownerID(t *testing.T) string {
	t.Helper()
	id, err := owner()
	require.NoError(t, err)
	return id
}

const lookForOurs = `kubectl get namespace stemedb --ignore-not-found --output 'jsonpath={.metadata.name} {.metadata.labels.stemedb\.dev/made-by}'`

// withoutText replaces random text in a line of helm's with TEXT.
func withoutText(lines []string) []string {
	for i, line := range lines {
		lines[i] = regexp.MustCompile(`/image=[A-Z2-7]{26}`).ReplaceAllString(line, "/image=TEXT")
	}
	return lines
}

// For an existing cluster nothing is built or loaded: it pulls the named image.
func TestUpOnAnExistingCluster(t *testing.T) {
	const volumes = " persistence.wal.storageClassName= persistence.db.storageClassName="
	for reference, want := range map[string]string{
		"registry.example:5000/facts/stemedb:1.2": "image.registry= image.repository=registry.example:5000/facts/stemedb image.tag=1.2 image.digest=" + volumes + ` image.pullPolicy=Always podAnnotations.stemedb\.dev/image=TEXT`,
		"stemedb/stemedb@sha256:ab":               "image.registry= image.repository=stemedb/stemedb image.tag= image.digest=sha256:ab" + volumes,
		"host/stemedb:1@sha256:ab":                "image.registry= image.repository=host/stemedb image.tag=1 image.digest=sha256:ab" + volumes,
	} {
		t.Run(reference, func(t *testing.T) {
			p, m := testPipeline(t, "existing")
			t.Setenv("STEMEDB_CLUSTER_IMAGE", reference)
			env, err := p.release(t.Context())
			require.NoError(t, err)
			require.Equal(t, []string{"KUBECONFIG=/state/kubeconfig"}, env)
			require.Equal(t, []string{
				"cluster up", "cluster kubeconfig", lookForOurs,
				"kubectl create --filename -",
				"kubectl label --overwrite namespace stemedb pod-security.kubernetes.io/enforce=restricted",
				"helm upgrade --install stemedb charts/stemedb --namespace stemedb --values values/dev.yaml --set-string " +
					strings.ReplaceAll(want, " ", " --set-string ") + " --wait --timeout 5m",
			}, withoutText(m.spoken(p)))
			require.Contains(t, m.Inputs("kubectl create")[0], "labels: {stemedb.dev/made-by: "+ownerID(t)+"}")
		})
	}
}

// Impossible requests are rejected before anything is built or queried.
func TestUpRefusesAtOnce(t *testing.T) {
	for name, c := range map[string]struct{ provider, image, says string }{
		"no image":                   {"existing", "", "images cannot be loaded onto the nodes"},
		"no version":                 {"existing", "host:5000/stemedb", "has no version"},
		"no name":                    {"existing", ":1", "has no version"},
		"an image for our cluster":   {"", "stemedb:1", "gets the image of this checkout"},
		"an image for a k3d cluster": {"k3d", "stemedb:1", "gets the image of this checkout"},
	} {
		t.Run(name, func(t *testing.T) {
			p, m := testPipeline(t, c.provider)
			t.Setenv("STEMEDB_CLUSTER_IMAGE", c.image)
			require.ErrorContains(t, p.Up(t.Context()), c.says)
			require.Empty(t, m.Commands())
		})
	}
	t.Run("the existing cluster of an earlier run", func(t *testing.T) {
		p, m := testPipeline(t, "")
		recordExisting(t)
		require.ErrorContains(t, p.Up(t.Context()), "images cannot be loaded onto the nodes")
		require.ErrorContains(t, p.Gate(t.Context()), "the gate tests cut nodes off")
		require.ErrorContains(t, p.Test(t.Context()), "the gate tests cut nodes off")
		require.Empty(t, m.Commands())
	})
}

// Another user's release is neither changed nor removed, even if it was
// installed by make up.
func TestSomebodyElsesNamespaceIsLeftAlone(t *testing.T) {
	t.Setenv("STEMEDB_STATE", t.TempDir())
	colleague := ownerID(t)
	for name, label := range map[string]string{"no label": "", "a colleague's": colleague, "without an id": "make-up"} {
		t.Run(name, func(t *testing.T) {
			p, m := testPipeline(t, "existing")
			t.Setenv("STEMEDB_CLUSTER_IMAGE", "host/stemedb:1")
			m.On("kubectl get namespace", "stemedb "+label)
			_, err := p.release(t.Context())
			require.ErrorContains(t, err, "was not created by make up with this state folder")
			recordExisting(t)
			require.NoError(t, p.Down(t.Context()))
			require.Equal(t, []string{
				"cluster up", "cluster kubeconfig", lookForOurs,
				"cluster kubeconfig", lookForOurs, "cluster down",
			}, m.spoken(p))
		})
	}
}

// The release of an earlier run with the same state folder is updated: with a
// tag the pods restart, since it may refer to another image by now; with a
// digest they restart only if the digest has changed.
func TestUpAgainOnAnExistingCluster(t *testing.T) {
	for image, restarts := range map[string]bool{"host/stemedb:1": true, "host/stemedb:1@sha256:ab": false} {
		t.Run(image, func(t *testing.T) { upAgain(t, image, restarts) })
	}
}

func upAgain(t *testing.T, image string, restarts bool) {
	t.Helper()
	p, m := testPipeline(t, "existing")
	t.Setenv("STEMEDB_CLUSTER_IMAGE", image)
	_, err := p.release(t.Context())
	require.NoError(t, err)
	_, id, _ := strings.Cut(m.Inputs("kubectl create")[0], "made-by: ")
	id, _, _ = strings.Cut(id, "}")
	m.On("kubectl get namespace", "stemedb "+id)
	_, err = p.release(t.Context())
	require.NoError(t, err)
	require.Len(t, m.Inputs("kubectl create"), 1)
	installs := slices.DeleteFunc(m.spoken(p), func(line string) bool { return !strings.HasPrefix(line, "helm upgrade") })
	require.Len(t, installs, 2)
	require.Equal(t, restarts, installs[0] != installs[1], "%q", installs)
}

func TestDownOnAnExistingCluster(t *testing.T) {
	p, m := testPipeline(t, "")
	recordExisting(t)
	m.On("kubectl get namespace", "stemedb "+ownerID(t))
	require.NoError(t, p.Down(t.Context()))
	require.Equal(t, []string{
		"cluster kubeconfig", lookForOurs,
		"helm uninstall stemedb --namespace stemedb --ignore-not-found --wait --timeout 5m",
		"kubectl delete namespace stemedb --ignore-not-found --timeout=5m",
		"cluster down",
	}, m.spoken(p))

	// A release that could not be removed is still recorded afterwards.
	p, m = testPipeline(t, "")
	recordExisting(t)
	m.On("kubectl get namespace", "stemedb "+ownerID(t)).Fail("helm uninstall", "no answer")
	require.ErrorContains(t, p.Down(t.Context()), "no answer")
	require.NotContains(t, m.spoken(p), "cluster down")
}

// Our own cluster is removed completely.
func TestDownOnOurCluster(t *testing.T) {
	p, m := testPipeline(t, "")
	require.NoError(t, p.Down(t.Context()))
	require.Equal(t, []string{"cluster down"}, m.spoken(p))
}
