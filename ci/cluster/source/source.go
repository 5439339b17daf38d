package source

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/stemedb/stemedb/ci/process"
	"github.com/stemedb/stemedb/ci/progress"
)

// Tools finds programs by name and builds those that are not there yet.
type Tools interface {
	Paths(ctx context.Context, names ...string) (map[string]string, error)
}

// Cluster is one cluster on this machine. Its methods must not run concurrently
// in different processes.
type Cluster struct {
	Config   Config
	Runner   process.Runner
	Reporter *progress.Reporter
	Tools    Tools
	Programs []string // names of the tools to build

	cgroups   cgroups
	processes processes
	ownerFile string
	// namespaces is the folder of the kernel's named network namespaces.
	namespaces string
}

// New returns the cluster that the configuration describes, whether it runs or not.
func New(c Config, runner process.Runner, reporter *progress.Reporter, tools Tools, programs []string) *Cluster {
	return &Cluster{
		Config: c, Runner: runner, Reporter: reporter, Tools: tools, Programs: programs,
		cgroups:   cgroups{mounts: "/proc/self/mounts"},
		processes: processes{pids: c.path("pids"), logs: c.path("logs")},
		ownerFile: ownerFile, namespaces: namespaceDir,
	}
}

// Name is the provider's name.
func (k *Cluster) Name() string { return "source" }

// Kubeconfig is the path of the administrator's kubeconfig.
func (k *Cluster) Kubeconfig() string { return k.Config.Kubeconfig() }

// Up brings the cluster up, or verifies that it is up. It does not restart
// running components.
func (k *Cluster) Up(ctx context.Context) error {
	if err := k.Reporter.Step(ctx, "check this machine", k.Check); err != nil {
		return err
	}
	if len(k.missingPackages()) > 0 {
		if err := k.Reporter.Step(ctx, "install "+strings.Join(k.missingPackages(), " "), k.ensurePackages); err != nil {
			return err
		}
	}
	tool, err := k.Tools.Paths(ctx, k.Programs...)
	if err != nil {
		return err
	}
	steps := []struct {
		name string
		do   func(context.Context) error
	}{
		{"write certificates and configuration", func(context.Context) error { return k.configure(tool) }},
		{"create the network", k.ensureNetwork},
		{"start the control plane", func(ctx context.Context) error { return k.startControlPlane(ctx, tool) }},
		{"start the nodes' containerd and import images", k.startRuntimes},
		{"start kubelets and wait for the nodes", func(ctx context.Context) error { return k.startNodes(ctx, tool) }},
		{"install DNS and volumes", k.installAddons},
	}
	for _, s := range steps {
		if err := k.Reporter.Step(ctx, s.name, s.do); err != nil {
			return progress.WithHint(err, "logs are in %s; if they do not explain the failure, take the cluster down and try again", k.processes.logs)
		}
	}
	return nil
}

func (k *Cluster) configure(tool map[string]string) error {
	if err := os.MkdirAll(k.Config.Dir, 0o700); err != nil {
		return fmt.Errorf("making the state folder: %w", err)
	}
	if err := k.claim(); err != nil {
		return err
	}
	if err := k.rememberSettings(); err != nil {
		return err
	}
	if err := writeConfig(k.Config); err != nil {
		return err
	}
	// A kubectl next to the kubeconfig, for users and for later commands.
	link := k.Config.path("kubectl")
	if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("linking kubectl: %w", err)
	}
	if err := os.Symlink(tool["kubectl"], link); err != nil {
		return fmt.Errorf("linking kubectl: %w", err)
	}
	return k.makeImages(tool)
}

func (k *Cluster) startControlPlane(ctx context.Context, tool map[string]string) error {
	parts := controlPlane(k.Config, tool)
	etcd, apiserver, others := parts[0], parts[1], parts[2:]
	for _, p := range []component{etcd, apiserver} {
		if _, err := k.processes.start(p); err != nil {
			return err
		}
	}
	ready := func(ctx context.Context) error {
		_, err := k.kubectl(ctx, "get", "--raw=/readyz")
		return err
	}
	if err := k.processes.wait(ctx, 2*time.Minute, ready, etcd.name, apiserver.name); err != nil {
		return fmt.Errorf("the API server: %w", err)
	}
	names := make([]string, 0, len(others))
	for _, p := range others {
		if _, err := k.processes.start(p); err != nil {
			return err
		}
		names = append(names, p.name)
	}
	// The default service account is the controller-manager's first work; no
	// pod can be made before it exists.
	account := func(ctx context.Context) error {
		_, err := k.kubectl(ctx, "get", "serviceaccount", "default", "--namespace=kube-system", "--output=name")
		return err
	}
	if err := k.processes.wait(ctx, time.Minute, account, names...); err != nil {
		return fmt.Errorf("the controllers: %w", err)
	}
	return nil
}

func (k *Cluster) startRuntimes(ctx context.Context) error {
	for _, n := range k.Config.nodes() {
		if err := k.cgroups.add(n.cgroup()); err != nil {
			return err
		}
		for _, dir := range []string{n.path("run"), n.volumes(), n.path("volume-plugins"), n.path("pod-logs")} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return fmt.Errorf("making the folders of %s: %w", n.name(), err)
			}
		}
		if _, err := k.processes.start(containerdOf(n)); err != nil {
			return err
		}
	}
	for _, n := range k.Config.nodes() {
		ready := func(ctx context.Context) error {
			_, err := k.Runner.Run(ctx, ctr(n, "version"))
			return err
		}
		if err := k.processes.wait(ctx, time.Minute, ready, containerdOf(n).name); err != nil {
			return fmt.Errorf("containerd of %s: %w", n.name(), err)
		}
	}
	return k.importImages(ctx, map[string]string{
		pauseImage:     k.Config.path("images", "pause.tar"),
		corednsImage:   k.Config.path("images", "coredns.tar"),
		localPathImage: k.Config.path("images", "local-path-provisioner.tar"),
		busyboxImage:   k.Config.path("images", "busybox.tar"),
	})
}

func (k *Cluster) startNodes(ctx context.Context, tool map[string]string) error {
	var names []string
	for _, n := range k.Config.nodes() {
		for _, p := range agentsOf(n, tool) {
			if _, err := k.processes.start(p); err != nil {
				return err
			}
			names = append(names, p.name)
		}
	}
	ready := func(ctx context.Context) error {
		states, err := k.nodeStates(ctx)
		if err != nil {
			return err
		}
		for _, n := range k.Config.nodes() {
			if states[n.name()] != "True" {
				return fmt.Errorf("%s is not ready", n.name())
			}
		}
		return nil
	}
	return k.processes.wait(ctx, 2*time.Minute, ready, names...)
}

// nodeStates maps the nodes' names to the status of their Ready condition.
func (k *Cluster) nodeStates(ctx context.Context) (map[string]string, error) {
	text, err := k.kubectl(ctx, "get", "nodes",
		`--output=jsonpath={range .items[*]}{.metadata.name} {.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}`)
	if err != nil {
		return nil, err
	}
	states := map[string]string{}
	for _, line := range strings.Split(text, "\n") {
		if name, state, ok := strings.Cut(line, " "); ok {
			states[name] = state
		}
	}
	return states, nil
}

func (k *Cluster) installAddons(ctx context.Context) error {
	manifest, err := addons(k.Config)
	if err != nil {
		return err
	}
	apply := k.kubectlCommand("apply", "--server-side", "--force-conflicts", "--filename=-")
	apply.In = manifest
	if _, err := k.Runner.Run(ctx, apply); err != nil {
		return err
	}
	for _, workload := range []string{"kube-system daemonset/coredns", "local-path-storage deployment/local-path-provisioner"} {
		namespace, name, _ := strings.Cut(workload, " ")
		if _, err := k.kubectl(ctx, "rollout", "status", "--namespace="+namespace, "--timeout=120s", name); err != nil {
			pods, podsErr := k.kubectl(ctx, "get", "pods,events", "--namespace="+namespace, "--output=wide")
			return errors.Join(err, podsErr, errors.New(process.LastLines(pods, 20)))
		}
	}
	return nil
}

func (k *Cluster) kubectlCommand(args ...string) process.Command {
	return process.Cmd(k.Config.path("kubectl"), append([]string{"--kubeconfig=" + k.Config.Kubeconfig(), "--request-timeout=10s"}, args...)...)
}

func (k *Cluster) kubectl(ctx context.Context, args ...string) (string, error) {
	return k.Runner.Run(ctx, k.kubectlCommand(args...))
}
