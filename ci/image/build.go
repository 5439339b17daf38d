package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/stemedb/stemedb/ci/process"
	"github.com/stemedb/stemedb/ci/progress"
)

// Program is a main package of the checkout that is built into an image.
type Program struct {
	Module  string // folder of the module, relative to the checkout
	Package string // the main package, relative to the module: ./cmd/x or .
	Path    string // path of the binary in the image
}

// ParseProgram reads "folder=path": the folder of a main package relative to
// the checkout, and the path in the image. The module is the nearest one above.
func ParseProgram(root, text string) (Program, error) {
	folder, dest, ok := strings.Cut(text, "=")
	if !ok || folder == "" || !filepath.IsAbs(dest) {
		return Program{}, fmt.Errorf("%q: want FOLDER=PATH, such as ./server/cmd/stemedb=/usr/local/bin/stemedb", text)
	}
	folder = filepath.Clean(folder)
	for module := folder; ; module = filepath.Dir(module) {
		if _, err := os.Stat(filepath.Join(root, module, "go.mod")); err == nil {
			pkg, err := filepath.Rel(module, folder)
			if err != nil {
				return Program{}, fmt.Errorf("%q: %w", text, err)
			}
			return Program{Module: module, Package: "./" + pkg, Path: dest}, nil
		} else if !errors.Is(err, os.ErrNotExist) {
			return Program{}, fmt.Errorf("%q: looking for its module: %w", text, err)
		}
		if module == "." || module == "/" || strings.HasPrefix(module, "..") {
			return Program{}, fmt.Errorf("%q: no go.mod in %s or above it", text, folder)
		}
	}
}

// Compiler builds programs statically, as the Dockerfile does.
type Compiler struct {
	Root     string // the checkout
	Version  string // goes into main.version
	Runner   process.Runner
	Reporter *progress.Reporter
}

// Compile builds the programs into the folder out and returns them as files of
// an image.
func (c *Compiler) Compile(ctx context.Context, out string, programs ...Program) ([]File, error) {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return nil, fmt.Errorf("making the folder for binaries: %w", err)
	}
	files := make([]File, 0, len(programs))
	for _, p := range programs {
		binary := filepath.Join(out, filepath.Base(p.Path))
		err := c.Reporter.Step(ctx, "compile "+filepath.Base(p.Path), func(ctx context.Context) error {
			_, err := c.Runner.Run(ctx, process.Command{
				Name: "go",
				Args: []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", LinkFlags(c.Version), "-o", binary, p.Package},
				Dir:  filepath.Join(c.Root, p.Module),
				Env:  []string{"CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=", "GOOS=linux"},
			})
			return err
		})
		if err != nil {
			return nil, err
		}
		files = append(files, File{Path: p.Path, Source: binary})
	}
	return files, nil
}

// LinkFlags are the linker flags of every binary of the release.
func LinkFlags(version string) string { return "-s -w -X main.version=" + version }
