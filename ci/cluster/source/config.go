// Package source runs a real Kubernetes cluster on one Linux machine without
// any image registry: the components are built from their Go modules, container
// images are built from static binaries.
//
// The cluster consists of three nodes, each in a network namespace with its own
// containerd, kubelet and kube-proxy, and a control plane in a namespace between
// them:
//
//	host ── stemedb0 ┬ namespace stemedb: bridge br0, etcd, apiserver, controller-manager, scheduler, kube-proxy
//	                 ├ v1 ── namespace stemedb-node1: containerd, kubelet, kube-proxy, cni0 ── pods
//	                 ├ v2 ── namespace stemedb-node2
//	                 └ v3 ── namespace stemedb-node3
//
// The bridge is in a separate namespace, so that the host's packet filter
// (especially docker's) never sees traffic between nodes, and so that deleting
// the namespace deletes everything attached to it.
//
// It promises: nothing on the host changes before Changes was printed and the
// checks have passed; a second Up starts only missing components; Down reverts
// all changes of this cluster, also after a failed Up, and nothing else.
package source

import (
	"fmt"
	"net/netip"
	"path/filepath"
)

// Config contains the cluster's folder, size and address ranges. All fields are
// required; see Default.
type Config struct {
	Dir          string       // absolute folder for all state
	Nodes        int          // 1..9
	NodeRange    netip.Prefix // /24: .1 control plane, .11 and up the nodes, .254 the host
	PodRange     netip.Prefix // /16: node n has the /24 whose third byte is n
	ServiceRange netip.Prefix // /16: .0.1 the API server, .0.10 DNS
}

// Default is a cluster of three nodes with its state in dir.
func Default(dir string) Config {
	return Config{
		Dir:          dir,
		Nodes:        3,
		NodeRange:    netip.MustParsePrefix("10.99.0.0/24"),
		PodRange:     netip.MustParsePrefix("10.244.0.0/16"),
		ServiceRange: netip.MustParsePrefix("10.96.0.0/16"),
	}
}

const (
	fabric   = "stemedb"  // namespace of the bridge and the control plane
	hostLink = "stemedb0" // the host's end of its link to the bridge
	bridge   = "br0"      // inside fabric
	// socketLimit is the length of a unix socket's path that the kernel accepts.
	socketLimit = 107
)

// Check returns an error that names the field when the configuration cannot work.
func (c Config) Check() error {
	if !filepath.IsAbs(c.Dir) {
		return fmt.Errorf("state folder %q must be absolute", c.Dir)
	}
	if c.Nodes < 1 || c.Nodes > 9 {
		return fmt.Errorf("number of nodes %d: must be 1..9", c.Nodes)
	}
	if s := c.node(c.Nodes).socket(); len(s) > socketLimit {
		return fmt.Errorf("state folder %q is too long: the socket %s would have %d bytes, the kernel allows %d", c.Dir, s, len(s), socketLimit)
	}
	for _, r := range []struct {
		name string
		p    netip.Prefix
		bits int
	}{{"node range", c.NodeRange, 24}, {"pod range", c.PodRange, 16}, {"service range", c.ServiceRange, 16}} {
		if !r.p.IsValid() || !r.p.Addr().Is4() || r.p.Bits() != r.bits || r.p.Masked() != r.p {
			return fmt.Errorf("%s %q: must be an IPv4 range with /%d", r.name, r.p, r.bits)
		}
	}
	for _, pair := range [][2]netip.Prefix{{c.NodeRange, c.PodRange}, {c.NodeRange, c.ServiceRange}, {c.PodRange, c.ServiceRange}} {
		if pair[0].Overlaps(pair[1]) {
			return fmt.Errorf("ranges %s and %s overlap", pair[0], pair[1])
		}
	}
	return nil
}

// ranges are the three address ranges, for checks and routes.
func (c Config) ranges() []netip.Prefix {
	return []netip.Prefix{c.NodeRange, c.PodRange, c.ServiceRange}
}

// address is the range's first address plus (high<<8 | low).
func address(p netip.Prefix, high, low int) string {
	b := p.Addr().As4()
	b[2] += byte(high)
	b[3] += byte(low)
	return netip.AddrFrom4(b).String()
}

func (c Config) controlAddress() string { return address(c.NodeRange, 0, 1) }
func (c Config) hostAddress() string    { return address(c.NodeRange, 0, 254) }
func (c Config) apiServiceIP() string   { return address(c.ServiceRange, 0, 1) }
func (c Config) dnsServiceIP() string   { return address(c.ServiceRange, 0, 10) }
func (c Config) apiURL() string         { return "https://" + c.controlAddress() + ":6443" }

// path is below the state folder.
func (c Config) path(parts ...string) string {
	return filepath.Join(append([]string{c.Dir}, parts...)...)
}

// Kubeconfig is the path of the administrator's kubeconfig.
func (c Config) Kubeconfig() string { return c.path("kubeconfig") }

// node is one node's part of the configuration; n counts from 1.
type node struct {
	config Config
	n      int
}

func (c Config) node(n int) node { return node{config: c, n: n} }

func (c Config) nodes() []node {
	list := make([]node, c.Nodes)
	for i := range list {
		list[i] = c.node(i + 1)
	}
	return list
}

// nodeNamed finds a node by its Kubernetes name.
func (c Config) nodeNamed(name string) (node, error) {
	for _, n := range c.nodes() {
		if n.name() == name {
			return n, nil
		}
	}
	return node{}, fmt.Errorf("there is no node %q: the nodes are node1 to node%d", name, c.Nodes)
}

func (n node) name() string      { return fmt.Sprintf("node%d", n.n) }
func (n node) namespace() string { return fabric + "-" + n.name() }
func (n node) link() string      { return fmt.Sprintf("v%d", n.n) } // its end on the bridge
func (n node) address() string   { return address(n.config.NodeRange, 0, 10+n.n) }
func (n node) podRange() string  { return address(n.config.PodRange, n.n, 0) + "/24" }
func (n node) cgroup() string    { return "/stemedb/" + n.name() }
func (n node) path(parts ...string) string {
	return n.config.path(append([]string{n.name()}, parts...)...)
}
func (n node) socket() string  { return n.path("run", "containerd.sock") }
func (n node) volumes() string { return n.path("volumes") }
