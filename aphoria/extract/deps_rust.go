package extract

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/stemedb/stemedb/aphoria/source"
)

// cargoManifest is what of Cargo.toml names dependencies. Each is a version or
// a table.
type cargoManifest struct {
	Dependencies map[string]any `toml:"dependencies"`
	Dev          map[string]any `toml:"dev-dependencies"`
	Build        map[string]any `toml:"build-dependencies"`
	Workspace    struct {
		Dependencies map[string]any `toml:"dependencies"`
	} `toml:"workspace"`
	Target map[string]struct {
		Dependencies map[string]any `toml:"dependencies"`
		Dev          map[string]any `toml:"dev-dependencies"`
		Build        map[string]any `toml:"build-dependencies"`
	} `toml:"target"`
}

func readCargo(f *source.File) ([]dependency, error) {
	var manifest cargoManifest
	if _, err := toml.Decode(string(f.Text), &manifest); err != nil {
		return nil, fmt.Errorf("is not valid TOML: %w", err)
	}
	lines := cargoLines(string(f.Text))
	var deps []dependency
	add := func(section, scope string, table map[string]any) {
		for _, key := range slices.Sorted(maps.Keys(table)) {
			if d, ok := cargoDependency(key, table[key]); ok {
				d.scope, d.line = scope, lines[section+"\x00"+key]
				deps = append(deps, d)
			}
		}
	}
	add("dependencies", "runtime", manifest.Dependencies)
	add("dev-dependencies", "dev", manifest.Dev)
	add("build-dependencies", "build", manifest.Build)
	add("workspace.dependencies", "runtime", manifest.Workspace.Dependencies)
	for _, target := range slices.Sorted(maps.Keys(manifest.Target)) {
		t, prefix := manifest.Target[target], "target."+target+"."
		add(prefix+"dependencies", "runtime", t.Dependencies)
		add(prefix+"dev-dependencies", "dev", t.Dev)
		add(prefix+"build-dependencies", "build", t.Build)
	}
	return deps, nil
}

// cargoDependency reads "1.2" or {version = "1.2", package = "real-name", …}.
// What a workspace decides stands in the workspace's own manifest.
func cargoDependency(key string, value any) (dependency, bool) {
	d := dependency{name: key}
	table, ok := value.(map[string]any)
	if !ok {
		d.version, ok = value.(string)
		return d, ok
	}
	if inherited, _ := table["workspace"].(bool); inherited {
		return d, false
	}
	text := func(name string) string { s, _ := table[name].(string); return s }
	d.version = text("version")
	if name := text("package"); name != "" {
		d.name = name
	}
	for _, from := range []string{"git", "path", "registry"} {
		if s := text(from); s != "" {
			d.source = from + ":" + s
			for _, pin := range []string{"rev", "tag", "branch"} {
				if p := text(pin); p != "" {
					d.source += "#" + p
				}
			}
			break
		}
	}
	return d, true
}

// cargoLines finds the line of each key, which the TOML reader does not tell:
// section, a zero byte, key → line. Both "name = …" below [dependencies] and
// [dependencies.name] are known.
func cargoLines(text string) map[string]int {
	lines := make(map[string]int)
	section, number := "", 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimSpace(line)
		if head, ok := strings.CutPrefix(line, "["); ok {
			head, _, _ = strings.Cut(head, "]")
			if strings.Contains(line, "'") || strings.Contains(line, `"`) { // [target.'cfg(…)'.dependencies]
				head = strings.TrimSuffix(strings.TrimPrefix(line[:strings.LastIndexByte(line, ']')+1], "["), "]")
			}
			section = strings.NewReplacer("'", "", `"`, "", " ", "").Replace(head)
			if at := strings.LastIndexByte(section, '.'); at >= 0 {
				note(lines, section[:at], section[at+1:], number)
			}
			continue
		}
		if key, _, ok := strings.Cut(line, "="); ok {
			key = strings.Trim(strings.TrimSpace(key), `"'`)
			key, _, _ = strings.Cut(key, ".") // name.workspace = true
			note(lines, section, key, number)
		}
	}
	return lines
}

// note keeps the first line of a key.
func note(lines map[string]int, section, key string, line int) {
	if _, ok := lines[section+"\x00"+key]; !ok {
		lines[section+"\x00"+key] = line
	}
}
