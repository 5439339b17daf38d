package scan

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/stemedb/stemedb/aphoria/internal/revision"
)

// Place is a scanned directory with its project: a file makes the same claims
// whether the whole project or a part of it is scanned.
type Place struct {
	Root string // of the project
	Dir  string // the scanned one: the root or a directory below it
}

// Find finds the project of dir: the directory of its configuration
// (projectRoot, "" for none), otherwise the root of its git work tree, otherwise
// dir itself.
func Find(ctx context.Context, dir, projectRoot string) (Place, error) {
	dir, err := real(dir)
	if err != nil {
		return Place{}, fmt.Errorf("find the directory to scan: %w", err)
	}
	p := Place{Root: dir, Dir: dir}
	root := projectRoot
	if root == "" {
		if root, err = revision.Root(ctx, dir); err != nil || root == "" {
			return p, err
		}
	}
	if root, err = real(root); err != nil {
		return Place{}, fmt.Errorf("find the project's root: %w", err)
	}
	if rel, err := filepath.Rel(root, dir); err == nil && filepath.IsLocal(rel) {
		p.Root = root
	}
	return p, nil
}

// real resolves links: the root itself may be one, since the caller named it;
// links below it are not followed.
func real(dir string) (string, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", err
	}
	return filepath.Abs(dir)
}

// under is the directory relative to the root, with slashes.
func (p Place) under() string {
	rel, err := filepath.Rel(p.Root, p.Dir)
	if err != nil {
		return "." // Find has made the path local
	}
	return filepath.ToSlash(rel)
}
