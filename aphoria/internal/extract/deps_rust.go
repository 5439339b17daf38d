package extract

import (
	"cmp"
	"slices"
	"strings"

	"github.com/stemedb/stemedb/aphoria/internal/source"
)

// crate is one dependency of a manifest: a version, or a table.
type crate struct {
	order  int    // of its section
	target string // of the section; "" for all
	key    string
	scope  string
	line   int
	fields map[string]string
}

// cargoSection returns the section of dependencies that a path belongs to and
// the rest of the path, which is empty for any other path.
func cargoSection(path []string) (order int, scope, target string, rest []string) {
	if len(path) >= 2 && path[0] == "target" {
		target, path = path[1], path[2:]
		order += 10
	}
	if len(path) > 0 && path[0] == "workspace" && target == "" {
		path = path[1:]
		order += 5
	}
	if len(path) < 2 {
		return 0, "", "", nil
	}
	switch path[0] {
	case "dependencies":
		return order + 1, "runtime", target, path[1:]
	case "dev-dependencies":
		return order + 2, "dev", target, path[1:]
	case "build-dependencies":
		return order + 3, "build", target, path[1:]
	default:
		return 0, "", "", nil
	}
}

func readCargo(f *source.File) ([]dependency, error) {
	type id struct {
		order       int
		target, key string
	}
	crates := make(map[id]*crate)
	var failure error
	for v, err := range tomlValues(f) {
		if err != nil {
			failure = err // dependencies before the fault count
			break
		}
		order, scope, target, rest := cargoSection(v.path)
		if len(rest) == 0 {
			continue
		}
		key := id{order, target, rest[0]}
		c := crates[key]
		if c == nil {
			c = &crate{order: order, target: target, key: rest[0], scope: scope, line: v.line, fields: make(map[string]string)}
			crates[key] = c
		}
		switch {
		case v.header:
		case len(rest) == 1:
			c.fields["version"] = v.text
		case len(rest) == 2:
			c.fields[rest[1]] = v.text
		}
	}
	all := make([]*crate, 0, len(crates))
	for _, c := range crates {
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b *crate) int {
		return cmp.Or(cmp.Compare(a.order, b.order), strings.Compare(a.target, b.target), strings.Compare(a.key, b.key))
	})
	var deps []dependency
	for _, c := range all {
		if d, ok := c.dependency(); ok {
			deps = append(deps, d)
		}
	}
	return deps, failure
}

// dependency reads the fields, such as version, package (the real name) and
// git. A version inherited from a workspace is in the workspace's manifest.
func (c *crate) dependency() (dependency, bool) {
	d := dependency{name: c.key, version: c.fields["version"], scope: c.scope, line: c.line}
	if c.fields["workspace"] == "true" || len(c.fields) == 0 {
		return d, false
	}
	if name := c.fields["package"]; name != "" {
		d.name = name
	}
	for _, from := range []string{"git", "path", "registry"} {
		if s := c.fields[from]; s != "" {
			d.source = from + ":" + s
			for _, pin := range []string{"rev", "tag", "branch"} {
				if p := c.fields[pin]; p != "" {
					d.source += "#" + p
				}
			}
			break
		}
	}
	return d, true
}
