package source

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/stemedb/stemedb/ci/process"
	"github.com/stemedb/stemedb/ci/progress"
)

// Changes lists, in full sentences, the changes that Up makes to the host and
// Down reverts.
func (k *Cluster) Changes() []string {
	c := k.Config
	list := []string{
		fmt.Sprintf("folder %s: all state, certificates, logs, volumes (removed by down)", c.Dir),
		fmt.Sprintf("network namespaces %s and %s-node1 to -node%d, the link %s with %s, routes to %s and %s",
			fabric, fabric, c.Nodes, hostLink, c.hostAddress(), c.PodRange, c.ServiceRange),
		"cgroups below /stemedb in every controller",
		"processes as root: etcd, the Kubernetes control plane, and a containerd, kubelet and kube-proxy for each node; their pods",
		"kernel settings that kubelets require, with the old values kept for down: " + strings.Join(settingNames(), ", "),
	}
	if missing := k.missingPackages(); len(missing) > 0 {
		list = append(list, "Debian packages to be installed, which down does not remove: "+strings.Join(missing, " "))
	}
	return list
}

// debian maps a required program or file to the package that contains it.
var debian = []struct{ need, pkg string }{
	{"ip", "iproute2"},
	{"nsenter", "util-linux"},
	{"sysctl", "procps"},
	{"mount", "mount"},
	{"containerd", "containerd"},
	{"ctr", "containerd"},
	{"runc", "runc"},
	{cniBin + "/bridge", "containernetworking-plugins"},
	{"nft", "nftables"},
	{"iptables", "iptables"},
	{"conntrack", "conntrack"},
	{"/bin/busybox", "busybox-static"},
}

func (k *Cluster) missingPackages() []string {
	var missing []string
	for _, d := range debian {
		if !installed(d.need) && !slices.Contains(missing, d.pkg) {
			missing = append(missing, d.pkg)
		}
	}
	return missing
}

// installed reports whether a program is in the path, or a file with an
// absolute name exists.
func installed(need string) bool {
	if filepath.IsAbs(need) {
		return exists(need)
	}
	_, err := exec.LookPath(need)
	return err == nil
}

// Check rejects a machine that cannot run the cluster, before anything is changed.
func (k *Cluster) Check(ctx context.Context) error {
	if err := k.Config.Check(); err != nil {
		return err
	}
	if err := Usable(); err != nil {
		return err
	}
	if err := k.cgroups.check(); err != nil {
		return progress.WithHint(err, "in a container, run it privileged and with the host's cgroups")
	}
	if owned, err := k.free(); err != nil || owned {
		return err // the ranges are our own
	}
	if !installed("ip") {
		return nil // ensurePackages installs it and checks the ranges after that
	}
	return checkRanges(ctx, k.Runner, k.Config)
}

// Usable reports whether this provider can work on this machine at all.
func Usable() error {
	if runtime.GOOS != "linux" {
		return fmt.Errorf("it needs Linux, this is %s", runtime.GOOS)
	}
	if os.Geteuid() != 0 {
		return progress.WithHint(errors.New("it needs root: it creates network namespaces, mounts and cgroups"), "run it with sudo -E, or install docker for the k3d provider")
	}
	return nil
}

func (k *Cluster) ensurePackages(ctx context.Context) error {
	missing := k.missingPackages()
	if len(missing) == 0 {
		return nil
	}
	if !installed("apt-get") {
		return progress.WithHint(fmt.Errorf("programs are missing: %s", strings.Join(missing, ", ")), "install them with this system's package manager (names are Debian's)")
	}
	quiet := []string{"DEBIAN_FRONTEND=noninteractive"}
	update := process.Cmd("apt-get", "update")
	update.Env = quiet
	if _, err := k.Runner.Run(ctx, update); err != nil {
		return err
	}
	install := process.Cmd("apt-get", append([]string{"install", "--yes", "--no-install-recommends"}, missing...)...)
	install.Env = quiet
	if _, err := k.Runner.Run(ctx, install); err != nil {
		return progress.WithHint(err, "install them manually: apt-get install %s", strings.Join(missing, " "))
	}
	if owned, err := k.free(); err != nil || owned {
		return err
	}
	return checkRanges(ctx, k.Runner, k.Config)
}

// settings are kernel settings of the whole machine. A kubelet sets the first
// ones itself; the last one allows for the file watchers of three nodes.
var settings = []struct {
	name  string
	least int // 0: only remembered
}{
	{"vm/overcommit_memory", 0},
	{"vm/panic_on_oom", 0},
	{"kernel/panic", 0},
	{"kernel/panic_on_oops", 0},
	{"kernel/keys/root_maxkeys", 0},
	{"kernel/keys/root_maxbytes", 0},
	{"fs/inotify/max_user_instances", 1024},
	{"fs/inotify/max_user_watches", 131072},
}

func settingNames() []string {
	names := make([]string, len(settings))
	for i, s := range settings {
		names[i] = strings.ReplaceAll(s.name, "/", ".")
	}
	return names
}

// rememberSettings saves the current values, once, and raises the settings that
// have a minimum.
func (k *Cluster) rememberSettings() error {
	file := k.Config.path("settings.json")
	if !exists(file) {
		old := map[string]string{}
		for _, s := range settings {
			if value, err := os.ReadFile(filepath.Join("/proc/sys", s.name)); err == nil {
				old[s.name] = strings.TrimSpace(string(value))
			}
		}
		text, err := json.MarshalIndent(old, "", "  ")
		if err != nil {
			return fmt.Errorf("saving kernel settings: %w", err)
		}
		if err := writeFile(file, text); err != nil {
			return err
		}
	}
	for _, s := range settings {
		path := filepath.Join("/proc/sys", s.name)
		value, err := os.ReadFile(path)
		if err != nil || s.least == 0 {
			continue
		}
		var now int
		if _, err := fmt.Sscan(string(value), &now); err != nil || now >= s.least {
			continue
		}
		if err := os.WriteFile(path, fmt.Appendf(nil, "%d", s.least), 0o644); err != nil {
			return fmt.Errorf("raising %s to %d: %w", s.name, s.least, err)
		}
	}
	return nil
}

// restoreSettings restores the saved values.
func (k *Cluster) restoreSettings() error {
	text, err := os.ReadFile(k.Config.path("settings.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("restoring kernel settings: %w", err)
	}
	old := map[string]string{}
	if err := json.Unmarshal(text, &old); err != nil {
		return fmt.Errorf("restoring kernel settings: %w", err)
	}
	for name, value := range old {
		path := filepath.Join("/proc/sys", name)
		if now, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(now)) == value {
			continue
		}
		if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
			return fmt.Errorf("restoring %s to %s: %w", name, value, err)
		}
	}
	return nil
}
