package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/stemedb/stemedb/aphoria/revision"
)

// IgnoreFile lists patterns at the project's root.
const IgnoreFile = ".aphoriaignore"

// Options say what of a tree is looked at.
type Options struct {
	Exclude         []string // patterns as in .gitignore
	IncludeTestdata bool
	MaxFileBytes    int64
}

// Tree is a directory that is scanned. Close it after use.
type Tree struct {
	root  *os.Root
	names []string
	opts  Options
	// Passed counts what was not looked at, by reason.
	Passed map[string]int
}

// always is what no project means by its own code.
func always(testdata bool) []string {
	dirs := []string{".git/", ".hg/", ".svn/", ".aphoria/", "vendor/", "node_modules/", ".venv/", "venv/", "__pycache__/", "site-packages/", "*.min.js"}
	if !testdata {
		dirs = append(dirs, "testdata/")
	}
	return dirs
}

// Open lists the files of dir. In a git work tree these are the tracked and
// the new files, without what git ignores; elsewhere all of them.
func Open(ctx context.Context, dir string, opts Options) (*Tree, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the directory to scan: %w", err)
	}
	t := &Tree{root: root, opts: opts, Passed: make(map[string]int)}
	patterns := always(opts.IncludeTestdata)
	own, err := root.ReadFile(IgnoreFile)
	if err == nil {
		patterns = append(patterns, strings.Split(string(own), "\n")...)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("read %s: %w", IgnoreFile, err), root.Close())
	}
	ignore, err := NewIgnore(append(patterns, opts.Exclude...))
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	if err := t.list(ctx, dir, ignore); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	slices.Sort(t.names)
	return t, nil
}

// Close releases the directory.
func (t *Tree) Close() error { return t.root.Close() }

// Names are the files, relative to the root, with slashes, sorted.
func (t *Tree) Names() []string { return t.names }

func (t *Tree) list(ctx context.Context, dir string, ignore *Ignore) error {
	listed, err := revision.Git(ctx, dir, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", ".")
	tracked, terr := revision.Git(ctx, dir, "ls-files", "-z", "--", ".")
	if err == nil && terr == nil && len(tracked) > 0 {
		for name := range strings.SplitSeq(strings.TrimRight(string(listed), "\x00"), "\x00") {
			if !ignore.MatchBelow(name) {
				t.names = append(t.names, name)
			}
		}
		t.names = slices.Compact(slices.Sorted(slices.Values(t.names)))
		return nil
	}
	return fs.WalkDir(t.root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			if name == "." {
				return fmt.Errorf("read the directory to scan: %w", err)
			}
			t.Passed["unreadable"]++
			if d != nil && d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		switch {
		case name == ".":
		case ignore.Match(name, d.IsDir()):
			if d.IsDir() {
				return fs.SkipDir
			}
		case d.Type().IsRegular():
			t.names = append(t.names, name)
		case !d.IsDir():
			t.Passed["no regular file"]++
		}
		return nil
	})
}

// Read gives one file, or nil for what is passed over: links, binaries, files
// that are too large or cannot be read. It counts those in Passed.
func (t *Tree) Read(name string) *File {
	info, err := t.root.Lstat(name)
	switch {
	case err != nil:
		t.Passed["unreadable"]++ // or removed since it was listed
		return nil
	case !info.Mode().IsRegular():
		t.Passed["no regular file"]++
		return nil
	case info.Size() > t.opts.MaxFileBytes:
		t.Passed["too large"]++
		return nil
	}
	text, err := t.readText(name)
	if err != nil {
		t.Passed["unreadable"]++
		return nil
	}
	if int64(len(text)) > t.opts.MaxFileBytes {
		t.Passed["too large"]++
		return nil
	}
	if bytes.IndexByte(text[:min(len(text), 8000)], 0) >= 0 {
		t.Passed["binary"]++
		return nil
	}
	return NewFile(path.Clean(name), text)
}

// readText reads at most a byte more than allowed: the file may have grown.
func (t *Tree) readText(name string) ([]byte, error) {
	f, err := t.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	return io.ReadAll(io.LimitReader(f, t.opts.MaxFileBytes+1))
}
