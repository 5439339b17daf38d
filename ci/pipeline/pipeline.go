// Package pipeline implements the Makefile's targets: bring up a release, check
// the code, run the gate, measure. Each target is a list of steps that installs
// its dependencies, shows its progress, is idempotent, and names the step, the
// cause and the remedy on failure.
package pipeline

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/stemedb/stemedb/ci/image"
	"github.com/stemedb/stemedb/ci/process"
	"github.com/stemedb/stemedb/ci/progress"
	"github.com/stemedb/stemedb/ci/tools"
)

// Pipeline runs the steps in one checkout.
type Pipeline struct {
	Root     string // the checkout
	State    string // folder outside the checkout for binaries, images, keys
	Runner   process.Runner
	Reporter *progress.Reporter
	Tools    *tools.Builder
	Provider string // of the cluster; empty: one that the machine supports
}

// New returns the Pipeline of the checkout that contains the working directory.
func New(reporter *progress.Reporter) (*Pipeline, error) {
	builder, err := tools.New(process.Exec{}, reporter)
	if err != nil {
		return nil, err
	}
	root, err := tools.CheckoutDir()
	if err != nil {
		return nil, err
	}
	p := &Pipeline{
		Root: root, State: filepath.Join(builder.Cache, "dev"),
		Runner: process.Exec{}, Reporter: reporter, Tools: builder, Provider: os.Getenv("STEMEDB_CLUSTER_PROVIDER"),
	}
	return p, os.MkdirAll(p.State, 0o755)
}

// command runs one program in a folder of the checkout, its output shown.
func (p *Pipeline) command(ctx context.Context, dir string, env []string, name string, args ...string) error {
	_, err := p.Runner.Run(ctx, process.Command{Name: name, Args: args, Dir: filepath.Join(p.Root, dir), Env: env, Tee: os.Stdout})
	return err
}

// quiet is command with the output kept for the error.
func (p *Pipeline) quiet(ctx context.Context, dir string, env []string, name string, args ...string) (string, error) {
	return p.Runner.Run(ctx, process.Command{Name: name, Args: args, Dir: filepath.Join(p.Root, dir), Env: env})
}

// goBuild builds a program of the checkout for this machine into State/bin.
func (p *Pipeline) goBuild(ctx context.Context, module, pkg, name string) (string, error) {
	return p.goBuildAt(ctx, filepath.Join(p.Root, module), pkg, name)
}

// goBuildAt is goBuild in a folder outside the checkout.
func (p *Pipeline) goBuildAt(ctx context.Context, dir, pkg, name string) (string, error) {
	out := filepath.Join(p.State, "bin", name)
	_, err := p.Runner.Run(ctx, process.Command{
		Name: "go", Args: []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", image.LinkFlags(p.version(ctx)), "-o", out, pkg},
		Dir: dir, Env: []string{"CGO_ENABLED=0", "GOWORK=off", "GOFLAGS="},
	})
	return out, err
}

// version is the checkout's commit, for binaries and image labels.
func (p *Pipeline) version(ctx context.Context) string {
	out, err := p.quiet(ctx, ".", nil, "git", "describe", "--tags", "--always", "--dirty")
	if err != nil {
		return "dev"
	}
	return strings.TrimSpace(out)
}

// clusterCommand builds the command that drives cluster providers.
func (p *Pipeline) clusterCommand(ctx context.Context) (string, error) {
	var path string
	err := p.Reporter.Step(ctx, "build the cluster command", func(ctx context.Context) (err error) {
		path, err = p.goBuild(ctx, "ci", "./cmd/cluster", "cluster")
		return err
	})
	return path, err
}

// cluster runs the cluster command; it prints its own steps.
func (p *Pipeline) cluster(ctx context.Context, command string, args ...string) error {
	env := []string{}
	if p.Provider != "" {
		env = append(env, "STEMEDB_CLUSTER_PROVIDER="+p.Provider)
	}
	return p.command(ctx, ".", env, command, args...)
}

// images builds the images that the cluster needs and loads them.
func (p *Pipeline) images(ctx context.Context, cluster string, withLoadgen bool) error {
	version := p.version(ctx)
	compiler := &image.Compiler{Root: p.Root, Version: version, Runner: p.Runner, Reporter: p.Reporter}
	files, err := compiler.Compile(ctx, filepath.Join(p.State, "image"), image.StemeDBPrograms()...)
	if err != nil {
		return err
	}
	certificates, err := image.Certificates()
	if err != nil {
		return err
	}
	tars := []string{filepath.Join(p.State, "stemedb.tar")}
	specs := []image.Spec{image.StemeDB(imageTag, version, files, certificates)}
	if withLoadgen {
		program := image.Program{Module: "test/e2e", Package: "./loadgen", Path: "/usr/local/bin/loadgen"}
		files, err := compiler.Compile(ctx, filepath.Join(p.State, "image"), program)
		if err != nil {
			return err
		}
		tars = append(tars, filepath.Join(p.State, "loadgen.tar"))
		specs = append(specs, image.Spec{Reference: loadgenImage, Files: files, Entrypoint: []string{program.Path}, User: image.NonRoot, WorkingDir: "/"})
	}
	for i, spec := range specs {
		if err := p.Reporter.Step(ctx, "build image "+spec.Reference, func(context.Context) error {
			return image.Write(spec, tars[i])
		}); err != nil {
			return err
		}
	}
	return p.cluster(ctx, cluster, append([]string{"load-image"}, tars...)...)
}

const (
	imageTag     = "dev"
	loadgenImage = "docker.io/stemedb/loadgen:dev"
)

// client returns the environment in which kubectl and helm talk to the
// project's cluster and to no other.
func (p *Pipeline) client(ctx context.Context, cluster string) (kubeconfig string, env []string, err error) {
	out, err := p.quiet(ctx, ".", nil, cluster, "kubeconfig")
	if err != nil {
		return "", nil, err
	}
	kubeconfig = strings.TrimSpace(out)
	found, err := p.Tools.Paths(ctx, "kubectl", "helm")
	if err != nil {
		return "", nil, err
	}
	// Set in this process's environment, which is used to look up programs.
	path := os.Getenv("PATH")
	for _, tool := range found {
		path = filepath.Dir(tool) + string(os.PathListSeparator) + path
	}
	if err := os.Setenv("PATH", path); err != nil {
		return "", nil, err
	}
	return kubeconfig, []string{"KUBECONFIG=" + kubeconfig}, nil
}

// since is for the closing line of a long command.
func since(t time.Time) string { return fmt.Sprint(time.Since(t).Round(time.Second)) }
