// Package image builds container images from static binaries without a
// registry, a daemon or a base image.
//
// It promises: an image is a pure function of its Spec and the content of the
// files that it names. Times are fixed and files are sorted by path, so the
// same inputs give the same digest on every machine. The tar has the format of
// `docker load`, `ctr images import`, `kind load image-archive` and
// `k3d image import` read.
package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Spec describes an image's content and configuration.
type Spec struct {
	Reference  string            // full name with a tag, such as docker.io/stemedb/stemedb:dev
	Files      []File            // its content; parent folders are created
	Entrypoint []string          // absolute path of the program, then fixed arguments
	Cmd        []string          // default arguments
	User       string            // "uid:gid" in numbers, so that runAsNonRoot can be checked
	WorkingDir string            // absolute; empty means /
	Env        []string          // NAME=value
	Ports      []string          // such as 18180/tcp
	Labels     map[string]string // org.opencontainers.image.*
}

// File is one file, link or folder of an image. Exactly one of Source, Content
// and Link is used; none of them means a folder.
type File struct {
	Path    string      // absolute path in the image
	Mode    os.FileMode // permission bits and os.ModeSticky; 0 means 0755
	Source  string      // file on this machine to copy
	Content []byte      // content as given
	Link    string      // target of a symbolic link
}

// Build makes the image.
func Build(spec Spec) (v1.Image, error) {
	if _, err := name.NewTag(spec.Reference, name.StrictValidation); err != nil {
		return nil, fmt.Errorf("image name %q: %w (give registry, repository and tag: docker.io/stemedb/stemedb:dev)", spec.Reference, err)
	}
	layer, err := layerOf(spec.Files)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", spec.Reference, err)
	}
	opened, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(layer)), nil
	}, tarball.WithCompressionLevel(gzip.BestSpeed))
	if err != nil {
		return nil, fmt.Errorf("image %s: making its layer: %w", spec.Reference, err)
	}
	img, err := mutate.AppendLayers(empty.Image, opened)
	if err != nil {
		return nil, fmt.Errorf("image %s: adding its layer: %w", spec.Reference, err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("image %s: reading its configuration: %w", spec.Reference, err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", runtime.GOARCH
	file.Created = v1.Time{Time: epoch}
	file.Config = v1.Config{
		Entrypoint: spec.Entrypoint,
		Cmd:        spec.Cmd,
		User:       spec.User,
		WorkingDir: spec.WorkingDir,
		Env:        spec.Env,
		Labels:     spec.Labels,
	}
	if len(spec.Ports) > 0 {
		file.Config.ExposedPorts = make(map[string]struct{}, len(spec.Ports))
		for _, p := range spec.Ports {
			file.Config.ExposedPorts[p] = struct{}{}
		}
	}
	img, err = mutate.ConfigFile(img, file)
	if err != nil {
		return nil, fmt.Errorf("image %s: writing its configuration: %w", spec.Reference, err)
	}
	return img, nil
}

// Write builds the image and writes it to the file out atomically.
func Write(spec Spec, out string) error {
	img, err := Build(spec)
	if err != nil {
		return err
	}
	tag, err := name.NewTag(spec.Reference, name.StrictValidation)
	if err != nil {
		return fmt.Errorf("image name %q: %w", spec.Reference, err)
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return fmt.Errorf("making the image's folder: %w", err)
	}
	temporary := fmt.Sprintf("%s.%d.tmp", out, os.Getpid())
	defer func() { _ = os.Remove(temporary) }() // gone after success
	if err := tarball.WriteToFile(temporary, tag, img); err != nil {
		return fmt.Errorf("writing image %s: %w", spec.Reference, err)
	}
	if err := os.Rename(temporary, out); err != nil {
		return fmt.Errorf("writing image %s: %w", spec.Reference, err)
	}
	return nil
}

// epoch is the time of every file, so that a digest depends on content alone.
var epoch = time.Unix(0, 0).UTC()

// layerOf is the uncompressed layer that holds the files.
func layerOf(files []File) ([]byte, error) {
	files, err := withParents(files)
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		header, content, err := entry(f)
		if err != nil {
			return nil, err
		}
		if err := w.WriteHeader(header); err != nil {
			return nil, fmt.Errorf("adding %s: %w", f.Path, err)
		}
		if _, err := w.Write(content); err != nil {
			return nil, fmt.Errorf("adding %s: %w", f.Path, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("closing the layer: %w", err)
	}
	return buf.Bytes(), nil
}

func entry(f File) (*tar.Header, []byte, error) {
	mode := f.Mode
	if mode == 0 {
		mode = 0o755
	}
	header := &tar.Header{
		Name:    strings.TrimPrefix(f.Path, "/"),
		Mode:    int64(mode.Perm()),
		ModTime: epoch,
		Format:  tar.FormatPAX,
	}
	if mode&os.ModeSticky != 0 {
		header.Mode |= 0o1000
	}
	content := f.Content
	switch {
	case f.Link != "":
		header.Typeflag, header.Linkname = tar.TypeSymlink, f.Link
		return header, nil, nil
	case f.Source != "":
		read, err := os.ReadFile(f.Source)
		if err != nil {
			return nil, nil, fmt.Errorf("adding %s: %w", f.Path, err)
		}
		content = read
	case content == nil:
		header.Typeflag, header.Name = tar.TypeDir, header.Name+"/"
		return header, nil, nil
	}
	header.Typeflag, header.Size = tar.TypeReg, int64(len(content))
	return header, content, nil
}

// withParents adds the files' parent folders and sorts by path, so that a
// folder precedes its content.
func withParents(files []File) ([]File, error) {
	all := make(map[string]File, len(files)*2)
	for _, f := range files {
		if !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path || f.Path == "/" {
			return nil, fmt.Errorf("path %q in the image must be absolute and clean", f.Path)
		}
		if _, twice := all[f.Path]; twice {
			return nil, fmt.Errorf("path %s is given twice", f.Path)
		}
		all[f.Path] = f
	}
	for _, f := range files {
		for dir := path.Dir(f.Path); dir != "/"; dir = path.Dir(dir) {
			if _, there := all[dir]; !there {
				all[dir] = File{Path: dir}
			}
		}
	}
	sorted := make([]File, 0, len(all))
	for _, f := range all {
		sorted = append(sorted, f)
	}
	sort.Slice(sorted, func(i, j int) bool { return sorted[i].Path < sorted[j].Path })
	return sorted, nil
}
