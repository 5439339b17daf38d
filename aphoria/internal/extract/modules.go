package extract

import (
	"cmp"
	"path"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/mod/modfile"

	"github.com/stemedb/stemedb/aphoria/internal/source"
	"github.com/stemedb/stemedb/record"
)

// Modules knows the module name of each file: that of the nearest manifest of
// its language at or above it, or the project's.
type Modules struct {
	project string
	names   map[source.Language]map[string]string // language, directory → name
}

// NewModules starts with only the project's name.
func NewModules(project string) *Modules {
	return &Modules{project: cleanName(project), names: make(map[source.Language]map[string]string)}
}

// Manifests are the names of the files that Add can read.
func Manifests() []string { return []string{"go.mod", "package.json", "Cargo.toml", "pyproject.toml"} }

// IsManifest reports, by name alone, whether Add can read the file.
func IsManifest(f *source.File) bool { return slices.Contains(Manifests(), f.Base()) }

// Add reads a module's name from its manifest. It ignores an unreadable
// manifest, about which the extractor warns.
func (m *Modules) Add(f *source.File) {
	name := ""
	switch f.Base() {
	case "go.mod":
		name = modfile.ModulePath(f.Text)
	case "package.json":
		var manifest struct {
			Name string `json:"name"`
		}
		if json.Unmarshal(f.Text, &manifest, jsontext.AllowDuplicateNames(true)) == nil {
			name = manifest.Name
		}
	case "Cargo.toml":
		name = tomlName(f, "package")
	case "pyproject.toml":
		name = pythonName(cmp.Or(tomlName(f, "project"), tomlName(f, "tool", "poetry")))
	}
	if name = cleanName(name); name == "" {
		return
	}
	if m.names[f.Language] == nil {
		m.names[f.Language] = make(map[string]string)
	}
	m.names[f.Language][f.Dir()] = name
}

// Of is the name of the module that the file belongs to.
func (m *Modules) Of(f *source.File) string {
	for dir := f.Dir(); ; dir = path.Dir(dir) {
		if name, ok := m.names[f.Language][dir]; ok {
			return name
		}
		if dir == "." {
			return m.project
		}
	}
}

// tomlName is the name in a table of a manifest.
func tomlName(f *source.File, table ...string) string {
	for v, err := range tomlValues(f) {
		if err != nil {
			return ""
		}
		if n := len(v.path) - 1; n >= 0 && v.path[n] == "name" && slices.Equal(v.path[:n], table) {
			return v.text
		}
	}
	return ""
}

// cleanName makes a name safe in a path. A name longer than any subject is cut:
// it can make no claim, and would otherwise be copied into each of its
// observations.
func cleanName(name string) string {
	if len(name) > record.MaxSubject {
		name = name[:record.MaxSubject+1]
	}
	name = strings.Map(func(r rune) rune {
		if r <= ' ' || r >= 0x7f && r < 0xa0 {
			return '-'
		}
		return r
	}, strings.ToValidUTF8(name, "-"))
	return strings.Trim(name, "/")
}
