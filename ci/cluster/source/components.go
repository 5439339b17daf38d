package source

import (
	"github.com/stemedb/stemedb/ci/process"
)

// component is one long-running process of the cluster.
type component struct {
	name string          // of its pid file and its log
	cmd  process.Command // complete, with the namespace it runs in
}

// controlPlane lists the control plane in the order in which it is started.
func controlPlane(c Config, tool map[string]string) []component {
	keys := pki{dir: c.path("pki")}
	in := func(name string, args ...string) component {
		return component{name: name, cmd: inNamespace(fabric, append([]string{tool[name]}, args...)...)}
	}
	return []component{
		in(
			"etcd",
			"--name=stemedb",
			"--data-dir="+c.path("etcd"),
			"--listen-client-urls=http://127.0.0.1:2379",
			"--advertise-client-urls=http://127.0.0.1:2379",
			"--listen-peer-urls=http://127.0.0.1:2380",
			"--initial-advertise-peer-urls=http://127.0.0.1:2380",
			"--initial-cluster=stemedb=http://127.0.0.1:2380",
			// This is a cluster for tests: its writes must not slow down the
			// disk during measurements, and after a power failure it is
			// recreated.
			"--unsafe-no-fsync=true",
			"--log-level=warn",
		),
		in("kube-apiserver", apiserverFlags(c, keys)...),
		in(
			"kube-controller-manager",
			"--kubeconfig="+c.path("controller-manager.kubeconfig"),
			"--authentication-kubeconfig="+c.path("controller-manager.kubeconfig"),
			"--authorization-kubeconfig="+c.path("controller-manager.kubeconfig"),
			"--bind-address=127.0.0.1",
			"--cert-dir="+c.path("controller-manager"),
			"--service-account-private-key-file="+keys.key("service-accounts"),
			"--root-ca-file="+keys.cert("ca"),
			"--cluster-signing-cert-file="+keys.cert("ca"),
			"--cluster-signing-key-file="+keys.key("ca"),
			"--use-service-account-credentials=true",
			"--leader-elect=false",
			// Four missed renewals of a kubelet's lease.
			"--node-monitor-grace-period=16s",
			"--node-monitor-period=2s",
			"--pvclaimbinder-sync-period=5s",
			"--flex-volume-plugin-dir="+c.path("controller-manager", "volume-plugins"),
		),
		in(
			"kube-scheduler",
			"--kubeconfig="+c.path("scheduler.kubeconfig"),
			"--authentication-kubeconfig="+c.path("scheduler.kubeconfig"),
			"--authorization-kubeconfig="+c.path("scheduler.kubeconfig"),
			"--bind-address=127.0.0.1",
			"--cert-dir="+c.path("scheduler"),
			"--leader-elect=false",
		),
		// For traffic from the control plane and the host to Services.
		in("kube-proxy", "--config="+c.path("kube-proxy.yaml")),
	}
}

func apiserverFlags(c Config, keys pki) []string {
	return []string{
		"--etcd-servers=http://127.0.0.1:2379",
		"--advertise-address=" + c.controlAddress(),
		"--secure-port=6443",
		"--service-cluster-ip-range=" + c.ServiceRange.String(),
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true",
		"--client-ca-file=" + keys.cert("ca"),
		"--tls-cert-file=" + keys.cert("apiserver"),
		"--tls-private-key-file=" + keys.key("apiserver"),
		"--kubelet-certificate-authority=" + keys.cert("ca"),
		"--kubelet-client-certificate=" + keys.cert("apiserver-kubelet"),
		"--kubelet-client-key=" + keys.key("apiserver-kubelet"),
		// The nodes' names cannot be resolved.
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + keys.key("service-accounts"),
		"--service-account-signing-key-file=" + keys.key("service-accounts"),
		"--requestheader-client-ca-file=" + keys.cert("front-proxy-ca"),
		"--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User",
		"--proxy-client-cert-file=" + keys.cert("front-proxy"),
		"--proxy-client-key-file=" + keys.key("front-proxy"),
		"--enable-aggregator-routing=true",
		"--cert-dir=" + c.path("apiserver"),
	}
}

// containerdOf is the node's container runtime.
func containerdOf(n node) component {
	return component{
		name: n.name() + "-containerd",
		cmd:  inNamespace(n.namespace(), "containerd", "--config="+n.path("containerd.toml"), "--log-level=warn"),
	}
}

// agentsOf are the node's kubelet and kube-proxy.
func agentsOf(n node, tool map[string]string) []component {
	return []component{
		{name: n.name() + "-kubelet", cmd: inNamespace(
			n.namespace(), tool["kubelet"],
			"--config="+n.path("kubelet.yaml"),
			"--kubeconfig="+n.path("kubelet.kubeconfig"),
			"--root-dir="+n.path("kubelet"),
			"--cert-dir="+n.path("kubelet", "pki"),
			"--hostname-override="+n.name(),
			"--node-ip="+n.address(),
			"--node-labels=topology.kubernetes.io/zone="+n.name(),
		)},
		{name: n.name() + "-kube-proxy", cmd: inNamespace(n.namespace(), tool["kube-proxy"], "--config="+n.path("kube-proxy.yaml"))},
	}
}

// ctr is one call of containerd's tool for the node's images and tasks.
func ctr(n node, args ...string) process.Command {
	return process.Cmd("ctr", append([]string{"--address", n.socket(), "--namespace", "k8s.io"}, args...)...)
}
