package source

import (
	"context"
	"fmt"
	"strings"

	"github.com/stemedb/stemedb/ci/image"
	"github.com/stemedb/stemedb/ci/progress"
)

// makeImages writes the images of the cluster's own components.
func (k *Cluster) makeImages(tool map[string]string) error {
	single := func(reference, path, source, user string) image.Spec {
		return image.Spec{
			Reference: reference, Files: []image.File{{Path: path, Source: source}},
			Entrypoint: []string{path}, User: user,
		}
	}
	busybox := single(busyboxImage, "/bin/busybox", "/bin/busybox", "0:0")
	busybox.Entrypoint = nil
	for _, applet := range []string{"sh", "mkdir", "rm"} {
		busybox.Files = append(busybox.Files, image.File{Path: "/bin/" + applet, Link: "busybox"})
	}
	for name, spec := range map[string]image.Spec{
		"pause":                  single(pauseImage, "/pause", tool["pause"], image.NonRoot),
		"coredns":                single(corednsImage, "/coredns", tool["coredns"], image.NonRoot),
		"local-path-provisioner": single(localPathImage, "/local-path-provisioner", tool["local-path-provisioner"], image.NonRoot),
		"busybox":                busybox,
	} {
		out := k.Config.path("images", name+".tar")
		if exists(out) {
			continue
		}
		if err := image.Write(spec, out); err != nil {
			return err
		}
	}
	return nil
}

// importImages imports those that a node lacks.
func (k *Cluster) importImages(ctx context.Context, tars map[string]string) error {
	for _, n := range k.Config.nodes() {
		have, err := k.Runner.Run(ctx, ctr(n, "images", "list", "--quiet"))
		if err != nil {
			return fmt.Errorf("listing the images of %s: %w", n.name(), err)
		}
		for reference, tar := range tars {
			if strings.Contains("\n"+have, "\n"+reference+"\n") {
				continue
			}
			if err := k.importTar(ctx, n, tar); err != nil {
				return err
			}
		}
	}
	return nil
}

func (k *Cluster) importTar(ctx context.Context, n node, tar string) error {
	if _, err := k.Runner.Run(ctx, ctr(n, "images", "import", "--snapshotter", "native", tar)); err != nil {
		return fmt.Errorf("importing %s on %s: %w", tar, n.name(), err)
	}
	return nil
}

// LoadImage puts the images in the tars on every node, replacing older ones of
// the same name. Running pods keep their images.
func (k *Cluster) LoadImage(ctx context.Context, tars ...string) error {
	for _, tar := range tars {
		if !exists(tar) {
			return fmt.Errorf("there is no image file %s", tar)
		}
		for _, n := range k.Config.nodes() {
			if err := k.importTar(ctx, n, tar); err != nil {
				return progress.WithHint(err, "is the cluster up?")
			}
			if err := k.pruneImages(ctx, n); err != nil {
				return err
			}
		}
	}
	return nil
}

// pruneImages removes images that lost their name to a newer one. The runtime
// keeps each of them under its id indefinitely, and nothing else removes them
// here.
func (k *Cluster) pruneImages(ctx context.Context, n node) error {
	text, err := k.Runner.Run(ctx, ctr(n, "images", "list"))
	if err != nil {
		return fmt.Errorf("listing the images of %s: %w", n.name(), err)
	}
	nameless := namelessImages(text)
	if len(nameless) == 0 {
		return nil
	}
	if _, err := k.Runner.Run(ctx, ctr(n, append([]string{"images", "remove"}, nameless...)...)); err != nil {
		return fmt.Errorf("removing old images of %s: %w", n.name(), err)
	}
	return nil
}

// namelessImages reads ctr's list, with the reference in the first column and
// the manifest's digest in the third: the references that are ids and whose
// digest no name has.
func namelessImages(list string) []string {
	named := map[string]bool{}
	var ids [][2]string
	for _, line := range strings.Split(list, "\n") {
		f := strings.Fields(line)
		switch {
		case len(f) < 3 || f[0] == "REF":
		case strings.HasPrefix(f[0], "sha256:"):
			ids = append(ids, [2]string{f[0], f[2]})
		default:
			named[f[2]] = true
		}
	}
	var nameless []string
	for _, id := range ids {
		if !named[id[1]] {
			nameless = append(nameless, id[0])
		}
	}
	return nameless
}
