package pipeline

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/stemedb/stemedb/ci/progress"
)

// Bench measures the server side by side with etcd and PostgreSQL and writes
// docs/benchmarks.md. It passes on STEMEDB_BENCH_FLAGS (see test/bench).
func (p *Pipeline) Bench(ctx context.Context) error {
	etcd, err := p.Tools.Path(ctx, "etcd")
	if err != nil {
		return err
	}
	if err := p.Reporter.Step(ctx, "install PostgreSQL", p.installPostgres); err != nil {
		return err
	}
	var server, bench string
	if err := p.Reporter.Step(ctx, "build the server and the load generator", func(ctx context.Context) (err error) {
		if server, err = p.goBuild(ctx, ".", "./server/cmd/stemedb", "stemedb"); err != nil {
			return err
		}
		bench, err = p.goBuild(ctx, "test/bench", ".", "bench")
		return err
	}); err != nil {
		return err
	}
	args := append([]string{"--stemedb", server, "--etcd", etcd, "--out", filepath.Join(p.Root, "docs", "benchmarks.md")},
		strings.Fields(os.Getenv("STEMEDB_BENCH_FLAGS"))...)
	return p.Reporter.Step(ctx, "measure", func(ctx context.Context) error {
		return p.command(ctx, ".", nil, bench, args...)
	})
}

// BenchAgainst measures the server of the working tree against that of another
// revision, interleaved, and prints the table. It passes on STEMEDB_BENCH_FLAGS.
func (p *Pipeline) BenchAgainst(ctx context.Context, revision string) error {
	tree, err := os.MkdirTemp("", "stemedb-before-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tree)
	var before, now, bench string
	if err := p.Reporter.Step(ctx, "build both servers and the load generator", func(ctx context.Context) (err error) {
		if _, err := p.quiet(ctx, ".", nil, "git", "worktree", "add", "--detach", tree, revision); err != nil {
			return progress.WithHint(err, "set REV to the revision to compare with, such as a tag: make bench-against REV=main~1")
		}
		defer func() {
			_, gone := p.quiet(context.WithoutCancel(ctx), ".", nil, "git", "worktree", "remove", "--force", tree)
			err = errors.Join(err, gone)
		}()
		if before, err = p.goBuildAt(ctx, tree, "./server/cmd/stemedb", "stemedb-before"); err != nil {
			return err
		}
		if now, err = p.goBuild(ctx, ".", "./server/cmd/stemedb", "stemedb"); err != nil {
			return err
		}
		bench, err = p.goBuild(ctx, "test/bench", ".", "bench")
		return err
	}); err != nil {
		return err
	}
	args := append([]string{"--stemedb", now, "--against", before}, strings.Fields(os.Getenv("STEMEDB_BENCH_FLAGS"))...)
	return p.Reporter.Step(ctx, "measure", func(ctx context.Context) error {
		return p.command(ctx, ".", nil, bench, args...)
	})
}

// postgresFolder is where Debian puts the server's programs.
const postgresFolder = "/usr/lib/postgresql/15/bin"

func (p *Pipeline) installPostgres(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(postgresFolder, "initdb")); err == nil {
		return nil
	}
	if os.Geteuid() != 0 {
		return progress.WithHint(errors.New("PostgreSQL is not installed"), "install it, and pass its folder: STEMEDB_BENCH_FLAGS='--postgres-bin FOLDER' make bench")
	}
	if _, err := p.quiet(ctx, ".", nil, "apt-get", "update"); err != nil {
		return err
	}
	_, err := p.quiet(ctx, ".", []string{"DEBIAN_FRONTEND=noninteractive"}, "apt-get", "install", "-y", "--no-install-recommends", "postgresql-15")
	return err
}
