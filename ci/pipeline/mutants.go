package pipeline

import (
	"context"
	"os"

	"github.com/stemedb/stemedb/ci/mutants"
)

func (p *Pipeline) mutants() *mutants.Suite {
	return &mutants.Suite{Root: p.Root, Runner: p.Runner, Reporter: p.Reporter, Out: os.Stdout}
}

// Mutants runs the suite of seeded bugs, or those of these names.
func (p *Pipeline) Mutants(ctx context.Context, names ...string) error {
	return p.mutants().Run(ctx, names...)
}
