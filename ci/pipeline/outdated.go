package pipeline

import (
	"context"
	"errors"
	"os"

	"github.com/stemedb/stemedb/ci/outdated"
	"github.com/stemedb/stemedb/ci/progress"
)

// Outdated prints the direct dependencies of every module that have a newer release,
// and fails if one is behind without a reason in docs/dependencies.md.
func (p *Pipeline) Outdated(ctx context.Context) error {
	held, err := outdated.Held(p.Root)
	if err != nil {
		return err
	}
	modules, err := outdated.Modules(ctx, p.Runner, p.Root)
	if err != nil {
		return err
	}
	var all []outdated.Dependency
	unexplained := false
	for _, m := range modules {
		behind, err := outdated.List(ctx, p.Runner, p.Root, m)
		if err != nil {
			return progress.WithHint(err, "it asks the Go module proxy; check that GOPROXY is reachable")
		}
		for _, d := range behind {
			if reason, known := held[d.Path+"@"+d.Have]; known {
				d.Held = reason
			}
			unexplained = unexplained || d.Held == ""
			all = append(all, d)
		}
	}
	if len(all) == 0 {
		p.Reporter.Note("every direct dependency of %d modules is at its newest release", len(modules))
		return nil
	}
	if _, err := os.Stdout.WriteString(outdated.Table(all)); err != nil {
		return err
	}
	if unexplained {
		return progress.WithHint(errors.New("some dependencies are behind without a reason"),
			"upgrade them, or add the reason to the section \"Held back\" of docs/dependencies.md")
	}
	return nil
}
