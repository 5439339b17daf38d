// Package cluster brings up a three-node Kubernetes cluster for development and
// tests, with a provider that the machine supports, and removes it again.
//
// It promises to access only the cluster that it created or that the user
// explicitly named. The kubeconfig is a separate file outside of the checkout;
// ~/.kube/config is neither read nor written, except that the provider
// "existing" reads the one context that the user named.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/stemedb/stemedb/ci/process"
	"github.com/stemedb/stemedb/ci/progress"
)

// Provider is one way to run a cluster. All methods are idempotent and may be
// called in any order.
type Provider interface {
	// Name is k3d, kind, source or existing.
	Name() string
	// Changes lists the changes that Up makes to this machine, one sentence each.
	Changes() []string
	// Check reports whether Up can work here, and changes nothing.
	Check(ctx context.Context) error
	// Up brings the cluster up, or verifies that it is.
	Up(ctx context.Context) error
	// LoadImage puts the images of docker-style tars on every node.
	LoadImage(ctx context.Context, tars ...string) error
	// Kubeconfig is the path of the cluster's kubeconfig, which exists after Up.
	Kubeconfig() string
	// Status describes the cluster, one line per component; it fails if the
	// cluster is not up.
	Status(ctx context.Context) (string, error)
	// Down undoes everything that Up did.
	Down(ctx context.Context) error
}

// Faults are the failures that a provider with nodes on this machine can inject.
type Faults interface {
	// CutNode disconnects a node from the network; its processes keep running.
	CutNode(ctx context.Context, node string) error
	// HealNode reconnects it.
	HealNode(ctx context.Context, node string) error
	// SignalContainer sends a signal to the first process of a container,
	// identified by its id in the node's runtime.
	SignalContainer(ctx context.Context, node, id string, signal syscall.Signal) error
}

// Tools finds the programs that providers use and builds missing ones.
type Tools interface {
	Path(ctx context.Context, name string) (string, error)
	Paths(ctx context.Context, names ...string) (map[string]string, error)
}

// Options are common to all providers. Dir, Runner, Reporter and Tools are required.
type Options struct {
	Dir      string // state folder; see StateDir
	Context  string // existing: the context to use
	Runner   process.Runner
	Reporter *progress.Reporter
	Tools    Tools

	// Address ranges of the source provider; empty means its default.
	NodeRange, PodRange, ServiceRange string
}

// Providers lists the names that New accepts.
func Providers() []string { return []string{"k3d", "kind", "source", "existing"} }

// New returns the provider of that name.
func New(name string, o Options) (Provider, error) {
	switch name {
	case "k3d":
		return &K3D{options: o}, nil
	case "kind":
		return &Kind{options: o}, nil
	case "source":
		return newSource(o)
	case "existing":
		if o.Context == "" {
			return nil, progress.WithHint(errors.New("the provider existing needs the name of a context"),
				"pass --context NAME (or STEMEDB_CLUSTER_CONTEXT); the current context is never used")
		}
		return &Existing{options: o}, nil
	}
	return nil, progress.WithHint(fmt.Errorf("there is no cluster provider %q", name), "choose one of %s", strings.Join(Providers(), ", "))
}

// Name is the name of the cluster in k3d and kind.
const Name = "stemedb"

// StateDir is the folder of a cluster's state: the folder "cluster" in
// STEMEDB_STATE, else in stemedb below XDG_STATE_HOME, else in
// ~/.local/state/stemedb.
func StateDir() (string, error) {
	if dir := os.Getenv("STEMEDB_STATE"); dir != "" {
		dir, err := filepath.Abs(dir)
		if err != nil {
			return "", fmt.Errorf("STEMEDB_STATE: %w", err)
		}
		return filepath.Join(dir, "cluster"), nil
	}
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "stemedb", "cluster"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", progress.WithHint(fmt.Errorf("finding a folder for the cluster's state: %w", err), "set STEMEDB_STATE")
	}
	return filepath.Join(home, ".local", "state", "stemedb", "cluster"), nil
}

// kubeconfigPath is the same for every provider, so that scripts can rely on it.
func (o Options) kubeconfigPath() string { return filepath.Join(o.Dir, "kubeconfig") }

// writeKubeconfig stores the kubeconfig that a provider's tool printed.
func (o Options) writeKubeconfig(text string) error {
	if !strings.Contains(text, "clusters:") {
		return errors.New("the kubeconfig from the provider's tool has no clusters")
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return fmt.Errorf("making the state folder: %w", err)
	}
	if err := os.WriteFile(o.kubeconfigPath(), []byte(text), 0o600); err != nil {
		return fmt.Errorf("writing the kubeconfig: %w", err)
	}
	return nil
}

// writeFile writes a tool's configuration into the state folder.
func (o Options) writeFile(name, content string) (string, error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return "", fmt.Errorf("making the state folder: %w", err)
	}
	path := filepath.Join(o.Dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		return "", fmt.Errorf("writing %s: %w", name, err)
	}
	return path, nil
}

// kubectl runs kubectl against the cluster's own kubeconfig.
func (o Options) kubectl(ctx context.Context, in string, args ...string) (string, error) {
	path, err := o.Tools.Path(ctx, "kubectl")
	if err != nil {
		return "", err
	}
	c := process.Cmd(path, append([]string{"--kubeconfig=" + o.kubeconfigPath(), "--request-timeout=30s"}, args...)...)
	if in != "" {
		c.In = []byte(in)
	}
	return o.Runner.Run(ctx, c)
}

// waitNodes waits until every node is ready.
func (o Options) waitNodes(ctx context.Context) error {
	_, err := o.kubectl(ctx, "", "wait", "--for=condition=Ready", "node", "--all", "--timeout=180s")
	return err
}

// nodeStatus is the node list of kubectl.
func (o Options) nodeStatus(ctx context.Context) (string, error) {
	if _, err := os.Stat(o.kubeconfigPath()); err != nil {
		return "", progress.WithHint(fmt.Errorf("no cluster in %s", o.Dir), "bring it up first")
	}
	return o.kubectl(ctx, "", "get", "nodes", "--output=wide")
}
