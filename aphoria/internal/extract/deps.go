package extract

import (
	"context"
	"path"

	"github.com/stemedb/stemedb/aphoria/internal/source"
	"github.com/stemedb/stemedb/record"
)

// dependency is one line of a manifest, whatever its language.
type dependency struct {
	name    string
	version string // as written; "" when there is none
	line    int
	scope   string // runtime, dev, build, optional, peer, indirect
	source  string // its origin, when not the language's registry
}

// manifestReader reads the dependencies of one kind of manifest.
type manifestReader func(f *source.File) ([]dependency, error)

// depVersions observes a project's dependencies and their versions.
type depVersions struct {
	readers map[string]manifestReader // by the file's name
}

// DepVersions is the extractor of dependencies: go.mod, package.json,
// requirements.txt and its variants, Cargo.toml.
func DepVersions() Extractor {
	return depVersions{map[string]manifestReader{
		"go.mod":       readGoMod,
		"package.json": readPackageJSON,
		"Cargo.toml":   readCargo,
	}}
}

func (depVersions) Name() string { return "dep_versions" }

func (d depVersions) reader(f *source.File) manifestReader {
	if f.IsRequirements() {
		return readRequirements
	}
	return d.readers[f.Base()]
}

func (d depVersions) Wants(f *source.File) bool { return d.reader(f) != nil }

func (d depVersions) Extract(ctx context.Context, f *source.File, m *Modules) ([]Observation, error) {
	deps, err := d.reader(f)(f)
	found := make([]Observation, 0, len(deps))
	for _, dep := range deps {
		o := Observation{
			Language: f.Language, Module: m.Of(f), Aspect: path.Join("dep", cleanName(dep.name)),
			Predicate: "version", Object: record.Text(dep.version), Confidence: 1,
			Line: dep.line, Verdict: Pass, Detail: map[string]string{"scope": dep.scope},
		}
		if dep.version == "" {
			// No version is required: any version will do.
			o.Object = record.Text("*")
		}
		if dep.source != "" {
			o.Detail["source"] = dep.source
		}
		found = append(found, o)
	}
	return found, err
}
