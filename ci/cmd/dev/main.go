// Command dev implements the Makefile's targets; `make help` lists them.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/stemedb/stemedb/ci/pipeline"
	"github.com/stemedb/stemedb/ci/progress"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		progress.Explain(os.Stderr, err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	p, err := pipeline.New(progress.New(os.Stdout))
	if err != nil {
		return err
	}
	commands := map[string]func(context.Context) error{
		"up": p.Up, "down": p.Down, "forward": p.Forward,
		"check": p.Check, "gate": p.Gate, "test": p.Test, "fmt": p.Format, "bench": p.Bench,
		"generate": p.Generate, "outdated": p.Outdated,
	}
	if len(args) > 0 && args[0] == "mutants" {
		return p.Mutants(ctx, args[1:]...)
	}
	if len(args) == 2 && args[0] == "bench-against" {
		return p.BenchAgainst(ctx, args[1])
	}
	if len(args) == 1 {
		if do, known := commands[args[0]]; known {
			return do(ctx)
		}
	}
	return fmt.Errorf("usage: dev up|down|check|gate|test|fmt|generate|outdated|bench, dev bench-against REVISION or dev mutants [NAME ...] (see make help), not %q", args)
}
