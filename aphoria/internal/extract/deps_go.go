package extract

import (
	"fmt"

	"golang.org/x/mod/modfile"

	"github.com/stemedb/stemedb/aphoria/internal/source"
)

// readGoMod reads the required versions. A replaced module has the replacement
// as its source, because that is the code that is built.
func readGoMod(f *source.File) ([]dependency, error) {
	mod, err := modfile.Parse(f.Path, f.Text, nil)
	if err != nil {
		// A directive of a later Go version may be unknown; requirements can still be
		// read.
		var lax error
		if mod, lax = modfile.ParseLax(f.Path, f.Text, nil); lax != nil {
			return nil, fmt.Errorf("cannot be read: %w", err)
		}
	}
	replaced := make(map[string]string)
	for _, r := range mod.Replace {
		target := r.New.Path
		if r.New.Version != "" {
			target += "@" + r.New.Version
		}
		replaced[r.Old.Path+"@"+r.Old.Version] = target
	}
	var deps []dependency
	for _, r := range mod.Require {
		d := dependency{name: r.Mod.Path, version: r.Mod.Version, scope: "runtime"}
		if r.Indirect {
			d.scope = "indirect"
		}
		if r.Syntax != nil {
			d.line = r.Syntax.Start.Line
		}
		for _, key := range []string{r.Mod.Path + "@" + r.Mod.Version, r.Mod.Path + "@"} {
			if target, ok := replaced[key]; ok {
				d.source = target
				break
			}
		}
		deps = append(deps, d)
	}
	return deps, nil
}
