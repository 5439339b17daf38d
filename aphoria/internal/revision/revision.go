// Package revision identifies the scanned state of the code. It promises that
// the same code at the same revision gives the same time, so that a second scan
// makes no new claims.
package revision

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/module"
)

// Revision identifies the code's state.
type Revision struct {
	Kind string    `json:"kind"`          // git, module or none
	ID   string    `json:"id,omitempty"`  // commit hash, or the module's version
	Time time.Time `json:"time,omitzero"` // of the commit or version; zero when unknown
	// Problem says why the revision, or a part of its state, is unknown although
	// there is a repository.
	Problem string `json:"problem,omitempty"`
	Dirty   bool   `json:"dirty,omitempty"` // the work tree has uncommitted changes
}

// Fixed reports whether scans of this revision always find the same.
func (r Revision) Fixed() bool { return !r.Dirty && !r.Time.IsZero() }

// Timestamp is the time of claims: the revision's time where the code is
// exactly that revision, otherwise now. For a commit from the future it is also
// now, since servers refuse future times.
func (r Revision) Timestamp(now time.Time) uint64 {
	at := now
	if r.Fixed() && r.Time.Before(now) {
		at = r.Time
	}
	return uint64(max(at.Unix(), 0))
}

// Detect examines root: a directory of a git work tree with a commit, a version
// in the Go module cache, or neither. stateDir does not count as a change.
func Detect(ctx context.Context, root, stateDir string) (Revision, error) {
	if r, ok := moduleCache(root); ok {
		return r, nil
	}
	return gitRevision(ctx, root, stateDir)
}

func gitRevision(ctx context.Context, root, stateDir string) (Revision, error) {
	none := Revision{Kind: "none"}
	tracked, err := Git(ctx, root, "ls-files", "-z", "--", ".")
	if err != nil {
		none.Problem = repositoryProblem(root, err)
		return none, ctx.Err() // no repository, or no git: not an error
	}
	head, err := Git(ctx, root, "show", "-s", "--format=%H %ct", "HEAD")
	if err != nil {
		return none, ctx.Err() // no commit yet
	}
	hash, stamp, ok := strings.Cut(strings.TrimSpace(string(head)), " ")
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	if !ok || err != nil {
		return none, fmt.Errorf("git names its commit as %q, which cannot be read", head)
	}
	r := Revision{Kind: "git", ID: hash, Time: time.Unix(seconds, 0).UTC()}
	// The commit holds no file of a directory without tracked files. Git's status
	// does not show those that it ignores.
	if r.Dirty = len(tracked) == 0; r.Dirty {
		return r, nil
	}
	status := []string{"status", "--porcelain", "-z", "--", "."}
	if rel, err := filepath.Rel(root, stateDir); err == nil && filepath.IsLocal(rel) && rel != "." {
		status = append(status, ":(exclude)"+filepath.ToSlash(rel))
	}
	changes, err := Git(ctx, root, status...)
	if err != nil {
		// Git ends at a submodule whose git folder is missing. A scan does not read
		// submodules, so the other files decide.
		problem := fmt.Sprintf("a submodule cannot be read and is left out; git submodule update --init restores it: %v", err)
		status = slices.Insert(status, 1, "--ignore-submodules=all")
		if changes, err = Git(ctx, root, status...); err != nil {
			return none, err
		}
		r.Problem = problem
	}
	r.Dirty = len(changes) > 0
	return r, nil
}

// repositoryProblem explains why git cannot read a tree that looks like a
// repository: a checkout of another owner, or no git on the machine.
func repositoryProblem(root string, err error) string {
	if repositoryAbove(root) == "" {
		return ""
	}
	return fmt.Sprintf("the commit is unknown, so claims are dated now and every scan makes new ones: %v", err)
}

// Root returns the root of the git work tree that contains the directory,
// whether or not git tracks a file there, or "" if there is none. A version in
// the Go module cache is not part of a repository around the cache.
func Root(ctx context.Context, dir string) (string, error) {
	if _, ok := moduleCache(dir); ok {
		return "", nil
	}
	top, err := Git(ctx, dir, "rev-parse", "--show-toplevel")
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if root := strings.TrimSuffix(string(top), "\n"); err == nil && root != "" {
		return root, nil
	}
	return repositoryAbove(dir), nil // git is absent, or refuses a checkout of another owner
}

// repositoryAbove finds a repository without git: the nearest directory at or
// above dir with a folder .git, or with the file .git of a linked work tree or a
// submodule. It returns "" if there is none.
func repositoryAbove(dir string) string {
	for {
		for _, mark := range []string{filepath.Join(".git", "HEAD"), ".git"} {
			if info, err := os.Stat(filepath.Join(dir, mark)); err == nil && info.Mode().IsRegular() {
				return dir
			}
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return ""
		}
		dir = parent
	}
}

// Git runs git in dir without prompts, without locks, and without the program
// that a scanned repository may name as its file monitor.
func Git(ctx context.Context, dir string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "git", append([]string{"-c", "core.fsmonitor=false"}, args...)...)
	cmd.Dir = dir
	// Inside a git hook these variables name the hook's repository, whatever dir
	// is.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return slices.Contains([]string{"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"}, name)
	})
	cmd.Env = append(cmd.Env, "GIT_OPTIONAL_LOCKS=0", "GIT_TERMINAL_PROMPT=0", "LC_ALL=C")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("git %s: %w: %s", args[0], err, strings.TrimSpace(stderr.String()))
	}
	return out, nil
}

// moduleCache recognises <cache>/<escaped path>@<version>: such a tree never
// changes, and its time is in the cache's download folder.
func moduleCache(root string) (Revision, bool) {
	abs, err := filepath.Abs(root)
	if err != nil {
		return Revision{}, false
	}
	at := strings.LastIndexByte(filepath.Base(abs), '@')
	if at <= 0 {
		return Revision{}, false
	}
	version := filepath.Base(abs)[at+1:]
	for dir := filepath.Dir(abs); dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		download := filepath.Join(dir, "cache", "download")
		if info, err := os.Stat(download); err != nil || !info.IsDir() {
			continue
		}
		rel, err := filepath.Rel(dir, abs)
		if err != nil {
			return Revision{}, false
		}
		escaped := strings.TrimSuffix(filepath.ToSlash(rel), "@"+version)
		name, err := module.UnescapePath(escaped)
		if err != nil {
			return Revision{}, false
		}
		at, err := versionTime(filepath.Join(download, filepath.FromSlash(escaped), "@v", version+".info"))
		if err != nil {
			return Revision{}, false
		}
		return Revision{Kind: "module", ID: name + "@" + version, Time: at}, true
	}
	return Revision{}, false
}

func versionTime(file string) (time.Time, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return time.Time{}, err
	}
	var info struct{ Time time.Time }
	if err := json.Unmarshal(raw, &info); err != nil {
		return time.Time{}, err
	}
	if info.Time.IsZero() {
		return time.Time{}, errors.New("the version has no time")
	}
	return info.Time, nil
}
