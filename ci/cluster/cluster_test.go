package cluster

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/ci/process"
	"github.com/stemedb/stemedb/ci/process/processtest"
	"github.com/stemedb/stemedb/ci/progress"
)

// namedTools names a tool by itself.
type namedTools struct{}

func (namedTools) Path(_ context.Context, name string) (string, error) { return name, nil }

func (namedTools) Paths(_ context.Context, names ...string) (map[string]string, error) {
	paths := map[string]string{}
	for _, n := range names {
		paths[n] = n
	}
	return paths, nil
}

func testOptions(t *testing.T, r process.Runner) Options {
	t.Helper()
	return Options{Dir: filepath.Join(t.TempDir(), "cluster"), Runner: r, Reporter: progress.New(io.Discard), Tools: namedTools{}}
}

func TestProbe(t *testing.T) {
	usable := func() error { return nil }
	notRoot := func() error { return errors.New("it needs root") }
	for name, c := range map[string]struct {
		machine *processtest.Recorder
		source  func() error
		want    string
		reason  string
		err     string
	}{
		"docker and k3d's images are available": {
			machine: (&processtest.Recorder{}).Fail("docker image inspect", "no such image"), source: usable,
			want: "k3d", reason: K3sImage,
		},
		"k3d's images are there already": {
			machine: (&processtest.Recorder{}).Fail("docker manifest", "no registry"), source: usable,
			want: "k3d", reason: K3sImage,
		},
		"only kind's image is available": {
			machine: (&processtest.Recorder{}).Fail("docker image inspect", "no such image").
				Fail("docker manifest inspect "+K3sImage, "not found"), source: usable,
			want: "kind", reason: KindImage,
		},
		"k3d's second image is not available": {
			machine: (&processtest.Recorder{}).Fail("docker image inspect "+K3DToolsImage, "no such image").
				Fail("docker manifest inspect "+K3DToolsImage, "not found"), source: usable,
			want: "kind", reason: KindImage,
		},
		"docker without a registry": {
			machine: (&processtest.Recorder{}).Fail("docker image inspect", "no such image").Fail("docker manifest", "no registry"), source: usable,
			want: "source", reason: "the image " + K3sImage + " is not available",
		},
		"no docker": {
			machine: (&processtest.Recorder{}).Fail("docker", "cannot connect"), source: usable,
			want: "source", reason: "no docker daemon responds",
		},
		"nothing at all": {
			machine: (&processtest.Recorder{}).Fail("docker", "cannot connect"), source: notRoot,
			err: "no cluster provider works on this machine: no docker daemon responds; source: it needs root",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := probe(t.Context(), c.machine, c.source)
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.want, got.Provider)
			require.Contains(t, got.Reason, c.reason)
			for _, line := range c.machine.Commands() {
				require.NotContains(t, line, "pull", "the check downloads no image")
			}
		})
	}
}

func TestChooseKeepsToWhatIsUp(t *testing.T) {
	r := &processtest.Recorder{}
	o := testOptions(t, r)
	got, err := Choose(t.Context(), o, "kind")
	require.NoError(t, err)
	require.Equal(t, Choice{"kind", "it was requested"}, got)
	require.Empty(t, r.Commands(), "an explicit request needs no check of the machine")

	require.NoError(t, writeRecord(o, "k3d"))
	got, err = Choose(t.Context(), o, "")
	require.NoError(t, err)
	require.Equal(t, "k3d", got.Provider)
	_, err = Choose(t.Context(), o, "kind")
	require.ErrorContains(t, err, "holds a cluster of k3d")
	_, err = Choose(t.Context(), o, "minikube")
	require.ErrorContains(t, err, `no cluster provider "minikube"`)
}

func TestExistingIsNeverImplicit(t *testing.T) {
	r := &processtest.Recorder{}
	o := testOptions(t, r)
	_, err := Up(t.Context(), o, "existing")
	require.ErrorContains(t, err, "needs the name of a context")
	require.Empty(t, r.Commands())

	o.Context = "staging"
	r.On("kubectl config view", "clusters: []")
	p, err := Up(t.Context(), o, "existing")
	require.NoError(t, err)
	own := "kubectl --kubeconfig=" + o.kubeconfigPath() + " --request-timeout=30s "
	require.Equal(t, []string{
		"kubectl config view --raw --minify --flatten --context staging",
		own + "wait --for=condition=Ready node --all --timeout=180s",
	}, r.Commands())
	require.Error(t, p.LoadImage(t.Context(), "x.tar"))
	_, ok := p.(Faults)
	require.False(t, ok, "an existing cluster supports no faults")

	// Later commands know the context without the flag, and reject a different one.
	o.Context = ""
	_, err = Open(o)
	require.NoError(t, err)
	o.Context = "production"
	_, err = Open(o)
	require.ErrorContains(t, err, `created with "staging"`)

	o.Context = ""
	before := len(r.Commands())
	was, err := Down(t.Context(), o)
	require.NoError(t, err)
	require.True(t, was)
	require.Len(t, r.Commands(), before, "taking it down contacts no cluster")
	require.NoDirExists(t, o.Dir)
}

func TestK3DCommands(t *testing.T) {
	r := (&processtest.Recorder{}).On("k3d kubeconfig get", "clusters: []")
	o := testOptions(t, r)
	p, err := New("k3d", o)
	require.NoError(t, err)
	require.NoError(t, p.Check(t.Context()))
	require.NoError(t, p.Up(t.Context()))
	require.NoError(t, p.LoadImage(t.Context(), "a.tar", "b.tar"))
	f := p.(Faults)
	r.On("docker inspect", "172.18.0.1\n").On("docker exec k3d-stemedb-agent-0 crictl", "4242\n")
	require.NoError(t, f.CutNode(t.Context(), "k3d-stemedb-agent-0"))
	require.NoError(t, f.HealNode(t.Context(), "k3d-stemedb-agent-0"))
	require.NoError(t, f.SignalContainer(t.Context(), "k3d-stemedb-agent-0", "abc", syscall.SIGKILL))
	require.NoError(t, p.Down(t.Context()))
	require.Equal(t, []string{
		"docker info --format '{{.ServerVersion}}'",
		"k3d cluster list --no-headers",
		"k3d cluster create --config " + filepath.Join(o.Dir, "k3d.yaml"),
		"k3d kubeconfig get stemedb",
		"kubectl --kubeconfig=" + o.kubeconfigPath() + " --request-timeout=30s wait --for=condition=Ready node --all --timeout=180s",
		"k3d image import --cluster stemedb --mode direct a.tar b.tar",
		"docker exec k3d-stemedb-agent-0 ip link set eth0 down",
		"docker exec k3d-stemedb-agent-0 ip link set eth0 up",
		"docker inspect --format '{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}' k3d-stemedb-agent-0",
		"docker exec k3d-stemedb-agent-0 ip route replace default via 172.18.0.1",
		"docker exec k3d-stemedb-agent-0 crictl inspect --output go-template --template '{{.info.pid}}' abc",
		"docker exec k3d-stemedb-agent-0 kill -9 4242",
		"k3d cluster delete stemedb",
	}, r.Commands())
	config, err := os.ReadFile(filepath.Join(o.Dir, "k3d.yaml"))
	require.NoError(t, err)
	require.Equal(t, K3DConfig, string(config))
}

func TestK3DUpTwice(t *testing.T) {
	r := (&processtest.Recorder{}).On("k3d kubeconfig get", "clusters: []").On("k3d cluster list", "stemedb 1/1 2/2 false\n")
	p, err := New("k3d", testOptions(t, r))
	require.NoError(t, err)
	require.NoError(t, p.Up(t.Context()))
	require.Contains(t, r.Commands(), "k3d cluster start stemedb --wait")
	require.NotContains(t, strings.Join(r.Commands(), "\n"), "create")
}

func TestKindCommands(t *testing.T) {
	r := (&processtest.Recorder{}).On("kind get kubeconfig", "clusters: []").On("kind get clusters", "other\n")
	o := testOptions(t, r)
	p, err := New("kind", o)
	require.NoError(t, err)
	require.NoError(t, p.Up(t.Context()))
	require.NoError(t, p.LoadImage(t.Context(), "a.tar", "b.tar"))
	require.NoError(t, p.Down(t.Context()))
	kubectl := "kubectl --kubeconfig=" + o.kubeconfigPath() + " --request-timeout=30s "
	own := filepath.Join(o.Dir, "kind.kubeconfig")
	require.Equal(t, []string{
		"kind get clusters",
		"kind create cluster --name stemedb --config " + filepath.Join(o.Dir, "kind.yaml") + " --kubeconfig " + own + " --wait 5m",
		"kind get kubeconfig --name stemedb",
		kubectl + "wait --for=condition=Ready node --all --timeout=180s",
		kubectl + "apply --server-side --force-conflicts --filename=-",
		"kind load image-archive a.tar --name stemedb",
		"kind load image-archive b.tar --name stemedb",
		"kind delete cluster --name stemedb --kubeconfig " + own,
	}, r.Commands())
	require.Equal(t, []string{kindStorageClass}, r.Inputs(kubectl+"apply"))

	again := (&processtest.Recorder{}).On("kind get kubeconfig", "clusters: []").On("kind get clusters", "stemedb\n")
	p, err = New("kind", testOptions(t, again))
	require.NoError(t, err)
	require.NoError(t, p.Up(t.Context()))
	require.NotContains(t, strings.Join(again.Commands(), "\n"), "create cluster")
}

func TestImagesAreNamedOnce(t *testing.T) {
	require.Contains(t, K3DConfig, "image: "+K3sImage+"\n")
	require.Equal(t, 3, strings.Count(KindConfig, "image: "+KindImage+"\n"))
}

// Every command of the providers other than existing must use the cluster's own
// kubeconfig, or name the cluster, or concern docker itself.
func TestNothingTouchesTheUsersKubeconfig(t *testing.T) {
	for _, name := range []string{"k3d", "kind"} {
		r := (&processtest.Recorder{}).On("k3d kubeconfig get", "clusters: []").On("kind get kubeconfig", "clusters: []")
		o := testOptions(t, r)
		p, err := Up(t.Context(), o, name)
		require.NoError(t, err)
		_, err = p.Status(t.Context())
		require.NoError(t, err)
		_, err = Down(t.Context(), o)
		require.NoError(t, err)
		for _, line := range r.Commands() {
			if strings.HasPrefix(line, "kubectl") || strings.Contains(line, "create cluster") || strings.Contains(line, "delete cluster") {
				require.Contains(t, line, o.Dir, line)
			}
		}
	}
	require.Contains(t, K3DConfig, "updateDefaultKubeconfig: false")
}

func TestFailedCheckChangesNothing(t *testing.T) {
	r := (&processtest.Recorder{}).Fail("docker info", "cannot connect")
	o := testOptions(t, r)
	_, err := Up(t.Context(), o, "k3d")
	require.ErrorContains(t, err, "check this machine")
	require.NoDirExists(t, o.Dir)
	require.Equal(t, []string{"docker info --format '{{.ServerVersion}}'"}, r.Commands())
}

func TestOneCommandAtATime(t *testing.T) {
	o := testOptions(t, &processtest.Recorder{})
	unlock, err := o.lock()
	require.NoError(t, err)
	_, err = Up(t.Context(), o, "kind")
	require.ErrorContains(t, err, "another command")
	unlock()
	again, err := o.lock()
	require.NoError(t, err)
	again()
}

func TestDownWithoutACluster(t *testing.T) {
	r := &processtest.Recorder{}
	was, err := Down(t.Context(), testOptions(t, r))
	require.NoError(t, err)
	require.False(t, was)
	require.Empty(t, r.Commands())
}

type signalled struct {
	node, id string
	signal   syscall.Signal
}

// faultRecorder records the signals that were sent.
type faultRecorder struct{ got chan signalled }

func (faultRecorder) CutNode(context.Context, string) error  { return nil }
func (faultRecorder) HealNode(context.Context, string) error { return nil }

func (f faultRecorder) SignalContainer(_ context.Context, node, id string, s syscall.Signal) error {
	f.got <- signalled{node, id, s}
	return nil
}

func TestSignalFindsAllBeforeTheFirst(t *testing.T) {
	o := testOptions(t, nil)
	kubectl := "kubectl --kubeconfig=" + o.kubeconfigPath() + " --request-timeout=30s get pod "
	r := (&processtest.Recorder{}).On(kubectl+"a-0 ", "node1 containerd://aaa").On(kubectl+"a-1 ", "node2 containerd://bbb").On(kubectl+"a-2 ", "node3 ")
	o.Runner = r
	f := faultRecorder{got: make(chan signalled, 2)}
	at := func(pod string) Container { return Container{"ns", pod, "server"} }
	require.NoError(t, Signal(t.Context(), o, f, syscall.SIGKILL, at("a-0"), at("a-1")))
	require.ElementsMatch(t, []signalled{{"node1", "aaa", syscall.SIGKILL}, {"node2", "bbb", syscall.SIGKILL}}, []signalled{<-f.got, <-f.got})

	require.ErrorContains(t, Signal(t.Context(), o, f, syscall.SIGKILL, at("a-0"), at("a-2")), "ns/a-2/server is not running")
	require.Empty(t, f.got, "if one is missing, the others get no signal")

	_, err := ParseContainer("ns/pod")
	require.ErrorContains(t, err, "NAMESPACE/POD/CONTAINER")
}

func TestSourceRanges(t *testing.T) {
	o := testOptions(t, &processtest.Recorder{})
	o.PodRange = "10.0.0.0/8"
	_, err := New("source", o)
	require.ErrorContains(t, err, "pod range")
	o.PodRange = "nonsense"
	_, err = New("source", o)
	require.ErrorContains(t, err, "--pod-range")
	o.PodRange = "10.200.0.0/16"
	_, err = New("source", o)
	require.NoError(t, err)
}
