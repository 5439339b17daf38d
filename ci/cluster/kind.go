package cluster

import (
	"context"
	_ "embed"
	"path/filepath"
	"syscall"

	"github.com/stemedb/stemedb/ci/process"
)

// KindImage is the node image of kind, the default of the version of kind that
// ci/cluster/conformance/go.mod names. The file kind.yaml names it too.
const KindImage = "kindest/node:v1.37.0@sha256:a1ed56cfb0e7b93589bdf97c8cd566405a265939e3620fc4f5de89adff580ae5"

// KindConfig is kind's configuration file.
//
//go:embed kind.yaml
var KindConfig string

// kindStorageClass makes the class "local-path" the default, as everywhere else.
//
//go:embed kind-storageclass.yaml
var kindStorageClass string

// Kind runs Kubernetes in docker containers: three nodes that take pods.
type Kind struct{ options Options }

// Name implements Provider.
func (*Kind) Name() string { return "kind" }

// Changes implements Provider.
func (k *Kind) Changes() []string {
	return []string{
		"docker containers " + Name + "-control-plane, -worker and -worker2, their volumes, the docker network kind (the network stays)",
		"the image " + KindImage + " in docker (kept)",
		"folder " + k.options.Dir + " with the kubeconfig (removed by down)",
	}
}

// Check implements Provider.
func (k *Kind) Check(ctx context.Context) error { return dockerAnswers(ctx, k.options.Runner) }

// Up implements Provider.
func (k *Kind) Up(ctx context.Context) error {
	o := k.options
	path, err := o.Tools.Path(ctx, "kind")
	if err != nil {
		return err
	}
	return o.Reporter.Step(ctx, "bring up kind", func(ctx context.Context) error {
		list, err := o.Runner.Run(ctx, process.Cmd(path, "get", "clusters"))
		if err != nil {
			return dockerHint(err)
		}
		if !listed(list) {
			file, err := o.writeFile("kind.yaml", KindConfig)
			if err != nil {
				return err
			}
			// A separate kubeconfig from the start, since kind would otherwise
			// write to ~/.kube/config.
			if _, err := o.Runner.Run(ctx, process.Cmd(path, "create", "cluster", "--name", Name, "--config", file,
				"--kubeconfig", filepath.Join(o.Dir, "kind.kubeconfig"), "--wait", "5m")); err != nil {
				return dockerHint(err)
			}
		}
		text, err := o.Runner.Run(ctx, process.Cmd(path, "get", "kubeconfig", "--name", Name))
		if err != nil {
			return err
		}
		if err := o.writeKubeconfig(text); err != nil {
			return err
		}
		if err := o.waitNodes(ctx); err != nil {
			return err
		}
		_, err = o.kubectl(ctx, kindStorageClass, "apply", "--server-side", "--force-conflicts", "--filename=-")
		return err
	})
}

// LoadImage implements Provider.
func (k *Kind) LoadImage(ctx context.Context, tars ...string) error {
	path, err := k.options.Tools.Path(ctx, "kind")
	if err != nil {
		return err
	}
	for _, tar := range tars {
		if _, err := k.options.Runner.Run(ctx, process.Cmd(path, "load", "image-archive", tar, "--name", Name)); err != nil {
			return err
		}
	}
	return nil
}

// Kubeconfig implements Provider.
func (k *Kind) Kubeconfig() string { return k.options.kubeconfigPath() }

// Status implements Provider.
func (k *Kind) Status(ctx context.Context) (string, error) { return k.options.nodeStatus(ctx) }

// Down implements Provider.
func (k *Kind) Down(ctx context.Context) error {
	path, err := k.options.Tools.Path(ctx, "kind")
	if err != nil {
		return err
	}
	return k.options.Reporter.Step(ctx, "take down kind", func(ctx context.Context) error {
		if _, err := k.options.Runner.Run(ctx, process.Cmd(path, "delete", "cluster", "--name", Name,
			"--kubeconfig", filepath.Join(k.options.Dir, "kind.kubeconfig"))); err != nil {
			return dockerHint(err)
		}
		return nil
	})
}

// CutNode implements Faults.
func (k *Kind) CutNode(ctx context.Context, node string) error {
	return dockerSetLink(ctx, k.options.Runner, node, "down")
}

// HealNode implements Faults.
func (k *Kind) HealNode(ctx context.Context, node string) error {
	return dockerSetLink(ctx, k.options.Runner, node, "up")
}

// SignalContainer implements Faults.
func (k *Kind) SignalContainer(ctx context.Context, node, id string, signal syscall.Signal) error {
	return dockerSignal(ctx, k.options.Runner, node, id, signal)
}
