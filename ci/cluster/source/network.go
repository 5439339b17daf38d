package source

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/stemedb/stemedb/ci/process"
	"github.com/stemedb/stemedb/ci/progress"
)

// ip is one call of the ip tool.
func ip(words string) process.Command { return process.Cmd("ip", strings.Fields(words)...) }

// networkUp lists the commands that create the fabric, the nodes and the routes.
func networkUp(c Config) []process.Command {
	list := []process.Command{
		ip("netns add " + fabric),
		ip("-n " + fabric + " link set lo up"),
		ip("-n " + fabric + " link add " + bridge + " type bridge forward_delay 0"),
		ip("-n " + fabric + " addr add " + c.controlAddress() + "/24 dev " + bridge),
		ip("-n " + fabric + " link set " + bridge + " up"),
		ip("link add " + hostLink + " type veth peer name up0 netns " + fabric),
		ip("-n " + fabric + " link set up0 master " + bridge),
		ip("-n " + fabric + " link set up0 up"),
		ip("addr add " + c.hostAddress() + "/24 dev " + hostLink),
		ip("link set " + hostLink + " up"),
		// Pods and Services are reached through the fabric: it has a kube-proxy,
		// so the host's route to a Service survives the loss of any node.
		ip("route add " + c.PodRange.String() + " via " + c.controlAddress()),
		ip("route add " + c.ServiceRange.String() + " via " + c.controlAddress()),
		sysctlIn(fabric, "net.ipv4.ip_forward=1"),
		// Packets between nodes cross the bridge as on a wire.
		sysctlIn(fabric, "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.all.send_redirects=0", "net.ipv4.conf.br0.send_redirects=0"),
	}
	for _, n := range c.nodes() {
		ns := n.namespace()
		list = append(list,
			ip("netns add "+ns),
			ip("-n "+ns+" link set lo up"),
			ip("-n "+fabric+" link add "+n.link()+" type veth peer name eth0 netns "+ns),
			ip("-n "+fabric+" link set "+n.link()+" master "+bridge),
			ip("-n "+fabric+" link set "+n.link()+" up"),
			ip("-n "+ns+" addr add "+n.address()+"/24 dev eth0"),
			ip("-n "+ns+" link set eth0 up"),
			ip("-n "+ns+" route add default via "+c.controlAddress()),
			ip("-n "+fabric+" route add "+n.podRange()+" via "+n.address()),
			sysctlIn(ns, "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0"),
		)
	}
	for _, n := range c.nodes() {
		for _, other := range c.nodes() {
			if other.n != n.n {
				list = append(list, ip("-n "+n.namespace()+" route add "+other.podRange()+" via "+other.address()))
			}
		}
	}
	return list
}

func sysctlIn(namespace string, settings ...string) process.Command {
	return inNamespace(namespace, append([]string{"sysctl", "-q", "-w"}, settings...)...)
}

// inNamespace wraps a command so that it runs in a network namespace. nsenter
// and not `ip netns exec`, which mounts another /sys and so hides the cgroups.
func inNamespace(namespace string, argv ...string) process.Command {
	return process.Cmd("nsenter", append([]string{"--net=" + namespacePath(namespace), "--"}, argv...)...)
}

// namespaceDir is the folder of the ip tool's named network namespaces.
const namespaceDir = "/run/netns"

func namespacePath(namespace string) string { return filepath.Join(namespaceDir, namespace) }

// ensureNetwork creates the network unless it is already complete.
func (k *Cluster) ensureNetwork(ctx context.Context) error {
	marker := k.Config.path("network.complete")
	if k.networkExists() && exists(marker) {
		return k.healAll(ctx)
	}
	if err := k.removeNetwork(ctx); err != nil {
		return err
	}
	if !mountPoint(namespaceDir) {
		// The first namespace turns it into a mount permanently.
		if err := writeFile(k.Config.path("network.mounted"), []byte(namespaceDir+"\n")); err != nil {
			return err
		}
	}
	for _, c := range networkUp(k.Config) {
		if _, err := k.Runner.Run(ctx, c); err != nil {
			return fmt.Errorf("making the network: %w", err)
		}
	}
	// Traffic between pods of one node must pass kube-proxy's rules when it is
	// addressed to a Service. Kernels without the setting filter it anyway or
	// not at all, so a missing file is not an error.
	for _, n := range k.Config.nodes() {
		call := inNamespace(n.namespace(), "sysctl", "-q", "-e", "-w", "net.bridge.bridge-nf-call-iptables=1")
		if _, err := k.Runner.Run(ctx, call); err != nil {
			return fmt.Errorf("making the network: %w", err)
		}
	}
	return os.WriteFile(marker, nil, 0o600)
}

func (k *Cluster) networkExists() bool {
	if !exists(namespacePath(fabric)) {
		return false
	}
	for _, n := range k.Config.nodes() {
		if !exists(namespacePath(n.namespace())) {
			return false
		}
	}
	return true
}

// removeNetwork deletes the namespaces; links, bridge, routes and packet
// filters inside them go with them.
func (k *Cluster) removeNetwork(ctx context.Context) error {
	var names []string
	for _, n := range k.Config.nodes() {
		names = append(names, n.namespace())
	}
	for _, name := range append(names, fabric) {
		if !exists(namespacePath(name)) {
			continue
		}
		if _, err := k.Runner.Run(ctx, ip("netns del "+name)); err != nil {
			return fmt.Errorf("removing network namespace %s: %w", name, err)
		}
	}
	// The namespace dies in the background, the host's link with it; deleting
	// the link makes its absence certain.
	if linkExists(hostLink) {
		if _, err := k.Runner.Run(ctx, ip("link del "+hostLink)); err != nil && linkExists(hostLink) {
			return fmt.Errorf("removing the link %s: %w", hostLink, err)
		}
	}
	if err := os.Remove(k.Config.path("network.complete")); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("removing the network: %w", err)
	}
	return nil
}

// CutNode disconnects the node from the network: its link goes down, its
// processes keep running.
func (k *Cluster) CutNode(ctx context.Context, name string) error {
	return k.setLink(ctx, name, "down")
}

// HealNode reconnects the node to the network.
func (k *Cluster) HealNode(ctx context.Context, name string) error { return k.setLink(ctx, name, "up") }

func (k *Cluster) setLink(ctx context.Context, name, state string) error {
	n, err := k.Config.nodeNamed(name)
	if err != nil {
		return err
	}
	if owned, err := k.free(); err != nil || !owned {
		return errors.Join(err, errors.New("the cluster is not up"))
	}
	if _, err := k.Runner.Run(ctx, ip("-n "+fabric+" link set "+n.link()+" "+state)); err != nil {
		return fmt.Errorf("setting the link of %s %s: %w", name, state, err)
	}
	return nil
}

func (k *Cluster) healAll(ctx context.Context) error {
	for _, n := range k.Config.nodes() {
		if err := k.HealNode(ctx, n.name()); err != nil {
			return err
		}
	}
	return nil
}

// checkRanges rejects ranges that contain an address or a route of the host.
// The default route and the cluster's own links do not count.
func checkRanges(ctx context.Context, r process.Runner, c Config) error {
	used, err := hostPrefixes(ctx, r)
	if err != nil {
		return err
	}
	for _, u := range used {
		for _, own := range c.ranges() {
			if own.Overlaps(u.prefix) {
				return progress.WithHint(fmt.Errorf("the range %s is in use on this machine: %s has %s", own, u.device, u.prefix),
					"choose other ranges with --node-range (a /24), --pod-range and --service-range (a /16 each)")
			}
		}
	}
	return nil
}

type usedPrefix struct {
	device string
	prefix netip.Prefix
}

// hostPrefixes lists the IPv4 ranges of the host's addresses and routes.
func hostPrefixes(ctx context.Context, r process.Runner) ([]usedPrefix, error) {
	var used []usedPrefix
	text, err := r.Run(ctx, ip("-4 -json addr show"))
	if err != nil {
		return nil, fmt.Errorf("reading the host's addresses: %w", err)
	}
	var links []struct {
		Name      string `json:"ifname"`
		Addresses []struct {
			Local string `json:"local"`
			Bits  int    `json:"prefixlen"`
		} `json:"addr_info"`
	}
	if err := unmarshalList(text, &links); err != nil {
		return nil, fmt.Errorf("reading the host's addresses: %w", err)
	}
	for _, l := range links {
		for _, a := range l.Addresses {
			if p, err := netip.ParsePrefix(fmt.Sprintf("%s/%d", a.Local, a.Bits)); err == nil && l.Name != hostLink {
				used = append(used, usedPrefix{l.Name, p.Masked()})
			}
		}
	}
	text, err = r.Run(ctx, ip("-4 -json route show table all"))
	if err != nil {
		return nil, fmt.Errorf("reading the host's routes: %w", err)
	}
	var routes []struct {
		To     string `json:"dst"`
		Device string `json:"dev"`
	}
	if err := unmarshalList(text, &routes); err != nil {
		return nil, fmt.Errorf("reading the host's routes: %w", err)
	}
	for _, route := range routes {
		to := route.To
		if !strings.Contains(to, "/") {
			to += "/32"
		}
		// "default" does not parse, and a VPN uses a /0 or /1 as its default route.
		if p, err := netip.ParsePrefix(to); err == nil && p.Bits() > 1 && route.Device != hostLink {
			used = append(used, usedPrefix{route.Device, p.Masked()})
		}
	}
	return used, nil
}

// unmarshalList reads ip's JSON; the output is empty if the list is empty.
func unmarshalList(text string, into any) error {
	if strings.TrimSpace(text) == "" {
		return nil
	}
	return json.Unmarshal([]byte(text), into)
}

// mountPoint says whether something is mounted at path.
func mountPoint(path string) bool {
	text, err := os.ReadFile("/proc/self/mountinfo")
	return err == nil && slices.Contains(mountsBelow(string(text), filepath.Dir(path)), path)
}

// linkExists asks the kernel, as /sys may show another namespace's links.
func linkExists(name string) bool {
	_, err := net.InterfaceByName(name)
	return err == nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
