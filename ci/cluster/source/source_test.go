package source

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/stemedb/stemedb/ci/process"
	"github.com/stemedb/stemedb/ci/process/processtest"
	"github.com/stemedb/stemedb/ci/progress"
)

func TestConfigCheck(t *testing.T) {
	good := Default("/var/state")
	require.NoError(t, good.Check())
	for want, change := range map[string]func(*Config){
		"must be absolute":              func(c *Config) { c.Dir = "state" },
		"is too long":                   func(c *Config) { c.Dir = "/" + strings.Repeat("x", 100) },
		"must be 1..9":                  func(c *Config) { c.Nodes = 0 },
		"node range":                    func(c *Config) { c.NodeRange = netip.MustParsePrefix("10.0.0.0/16") },
		"pod range":                     func(c *Config) { c.PodRange = netip.Prefix{} },
		"service range":                 func(c *Config) { c.ServiceRange = netip.MustParsePrefix("10.96.7.0/16") },
		"10.244.0.0/16 overlap":         func(c *Config) { c.NodeRange = netip.MustParsePrefix("10.244.7.0/24") },
		"10.96.0.0/16 overlap":          func(c *Config) { c.PodRange = netip.MustParsePrefix("10.96.0.0/16") },
		"must be an IPv4 range with /1": func(c *Config) { c.PodRange = netip.MustParsePrefix("fd00::/16") },
	} {
		c := good
		change(&c)
		require.ErrorContains(t, c.Check(), want)
	}
}

func TestAddresses(t *testing.T) {
	c := Default("/s")
	require.Equal(t, "10.99.0.1", c.controlAddress())
	require.Equal(t, "10.99.0.254", c.hostAddress())
	require.Equal(t, "10.96.0.1", c.apiServiceIP())
	require.Equal(t, "10.96.0.10", c.dnsServiceIP())
	n, err := c.nodeNamed("node3")
	require.NoError(t, err)
	require.Equal(t, "10.99.0.13", n.address())
	require.Equal(t, "10.244.3.0/24", n.podRange())
	_, err = c.nodeNamed("node4")
	require.ErrorContains(t, err, "node1 to node3")
}

func TestNetworkCommands(t *testing.T) {
	c := Default("/s")
	c.Nodes = 2
	var lines []string
	for _, command := range networkUp(c) {
		lines = append(lines, command.String())
	}
	require.Equal(t, []string{
		"ip netns add stemedb",
		"ip -n stemedb link set lo up",
		"ip -n stemedb link add br0 type bridge forward_delay 0",
		"ip -n stemedb addr add 10.99.0.1/24 dev br0",
		"ip -n stemedb link set br0 up",
		"ip link add stemedb0 type veth peer name up0 netns stemedb",
		"ip -n stemedb link set up0 master br0",
		"ip -n stemedb link set up0 up",
		"ip addr add 10.99.0.254/24 dev stemedb0",
		"ip link set stemedb0 up",
		"ip route add 10.244.0.0/16 via 10.99.0.1",
		"ip route add 10.96.0.0/16 via 10.99.0.1",
		"nsenter --net=/run/netns/stemedb -- sysctl -q -w net.ipv4.ip_forward=1",
		"nsenter --net=/run/netns/stemedb -- sysctl -q -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.br0.send_redirects=0",
		"ip netns add stemedb-node1",
		"ip -n stemedb-node1 link set lo up",
		"ip -n stemedb link add v1 type veth peer name eth0 netns stemedb-node1",
		"ip -n stemedb link set v1 master br0",
		"ip -n stemedb link set v1 up",
		"ip -n stemedb-node1 addr add 10.99.0.11/24 dev eth0",
		"ip -n stemedb-node1 link set eth0 up",
		"ip -n stemedb-node1 route add default via 10.99.0.1",
		"ip -n stemedb route add 10.244.1.0/24 via 10.99.0.11",
		"nsenter --net=/run/netns/stemedb-node1 -- sysctl -q -w net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0",
	}, lines[:24])
	require.Equal(t, []string{
		"ip -n stemedb-node1 route add 10.244.2.0/24 via 10.99.0.12",
		"ip -n stemedb-node2 route add 10.244.1.0/24 via 10.99.0.11",
	}, lines[len(lines)-2:])
	for _, line := range lines {
		if strings.HasPrefix(line, "ip route") || strings.HasPrefix(line, "ip link") || strings.HasPrefix(line, "ip addr") {
			require.Regexp(t, `stemedb|via 10\.99\.0\.1$`, line, "on the host there are only one link and two routes")
		}
		require.NotRegexp(t, `^sysctl`, line, "the host's own forwarding is not changed")
	}
}

func TestFaultCommands(t *testing.T) {
	r := &processtest.Recorder{}
	k := testCluster(t, r)
	require.ErrorContains(t, k.CutNode(t.Context(), "node2"), "not up")
	require.NoError(t, os.WriteFile(k.ownerFile, []byte(k.Config.Dir), 0o600))
	require.NoError(t, k.CutNode(t.Context(), "node2"))
	require.NoError(t, k.HealNode(t.Context(), "node2"))
	require.Equal(t, []string{"ip -n stemedb link set v2 down", "ip -n stemedb link set v2 up"}, r.Commands())
	require.ErrorContains(t, k.CutNode(t.Context(), "node0"), "there is no node")
}

func TestRangesInUse(t *testing.T) {
	const routes = `[{"dst":"default","gateway":"192.0.2.1","dev":"eth0"},{"dst":"0.0.0.0/1","dev":"tun0"},{"dst":"192.0.2.0/24","dev":"eth0"}%s]`
	for name, c := range map[string]struct{ addresses, routes, want string }{
		"free":                  {`[{"ifname":"eth0","addr_info":[{"local":"192.0.2.2","prefixlen":24}]}]`, strings.Replace(routes, "%s", "", 1), ""},
		"nothing at all":        {"", "", ""},
		"an address of docker":  {`[{"ifname":"docker0","addr_info":[{"local":"10.99.0.7","prefixlen":30}]}]`, "", "10.99.0.0/24 is in use on this machine: docker0"},
		"a route of a VPN":      {"[]", strings.Replace(routes, "%s", `,{"dst":"10.0.0.0/8","dev":"wg0"}`, 1), "is in use on this machine: wg0 has 10.0.0.0/8"},
		"a route to one host":   {"[]", strings.Replace(routes, "%s", `,{"dst":"10.96.0.10","dev":"eth1"}`, 1), "10.96.0.0/16 is in use on this machine: eth1"},
		"the cluster's own end": {`[{"ifname":"stemedb0","addr_info":[{"local":"10.99.0.254","prefixlen":24}]}]`, `[{"dst":"10.244.0.0/16","dev":"stemedb0"}]`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := (&processtest.Recorder{}).On("ip -4 -json addr", c.addresses).On("ip -4 -json route", c.routes)
			err := checkRanges(t.Context(), r, Default("/s"))
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestCertificates(t *testing.T) {
	c := Default(t.TempDir())
	keys := pki{dir: c.path("pki")}
	require.NoError(t, keys.issue(c))
	authority := x509.NewCertPool()
	require.True(t, authority.AppendCertsFromPEM(read(t, keys.cert("ca"))))

	for _, host := range []string{"10.99.0.1", "10.96.0.1", "kubernetes.default.svc"} {
		_, err := parse(t, keys.cert("apiserver")).Verify(x509.VerifyOptions{Roots: authority, DNSName: host})
		require.NoError(t, err, host)
	}
	_, err := parse(t, keys.cert("node2")).Verify(x509.VerifyOptions{Roots: authority, DNSName: "10.99.0.12"})
	require.NoError(t, err)
	_, err = parse(t, keys.cert("node2")).Verify(x509.VerifyOptions{Roots: authority, DNSName: "10.99.0.13"})
	require.Error(t, err)
	require.Equal(t, []string{"system:nodes"}, parse(t, keys.cert("node2")).Subject.Organization)
	require.Equal(t, "system:node:node2", parse(t, keys.cert("node2")).Subject.CommonName)
	_, err = parse(t, keys.cert("front-proxy")).Verify(x509.VerifyOptions{Roots: authority, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	require.Error(t, err, "the aggregator's client is not a client of the cluster")

	before := read(t, keys.cert("apiserver"))
	require.NoError(t, keys.issue(c))
	require.Equal(t, before, read(t, keys.cert("apiserver")), "issued once")

	files, err := filepath.Glob(filepath.Join(keys.dir, "*"))
	require.NoError(t, err)
	for _, f := range files {
		info, err := os.Stat(f)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), f)
	}
}

func TestConfigFiles(t *testing.T) {
	c := Default(t.TempDir())
	require.NoError(t, writeConfig(c))
	n := c.node(2)

	kubelet := readYAML(t, n.path("kubelet.yaml"))
	require.Equal(t, "/stemedb/node2", kubelet["cgroupRoot"])
	require.Equal(t, "unix://"+n.socket(), kubelet["containerRuntimeEndpoint"])
	require.Equal(t, false, kubelet["failCgroupV1"])
	require.Equal(t, 100, kubelet["imageGCHighThresholdPercent"], "images cannot be pulled again")
	require.Equal(t, []any{"10.96.0.10"}, kubelet["clusterDNS"])

	proxy := readYAML(t, n.path("kube-proxy.yaml"))
	require.Equal(t, "nftables", proxy["mode"])
	require.Equal(t, "10.99.0.12", proxy["bindAddress"])
	require.Equal(t, "10.244.0.0/16", proxy["clusterCIDR"])
	require.Equal(t, "10.99.0.1", readYAML(t, c.path("kube-proxy.yaml"))["bindAddress"])

	admin := readYAML(t, c.Kubeconfig())
	require.Equal(t, "stemedb", admin["current-context"])
	require.Contains(t, string(read(t, c.Kubeconfig())), "server: https://10.99.0.1:6443")

	var network struct{ Plugins []map[string]any }
	require.NoError(t, json.Unmarshal(read(t, n.path("cni", "10-stemedb.conflist")), &network))
	require.Equal(t, "bridge", network.Plugins[0]["type"])
	require.Contains(t, string(read(t, n.path("cni", "10-stemedb.conflist"))), "10.244.2.0/24")

	// A second write changes no file: kube-proxy exits when its file changes.
	old := time.Now().Add(-time.Hour).Truncate(time.Second)
	require.NoError(t, os.Chtimes(n.path("kube-proxy.yaml"), old, old))
	require.NoError(t, writeConfig(c))
	info, err := os.Stat(n.path("kube-proxy.yaml"))
	require.NoError(t, err)
	require.True(t, info.ModTime().Equal(old))
}

func TestAddons(t *testing.T) {
	c := Default("/s")
	manifest, err := addons(c)
	require.NoError(t, err)
	kinds := map[string]map[string]any{}
	for decoder := yaml.NewDecoder(strings.NewReader(string(manifest))); ; {
		var object map[string]any
		err := decoder.Decode(&object)
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		kinds[object["kind"].(string)+"/"+object["metadata"].(map[string]any)["name"].(string)] = object
	}
	class := kinds["StorageClass/local-path"]
	require.Equal(t, "WaitForFirstConsumer", class["volumeBindingMode"])
	require.Equal(t, "true", class["metadata"].(map[string]any)["annotations"].(map[string]any)["storageclass.kubernetes.io/is-default-class"])
	require.Equal(t, "10.96.0.10", kinds["Service/kube-dns"]["spec"].(map[string]any)["clusterIP"])

	var paths struct {
		Map []struct {
			Node  string
			Paths []string
		} `json:"nodePathMap"`
	}
	config := kinds["ConfigMap/local-path-config"]["data"].(map[string]any)["config.json"].(string)
	require.NoError(t, json.Unmarshal([]byte(config), &paths))
	require.Len(t, paths.Map, 3)
	require.Equal(t, []string{"/s/node3/volumes"}, paths.Map[2].Paths)
}

func TestControlPlaneFlags(t *testing.T) {
	c := Default("/s")
	tool := map[string]string{"kube-apiserver": "/t/kube-apiserver", "kubelet": "/t/kubelet", "kube-proxy": "/t/kube-proxy"}
	parts := controlPlane(c, tool)
	require.Equal(t, "etcd", parts[0].name)
	apiserver := parts[1].cmd.String()
	require.Contains(t, apiserver, "nsenter --net=/run/netns/stemedb -- /t/kube-apiserver ")
	for _, flag := range []string{
		"--advertise-address=10.99.0.1", "--kubelet-preferred-address-types=InternalIP", "--authorization-mode=Node,RBAC",
		"--service-cluster-ip-range=10.96.0.0/16", "--kubelet-certificate-authority=/s/pki/ca.crt",
	} {
		require.Contains(t, apiserver, flag)
	}
	require.NotContains(t, apiserver, "disable-admission-plugins", "PodSecurity is on by default")
	require.Contains(t, parts[2].cmd.String(), "--node-monitor-grace-period=16s")
	kubelet := agentsOf(c.node(1), tool)[0].cmd.String()
	require.Contains(t, kubelet, "nsenter --net=/run/netns/stemedb-node1 -- /t/kubelet ")
	require.Contains(t, kubelet, "--node-ip=10.99.0.11")
}

func TestMountsBelow(t *testing.T) {
	const info = `20 1 0:1 / / rw - ext4 /dev/vda rw
30 20 0:2 / /s/cluster/node1/kubelet/pods/x rw - tmpfs tmpfs rw
31 30 0:3 / /s/cluster/node1/kubelet/pods/x/deeper rw - tmpfs tmpfs rw
32 20 0:4 / /s/cluster-of-somebody/else rw - tmpfs tmpfs rw
33 20 0:5 / /s/cluster/with\040space rw - tmpfs tmpfs rw
`
	require.Equal(t, []string{
		"/s/cluster/with space", "/s/cluster/node1/kubelet/pods/x/deeper", "/s/cluster/node1/kubelet/pods/x",
	}, mountsBelow(info, "/s/cluster"))
}

func TestLoadImagePrunesOldOnes(t *testing.T) {
	r := (&processtest.Recorder{}).On("ctr", "")
	k := testCluster(t, r)
	k.Config.Nodes = 1
	socket := "ctr --address " + k.Config.node(1).socket() + " --namespace k8s.io "
	r.On(socket+"images list", `REF TYPE DIGEST SIZE PLATFORMS LABELS
docker.io/stemedb/stemedb:dev application/x sha256:new 19.2 MiB linux/amd64 io.cri-containerd.image=managed
sha256:id-of-new application/x sha256:new 19.2 MiB linux/amd64 -
sha256:id-of-old application/x sha256:old 19.2 MiB linux/amd64 -
`)
	tar := filepath.Join(t.TempDir(), "x.tar")
	require.NoError(t, os.WriteFile(tar, nil, 0o600))
	require.NoError(t, k.LoadImage(t.Context(), tar))
	require.Equal(t, []string{
		socket + "images import --snapshotter native " + tar,
		socket + "images list",
		socket + "images remove sha256:id-of-old",
	}, r.Commands())
	require.ErrorContains(t, k.LoadImage(t.Context(), tar+".missing"), "no image file")
}

// A cluster must never take the names of another one.
func TestOwner(t *testing.T) {
	first, second := testCluster(t, nil), testCluster(t, nil)
	second.ownerFile, second.namespaces = first.ownerFile, first.namespaces
	require.NoError(t, first.claim())
	require.NoError(t, first.claim(), "claimed twice by the same owner")
	err := second.claim()
	require.ErrorContains(t, err, "another cluster is up on this machine, with its state in "+first.Config.Dir)
	require.ErrorContains(t, second.CutNode(t.Context(), "node1"), "another cluster")

	require.NoError(t, first.release())
	require.NoError(t, second.claim())
	require.NoError(t, os.RemoveAll(second.Config.Dir))
	require.NoError(t, first.claim(), "an owner without its folder no longer exists")

	// Unclaimed namespaces belong to an unknown owner.
	require.NoError(t, first.release())
	require.NoError(t, os.WriteFile(filepath.Join(first.namespaces, "stemedb-node1"), nil, 0o600))
	require.ErrorContains(t, first.claim(), "belong to no known cluster")
	require.NoError(t, os.WriteFile(first.Config.path("network.complete"), nil, 0o600))
	owned, err := first.free()
	require.NoError(t, err)
	require.True(t, owned, "this cluster completed the network")
}

// Down of a cluster that lost its names to another removes only its own files.
func TestDownSparesAnother(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("down wants root")
	}
	r := &processtest.Recorder{}
	k := testCluster(t, r)
	require.NoError(t, os.WriteFile(k.ownerFile, []byte(t.TempDir()), 0o600))
	require.NoError(t, os.WriteFile(k.Config.path("file"), nil, 0o600))
	require.NoError(t, k.Down(t.Context()))
	require.NoDirExists(t, k.Config.Dir)
	require.FileExists(t, k.ownerFile)
	require.Empty(t, r.Commands())
}

func TestContainerPID(t *testing.T) {
	r := (&processtest.Recorder{}).On("ctr", "TASK    PID     STATUS\nabc  4242   RUNNING\ndef  1  STOPPED\n")
	k := testCluster(t, r)
	pid, err := k.ContainerPID(t.Context(), "node1", "abc")
	require.NoError(t, err)
	require.Equal(t, 4242, pid)
	_, err = k.ContainerPID(t.Context(), "node1", "def")
	require.ErrorContains(t, err, "is not running", "a stopped container has no process whose id could have been reused")
	require.Contains(t, r.Commands()[0], "--address "+k.Config.node(1).socket()+" --namespace k8s.io tasks list")
}

func TestProcesses(t *testing.T) {
	dir := t.TempDir()
	p := processes{pids: filepath.Join(dir, "pids"), logs: filepath.Join(dir, "logs")}
	sleeper := component{name: "sleeper", cmd: process.Cmd("sh", "-c", "echo begun; exec sleep 60")}
	started, err := p.start(sleeper)
	require.NoError(t, err)
	require.True(t, started)
	t.Cleanup(func() { require.NoError(t, p.stop(context.Background(), 0, "sleeper")) })
	pid, running := p.running("sleeper")
	require.True(t, running)
	started, err = p.start(sleeper)
	require.NoError(t, err)
	require.False(t, started, "it is already running")
	again, _ := p.running("sleeper")
	require.Equal(t, pid, again)
	require.Equal(t, []string{"sleeper"}, p.known())

	// A process with a different start time is not ours.
	require.NoError(t, os.WriteFile(p.pid("other"), []byte(strconv.Itoa(os.Getpid())+" 1\n"), 0o600))
	_, running = p.running("other")
	require.False(t, running)
	require.NoError(t, p.stop(t.Context(), time.Second, "other"), "and is not stopped")

	require.NoError(t, p.stop(t.Context(), time.Second, "sleeper"))
	_, running = p.running("sleeper")
	require.False(t, running)
	require.Empty(t, p.known())
}

func TestWaitNamesWhatEnded(t *testing.T) {
	dir := t.TempDir()
	p := processes{pids: filepath.Join(dir, "pids"), logs: filepath.Join(dir, "logs")}
	_, err := p.start(component{name: "doomed", cmd: process.Cmd("sh", "-c", "echo the reason; sleep 0.2; exit 3")})
	require.NoError(t, err)
	err = p.wait(t.Context(), time.Minute, func(context.Context) error { return errors.New("not yet") }, "doomed")
	require.ErrorContains(t, err, "doomed has ended")
	var said strings.Builder
	progress.Explain(&said, &progress.Failure{Step: "start", Err: err})
	require.Contains(t, said.String(), "FAILED at: start")
	require.Contains(t, said.String(), "the reason")
	require.Contains(t, said.String(), p.log("doomed"))
}

func TestCgroupTrees(t *testing.T) {
	dir := t.TempDir()
	mounts := filepath.Join(dir, "mounts")
	tree := func(name string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(path, 0o755))
		return path
	}
	lines := ""
	for _, controller := range []string{"cpu", "cpuset", "memory", "pids"} {
		lines += "cgroup " + tree(controller) + " cgroup rw,relatime," + controller + " 0 0\n"
	}
	lines += "cgroup " + tree("systemd") + " cgroup rw,name=systemd 0 0\ncgroup2 " + tree("unified") + " cgroup2 rw 0 0\n"
	require.NoError(t, os.WriteFile(mounts, []byte(lines), 0o600))
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "cpuset", file), []byte("0-1"), 0o600))
	}
	g := cgroups{mounts: mounts}
	require.NoError(t, g.check())
	require.NoError(t, g.add("/stemedb/node1"))
	require.DirExists(t, filepath.Join(dir, "memory/stemedb/node1"))
	require.NoDirExists(t, filepath.Join(dir, "unified/stemedb"), "version 1 is used")
	require.Equal(t, "0-1", string(read(t, filepath.Join(dir, "cpuset/stemedb/node1/cpuset.cpus"))))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "memory/stemedb/node1/cgroup.procs"), []byte("12\n34\n"), 0o600))
	pids, err := g.processes("/stemedb")
	require.NoError(t, err)
	require.ElementsMatch(t, []int{12, 34}, pids)

	require.NoError(t, os.WriteFile(mounts, []byte("cgroup "+filepath.Join(dir, "cpu")+" cgroup rw,cpu 0 0\n"), 0o600))
	require.ErrorContains(t, g.check(), "cpuset is not available")
	require.NoError(t, os.WriteFile(mounts, nil, 0o600))
	require.ErrorContains(t, g.check(), "none is mounted")
}

func TestCgroupVersion2(t *testing.T) {
	dir := t.TempDir()
	mounts := filepath.Join(t.TempDir(), "mounts")
	require.NoError(t, os.WriteFile(mounts, []byte("cgroup2 "+dir+" cgroup2 rw 0 0\n"), 0o600))
	g := cgroups{mounts: mounts}
	// A plain folder replaces the kernel's: controllers are listed in each
	// group before its child is created.
	for _, group := range []string{"", "stemedb", "stemedb/node1"} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, group), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, group, "cgroup.controllers"), []byte("cpuset cpu memory pids\n"), 0o600))
	}
	require.NoError(t, g.check())
	require.NoError(t, g.add("/stemedb/node1"))
	for _, group := range []string{"", "stemedb", "stemedb/node1"} {
		require.Equal(t, "+pids", string(read(t, filepath.Join(dir, group, "cgroup.subtree_control"))), "handed down in %q", group)
	}
}

func testCluster(t *testing.T, r process.Runner) *Cluster {
	t.Helper()
	k := New(Default(t.TempDir()), r, progress.New(io.Discard), nil, nil)
	k.ownerFile, k.namespaces = filepath.Join(t.TempDir(), "owner"), t.TempDir()
	return k
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	return content
}

func readYAML(t *testing.T, path string) map[string]any {
	t.Helper()
	var object map[string]any
	require.NoError(t, yaml.Unmarshal(read(t, path), &object))
	return object
}

func parse(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(read(t, path))
	require.NotNil(t, block)
	cert, err := x509.ParseCertificate(block.Bytes)
	require.NoError(t, err)
	return cert
}
