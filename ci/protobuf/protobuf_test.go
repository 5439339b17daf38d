package protobuf

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/ci/process"
)

const (
	module = ".."
	server = "../../server"
)

// A .proto file or a plugin's version that changes without its code is noticed,
// and so is code whose .proto file is gone.
func TestTheGeneratedCodeIsUpToDate(t *testing.T) {
	sources, err := Sources(server)
	require.NoError(t, err)
	var expected []string
	for _, source := range sources {
		files, err := Generate(t.Context(), process.Exec{}, module, source)
		require.NoError(t, err)
		require.Len(t, files, len(plugins), "%s: messages and a service", source)
		for name, want := range files {
			got, err := os.ReadFile(name)
			require.NoError(t, err, "run: make generate")
			require.True(t, want == string(got), "%s is stale; run: make generate", name) // not Equal, which would print both files
			expected = append(expected, name)
		}
	}
	var found []string
	require.NoError(t, filepath.WalkDir(server, func(path string, d fs.DirEntry, err error) error {
		if err == nil && IsGenerated(path) {
			found = append(found, path)
		}
		return err
	}))
	slices.Sort(expected)
	require.Equal(t, expected, found, "generated code without a .proto file")
}

func TestAFieldThatIsAddedChangesTheGeneratedCode(t *testing.T) {
	source := filepath.Join(t.TempDir(), "a.proto")
	write := func(fields string) string {
		require.NoError(t, os.WriteFile(source, []byte("syntax = \"proto3\";\npackage a;\noption go_package = \"example.com/a\";\n\n// A message of the test.\nmessage M {"+fields+"}\n"), 0o644))
		files, err := Generate(t.Context(), process.Exec{}, module, source)
		require.NoError(t, err)
		return files[filepath.Join(filepath.Dir(source), "a.pb.go")]
	}
	before, after := write("uint64 x = 1;"), write("uint64 x = 1; bytes y = 2;")
	require.Contains(t, before, "// A message of the test.")
	require.NotContains(t, before, "Y ")
	require.Contains(t, after, "Y ")
}

func TestAnInvalidFileIsNamedWithTheLine(t *testing.T) {
	source := filepath.Join(t.TempDir(), "a.proto")
	require.NoError(t, os.WriteFile(source, []byte("syntax = \"proto3\";\nmessage {}\n"), 0o644))
	_, err := Generate(t.Context(), process.Exec{}, module, source)
	require.ErrorContains(t, err, "a.proto:2")
}
