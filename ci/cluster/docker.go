package cluster

import (
	"context"
	"fmt"
	"strings"
	"syscall"

	"github.com/stemedb/stemedb/ci/process"
	"github.com/stemedb/stemedb/ci/progress"
)

// The common code of k3d and kind, where a node is a docker container.

// dockerAnswers reports whether a docker daemon responds.
func dockerAnswers(ctx context.Context, r process.Runner) error {
	_, err := r.Run(ctx, process.Cmd("docker", "info", "--format", "{{.ServerVersion}}"))
	return dockerHint(err)
}

// dockerSetLink disconnects a node or reconnects it. It sets the link inside
// the container instead of disconnecting the container from its docker network,
// because the container would get a different address on its return, and a node
// must keep its address.
func dockerSetLink(ctx context.Context, r process.Runner, node, state string) error {
	if _, err := r.Run(ctx, process.Cmd("docker", "exec", node, "ip", "link", "set", "eth0", state)); err != nil {
		return fmt.Errorf("setting the link of %s %s: %w", node, state, err)
	}
	if state == "down" {
		return nil
	}
	// The default route was removed together with the link.
	gateway, err := r.Run(ctx, process.Cmd("docker", "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}", node))
	if err != nil {
		return fmt.Errorf("finding the gateway of %s: %w", node, err)
	}
	if _, err := r.Run(ctx, process.Cmd("docker", "exec", node, "ip", "route", "replace", "default", "via", strings.TrimSpace(gateway))); err != nil {
		return fmt.Errorf("restoring the default route of %s: %w", node, err)
	}
	return nil
}

// dockerSignal sends a signal to a container inside a node; the runtime's tool
// and kill are part of both kinds of node image.
func dockerSignal(ctx context.Context, r process.Runner, node, id string, signal syscall.Signal) error {
	pid, err := r.Run(ctx, process.Cmd("docker", "exec", node, "crictl", "inspect", "--output", "go-template", "--template", "{{.info.pid}}", id))
	if err != nil {
		return fmt.Errorf("finding the process of container %s: %w", id, err)
	}
	if _, err := r.Run(ctx, process.Cmd("docker", "exec", node, "kill", fmt.Sprintf("-%d", int(signal)), strings.TrimSpace(pid))); err != nil {
		return fmt.Errorf("sending %s to container %s: %w", signal, id, err)
	}
	return nil
}

// listed reports whether a tool's list of clusters, one name per line, contains ours.
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
