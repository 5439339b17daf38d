package cluster

import (
	"context"
	"fmt"
	"strings"
	"syscall"

	"github.com/stemedb/stemedb/ci/progress"
	"github.com/stemedb/stemedb/ci/run"
)

// What k3d and kind have in common: a node is a docker container.

// dockerAnswers says whether there is a docker daemon to work with.
func dockerAnswers(ctx context.Context, r run.Runner) error {
	_, err := r.Run(ctx, run.Cmd("docker", "info", "--format", "{{.ServerVersion}}"))
	return dockerHint(err)
}

// dockerSetLink cuts a node off or puts it back. The link inside the container
// is set, instead of disconnecting the container from its docker network, which
// would give it another address on its return; a node must keep its own.
func dockerSetLink(ctx context.Context, r run.Runner, node, state string) error {
	if _, err := r.Run(ctx, run.Cmd("docker", "exec", node, "ip", "link", "set", "eth0", state)); err != nil {
		return fmt.Errorf("setting the link of %s %s: %w", node, state, err)
	}
	if state == "down" {
		return nil
	}
	// The default route went with the link.
	gateway, err := r.Run(ctx, run.Cmd("docker", "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}", node))
	if err != nil {
		return fmt.Errorf("finding the gateway of %s: %w", node, err)
	}
	if _, err := r.Run(ctx, run.Cmd("docker", "exec", node, "ip", "route", "replace", "default", "via", strings.TrimSpace(gateway))); err != nil {
		return fmt.Errorf("restoring the default route of %s: %w", node, err)
	}
	return nil
}

// dockerSignal sends a signal to a container inside a node; the runtime's tool
// and kill are part of both kinds of node image.
func dockerSignal(ctx context.Context, r run.Runner, node, id string, signal syscall.Signal) error {
	pid, err := r.Run(ctx, run.Cmd("docker", "exec", node, "crictl", "inspect", "--output", "go-template", "--template", "{{.info.pid}}", id))
	if err != nil {
		return fmt.Errorf("finding the process of container %s: %w", id, err)
	}
	if _, err := r.Run(ctx, run.Cmd("docker", "exec", node, "kill", fmt.Sprintf("-%d", int(signal)), strings.TrimSpace(pid))); err != nil {
		return fmt.Errorf("sending %s to container %s: %w", signal, id, err)
	}
	return nil
}

// listed says whether a tool's list of clusters, one name a line, has ours.
func listed(text string) bool {
	for _, line := range strings.Split(text, "\n") {
		if f := strings.Fields(line); len(f) > 0 && f[0] == Name {
			return true
		}
	}
	return false
}

func dockerHint(err error) error {
	return progress.WithHint(err, "is the docker daemon up? STEMEDB_CLUSTER_PROVIDER=source needs none")
}
