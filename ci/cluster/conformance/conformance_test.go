package conformance

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	k3dcmd "github.com/k3d-io/k3d/v5/cmd"
	k3dconfig "github.com/k3d-io/k3d/v5/pkg/config"
	"github.com/k3d-io/k3d/v5/pkg/config/v1alpha5"
	"github.com/k3d-io/k3d/v5/pkg/runtimes"
	k3dtypes "github.com/k3d-io/k3d/v5/pkg/types"
	k3dversion "github.com/k3d-io/k3d/v5/version"
	"github.com/spf13/cobra"
	"github.com/spf13/viper"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/kind/pkg/apis/config/defaults"
	kind "sigs.k8s.io/kind/pkg/cluster"
	kindcommon "sigs.k8s.io/kind/pkg/cmd"
	kindcmd "sigs.k8s.io/kind/pkg/cmd/kind"
	"sigs.k8s.io/kind/pkg/log"

	"github.com/stemedb/stemedb/ci/cluster"
	"github.com/stemedb/stemedb/ci/process/processtest"
	"github.com/stemedb/stemedb/ci/progress"
)

func TestK3DConfig(t *testing.T) {
	file := filepath.Join(t.TempDir(), "k3d.yaml")
	require.NoError(t, os.WriteFile(file, []byte(cluster.K3DConfig), 0o600))
	schema, err := k3dconfig.GetSchemaByVersion(v1alpha5.ApiVersion)
	require.NoError(t, err)
	require.NoError(t, k3dconfig.ValidateSchemaFile(file, schema))

	v := viper.New()
	v.SetConfigFile(file)
	require.NoError(t, v.ReadInConfig())
	read, err := k3dconfig.FromViper(v)
	require.NoError(t, err)
	simple := read.(v1alpha5.SimpleConfig)
	require.NoError(t, k3dconfig.ProcessSimpleConfig(&simple))
	full, err := k3dconfig.TransformSimpleToClusterConfig(t.Context(), runtimes.Docker, simple, file)
	require.NoError(t, err)
	full, err = k3dconfig.ProcessClusterConfig(*full)
	require.NoError(t, err)
	require.NoError(t, k3dconfig.ValidateClusterConfig(t.Context(), runtimes.Docker, *full))

	require.Equal(t, cluster.Name, full.Name)
	require.Len(t, full.Nodes, 3)
	roles := map[k3dtypes.Role]int{}
	for _, n := range full.Nodes {
		roles[n.Role]++
		require.Equal(t, cluster.K3sImage, n.Image)
		require.Contains(t, n.Args, "--kubelet-arg=node-status-update-frequency=4s")
	}
	require.Equal(t, map[k3dtypes.Role]int{k3dtypes.ServerRole: 1, k3dtypes.AgentRole: 2}, roles)
	require.False(t, full.KubeconfigOpts.UpdateDefaultKubeconfig, "~/.kube/config is not written")
	require.False(t, full.KubeconfigOpts.SwitchCurrentContext)
	require.True(t, full.ClusterCreateOpts.DisableLoadBalancer)
}

// A misspelt key must be detected, or the test above proves nothing.
func TestK3DSchemaRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "k3d.yaml")
	require.NoError(t, os.WriteFile(file, []byte(strings.Replace(cluster.K3DConfig, "agents:", "agent:", 1)), 0o600))
	schema, err := k3dconfig.GetSchemaByVersion(v1alpha5.ApiVersion)
	require.NoError(t, err)
	require.Error(t, k3dconfig.ValidateSchemaFile(file, schema))
}

func TestK3DToolsImage(t *testing.T) {
	require.Equal(t, k3dtypes.DefaultToolsImageRepo+":"+"5.8.3", cluster.K3DToolsImage)
	mod, err := os.ReadFile("go.mod")
	require.NoError(t, err)
	require.Contains(t, string(mod), "github.com/k3d-io/k3d/v5 v5.8.3", "the images belong to this version")
	require.NotEmpty(t, k3dversion.GetVersion())
}

// fakeDocker is a docker that records its commands and reports that a node has
// begun, so that kind reads, completes and validates its configuration, starts
// every node, and stops at the end because there is none.
const fakeDocker = `#!/bin/sh
echo "$*" >> "$DOCKER_LOG"
case "$1" in
info) echo '{"SecurityOptions":[],"Driver":"overlay2","CgroupDriver":"cgroupfs","CgroupVersion":"2","MemoryLimit":true,"PidsLimit":true,"CPUShares":true,"KernelVersion":"6.1"}' ;;
ps|inspect) ;;
image|network|pull) ;;
logs) echo "Reached target Multi-User System" ;;
exec) exit 1 ;;
esac
exit 0
`

// provision lets kind work on the configuration and returns the calls of docker run.
func provision(t *testing.T, config string) ([]string, error) {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "docker"), []byte(fakeDocker), 0o700))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	calls := filepath.Join(dir, "log")
	t.Setenv("DOCKER_LOG", calls)
	err := kind.NewProvider(kind.ProviderWithDocker()).Create(cluster.Name,
		kind.CreateWithRawConfig([]byte(config)), kind.CreateWithKubeconfigPath(filepath.Join(dir, "kubeconfig")))
	text, readErr := os.ReadFile(calls)
	if !os.IsNotExist(readErr) { // docker was not called at all
		require.NoError(t, readErr)
	}
	var runs []string
	for _, line := range strings.Split(string(text), "\n") {
		if strings.HasPrefix(line, "run ") {
			runs = append(runs, line)
		}
	}
	return runs, err
}

func TestKindConfig(t *testing.T) {
	require.Equal(t, defaults.Image, cluster.KindImage, "the node image belongs to this version of kind")
	runs, err := provision(t, cluster.KindConfig)
	require.Error(t, err, "there is no docker")
	require.Len(t, runs, 3)
	for _, call := range runs {
		require.Contains(t, call, cluster.KindImage)
		require.Contains(t, call, "io.x-k8s.kind.cluster="+cluster.Name)
	}
	require.Contains(t, strings.Join(runs, "\n"), "--publish=127.0.0.1:")
}

func TestKindRefuses(t *testing.T) {
	runs, err := provision(t, strings.Replace(cluster.KindConfig, "role: worker", "roll: worker", 1))
	require.ErrorContains(t, err, "roll")
	require.Empty(t, runs)
}

// fakeTools names a tool by itself.
type fakeTools struct{}

func (fakeTools) Path(_ context.Context, name string) (string, error) { return name, nil }

func (fakeTools) Paths(_ context.Context, names ...string) (map[string]string, error) {
	paths := map[string]string{}
	for _, n := range names {
		paths[n] = n
	}
	return paths, nil
}

// TestCommandsParse lets the projects' own command lines read every command
// that the providers run.
func TestCommandsParse(t *testing.T) {
	roots := map[string]func() *cobra.Command{
		"k3d": k3dcmd.NewCmdK3d,
		"kind": func() *cobra.Command {
			return kindcmd.NewCommand(log.NoopLogger{}, kindcommon.StandardIOStreams())
		},
	}
	for name, root := range roots {
		for _, there := range []bool{false, true} {
			r := &processtest.Recorder{}
			r.On("k3d kubeconfig get", "clusters: []").On("kind get kubeconfig", "clusters: []")
			if there {
				r.On("k3d cluster list", cluster.Name+" 1/1 2/2 false").On("kind get clusters", cluster.Name)
			}
			p, err := cluster.New(name, cluster.Options{Dir: t.TempDir(), Runner: r, Reporter: progress.New(io.Discard), Tools: fakeTools{}})
			require.NoError(t, err)
			require.NoError(t, p.Up(t.Context()))
			require.NoError(t, p.LoadImage(t.Context(), "a.tar", "b.tar"))
			require.NoError(t, p.Down(t.Context()))

			seen := 0
			for _, line := range r.Commands() {
				words := strings.Fields(line)
				if words[0] != name {
					continue
				}
				seen++
				found, rest, err := root().Find(words[1:])
				require.NoError(t, err, line)
				require.True(t, found.Runnable(), line)
				require.NoError(t, found.ParseFlags(rest), line)
				require.NoError(t, found.ValidateArgs(found.Flags().Args()), line)
			}
			require.GreaterOrEqual(t, seen, 4)
		}
	}
}
