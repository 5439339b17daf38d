package doctest

import (
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/stemedb/stemedb/"

// imports maps each package of the root module to the ones that it imports
// outside of its tests. Generated code is left out.
func imports(t *testing.T) map[string][]string {
	t.Helper()
	command := exec.CommandContext(t.Context(), "go", "list", "-f", "{{.ImportPath}} {{join .Imports \" \"}}", "./...")
	command.Dir = "../.."
	out, err := command.Output()
	require.NoError(t, err)
	graph := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		from := short(fields[0])
		if generated(from) {
			continue
		}
		graph[from] = []string{}
		for _, to := range fields[1:] {
			if strings.HasPrefix(to, module) && !generated(to) {
				graph[from] = append(graph[from], short(to))
			}
		}
		slices.Sort(graph[from])
	}
	return graph
}

// short is a package's name in ARCHITECTURE.md.
func short(pkg string) string {
	pkg = strings.TrimPrefix(strings.TrimPrefix(pkg, module), "server/")
	return strings.ReplaceAll(pkg, "internal/", "")
}

func generated(pkg string) bool { return strings.HasSuffix(pkg, "pb") }

// drawn is the graph of ARCHITECTURE.md: a package, an arrow, the packages that it
// imports. Each of those has its own line above.
func drawn(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("../../ARCHITECTURE.md")
	require.NoError(t, err)
	_, rest, found := strings.Cut(string(text), "\n## Imports\n")
	require.True(t, found)
	_, rest, _ = strings.Cut(rest, "```text\n")
	block, _, found := strings.Cut(rest, "```")
	require.True(t, found)
	graph := map[string][]string{}
	for line := range strings.Lines(block) {
		from, to, _ := strings.Cut(line, "→")
		from = strings.TrimSpace(from)
		graph[from] = strings.Fields(to)
		for _, imported := range graph[from] {
			require.Contains(t, graph, imported, "%s imports a package below it", from)
		}
	}
	return graph
}

// ARCHITECTURE.md draws the imports as they are: a new arrow is a decision that
// belongs on that page.
func TestTheImportsAreTheOnesThatAreDrawn(t *testing.T) {
	want, got := drawn(t), imports(t)
	require.Equal(t, slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got)), "packages")
	for pkg, imported := range got {
		slices.Sort(want[pkg])
		require.Equal(t, want[pkg], imported, "%s imports", pkg)
	}
}
