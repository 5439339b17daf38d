package source

import (
	"bytes"
	"embed"
	"fmt"
	"os"
	"path/filepath"
	"text/template"
)

//go:embed files
var files embed.FS

// render fills in one of the files. A name that the data lacks is an error.
func render(name string, data any) ([]byte, error) {
	t, err := template.New(name).Option("missingkey=error").ParseFS(files, "files/"+name)
	if err != nil {
		return nil, fmt.Errorf("reading the template %s: %w", name, err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, data); err != nil {
		return nil, fmt.Errorf("filling in %s: %w", name, err)
	}
	return b.Bytes(), nil
}

// renderTo renders a file to a path of the state folder, private to its owner.
func renderTo(path, name string, data any) error {
	content, err := render(name, data)
	if err != nil {
		return err
	}
	return writeFile(path, content)
}

// writeFile does not rewrite a file with the same content: kube-proxy exits
// when its file is modified.
func writeFile(path string, content []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("making %s: %w", filepath.Dir(path), err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

// Images of the cluster's own components. They are built here and exist in no registry.
const (
	pauseImage     = "docker.io/stemedb/pause:v1"
	corednsImage   = "docker.io/stemedb/coredns:v1"
	localPathImage = "docker.io/stemedb/local-path-provisioner:v1"
	busyboxImage   = "docker.io/stemedb/busybox:v1"
)

// writeConfig writes certificates, kubeconfigs and every component's file.
func writeConfig(c Config) error {
	keys := pki{dir: c.path("pki")}
	if err := keys.issue(c); err != nil {
		return err
	}
	for user, path := range map[string]string{
		"admin":              c.Kubeconfig(),
		"controller-manager": c.path("controller-manager.kubeconfig"),
		"scheduler":          c.path("scheduler.kubeconfig"),
		"proxy":              c.path("proxy.kubeconfig"),
	} {
		content, err := keys.kubeconfig(c, user)
		if err != nil {
			return err
		}
		if err := writeFile(path, content); err != nil {
			return err
		}
	}
	// No upstream server: names that CoreDNS does not know do not exist.
	if err := writeFile(c.path("resolv.conf"), []byte("# pods that ask the node's resolver get no answer\n")); err != nil {
		return err
	}
	if err := renderProxy(c.path("kube-proxy.yaml"), c, "fabric", c.controlAddress()); err != nil {
		return err
	}
	for _, n := range c.nodes() {
		if err := writeNodeConfig(n, keys); err != nil {
			return err
		}
	}
	return nil
}

func renderProxy(path string, c Config, name, address string) error {
	return renderTo(path, "kube-proxy.yaml", map[string]string{
		"Name": name, "Address": address, "PodRange": c.PodRange.String(), "Kubeconfig": c.path("proxy.kubeconfig"),
	})
}

func writeNodeConfig(n node, keys pki) error {
	c := n.config
	content, err := keys.kubeconfig(c, n.name())
	if err != nil {
		return err
	}
	if err := writeFile(n.path("kubelet.kubeconfig"), content); err != nil {
		return err
	}
	if err := renderProxy(n.path("kube-proxy.yaml"), c, n.name(), n.address()); err != nil {
		return err
	}
	if err := renderTo(n.path("kubelet.yaml"), "kubelet.yaml", map[string]string{
		"Address": n.address(), "CA": keys.cert("ca"), "Cert": keys.cert(n.name()), "Key": keys.key(n.name()),
		"Socket": n.socket(), "DNS": c.dnsServiceIP(), "ResolvConf": c.path("resolv.conf"), "PodLogs": n.path("pod-logs"),
		"VolumePlugins": n.path("volume-plugins"), "Cgroup": n.cgroup(),
	}); err != nil {
		return err
	}
	if err := renderTo(n.path("containerd.toml"), "containerd.toml", map[string]string{
		"Root": n.path("containerd"), "State": n.path("run", "containerd"), "Socket": n.socket(),
		"PauseImage": pauseImage, "CNIBin": cniBin, "CNIConf": n.path("cni"),
	}); err != nil {
		return err
	}
	return renderTo(n.path("cni", "10-stemedb.conflist"), "cni.json", map[string]string{
		"Network": cniNetwork, "PodRange": n.podRange(), "DataDir": n.path("cni-addresses"),
	})
}

const (
	cniBin     = "/usr/lib/cni" // where Debian's containernetworking-plugins puts them
	cniNetwork = "stemedb-pods"
)

// addons is the manifest of DNS and volumes.
func addons(c Config) ([]byte, error) {
	type nodeData struct{ Name, Volumes string }
	var nodes []nodeData
	for _, n := range c.nodes() {
		nodes = append(nodes, nodeData{n.name(), n.volumes()})
	}
	return render("addons.yaml", map[string]any{
		"DNS": c.dnsServiceIP(), "Nodes": nodes,
		"CoreDNSImage": corednsImage, "LocalPathImage": localPathImage, "BusyboxImage": busyboxImage,
	})
}
