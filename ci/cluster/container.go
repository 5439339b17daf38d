package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
)

// Container names a container of a pod.
type Container struct{ Namespace, Pod, Name string }

// ParseContainer reads NAMESPACE/POD/CONTAINER.
func ParseContainer(text string) (Container, error) {
	parts := strings.Split(text, "/")
	if len(parts) != 3 || parts[0] == "" || parts[1] == "" || parts[2] == "" {
		return Container{}, fmt.Errorf("%q: want NAMESPACE/POD/CONTAINER", text)
	}
	return Container{parts[0], parts[1], parts[2]}, nil
}

func (c Container) String() string { return c.Namespace + "/" + c.Pod + "/" + c.Name }

// located is a container with the node that it runs on.
type located struct {
	Container
	node, id string
}

// Signal sends a signal to the first process of each container, bypassing
// kubelet and runtime, so that nothing shuts down gracefully. It locates all
// containers before it sends the first signal, so that many containers are
// killed at once.
func Signal(ctx context.Context, o Options, f Faults, signal syscall.Signal, containers ...Container) error {
	var found []located
	for _, c := range containers {
		l, err := locate(ctx, o, c)
		if err != nil {
			return err
		}
		found = append(found, l)
	}
	// In sequence, the first one could be restarted before the last one is killed.
	results := make(chan error, len(found))
	for _, l := range found {
		go func() {
			if err := f.SignalContainer(ctx, l.node, l.id, signal); err != nil {
				results <- fmt.Errorf("%s: %w", l.Container, err)
				return
			}
			results <- nil
		}()
	}
	var all error
	for range found {
		all = errors.Join(all, <-results)
	}
	return all
}

// locate asks the API server for the node and the runtime's id of a container.
func locate(ctx context.Context, o Options, c Container) (located, error) {
	text, err := o.kubectl(ctx, "", "get", "pod", c.Pod, "--namespace="+c.Namespace,
		`--output=jsonpath={.spec.nodeName} {.status.containerStatuses[?(@.name=="`+c.Name+`")].containerID}`)
	if err != nil {
		return located{}, fmt.Errorf("finding container %s: %w", c, err)
	}
	fields := strings.Fields(text)
	if len(fields) != 2 {
		return located{}, fmt.Errorf("container %s is not running", c)
	}
	_, id, _ := strings.Cut(fields[1], "://")
	return located{Container: c, node: fields[0], id: id}, nil
}
