// Package outdated lists the direct dependencies of every module of the checkout
// that have a newer release.
package outdated

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/stemedb/stemedb/ci/process"
)

// Dependency is a required module that has a newer release.
type Dependency struct {
	Module string // folder of the go.mod, from the root of the checkout
	Path   string
	Have   string
	Newest string
	Held   string // why it stays where it is (see Held), or why Newest is unknown
}

// Modules lists the folders with a go.mod, committed or not, from the root, sorted.
func Modules(ctx context.Context, runner process.Runner, root string) ([]string, error) {
	out, err := runner.Run(ctx, process.Command{Name: "git", Args: []string{"ls-files", "--cached", "--others", "--exclude-standard", "go.mod", "*/go.mod"}, Dir: root})
	if err != nil {
		return nil, fmt.Errorf("list modules: %w", err)
	}
	var dirs []string
	for _, file := range strings.Fields(out) {
		if _, err := os.Stat(filepath.Join(root, file)); err == nil { // git lists deleted files too
			dirs = append(dirs, filepath.Dir(file))
		}
	}
	slices.Sort(dirs)
	return dirs, nil
}

// goMod is the part of `go mod edit -json` that is needed here.
type goMod struct {
	Require []struct {
		Path     string
		Indirect bool
	}
	Replace []struct{ Old struct{ Path string } }
	Tool    []struct{ Path string }
}

// direct lists the required modules that the module itself uses: those without the
// comment "indirect", and those of its tools, which go marks as indirect. Replaced
// ones are left out.
func (m *goMod) direct() []string {
	var paths []string
	for _, r := range m.Require {
		replaced := slices.ContainsFunc(m.Replace, func(other struct{ Old struct{ Path string } }) bool { return other.Old.Path == r.Path })
		if !replaced && (!r.Indirect || m.ofTool(r.Path)) {
			paths = append(paths, r.Path)
		}
	}
	return paths
}

// ofTool reports whether path is the module of a tool: of the modules that contain
// the tool's package, the one with the longest path.
func (m *goMod) ofTool(path string) bool {
	for _, tool := range m.Tool {
		longest := ""
		for _, r := range m.Require {
			if (tool.Path == r.Path || strings.HasPrefix(tool.Path, r.Path+"/")) && len(r.Path) > len(longest) {
				longest = r.Path
			}
		}
		if longest == path {
			return true
		}
	}
	return false
}

// List asks the module proxy about the direct dependencies of one module.
func List(ctx context.Context, runner process.Runner, root, module string) ([]Dependency, error) {
	dir := filepath.Join(root, module)
	text, err := runner.Run(ctx, process.Command{Name: "go", Args: []string{"mod", "edit", "-json"}, Dir: dir})
	if err != nil {
		return nil, fmt.Errorf("read go.mod of %s: %w", module, err)
	}
	var mod goMod
	if err := json.Unmarshal([]byte(text), &mod); err != nil {
		return nil, fmt.Errorf("read go.mod of %s: %w", module, err)
	}
	paths := mod.direct()
	if len(paths) == 0 {
		return nil, nil
	}
	text, err = runner.Run(ctx, process.Command{
		Name: "go", Args: append([]string{"list", "-e", "-m", "-u", "-mod=readonly", "-json=Path,Version,Update,Error"}, paths...),
		Dir: dir, Env: []string{"GOWORK=off", "GOFLAGS="},
	})
	if err != nil {
		return nil, fmt.Errorf("ask for newer releases of the dependencies of %s: %w", module, err)
	}
	var behind []Dependency
	for answers := json.NewDecoder(strings.NewReader(text)); ; {
		var m struct {
			Path, Version string
			Update        *struct{ Version string }
			Error         *struct{ Err string }
		}
		if err := answers.Decode(&m); errors.Is(err, io.EOF) {
			return behind, nil
		} else if err != nil {
			return nil, fmt.Errorf("read the answer about the dependencies of %s: %w", module, err)
		}
		switch {
		case m.Error != nil: // some proxies serve a module but no list of its versions
			lines := strings.Split(strings.TrimSpace(m.Error.Err), "\n")
			behind = append(behind, Dependency{Module: module, Path: m.Path, Have: m.Version, Newest: "unknown", Held: strings.TrimSpace(lines[len(lines)-1])})
		case m.Update != nil:
			behind = append(behind, Dependency{Module: module, Path: m.Path, Have: m.Version, Newest: m.Update.Version})
		}
	}
}

var heldRow = regexp.MustCompile(`(?m)^\| (\S+) \| (v\d\S*) \| (.+) \|$`)

// Held reads which dependencies stay behind on purpose, and why, from the table
// below the heading "Held back" of docs/dependencies.md: module path, version, reason.
// A row counts for that version only.
func Held(root string) (map[string]string, error) {
	text, err := os.ReadFile(filepath.Join(root, "docs", "dependencies.md"))
	if err != nil {
		return nil, fmt.Errorf("read why dependencies stay behind: %w", err)
	}
	_, section, found := strings.Cut(string(text), "\n## Held back\n")
	if !found {
		return nil, errors.New(`docs/dependencies.md has no section "Held back"`)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	reasons := map[string]string{}
	for _, row := range heldRow.FindAllStringSubmatch(section, -1) {
		reasons[row[1]+"@"+row[2]] = row[3]
	}
	return reasons, nil
}

// Table prints the dependencies in columns, those without a reason first.
func Table(dependencies []Dependency) string {
	sorted := slices.Clone(dependencies)
	slices.SortStableFunc(sorted, func(a, b Dependency) int {
		switch {
		case (a.Held == "") == (b.Held == ""):
			return strings.Compare(a.Module+" "+a.Path, b.Module+" "+b.Path)
		case a.Held == "":
			return -1
		}
		return 1
	})
	rows := [][]string{{"MODULE", "DEPENDENCY", "HAVE", "NEWEST", "HELD BACK BECAUSE"}}
	for _, d := range sorted {
		rows = append(rows, []string{d.Module, d.Path, d.Have, d.Newest, d.Held})
	}
	var widths [4]int
	for _, row := range rows {
		for i := range widths {
			widths[i] = max(widths[i], len(row[i]))
		}
	}
	var b strings.Builder
	for _, row := range rows {
		line := ""
		for i, width := range widths {
			line += fmt.Sprintf("%-*s  ", width, row[i])
		}
		b.WriteString(strings.TrimRight(line+row[4], " ") + "\n")
	}
	return b.String()
}
