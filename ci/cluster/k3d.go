package cluster

import (
	"context"
	_ "embed"
	"syscall"

	"github.com/stemedb/stemedb/ci/process"
)

// K3sImage is the node image of k3d. The file k3d.yaml names it too.
const K3sImage = "rancher/k3s:v1.33.4-k3s1"

// K3DToolsImage is the image that k3d starts next to the nodes to inspect their network.
const K3DToolsImage = "ghcr.io/k3d-io/k3d-tools:5.8.3"

// K3DConfig is k3d's configuration file.
//
//go:embed k3d.yaml
var K3DConfig string

// K3D runs k3s in docker containers: one server and two agents.
type K3D struct{ options Options }

// Name implements Provider.
func (*K3D) Name() string { return "k3d" }

// Changes implements Provider.
func (k *K3D) Changes() []string {
	return []string{
		"docker containers k3d-" + Name + "-*, their volumes and the docker network k3d-" + Name + " (removed by down)",
		"the image " + K3sImage + " in docker (kept)",
		"folder " + k.options.Dir + " with the kubeconfig (removed by down)",
	}
}

// Check implements Provider.
func (k *K3D) Check(ctx context.Context) error { return dockerAnswers(ctx, k.options.Runner) }

// Up implements Provider.
func (k *K3D) Up(ctx context.Context) error {
	o := k.options
	path, err := o.Tools.Path(ctx, "k3d")
	if err != nil {
		return err
	}
	return o.Reporter.Step(ctx, "bring up k3d", func(ctx context.Context) error {
		list, err := o.Runner.Run(ctx, process.Cmd(path, "cluster", "list", "--no-headers"))
		if err != nil {
			return dockerHint(err)
		}
		if listed(list) {
			_, err = o.Runner.Run(ctx, process.Cmd(path, "cluster", "start", Name, "--wait"))
		} else {
			file, writeErr := o.writeFile("k3d.yaml", K3DConfig)
			if writeErr != nil {
				return writeErr
			}
			_, err = o.Runner.Run(ctx, process.Cmd(path, "cluster", "create", "--config", file))
		}
		if err != nil {
			return dockerHint(err)
		}
		text, err := o.Runner.Run(ctx, process.Cmd(path, "kubeconfig", "get", Name))
		if err != nil {
			return err
		}
		if err := o.writeKubeconfig(text); err != nil {
			return err
		}
		return o.waitNodes(ctx)
	})
}

// LoadImage implements Provider.
func (k *K3D) LoadImage(ctx context.Context, tars ...string) error {
	path, err := k.options.Tools.Path(ctx, "k3d")
	if err != nil {
		return err
	}
	// The mode direct needs no helper image.
	args := append([]string{"image", "import", "--cluster", Name, "--mode", "direct"}, tars...)
	_, err = k.options.Runner.Run(ctx, process.Cmd(path, args...))
	return err
}

// Kubeconfig implements Provider.
func (k *K3D) Kubeconfig() string { return k.options.kubeconfigPath() }

// Status implements Provider.
func (k *K3D) Status(ctx context.Context) (string, error) { return k.options.nodeStatus(ctx) }

// Down implements Provider.
func (k *K3D) Down(ctx context.Context) error {
	path, err := k.options.Tools.Path(ctx, "k3d")
	if err != nil {
		return err
	}
	return k.options.Reporter.Step(ctx, "take down k3d", func(ctx context.Context) error {
		if _, err := k.options.Runner.Run(ctx, process.Cmd(path, "cluster", "delete", Name)); err != nil {
			return dockerHint(err)
		}
		return nil
	})
}

// CutNode implements Faults.
func (k *K3D) CutNode(ctx context.Context, node string) error {
	return dockerSetLink(ctx, k.options.Runner, node, "down")
}

// HealNode implements Faults.
func (k *K3D) HealNode(ctx context.Context, node string) error {
	return dockerSetLink(ctx, k.options.Runner, node, "up")
}

// SignalContainer implements Faults.
func (k *K3D) SignalContainer(ctx context.Context, node, id string, signal syscall.Signal) error {
	return dockerSignal(ctx, k.options.Runner, node, id, signal)
}
