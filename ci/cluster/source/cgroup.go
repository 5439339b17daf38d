package source

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// cgroups makes and removes the nodes' folders in the cgroup file systems, in
// version 1 (a tree for each controller) and version 2 (one tree).
type cgroups struct {
	mounts string // /proc/self/mounts, or a copy in a test
}

// needed are the controllers without which a kubelet does not start.
var needed = []string{"cpu", "cpuset", "memory", "pids"}

// trees lists the roots of the cgroup trees and their controllers. unified
// means version 2.
func (g cgroups) trees() (roots, controllers []string, unified bool, err error) {
	one, two, controllers, err := g.mounted()
	switch {
	case err != nil:
		return nil, nil, false, err
	case len(one) > 0:
		return one, controllers, false, nil
	case len(two) > 0:
		text, err := os.ReadFile(filepath.Join(two[0], "cgroup.controllers"))
		if err != nil {
			return nil, nil, true, fmt.Errorf("reading the cgroup controllers: %w", err)
		}
		return two[:1], strings.Fields(string(text)), true, nil
	}
	return nil, nil, false, errors.New("finding the cgroup file systems: none is mounted")
}

// mounted lists the trees of either version, and the controllers of version 1.
func (g cgroups) mounted() (one, two, controllers []string, err error) {
	text, err := os.ReadFile(g.mounts)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("finding the cgroup file systems: %w", err)
	}
	for _, line := range strings.Split(string(text), "\n") {
		f := strings.Fields(line)
		if len(f) < 4 {
			continue
		}
		switch f[2] {
		case "cgroup":
			// Named trees without a controller (systemd's) are used by runc too.
			one = append(one, f[1])
			controllers = append(controllers, strings.Split(f[3], ",")...)
		case "cgroup2":
			two = append(two, f[1])
		}
	}
	return one, two, controllers, nil
}

// every lists all trees: where both versions are mounted, runc makes folders in
// the second too.
func (g cgroups) every() ([]string, error) {
	one, two, _, err := g.mounted()
	return append(one, two...), err
}

// check reports whether the controllers that a kubelet needs are available.
func (g cgroups) check() error {
	_, have, _, err := g.trees()
	if err != nil {
		return err
	}
	for _, controller := range needed {
		if !slices.Contains(have, controller) {
			return fmt.Errorf("the cgroup controller %s is not available (available: %s)", controller, strings.Join(have, " "))
		}
	}
	return nil
}

// add makes the group in every tree.
func (g cgroups) add(group string) error {
	roots, _, unified, err := g.trees()
	if err != nil {
		return err
	}
	for _, root := range roots {
		at := root
		for _, part := range strings.Split(strings.Trim(group, "/"), "/") {
			if unified {
				if err := delegate(at); err != nil {
					return err
				}
			}
			parent := at
			at = filepath.Join(at, part)
			if err := os.Mkdir(at, 0o755); err != nil && !os.IsExist(err) {
				return fmt.Errorf("making the cgroup %s: %w", at, err)
			}
			if err := inherit(parent, at, unified); err != nil {
				return err
			}
		}
		if unified {
			if err := delegate(at); err != nil {
				return err
			}
		}
	}
	return nil
}

// inherit copies the processors and memory nodes: in version 1 a new cpuset has
// none, and nothing can run in it.
func inherit(parent, child string, unified bool) error {
	if unified || !exists(filepath.Join(parent, "cpuset.cpus")) {
		return nil
	}
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(parent, file))
		if err != nil {
			return fmt.Errorf("reading %s: %w", file, err)
		}
		if err := os.WriteFile(filepath.Join(child, file), value, 0o644); err != nil {
			return fmt.Errorf("setting %s of %s: %w", file, child, err)
		}
	}
	return nil
}

// delegate enables every controller of a version 2 group for its children.
func delegate(group string) error {
	text, err := os.ReadFile(filepath.Join(group, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("reading the controllers of %s: %w", group, err)
	}
	for _, controller := range strings.Fields(string(text)) {
		err := os.WriteFile(filepath.Join(group, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
		if err != nil && slices.Contains(needed, controller) {
			return fmt.Errorf("enabling the controller %s of %s for its children: %w", controller, group, err)
		}
	}
	return nil
}

// processes lists the processes in the group and below it.
func (g cgroups) processes(group string) ([]int, error) {
	roots, err := g.every()
	if err != nil {
		return nil, err
	}
	seen := map[int]bool{}
	for _, root := range roots {
		for _, dir := range below(filepath.Join(root, group)) {
			text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			if err != nil {
				continue // the group went away meanwhile
			}
			for _, word := range strings.Fields(string(text)) {
				if pid, err := strconv.Atoi(word); err == nil && pid > 1 {
					seen[pid] = true
				}
			}
		}
	}
	pids := make([]int, 0, len(seen))
	for pid := range seen {
		pids = append(pids, pid)
	}
	return pids, nil
}

// kill ends everything in the group.
func (g cgroups) kill(group string) error {
	pids, err := g.processes(group)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("ending process %d of cgroup %s: %w", pid, group, err)
		}
	}
	return nil
}

// remove deletes the group and its subgroups. It fails while they contain processes.
func (g cgroups) remove(group string) error {
	roots, err := g.every()
	if err != nil {
		return err
	}
	for _, root := range roots {
		dirs := below(filepath.Join(root, group))
		for i := len(dirs) - 1; i >= 0; i-- {
			if err := syscall.Rmdir(dirs[i]); err != nil && !errors.Is(err, syscall.ENOENT) {
				return fmt.Errorf("removing the cgroup %s: %w", dirs[i], err)
			}
		}
	}
	return nil
}

// below lists dir and its subfolders, parents first; nothing if dir does not exist.
func below(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	list := []string{dir}
	for _, e := range entries {
		if e.IsDir() {
			list = append(list, below(filepath.Join(dir, e.Name()))...)
		}
	}
	return list
}
