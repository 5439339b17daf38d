package mutants

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/stemedb/stemedb/ci/process"
)

// copyTo copies the checkout's tracked files, and untracked files that are not
// ignored, in their current state: a mutant and its test can be tried before
// they are committed.
func (s *Suite) copyTo(ctx context.Context, dir string) error {
	listed, err := s.Runner.Run(ctx, process.Command{
		Name: "git", Args: []string{"ls-files", "-z", "--cached", "--others", "--exclude-standard"}, Dir: s.Root,
	})
	if err != nil {
		return fmt.Errorf("list the files of the checkout: %w", err)
	}
	for name := range strings.SplitSeq(strings.TrimRight(listed, "\x00"), "\x00") {
		if err := copyFile(filepath.Join(s.Root, name), filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("copy the checkout: %w", err)
		}
	}
	return nil
}

func copyFile(from, to string) error {
	info, err := os.Lstat(from)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // deleted, and not committed yet
	case err != nil:
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	}
	if !info.Mode().IsRegular() {
		return nil // a folder that git does not descend into
	}
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, info.Mode().Perm())
}
