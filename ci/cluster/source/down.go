package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stemedb/stemedb/ci/progress"
)

// Down removes the cluster with everything that Up created, including volumes.
// It also cleans up after a failed Up, and is idempotent.
func (k *Cluster) Down(ctx context.Context) error {
	if err := k.Config.Check(); err != nil {
		return err
	}
	if err := Usable(); err != nil {
		return err
	}
	owned, err := k.free()
	if err != nil {
		// Another cluster owns the names. This one never owned them, or lost
		// them in a reboot; only its files can remain.
		k.Reporter.Note("only files are removed: %v", err)
	}
	mine := func(do func(context.Context) error) func(context.Context) error {
		return func(ctx context.Context) error {
			if !owned {
				return nil
			}
			return do(ctx)
		}
	}
	steps := []struct {
		name string
		do   func(context.Context) error
	}{
		{"stop the components", k.stopComponents},
		{"end pods and their shims", mine(k.endPods)},
		{"remove the network", mine(k.removeNetwork)},
		{"unmount everything below the state folder", k.unmount},
		{"remove cgroups", mine(k.removeCgroups)},
		{"restore kernel settings", mine(func(context.Context) error {
			return errors.Join(k.restoreSettings(), k.removeTraces())
		})},
		{"remove the state folder", func(context.Context) error { return k.removeFiles() }},
		{"release the names", mine(func(context.Context) error { return k.release() })},
	}
	for _, s := range steps {
		if err := k.Reporter.Step(ctx, s.name, s.do); err != nil {
			return progress.WithHint(err, "run down again; the leftovers are named above")
		}
	}
	return nil
}

// stopComponents ends the kubelets before the runtimes and the clients before
// the servers, so that nothing restarts components during the removal.
func (k *Cluster) stopComponents(ctx context.Context) error {
	waves := [][]string{{}, {}, {}, {}}
	for _, name := range k.processes.known() {
		wave := 1
		switch {
		case strings.HasSuffix(name, "-kubelet"):
			wave = 0
		case name == "kube-apiserver":
			wave = 2
		case name == "etcd", strings.HasSuffix(name, "-containerd"):
			wave = 3
		}
		waves[wave] = append(waves[wave], name)
	}
	// A containerd leaves its containers running: endPods ends them.
	for _, names := range waves {
		if err := k.processes.stop(ctx, 5*time.Second, names...); err != nil {
			return err
		}
	}
	return nil
}

// endPods kills everything in the nodes' cgroups, then the shims, which live
// outside of them.
func (k *Cluster) endPods(ctx context.Context) error {
	for {
		if err := k.cgroups.kill("/stemedb"); err != nil {
			return err
		}
		left, err := k.cgroups.processes("/stemedb")
		if err != nil {
			return err
		}
		if len(left) == 0 {
			break
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("waiting for %d processes of pods to end: %w", len(left), err)
		}
	}
	for {
		shims, err := k.shims()
		if err != nil {
			return err
		}
		if len(shims) == 0 {
			return k.removeShimSockets()
		}
		for _, pid := range shims {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("ending containerd's shim %d: %w", pid, err)
			}
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("waiting for %d shims to end: %w", len(shims), err)
		}
	}
}

// shims finds containerd's shims that were started for one of our sockets.
func (k *Cluster) shims() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil {
			continue // it has ended
		}
		words := strings.Split(string(bytes.TrimRight(line, "\x00")), "\x00")
		if !strings.HasPrefix(filepath.Base(words[0]), "containerd-shim") {
			continue
		}
		if i := slices.Index(words, "-address"); i >= 0 && i+1 < len(words) && strings.HasPrefix(words[i+1], k.Config.Dir+"/") {
			if _, err := birth(pid); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}

// removeShimSockets removes the sockets that killed shims left in /run. A
// bundle's file "address" names its own.
func (k *Cluster) removeShimSockets() error {
	found, err := filepath.Glob(k.Config.path("*", "run", "containerd", "io.containerd.runtime.v2.task", "*", "*", "address"))
	if err != nil {
		return fmt.Errorf("finding the shims' sockets: %w", err)
	}
	for _, file := range found {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // the bundle no longer exists
		}
		socket := strings.TrimPrefix(strings.TrimSpace(string(text)), "unix://")
		if !strings.HasPrefix(socket, "/run/containerd/s/") {
			continue
		}
		if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("removing the socket of a shim: %w", err)
		}
	}
	return nil
}

// unmount detaches every mount below the state folder, the innermost first.
func (k *Cluster) unmount(context.Context) error {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("listing mounts: %w", err)
	}
	points := mountsBelow(string(text), k.Config.Dir)
	for _, p := range points {
		if err := unix.Unmount(p, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmounting %s: %w", p, err)
		}
	}
	return nil
}

// mountsBelow lists the mount points below dir in the order in which they can
// be unmounted: the last mounted first.
func mountsBelow(mountinfo, dir string) []string {
	var points []string
	for _, line := range strings.Split(mountinfo, "\n") {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		point := unescape(f[4])
		if strings.HasPrefix(point, dir+"/") {
			points = append(points, point)
		}
	}
	slices.Reverse(points)
	return points
}

// unescape undoes the kernel's octal escapes for white space in paths.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// removeCgroups waits for the last processes to be reaped.
func (k *Cluster) removeCgroups(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 20*time.Second, errors.New("processes are still there after 20s"))
	defer cancel()
	for {
		err := k.cgroups.remove("/stemedb")
		if err == nil {
			return nil
		}
		if stop := sleep(ctx, 100*time.Millisecond); stop != nil {
			return fmt.Errorf("%w: %w", stop, err)
		}
	}
}

// removeTraces removes files that the components wrote outside of the state folder.
func (k *Cluster) removeTraces() error {
	// Kubelets link the logs of containers from here, regardless of their settings.
	links, err := filepath.Glob("/var/log/containers/*.log")
	if err != nil {
		return fmt.Errorf("finding links to logs: %w", err)
	}
	for _, l := range links {
		if target, err := os.Readlink(l); err == nil && strings.HasPrefix(target, k.Config.Dir+"/") {
			if err := os.Remove(l); err != nil {
				return fmt.Errorf("removing a link to a log: %w", err)
			}
		}
	}
	if err := removeCNIResults(); err != nil {
		return err
	}
	// The folder of named namespaces became a mount with our first one.
	if exists(k.Config.path("network.mounted")) && !k.anyNamespace() {
		if left, err := os.ReadDir(namespaceDir); err == nil && len(left) == 0 {
			if err := unix.Unmount(namespaceDir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
				return fmt.Errorf("unmounting %s: %w", namespaceDir, err)
			}
		}
	}
	// Every kubelet has this socket at the same place, regardless of its
	// settings; it is stale now unless another kubelet runs here.
	if sockets, err := os.ReadDir("/var/lib/kubelet"); err == nil && len(sockets) == 1 && sockets[0].Name() == "device-plugins" {
		if err := os.Remove("/var/lib/kubelet/device-plugins/kubelet.sock"); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("removing the kubelet's socket: %w", err)
		}
	}
	// Only when empty, since others may use them too.
	for _, dir := range []string{
		"/var/log/containers", "/var/lib/cni/results", "/var/lib/cni", "/var/lib/kubelet/device-plugins", "/var/lib/kubelet",
		"/run/containerd/s", "/run/containerd",
	} {
		_ = os.Remove(dir)
	}
	return nil
}

// removeFiles removes the state folder.
func (k *Cluster) removeFiles() error {
	// A volume that could not be unmounted must not be emptied through its mount.
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("listing mounts: %w", err)
	}
	if left := mountsBelow(string(text), k.Config.Dir); len(left) > 0 {
		return fmt.Errorf("not removing %s: %s is still mounted", k.Config.Dir, left[0])
	}
	if err := os.RemoveAll(k.Config.Dir); err != nil {
		return fmt.Errorf("removing the state folder: %w", err)
	}
	return nil
}

// removeCNIResults removes the cache of the CNI library: results by the
// network's name and the pod sandbox's id. A sandbox with a result of our
// network is ours, and so is its result for the loopback device.
func removeCNIResults() error {
	const cache = "/var/lib/cni/results/"
	results, err := filepath.Glob(cache + cniNetwork + "-*")
	if err != nil {
		return fmt.Errorf("finding CNI results: %w", err)
	}
	for _, r := range results {
		sandbox := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(r), cniNetwork+"-"), "-eth0")
		for _, file := range []string{cache + "cni-loopback-" + sandbox + "-lo", r} {
			if err := os.Remove(file); err != nil && !os.IsNotExist(err) {
				return fmt.Errorf("removing a CNI result: %w", err)
			}
		}
	}
	return nil
}
