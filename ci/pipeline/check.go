package pipeline

import (
	"context"
	"errors"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/stemedb/stemedb/ci/process"
	"github.com/stemedb/stemedb/ci/progress"
)

// modules of the checkout whose tests need no cluster.
var modules = []string{".", "ci", "ci/cluster/conformance", "test", "server/cmd/stemedb-k8s", "server/cmd/stemedb-backup", "test/bench"}

// Check is for daily work: lint, unit tests, simulation, chart tests. It needs no
// cluster.
func (p *Pipeline) Check(ctx context.Context) error {
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"format", p.format},
		{"lint", p.lint},
		{"mutants still apply", p.mutants().Check},
		{"known vulnerabilities", p.vulnerabilities},
	} {
		if err := p.Reporter.Step(ctx, step.name, step.do); err != nil {
			return err
		}
	}
	for _, m := range modules {
		if err := p.Reporter.Step(ctx, "go test "+m+"/...", func(ctx context.Context) error {
			args := []string{"test", "-timeout", "30m", "./..."}
			if m == "test" {
				// Go's cache does not see that the chart, which is outside of
				// the module, has changed.
				args = append(args, "-count=1")
			}
			return p.command(ctx, m, []string{"GOWORK=off"}, "go", args...)
		}); err != nil {
			return err
		}
	}
	return p.Reporter.Step(ctx, "race detector", func(ctx context.Context) error {
		return p.command(ctx, ".", nil, "go", append([]string{"test", "-race", "-short", "-timeout", "20m"}, racePackages...)...)
	})
}

// racePackages are the packages that start goroutines.
var racePackages = []string{
	"./server/internal/wal/...", "./server/internal/store/...", "./server/internal/control/...",
	"./server/internal/cluster/...", "./server/internal/api/...", "./client/...",
}

func (p *Pipeline) format(ctx context.Context) error {
	gofumpt, err := p.Tools.Path(ctx, "gofumpt")
	if err != nil {
		return err
	}
	files, err := p.quiet(ctx, ".", nil, "git", "ls-files", "--cached", "--others", "--exclude-standard", "*.go")
	if err != nil {
		return err
	}
	args := []string{"-l"}
	for _, f := range strings.Fields(files) {
		if !strings.HasSuffix(f, ".pb.go") {
			args = append(args, f)
		}
	}
	out, err := p.Runner.Run(ctx, process.Command{Name: gofumpt, Args: args, Dir: p.Root})
	if err == nil && strings.TrimSpace(out) != "" {
		err = progress.WithHint(errors.New("not formatted:\n"+strings.TrimSpace(out)), "run: make fmt")
	}
	return err
}

// Format formats every file with gofumpt.
func (p *Pipeline) Format(ctx context.Context) error {
	gofumpt, err := p.Tools.Path(ctx, "gofumpt")
	if err != nil {
		return err
	}
	return p.command(ctx, ".", nil, gofumpt, "-l", "-w", ".")
}

func (p *Pipeline) lint(ctx context.Context) error {
	linter, err := p.Tools.Path(ctx, "golangci-lint")
	if err != nil {
		return err
	}
	for _, m := range slices.Concat(modules, []string{"test/e2e", "test/chart/helm3oldest", "test/chart/helm4"}) {
		if err := p.command(ctx, m, []string{"GOWORK=off"}, linter, "run", "--config", filepath.Join(p.Root, ".golangci.yml"), "./..."); err != nil {
			return progress.WithHint(err, "fix the listed problems; silence a single line only with //nolint:NAME // and the reason")
		}
	}
	return nil
}

// vulnDatabase is govulncheck's source of known vulnerabilities.
const vulnDatabase = "https://vuln.go.dev/index/modules.json"

func (p *Pipeline) vulnerabilities(ctx context.Context) error {
	ask, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ask, http.MethodHead, vulnDatabase, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil || resp.StatusCode != http.StatusOK {
		p.Reporter.Note("SKIPPED: the vulnerability database (vuln.go.dev) cannot be reached from here, so nothing was checked against it")
		return nil
	}
	_ = resp.Body.Close()
	tool, err := p.Tools.Path(ctx, "govulncheck")
	if err != nil {
		return err
	}
	for _, m := range []string{".", "server/cmd/stemedb-k8s", "server/cmd/stemedb-backup"} {
		if err := p.command(ctx, m, []string{"GOWORK=off"}, tool, "./..."); err != nil {
			return err
		}
	}
	return nil
}
