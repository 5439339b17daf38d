package cluster

import (
	"context"
	"errors"

	"github.com/stemedb/stemedb/ci/process"
	"github.com/stemedb/stemedb/ci/progress"
)

// Existing is a cluster that the user provides, named by a context of the
// user's kubeconfig. It is used and never changed: it is neither created nor
// removed, and no image is loaded onto its nodes.
type Existing struct{ options Options }

// IsExisting reports whether the cluster in the state folder is an existing one.
func IsExisting(dir string) (bool, error) {
	r, err := readRecord(dir)
	return r.Provider == "existing", err
}

// Name implements Provider.
func (*Existing) Name() string { return "existing" }

// Changes implements Provider.
func (e *Existing) Changes() []string {
	return []string{
		"the cluster of context " + e.options.Context + " is used unchanged",
		"folder " + e.options.Dir + " with a kubeconfig of that one context (removed by down)",
	}
}

// Check implements Provider.
func (*Existing) Check(context.Context) error { return nil }

// Up implements Provider: it copies the one context into a separate file, so
// that a later change of the current context cannot select a different cluster.
func (e *Existing) Up(ctx context.Context) error {
	o := e.options
	path, err := o.Tools.Path(ctx, "kubectl")
	if err != nil {
		return err
	}
	return o.Reporter.Step(ctx, "look at context "+o.Context, func(ctx context.Context) error {
		text, err := o.Runner.Run(ctx, process.Cmd(path, "config", "view", "--raw", "--minify", "--flatten", "--context", o.Context))
		if err != nil {
			return progress.WithHint(err, "kubectl config get-contexts lists the available contexts")
		}
		if err := o.writeKubeconfig(text); err != nil {
			return err
		}
		return o.waitNodes(ctx)
	})
}

// LoadImage implements Provider and always fails.
func (e *Existing) LoadImage(context.Context, ...string) error {
	return progress.WithHint(errors.New("images cannot be loaded onto the nodes of an existing cluster"),
		"push the image to a registry that they pull from, and name it: STEMEDB_CLUSTER_IMAGE=REGISTRY/REPOSITORY:TAG make up")
}

// Kubeconfig implements Provider.
func (e *Existing) Kubeconfig() string { return e.options.kubeconfigPath() }

// Status implements Provider.
func (e *Existing) Status(ctx context.Context) (string, error) { return e.options.nodeStatus(ctx) }

// Down implements Provider: the cluster itself contains nothing to remove.
func (*Existing) Down(context.Context) error { return nil }
