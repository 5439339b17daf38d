package outdated

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/ci/process"
	"github.com/stemedb/stemedb/ci/process/processtest"
)

const goModJSON = `{
 "Require": [
  {"Path": "example.com/direct", "Version": "v1.0.0"},
  {"Path": "example.com/replaced", "Version": "v1.0.0"},
  {"Path": "example.com/far", "Version": "v1.0.0", "Indirect": true},
  {"Path": "example.com/tool", "Version": "v1.0.0", "Indirect": true},
  {"Path": "example.com/tool/cmd", "Version": "v1.0.0", "Indirect": true}
 ],
 "Replace": [{"Old": {"Path": "example.com/replaced"}, "New": {"Path": "../.."}}],
 "Tool": [{"Path": "example.com/tool/cmd/lint"}]
}`

func TestOnlyDirectDependenciesAndToolsAreAskedFor(t *testing.T) {
	const ask = "go list -e -m -u -mod=readonly -json=Path,Version,Update,Error example.com/direct example.com/tool/cmd"
	r := (&processtest.Recorder{}).On("go mod edit", goModJSON).On(ask,
		`{"Path": "example.com/direct", "Version": "v1.0.0", "Update": {"Path": "example.com/direct", "Version": "v1.2.0"}}
		 {"Path": "example.com/current", "Version": "v1.0.0"}
		 {"Path": "example.com/tool/cmd", "Version": "v1.0.0", "Error": {"Err": "loading: 403 Forbidden\n\tserver response: not available"}}`)
	got, err := List(t.Context(), r, "/checkout", "ci")
	require.NoError(t, err)
	require.Equal(t, []string{"go mod edit -json", ask}, r.Commands())
	require.Equal(t, []Dependency{
		{Module: "ci", Path: "example.com/direct", Have: "v1.0.0", Newest: "v1.2.0"},
		{Module: "ci", Path: "example.com/tool/cmd", Have: "v1.0.0", Newest: "unknown", Held: "server response: not available"},
	}, got)
}

func TestAReasonCountsForOneVersion(t *testing.T) {
	root := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(root, "docs"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(root, "docs", "dependencies.md"),
		[]byte("# D\n\n## Held back\n\n| module | version | why |\n|---|---|---|\n| example.com/a | v1.0.0 | v1.1.0 does not compile |\n\n## Other\n\n| x | y | z |\n"), 0o644))
	held, err := Held(root)
	require.NoError(t, err)
	require.Equal(t, "v1.1.0 does not compile", held["example.com/a@v1.0.0"])
	require.Empty(t, held["example.com/a@v1.1.0"])
	require.NotContains(t, held, "x@y")
}

func TestTheTableListsDependenciesWithoutAReasonFirst(t *testing.T) {
	require.Equal(t, `MODULE  DEPENDENCY     HAVE    NEWEST  HELD BACK BECAUSE
test    example.com/b  v1.0.0  v1.1.0
ci      example.com/a  v1.0.0  v1.2.0  it does not compile
`, Table([]Dependency{
		{Module: "ci", Path: "example.com/a", Have: "v1.0.0", Newest: "v1.2.0", Held: "it does not compile"},
		{Module: "test", Path: "example.com/b", Have: "v1.0.0", Newest: "v1.1.0"},
	}))
}

// Each row of "Held back" is about a version that a module of the checkout requires:
// a reason does not outlive its dependency.
func TestEveryDependencyThatIsHeldBackIsRequiredAtThatVersion(t *testing.T) {
	const root = "../.."
	held, err := Held(root)
	require.NoError(t, err)
	modules, err := Modules(t.Context(), process.Exec{}, root)
	require.NoError(t, err)
	require.Contains(t, modules, ".")
	all := ""
	for _, m := range modules {
		text, err := os.ReadFile(filepath.Join(root, m, "go.mod"))
		require.NoError(t, err)
		all += string(text)
	}
	for name := range held {
		path, version, _ := strings.Cut(name, "@")
		require.True(t, strings.Contains(all, path+" "+version), "docs/dependencies.md holds back %s, which no go.mod requires", name) // not Contains, which would print every go.mod
	}
}
