package extract

import (
	"path"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/mod/modfile"

	"github.com/stemedb/stemedb/aphoria/source"
)

// Modules knows by which name a piece of code goes: that of the nearest
// manifest of its language at or above it, or the project's.
type Modules struct {
	project string
	names   map[source.Language]map[string]string // language, directory → name
}

// NewModules starts with the project's name alone.
func NewModules(project string) *Modules {
	return &Modules{project: cleanName(project), names: make(map[source.Language]map[string]string)}
}

// IsManifest says, by name alone, whether Add can learn from the file.
func IsManifest(f *source.File) bool {
	switch f.Base() {
	case "go.mod", "package.json", "Cargo.toml", "pyproject.toml":
		return true
	default:
		return false
	}
}

// Add learns a module's name from its manifest. What cannot be read names
// nothing: its extractor warns.
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
		var manifest struct{ Package struct{ Name string } }
		if _, err := toml.Decode(string(f.Text), &manifest); err == nil {
			name = manifest.Package.Name
		}
	case "pyproject.toml":
		var manifest struct {
			Project struct{ Name string }
			Tool    struct{ Poetry struct{ Name string } }
		}
		if _, err := toml.Decode(string(f.Text), &manifest); err == nil {
			name = manifest.Project.Name
			if name == "" {
				name = manifest.Tool.Poetry.Name
			}
			name = pythonName(name)
		}
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

// cleanName keeps a name from breaking the path that it stands in.
func cleanName(name string) string {
	name = strings.Map(func(r rune) rune {
		if r <= ' ' || r >= 0x7f && r < 0xa0 {
			return '-'
		}
		return r
	}, strings.ToValidUTF8(name, "-"))
	return strings.Trim(name, "/")
}
