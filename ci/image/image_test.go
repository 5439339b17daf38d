package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/ci/process/processtest"
	"github.com/stemedb/stemedb/ci/progress"
)

func TestWriteReadsBack(t *testing.T) {
	dir := t.TempDir()
	binary := filepath.Join(dir, "server")
	require.NoError(t, os.WriteFile(binary, []byte("ELF"), 0o700))
	spec := Spec{
		Reference:  "docker.io/stemedb/x:dev",
		Files:      []File{{Path: "/usr/local/bin/x", Source: binary}, {Path: "/bin/sh", Link: "busybox"}, {Path: "/tmp", Mode: 0o777 | os.ModeSticky}},
		Entrypoint: []string{"/usr/local/bin/x"},
		User:       NonRoot,
		Labels:     map[string]string{"a": "b"},
		Ports:      []string{"1/tcp"},
	}
	out := filepath.Join(dir, "x.tar")
	require.NoError(t, Write(spec, out))

	tag, err := name.NewTag(spec.Reference)
	require.NoError(t, err)
	img, err := tarball.ImageFromPath(out, &tag)
	require.NoError(t, err)
	config, err := img.ConfigFile()
	require.NoError(t, err)
	require.Equal(t, spec.Entrypoint, config.Config.Entrypoint)
	require.Equal(t, NonRoot, config.Config.User)
	require.Equal(t, map[string]struct{}{"1/tcp": {}}, config.Config.ExposedPorts)
	require.Equal(t, "linux", config.OS)

	type seen struct {
		kind byte
		mode int64
		link string
		size int64
	}
	got := map[string]seen{}
	var order []string
	for h := range contents(t, img) {
		got[h.Name] = seen{h.Typeflag, h.Mode, h.Linkname, h.Size}
		order = append(order, h.Name)
		require.True(t, h.ModTime.Equal(epoch), "%s has a fixed time", h.Name)
	}
	require.Equal(t, map[string]seen{
		"bin":             {tar.TypeDir, 0o755, "", 0},
		"bin/sh":          {tar.TypeSymlink, 0o755, "busybox", 0},
		"tmp":             {tar.TypeDir, 0o1777, "", 0},
		"usr":             {tar.TypeDir, 0o755, "", 0},
		"usr/local":       {tar.TypeDir, 0o755, "", 0},
		"usr/local/bin":   {tar.TypeDir, 0o755, "", 0},
		"usr/local/bin/x": {tar.TypeReg, 0o755, "", 3},
	}, got)
	require.Less(t, index(order, "usr/local/bin"), index(order, "usr/local/bin/x"), "a folder precedes its content")
}

func TestBuildIsAPureFunctionOfItsInputs(t *testing.T) {
	spec := func(content string) Spec {
		return Spec{Reference: "docker.io/stemedb/x:dev", Files: []File{{Path: "/x", Content: []byte(content)}, {Path: "/y", Content: []byte("y")}}}
	}
	reversed := spec("1")
	reversed.Files[0], reversed.Files[1] = reversed.Files[1], reversed.Files[0]
	require.Equal(t, digest(t, spec("1")), digest(t, reversed))
	require.NotEqual(t, digest(t, spec("1")), digest(t, spec("2")))
}

func TestBuildRefuses(t *testing.T) {
	for what, spec := range map[string]Spec{
		"must be absolute and clean": {Reference: "docker.io/stemedb/x:dev", Files: []File{{Path: "x", Content: []byte("1")}}},
		"is given twice":             {Reference: "docker.io/stemedb/x:dev", Files: []File{{Path: "/x", Content: []byte("1")}, {Path: "/x", Content: []byte("1")}}},
		"give registry, repository":  {Reference: "stemedb", Files: nil},
		"no such file":               {Reference: "docker.io/stemedb/x:dev", Files: []File{{Path: "/x", Source: "/does/not/exist"}}},
	} {
		_, err := Build(spec)
		require.ErrorContains(t, err, what)
	}
}

func TestParseProgram(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"server/cmd/a", "server/cmd/b/sub"} {
		require.NoError(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	require.NoError(t, os.WriteFile(filepath.Join(root, "go.mod"), nil, 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(root, "server/cmd/b/go.mod"), nil, 0o644))

	for text, want := range map[string]Program{
		"./server/cmd/a=/bin/a":   {Module: ".", Package: "./server/cmd/a", Path: "/bin/a"},
		"server/cmd/b=/bin/b":     {Module: "server/cmd/b", Package: "./.", Path: "/bin/b"},
		"server/cmd/b/sub=/bin/c": {Module: "server/cmd/b", Package: "./sub", Path: "/bin/c"},
	} {
		got, err := ParseProgram(root, text)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	for _, text := range []string{"", "a", "a=b", "=/b"} {
		_, err := ParseProgram(root, text)
		require.ErrorContains(t, err, "want FOLDER=PATH")
	}
}

func TestCompileCommands(t *testing.T) {
	r := &processtest.Recorder{}
	c := &Compiler{Root: "/src", Version: "1.2.3", Runner: r, Reporter: progress.New(io.Discard)}
	files, err := c.Compile(context.Background(), filepath.Join(t.TempDir(), "out"), StemeDBPrograms()...)
	require.NoError(t, err)
	require.Len(t, files, 3)
	require.Equal(t, "/usr/local/bin/stemedb", files[0].Path)
	lines := r.Commands()
	require.Len(t, lines, 3)
	for _, line := range lines {
		require.Contains(t, line, "go build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=1.2.3' -o ")
	}
	require.True(t, strings.HasSuffix(lines[0], "/stemedb ./server/cmd/stemedb"), lines[0])
}

func contents(t *testing.T, img v1.Image) func(func(*tar.Header) bool) {
	t.Helper()
	return func(yield func(*tar.Header) bool) {
		flat := mutate.Extract(img)
		defer flat.Close()
		for r := tar.NewReader(flat); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				return
			}
			require.NoError(t, err)
			if !yield(h) {
				return
			}
		}
	}
}

func digest(t *testing.T, spec Spec) string {
	t.Helper()
	img, err := Build(spec)
	require.NoError(t, err)
	d, err := img.Digest()
	require.NoError(t, err)
	return d.String()
}

func index(list []string, want string) int {
	for i, s := range list {
		if s == want {
			return i
		}
	}
	return -1
}

// jsonWords reads the exec form of an instruction.
func jsonWords(t *testing.T, text string) []string {
	t.Helper()
	var words []string
	require.NoError(t, json.Unmarshal([]byte(text), &words))
	return words
}
