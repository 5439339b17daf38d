// Package tools builds the programs that development and tests need from Go
// modules, and keeps them in a cache outside the checkout.
//
// A program is built once per state of its module: the name of the cache folder
// contains a hash of go.mod, go.sum, the module's own sources, the compiler's
// version and the flags. A second checkout therefore builds nothing, an upgrade
// builds only its own family, and two processes that need the same program
// concurrently build it once. A program in the cache is always complete, since
// it is renamed into place after the build.
package tools

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stemedb/stemedb/ci/process"
	"github.com/stemedb/stemedb/ci/progress"
)

// Builder finds and builds programs.
type Builder struct {
	Dir      string // ci/tools of the checkout
	Cache    string // see CacheDir
	Runner   process.Runner
	Reporter *progress.Reporter
}

// New returns a Builder for the checkout that contains the working directory.
func New(runner process.Runner, reporter *progress.Reporter) (*Builder, error) {
	root, err := CheckoutDir()
	if err != nil {
		return nil, err
	}
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	return &Builder{Dir: filepath.Join(root, "ci", "tools"), Cache: cache, Runner: runner, Reporter: reporter}, nil
}

// CacheDir is the folder of built programs: STEMEDB_CACHE, else stemedb below
// XDG_CACHE_HOME, else ~/.cache/stemedb.
func CacheDir() (string, error) {
	if dir := os.Getenv("STEMEDB_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	base, err := os.UserCacheDir()
	if err != nil {
		return "", progress.WithHint(fmt.Errorf("finding a folder for built tools: %w", err), "set STEMEDB_CACHE to a folder with 2 GiB of free space")
	}
	return filepath.Join(base, "stemedb"), nil
}

// CheckoutDir is the root of the checkout that contains the working directory.
func CheckoutDir() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("finding the checkout: %w", err)
	}
	for at := dir; ; at = filepath.Dir(at) {
		if _, err := os.Stat(filepath.Join(at, "ci", "tools", "kubernetes", "go.mod")); err == nil {
			return at, nil
		}
		if at == filepath.Dir(at) {
			return "", progress.WithHint(fmt.Errorf("%s is not inside a checkout of StemeDB", dir), "run this from a folder of the checkout")
		}
	}
}

// Path builds the program of that name unless it is cached, and returns its path.
func (b *Builder) Path(ctx context.Context, name string) (string, error) {
	family, binary, ok := find(name)
	if !ok {
		return "", progress.WithHint(fmt.Errorf("there is no tool %q", name), "the tools are: %s", strings.Join(Names(), ", "))
	}
	dir, err := b.folder(ctx, family)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "bin", name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	unlock, err := b.lock(ctx, dir, name)
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil {
		return path, nil // another process built it meanwhile
	}
	err = b.Reporter.Step(ctx, "build "+name, func(ctx context.Context) error {
		return b.build(ctx, family, binary, path)
	})
	return path, err
}

// Paths is Path for several programs, built one after the other: each build
// uses every core by itself.
func (b *Builder) Paths(ctx context.Context, names ...string) (map[string]string, error) {
	paths := make(map[string]string, len(names))
	for _, name := range names {
		path, err := b.Path(ctx, name)
		if err != nil {
			return nil, err
		}
		paths[name] = path
	}
	return paths, nil
}

// Names lists every program that can be built.
func Names() []string {
	var names []string
	for _, f := range Families() {
		for _, bin := range f.Binaries {
			names = append(names, bin.Name)
		}
	}
	return names
}

func (b *Builder) build(ctx context.Context, family Family, binary Binary, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("making the cache folder: %w", err)
	}
	temporary := fmt.Sprintf("%s.%d.tmp", path, os.Getpid())
	defer func() { _ = os.Remove(temporary) }() // gone after success
	flags := strings.TrimSpace("-s -w " + binary.LDFlags)
	_, err := b.Runner.Run(ctx, process.Command{
		Name: "go",
		Args: []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", temporary, binary.Package},
		Dir:  filepath.Join(b.Dir, family.module()),
		// GOFLAGS is emptied so that a -mod or -tags of the surrounding build
		// does not leak into another module.
		Env: []string{"CGO_ENABLED=0", "GOWORK=off", "GOFLAGS="},
	})
	if err != nil {
		return progress.WithHint(err, "the build needs the Go module proxy and about 4 GiB below %s; run it again, compiled packages are kept", b.Cache)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("moving %s into the cache: %w", binary.Name, err)
	}
	return nil
}

// folder is the family's place in the cache for its present state.
func (b *Builder) folder(ctx context.Context, family Family) (string, error) {
	module := filepath.Join(b.Dir, family.module())
	version, err := b.Runner.Run(ctx, process.Command{Name: "go", Args: []string{"env", "GOVERSION"}, Dir: module})
	if err != nil {
		return "", progress.WithHint(err, "install the Go version in the checkout's go.mod")
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s %s/%s\n", strings.TrimSpace(version), runtime.GOOS, runtime.GOARCH)
	for _, binary := range family.Binaries {
		fmt.Fprintf(h, "%s %s %s\n", binary.Name, binary.Package, binary.LDFlags)
	}
	files, err := sources(module, filepath.Join(b.Dir, family.sources()))
	if err != nil {
		return "", err
	}
	for _, name := range files {
		content, err := os.ReadFile(filepath.Join(module, name))
		if err != nil {
			return "", fmt.Errorf("hashing the tool's sources: %w", err)
		}
		fmt.Fprintf(h, "%s %d\n", name, len(content))
		h.Write(content)
	}
	return filepath.Join(b.Cache, "tools", family.Name+"-"+hex.EncodeToString(h.Sum(nil))[:16]), nil
}

// sources lists the files that determine the build, relative to the module, sorted:
// its requirements and our own code in dir.
func sources(module, dir string) ([]string, error) {
	if _, err := os.Stat(filepath.Join(module, "go.mod")); err != nil {
		return nil, fmt.Errorf("listing the sources of a tool: %w", err)
	}
	files := []string{"go.mod"}
	if _, err := os.Stat(filepath.Join(module, "go.sum")); err == nil {
		files = append(files, "go.sum")
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".go" {
			return err
		}
		relative, err := filepath.Rel(module, path)
		files = append(files, relative)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listing the sources of a tool: %w", err)
	}
	sort.Strings(files)
	return files, nil
}

// lock takes the family's lock file, waiting for another process that builds.
func (b *Builder) lock(ctx context.Context, dir, name string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making the cache folder: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("locking the cache: %w", err)
	}
	// Polled, because a blocking flock could not be interrupted.
	take := func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }
	err = take()
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = b.Reporter.Step(ctx, "wait for another build of "+name, func(ctx context.Context) error {
			for {
				if err := take(); !errors.Is(err, unix.EWOULDBLOCK) {
					return err
				}
				select {
				case <-ctx.Done():
					return context.Cause(ctx)
				case <-time.After(200 * time.Millisecond):
				}
			}
		})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("locking the cache: %w", err), f.Close())
	}
	// Closing the file releases the lock.
	return func() { _ = f.Close() }, nil
}
