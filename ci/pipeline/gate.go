package pipeline

import (
	"context"
	"os"
	"time"
)

// Test is everything that must hold before a change lands: Check, then the
// chart against a real apiserver and the gate on a real cluster.
func (p *Pipeline) Test(ctx context.Context) error {
	began := time.Now()
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

// Gate runs the end-to-end tests on a cluster that it brings up. The cluster
// is taken down again when it was not there before.
func (p *Pipeline) Gate(ctx context.Context) (err error) {
	cluster, err := p.clusterCommand(ctx)
	if err != nil {
		return err
	}
	if !p.running(ctx, cluster) && os.Getenv("STEMEDB_E2E_KEEP") == "" {
		defer func() {
			// The way down is worth its time after a failure, too.
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
	return p.Reporter.Step(ctx, "gate tests on the cluster", func(ctx context.Context) error {
		return p.command(ctx, "test/e2e", append(env, "GOWORK=off",
			"STEMEDB_E2E_KUBECONFIG="+kubeconfig, "STEMEDB_E2E_IMAGE_TAG="+imageTag,
			"STEMEDB_E2E_LOADGEN_IMAGE="+loadgenImage, "STEMEDB_E2E_CLUSTER_COMMAND="+cluster),
			"go", "test", "-count=1", "-timeout", "40m", "-v", ".")
	})
}

// running tells whether the project's cluster is up.
func (p *Pipeline) running(ctx context.Context, cluster string) bool {
	_, err := p.quiet(ctx, ".", nil, cluster, "status")
	return err == nil
}
