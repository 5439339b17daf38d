package pipeline

import (
	"cmp"
	"context"
	"errors"
	"os"
	"time"

	"github.com/stemedb/stemedb/ci/progress"
)

// Test is everything that must hold before a change lands: Check, then the
// chart against a real apiserver and the gate on a real cluster.
func (p *Pipeline) Test(ctx context.Context) error {
	began := time.Now()
	if err := p.gateable(); err != nil {
		return err
	}
	// The slow builds come first and one after another: each uses all cores.
	if err := p.Check(ctx); err != nil {
		return err
	}
	if err := p.Gate(ctx); err != nil {
		return err
	}
	p.Reporter.Note("everything passed in %s", since(began))
	return nil
}

// Gate runs the end-to-end tests on a cluster that it brings up. It takes the
// cluster down afterwards unless the cluster was already up.
func (p *Pipeline) Gate(ctx context.Context) (err error) {
	if err := p.gateable(); err != nil {
		return err
	}
	cluster, err := p.clusterCommand(ctx)
	if err != nil {
		return err
	}
	if !p.running(ctx, cluster) && os.Getenv("STEMEDB_E2E_KEEP") == "" {
		defer func() {
			// Taking the cluster down is worthwhile after a failure too.
			down, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Minute)
			defer cancel()
			if downErr := p.cluster(down, cluster, "down"); err == nil {
				err = downErr
			}
		}()
	}
	if err := p.cluster(ctx, cluster, "up"); err != nil {
		return err
	}
	if err := p.images(ctx, cluster, true); err != nil {
		return err
	}
	kubeconfig, env, err := p.client(ctx, cluster)
	if err != nil {
		return err
	}
	if err := p.Reporter.Step(ctx, "every values file against the real apiserver", func(ctx context.Context) error {
		return p.command(ctx, "test", append(env, "GOWORK=off", "STEMEDB_KUBECONFIG="+kubeconfig),
			"go", "test", "-count=1", "-timeout", "10m", "-run", "TestServer", "./chart/...")
	}); err != nil {
		return err
	}
	if err := p.Reporter.Step(ctx, "the load generator's own tests", func(ctx context.Context) error {
		return p.command(ctx, "test/e2e", []string{"GOWORK=off"}, "go", "test", "./loadgen")
	}); err != nil {
		return err
	}
	return p.Reporter.Step(ctx, "gate tests on the cluster", func(ctx context.Context) error {
		return p.command(ctx, "test/e2e", append(env, "GOWORK=off",
			"STEMEDB_E2E_KUBECONFIG="+kubeconfig, "STEMEDB_E2E_IMAGE_TAG="+imageTag,
			"STEMEDB_E2E_LOADGEN_IMAGE="+loadgenImage, "STEMEDB_E2E_CLUSTER_COMMAND="+cluster),
			"go", "test", "-count=1", "-timeout", "40m", "-v", "-run", cmp.Or(os.Getenv("STEMEDB_E2E_RUN"), "."), ".")
	})
}

// gateable immediately rejects a provider that could only fail after the entire build.
func (p *Pipeline) gateable() error {
	existing, err := p.existing()
	if err == nil && existing {
		err = progress.WithHint(errors.New("the gate tests cut nodes off and kill containers, so they do not run on an existing cluster"),
			"unset STEMEDB_CLUSTER_PROVIDER, and take the existing cluster down (make down): the gate brings up its own")
	}
	return err
}

// running reports whether the project's cluster is up.
func (p *Pipeline) running(ctx context.Context, cluster string) bool {
	_, err := p.quiet(ctx, ".", nil, cluster, "status")
	return err == nil
}
