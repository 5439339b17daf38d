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
	"path/filepath"
	"slices"
	"strings"

	"github.com/stemedb/stemedb/aphoria/internal/revision"
)

// IgnoreFile lists patterns, in any directory of the project.
const IgnoreFile = ".aphoriaignore"

// Options select the files of a tree.
type Options struct {
	Under           string   // the directory below the root that is listed; "" is the root itself
	Exclude         []string // patterns as in .gitignore, relative to the root
	IncludeTestdata bool
	MaxFileBytes    int64
}

// The reasons for skipping a path.
const (
	TooLarge   = "too large"
	Unreadable = "unreadable"
	Binary     = "binary"
	NotRegular = "no regular file"
	Submodule  = "submodule"
)

// Tree is a scanned directory. The caller must call Close.
type Tree struct {
	root   *os.Root
	names  []string
	opts   Options
	ignore *Ignore
	byGit  bool // git named the files
	// Passed are the skipped paths, by reason.
	Passed map[string][]string
	// Excluded is the number of paths that patterns exclude, without the folders
	// of version control and of aphoria itself. A directory that is not entered
	// counts once.
	Excluded int
}

// always lists patterns of files that are never a project's own code.
func always(testdata bool) []string {
	dirs := append(notCode(), "vendor/", "node_modules/", ".venv/", "venv/", "__pycache__/", "site-packages/", "*.min.js")
	if !testdata {
		dirs = append(dirs, "testdata/")
	}
	return dirs
}

// notCode lists the directories of tools, which hold no code of any kind.
func notCode() []string { return []string{".git/", ".hg/", ".svn/", ".aphoria/"} }

// Open lists the files of dir, or of the part of it that opts name. In a git
// work tree these are the tracked and the new files, without ignored ones;
// elsewhere, and in a directory that git ignores as a whole, all of them.
func Open(ctx context.Context, dir string, opts Options) (*Tree, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the directory to scan: %w", err)
	}
	t := &Tree{root: root, opts: opts, Passed: make(map[string][]string)}
	t.opts.Under = path.Clean(opts.Under)
	t.ignore, err = NewIgnore(always(opts.IncludeTestdata), t.readIgnore, opts.Exclude)
	if err == nil {
		err = t.list(ctx, dir)
	}
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	slices.Sort(t.names)
	t.names = slices.Compact(t.names) // git lists a conflicting file once for each side
	return t, nil
}

// Close releases the directory.
func (t *Tree) Close() error { return t.root.Close() }

// Names are the files, relative to the root, with slashes, sorted.
func (t *Tree) Names() []string { return t.names }

// Warnings names the invalid lines of the ignore files that were read.
func (t *Tree) Warnings() []string { return t.ignore.invalid }

func (t *Tree) exclude(name string) {
	if !slices.ContainsFunc(strings.Split(name, "/"), func(part string) bool { return slices.Contains(notCode(), part+"/") }) {
		t.Excluded++
	}
}

func (t *Tree) pass(reason, name string) { t.Passed[reason] = append(t.Passed[reason], name) }

// maxIgnoreFile bounds an ignore file; no handwritten one comes near.
const maxIgnoreFile = 128 << 10

func (t *Tree) readIgnore(dir string) ([]byte, error) {
	name := path.Join(dir, IgnoreFile)
	info, err := t.root.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err == nil && !info.Mode().IsRegular(): // opening a pipe would wait for its writer
		return nil, fmt.Errorf("%s is not a regular file; remove it", name)
	}
	var raw []byte
	if err == nil {
		raw, err = t.readText(name, maxIgnoreFile)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", name, err)
	case len(raw) > maxIgnoreFile:
		return nil, fmt.Errorf("%s is larger than %d bytes; write fewer, wider patterns", name, maxIgnoreFile)
	}
	return raw, nil
}

func (t *Tree) list(ctx context.Context, dir string) error {
	// A directory that the project ignores as a whole may still be scanned by
	// name.
	for at := t.opts.Under; at != "."; at = path.Dir(at) {
		t.ignore.dirs[at] = false
	}
	if _, err := t.readDir(t.opts.Under); err != nil {
		return fmt.Errorf("read the directory to scan: %w", err)
	}
	var err error
	if t.byGit, err = t.listGit(ctx, dir); err != nil || t.byGit {
		return err
	}
	return t.walk(ctx, t.opts.Under)
}

// listGit asks git. It returns false for a tree that git does not know: outside
// a work tree, or ignored as a whole.
func (t *Tree) listGit(ctx context.Context, dir string) (known bool, err error) {
	at := filepath.Join(dir, filepath.FromSlash(t.opts.Under))
	// Each is: mode, hash and stage, a tab, the name.
	tracked, err := revision.Git(ctx, at, "ls-files", "-z", "--stage", "--", ".")
	if err != nil {
		return false, ctx.Err() // no repository, or no git: not an error
	}
	if len(tracked) == 0 {
		if _, err := revision.Git(ctx, at, "check-ignore", "-q", "--", "."); err == nil || ctx.Err() != nil {
			return false, ctx.Err()
		}
	}
	others, err := revision.Git(ctx, at, "ls-files", "-z", "--others", "--exclude-standard", "--", ".")
	if err != nil {
		return false, ctx.Err()
	}
	for line := range strings.SplitSeq(string(tracked), "\x00") {
		if line == "" {
			continue
		}
		about, name, _ := strings.Cut(line, "\t")
		mode, _, _ := strings.Cut(about, " ")
		if err := t.add(ctx, name, map[string]string{"160000": Submodule, "120000": NotRegular}[mode]); err != nil {
			return false, err
		}
	}
	for name := range strings.SplitSeq(string(others), "\x00") {
		if name == "" {
			continue
		}
		reason := ""
		if strings.HasSuffix(name, "/") { // a repository that is not a submodule yet
			reason = Submodule
		}
		if err := t.add(ctx, strings.TrimSuffix(name, "/"), reason); err != nil {
			return false, err
		}
	}
	return true, nil
}

// IgnoredByGit counts the files that are not listed only because git ignores
// them.
func (t *Tree) IgnoredByGit(ctx context.Context) (int, error) {
	if !t.byGit {
		return 0, nil
	}
	at := filepath.Join(t.root.Name(), filepath.FromSlash(t.opts.Under))
	names, err := revision.Git(ctx, at, "ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--", ".")
	if err != nil {
		return 0, ctx.Err() // git listed the other files, so this only costs the reason
	}
	n := 0
	for name := range strings.SplitSeq(string(names), "\x00") {
		if name == "" {
			continue
		}
		excluded, err := t.ignore.Ignored(path.Join(t.opts.Under, strings.TrimSuffix(name, "/")), strings.HasSuffix(name, "/"))
		if err != nil {
			return 0, err
		}
		if !excluded {
			n++
		}
	}
	return n, nil
}

// add lists a name from git, or skips it for the reason that git gives.
func (t *Tree) add(ctx context.Context, name, reason string) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	name = path.Join(t.opts.Under, name)
	ignored, err := t.ignore.Ignored(name, reason == Submodule)
	switch {
	case err != nil:
		return err
	case ignored:
		t.exclude(name)
	case reason == "":
		t.names = append(t.names, name)
	default:
		t.pass(reason, name)
	}
	return nil
}

// walk lists a directory and those below it. It does not use package fs, which
// refuses names that are not UTF-8.
func (t *Tree) walk(ctx context.Context, dir string) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	entries, err := t.readDir(dir)
	if err != nil {
		t.pass(Unreadable, dir) // entries holds those that could be read
	}
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		ignored, err := t.ignore.Ignored(name, e.IsDir())
		switch {
		case err != nil:
			return err
		case ignored:
			t.exclude(name)
		case e.IsDir():
			if err := t.walk(ctx, name); err != nil {
				return err
			}
		case e.Type().IsRegular():
			t.names = append(t.names, name)
		default:
			t.pass(NotRegular, name)
		}
	}
	return nil
}

func (t *Tree) readDir(name string) ([]os.DirEntry, error) {
	d, err := t.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.Close() }() // only read
	return d.ReadDir(-1)
}

// Read returns one file, or nil for a skipped one: a link, a binary, or a file
// that is too large or cannot be read. Skipped files are recorded in Passed.
func (t *Tree) Read(name string) *File {
	info, err := t.root.Lstat(name)
	switch {
	case err != nil:
		t.pass(Unreadable, name) // or removed since it was listed
		return nil
	case !info.Mode().IsRegular():
		t.pass(NotRegular, name)
		return nil
	case info.Size() > t.opts.MaxFileBytes:
		t.pass(TooLarge, name)
		return nil
	}
	text, err := t.readText(name, t.opts.MaxFileBytes)
	if err != nil {
		t.pass(Unreadable, name)
		return nil
	}
	if int64(len(text)) > t.opts.MaxFileBytes {
		t.pass(TooLarge, name)
		return nil
	}
	f := NewFile(path.Clean(name), text)
	if bytes.IndexByte(f.Text[:min(len(f.Text), 8000)], 0) >= 0 {
		t.pass(Binary, name)
		return nil
	}
	return f
}

// ReadIfThere reads a file that may be absent, and records nothing in Passed.
func (t *Tree) ReadIfThere(name string) *File {
	info, err := t.root.Lstat(name)
	if err != nil || !info.Mode().IsRegular() || info.Size() > t.opts.MaxFileBytes {
		return nil
	}
	text, err := t.readText(name, t.opts.MaxFileBytes)
	if err != nil {
		return nil
	}
	return NewFile(path.Clean(name), text)
}

// readText reads at most a byte more than allowed: the file may have grown.
func (t *Tree) readText(name string, limit int64) ([]byte, error) {
	f, err := t.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	return io.ReadAll(io.LimitReader(f, limit+1))
}
