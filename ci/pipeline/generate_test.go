package pipeline

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/ci/protobuf"
)

const checkout = "../.."

// `go test -run NAME -update` succeeds without writing anything when no test has
// that name.
func TestEachGeneratorIsATestThatKnowsUpdate(t *testing.T) {
	for _, g := range generators {
		tests, err := filepath.Glob(filepath.Join(checkout, g.module, g.folder, "*_test.go"))
		require.NoError(t, err)
		var all strings.Builder
		for _, file := range tests {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			all.Write(text)
		}
		require.Contains(t, all.String(), `flag.Bool("update"`, g.folder)
		for test, file := range g.writes {
			require.FileExists(t, filepath.Join(checkout, file))
			require.Contains(t, all.String(), "func "+test+"(t *testing.T)", "the generator of %s", file)
		}
	}
}

// A file that says that `make generate` writes it is in the table.
func TestMakeGenerateWritesEveryFileThatNamesIt(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "git", "-C", checkout, "grep", "-lE", "(Written|Made) .*by `make generate`|Code generated .* DO NOT EDIT").Output()
	require.NoError(t, err)
	known := map[string]bool{"ci/pipeline/generate_test.go": true}
	for _, g := range generators {
		for _, file := range g.writes {
			known[file] = true
		}
	}
	marked := regexp.MustCompile("(?m)^(<!-- |# )?(Written|Made) .*by `make generate`|^// Code generated .* DO NOT EDIT")
	for name := range strings.Lines(string(out)) {
		name = strings.TrimSpace(name)
		text, err := os.ReadFile(filepath.Join(checkout, name))
		require.NoError(t, err)
		if marked.Match(text) {
			require.True(t, known[name] || protobuf.IsGenerated(name), "%s is generated, but make generate does not write it", name)
		}
	}
}
