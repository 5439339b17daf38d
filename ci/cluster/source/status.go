package source

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"github.com/stemedb/stemedb/ci/progress"
)

// Status describes nodes and processes, one a line. An error means that the
// cluster is not up.
func (k *Cluster) Status(ctx context.Context) (string, error) {
	var b strings.Builder
	for _, name := range k.processes.known() {
		if pid, running := k.processes.running(name); running {
			fmt.Fprintf(&b, "process  %-28s running (%d)\n", name, pid)
		} else {
			fmt.Fprintf(&b, "process  %-28s ENDED, log %s\n", name, k.processes.log(name))
		}
	}
	if b.Len() == 0 {
		return "", progress.WithHint(fmt.Errorf("no cluster in %s", k.Config.Dir), "bring it up first")
	}
	states, err := k.nodeStates(ctx)
	if err != nil {
		return b.String(), err
	}
	for _, n := range k.Config.nodes() {
		state := "not ready"
		if states[n.name()] == "True" {
			state = "ready"
		}
		link := ""
		if text, err := k.Runner.Run(ctx, ip("-n "+fabric+" link show "+n.link())); err == nil && !strings.Contains(text, ",UP") {
			link = ", cut off"
		}
		fmt.Fprintf(&b, "node     %-28s %s%s (%s)\n", n.name(), state, link, n.address())
	}
	return b.String(), nil
}

// SignalContainer sends a signal to the first process of a container by its id
// at the runtime.
func (k *Cluster) SignalContainer(ctx context.Context, nodeName, id string, signal syscall.Signal) error {
	pid, err := k.ContainerPID(ctx, nodeName, id)
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, signal); err != nil {
		return fmt.Errorf("sending %s to process %d: %w", signal, pid, err)
	}
	return nil
}

// ContainerPID is the process id on this machine of a container's first process.
func (k *Cluster) ContainerPID(ctx context.Context, nodeName, id string) (int, error) {
	n, err := k.Config.nodeNamed(nodeName)
	if err != nil {
		return 0, err
	}
	text, err := k.Runner.Run(ctx, ctr(n, "tasks", "list"))
	if err != nil {
		return 0, fmt.Errorf("listing the containers of %s: %w", nodeName, err)
	}
	for _, line := range strings.Split(text, "\n") {
		f := strings.Fields(line)
		if len(f) == 3 && f[0] == id && f[2] == "RUNNING" {
			pid, err := strconv.Atoi(f[1])
			if err != nil {
				return 0, fmt.Errorf("reading the process of container %s: %w", id, err)
			}
			return pid, nil
		}
	}
	return 0, fmt.Errorf("container %s is not running on %s", id, nodeName)
}
