package source

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/stemedb/stemedb/ci/progress"
)

// ownerFile holds the state folder of the source cluster that is up on this
// machine. Namespaces, link and cgroups have fixed names, so there can be only
// one cluster, and only its owner may change or remove them. Like everything
// that it guards, the file does not survive a reboot.
const ownerFile = "/run/stemedb-cluster"

// claim makes this the machine's cluster; the error names the current owner.
func (k *Cluster) claim() error {
	if _, err := k.free(); err != nil {
		return err
	}
	if exists(k.ownerFile) {
		return nil // free has checked that it is ours
	}
	f, err := os.OpenFile(k.ownerFile, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("claiming this machine's names: %w", err)
	}
	_, err = f.WriteString(k.Config.Dir + "\n")
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("claiming this machine's names: %w", err)
	}
	return nil
}

// free reports whether this cluster owns the names already. It is an error when
// another one does.
func (k *Cluster) free() (owned bool, err error) {
	owner, err := k.owner()
	if err != nil || owner == k.Config.Dir {
		return owner == k.Config.Dir, err
	}
	hint := "use that cluster, or take it down first: STEMEDB_STATE=%s cluster down"
	switch {
	case owner != "" && exists(owner):
		return false, progress.WithHint(fmt.Errorf("another cluster is up on this machine, with its state in %s", owner), hint, filepath.Dir(owner))
	case owner != "":
		// Its folder no longer exists, nor does anything that a down could use.
		if err := os.Remove(k.ownerFile); err != nil {
			return false, fmt.Errorf("taking over from a cluster that no longer exists: %w", err)
		}
	}
	if !k.anyNamespace() {
		return false, nil
	}
	if !exists(k.Config.path("network.complete")) {
		return false, progress.WithHint(errors.New("network namespaces named "+fabric+"… exist and belong to no known cluster"),
			"list them with `ip netns`; if none of your processes runs in them, remove them with `ip netns del NAME`")
	}
	return true, nil // the file in /run was lost, the network is ours
}

// owner is the state folder of the cluster that is up; empty when none is.
func (k *Cluster) owner() (string, error) {
	text, err := os.ReadFile(k.ownerFile)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("finding the owner of the running cluster: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// release releases the names.
func (k *Cluster) release() error {
	if err := os.Remove(k.ownerFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("releasing this machine's names: %w", err)
	}
	return nil
}

// anyNamespace reports whether a namespace with one of our names exists.
func (k *Cluster) anyNamespace() bool {
	found, err := filepath.Glob(filepath.Join(k.namespaces, fabric+"*"))
	return err == nil && len(found) > 0
}
