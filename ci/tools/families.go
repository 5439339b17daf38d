package tools

import "cmp"

// A Family is a module and the programs built from it. It is a separate module
// below ci/tools, so that its requirements change only when it is upgraded, unless
// another module has the same requirements.
type Family struct {
	Name string
	// Module is the module's folder, relative to ci/tools; empty: Name.
	Module string
	// Sources is the folder with our own code of these programs, relative to
	// ci/tools; empty: Module.
	Sources  string
	Binaries []Binary
}

func (f Family) module() string  { return cmp.Or(f.Module, f.Name) }
func (f Family) sources() string { return cmp.Or(f.Sources, f.module()) }

// Binary is one program of a family.
type Binary struct {
	Name    string
	Package string // import path, or a folder of the module
	LDFlags string // added to -s -w
}

// KubernetesVersion is the version that the source provider runs. It must be
// the one that ci/tools/kubernetes/go.mod requires (a test compares them).
const KubernetesVersion = "v1.37.2"

// Families lists everything that can be built, in the order in which a full
// build builds it: the slowest first.
func Families() []Family {
	return []Family{
		{Name: "kubernetes", Binaries: kubernetes(
			"kube-apiserver", "kubelet", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubectl",
		)},
		{Name: "etcd", Binaries: []Binary{{Name: "etcd", Package: "go.etcd.io/etcd/server/v3"}}},
		{Name: "coredns", Binaries: []Binary{{Name: "coredns", Package: "."}}},
		{Name: "local-path-provisioner", Binaries: []Binary{
			{Name: "local-path-provisioner", Package: "github.com/rancher/local-path-provisioner"},
		}},
		{Name: "pause", Module: "..", Sources: "../cmd/pause", Binaries: []Binary{{Name: "pause", Package: "./cmd/pause"}}},
		{Name: "helm", Binaries: []Binary{{Name: "helm", Package: "helm.sh/helm/v3/cmd/helm", LDFlags: helmFlags}}},
		{Name: "lint", Binaries: []Binary{
			{Name: "golangci-lint", Package: "github.com/golangci/golangci-lint/v2/cmd/golangci-lint"},
			{Name: "gofumpt", Package: "mvdan.cc/gofumpt"},
			{Name: "govulncheck", Package: "golang.org/x/vuln/cmd/govulncheck"},
		}},
		// The module of the tests that check our commands against these programs:
		// both use the same versions.
		{Name: "docker-clusters", Module: "../cluster/conformance", Binaries: []Binary{
			{Name: "k3d", Package: "github.com/k3d-io/k3d/v5"},
			{Name: "kind", Package: "sigs.k8s.io/kind"},
		}},
	}
}

// helmFlags set helm's version, and the default Kubernetes version of
// `helm template`: without them it is v1.20, which a chart's kubeVersion
// rejects.
const helmFlags = "-X helm.sh/helm/v3/internal/version.version=v3.22.0" +
	" -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=37" +
	" -X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor=37"

// A linker flag sets the version of kubernetes binaries; without it the server
// reports v0.0.0-master, which a chart's kubeVersion rejects.
func kubernetes(names ...string) []Binary {
	const base, client = "k8s.io/component-base/version", "k8s.io/client-go/pkg/version"
	flags := "-X " + base + ".gitVersion=" + KubernetesVersion +
		" -X " + base + ".gitMajor=1 -X " + base + ".gitMinor=37" +
		" -X " + client + ".gitVersion=" + KubernetesVersion
	list := make([]Binary, len(names))
	for i, name := range names {
		list[i] = Binary{Name: name, Package: "k8s.io/kubernetes/cmd/" + name, LDFlags: flags}
	}
	return list
}

// find returns the family and the binary of that name.
func find(name string) (Family, Binary, bool) {
	for _, f := range Families() {
		for _, b := range f.Binaries {
			if b.Name == name {
				return f, b, true
			}
		}
	}
	return Family{}, Binary{}, false
}

// ClusterTools are the source cluster's components and its command-line tools.
func ClusterTools() []string {
	return []string{
		"kube-apiserver", "kubelet", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubectl",
		"etcd", "coredns", "local-path-provisioner", "pause",
	}
}
