package tools

import (
	"context"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/ci/process"
	"github.com/stemedb/stemedb/ci/progress"
)

// compiler simulates go: it answers GOVERSION and writes the output file.
type compiler struct {
	version string
	fail    error
	builds  atomic.Int32
}

func (c *compiler) Run(_ context.Context, cmd process.Command) (string, error) {
	if cmd.Args[0] == "env" {
		return c.version + "\n", nil
	}
	c.builds.Add(1)
	for i, a := range cmd.Args {
		if a == "-o" {
			if err := os.WriteFile(cmd.Args[i+1], []byte("half"), 0o755); err != nil {
				return "", err
			}
		}
	}
	return "", c.fail
}

func testBuilder(t *testing.T, c *compiler) *Builder {
	t.Helper()
	dir := t.TempDir()
	for _, family := range []string{"etcd", "coredns"} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, family), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, family, "go.mod"), []byte("module "+family), 0o644))
		require.NoError(t, os.WriteFile(filepath.Join(dir, family, "go.sum"), []byte("one"), 0o644))
	}
	return &Builder{Dir: dir, Cache: t.TempDir(), Runner: c, Reporter: progress.New(io.Discard)}
}

func TestPathBuildsOnce(t *testing.T) {
	c := &compiler{version: "go1.26.8"}
	b := testBuilder(t, c)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			path, err := b.Path(t.Context(), "etcd")
			if err != nil || filepath.Base(path) != "etcd" {
				t.Errorf("path %q: %v", path, err)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 1, c.builds.Load(), "eight callers, one build")
}

func TestPathDependsOnWhatIsBuilt(t *testing.T) {
	c := &compiler{version: "go1.26.8"}
	b := testBuilder(t, c)
	first, err := b.Path(t.Context(), "etcd")
	require.NoError(t, err)

	change := map[string]func(){
		"go.sum":   func() { writeFile(t, b.Dir, "etcd/go.sum", "two") },
		"go.mod":   func() { writeFile(t, b.Dir, "etcd/go.mod", "module other") },
		"source":   func() { writeFile(t, b.Dir, "etcd/main.go", "package main") },
		"compiler": func() { c.version = "go1.27.0" },
	}
	seen := map[string]string{first: "nothing"}
	for what, apply := range change {
		apply()
		path, err := b.Path(t.Context(), "etcd")
		require.NoError(t, err)
		require.NotContains(t, seen, path, "a change of the %s must change the path", what)
		seen[path] = what
	}

	writeFile(t, b.Dir, "coredns/go.sum", "two")
	path, err := b.Path(t.Context(), "etcd")
	require.NoError(t, err)
	require.Contains(t, seen, path, "another family's sums do not matter")
}

func TestFailedBuildLeavesNothing(t *testing.T) {
	c := &compiler{version: "go1.26.8", fail: os.ErrPermission}
	b := testBuilder(t, c)
	path, err := b.Path(t.Context(), "etcd")
	require.ErrorContains(t, err, "build etcd")
	require.NoFileExists(t, path)
	left, err := filepath.Glob(filepath.Join(b.Cache, "tools", "*", "bin", "*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestUnknownToolNamesTheOthers(t *testing.T) {
	b := testBuilder(t, &compiler{version: "go1.26.8"})
	_, err := b.Path(t.Context(), "kubeadm")
	require.ErrorContains(t, err, `there is no tool "kubeadm"`)
}

func TestFamiliesMatchTheirModules(t *testing.T) {
	for _, f := range Families() {
		mod, err := os.ReadFile(filepath.Join(f.module(), "go.mod"))
		require.NoError(t, err)
		require.Contains(t, string(mod), "module "+path.Join("github.com/stemedb/stemedb/ci/tools", f.module())+"\n")
		for _, b := range f.Binaries {
			if strings.HasPrefix(b.Package, ".") {
				require.FileExists(t, filepath.Join(f.module(), b.Package, "main.go"))
				require.Equal(t, filepath.Join(f.module(), b.Package), filepath.Clean(f.sources()), "its code determines the build of %s", b.Name)
				continue
			}
			require.Contains(t, string(mod), b.Package, "%s is a tool of its module", b.Name)
		}
	}
	mod, err := os.ReadFile("kubernetes/go.mod")
	require.NoError(t, err)
	require.Contains(t, string(mod), "k8s.io/kubernetes "+KubernetesVersion)
	require.Equal(t, "v1.37", KubernetesVersion[:strings.LastIndex(KubernetesVersion, ".")], "the major and minor linker flags say 1 and 37")
}

func writeFile(t *testing.T, dir, name, content string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
}
