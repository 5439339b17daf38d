package revision

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func repository(t *testing.T) (dir string, git func(args ...string)) {
	t.Helper()
	dir = t.TempDir()
	git = func(args ...string) {
		cmd := exec.Command("git", append([]string{"-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"}, args...)...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_COMMITTER_DATE=2025-01-02T03:04:05Z", "GIT_AUTHOR_DATE=2025-01-02T03:04:05Z")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	git("init", "-q")
	return dir, git
}

func detect(t *testing.T, dir, state string) Revision {
	t.Helper()
	r, err := Detect(t.Context(), dir, state)
	require.NoError(t, err)
	return r
}

func put(t *testing.T, file, text string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
	require.NoError(t, os.WriteFile(file, []byte(text), 0o644))
}

func TestDetectGit(t *testing.T) {
	dir, git := repository(t)
	state := filepath.Join(dir, ".aphoria")
	require.Equal(t, "none", detect(t, dir, state).Kind, "there is no commit and nothing is tracked")
	put(t, filepath.Join(dir, "a.go"), "package a")
	put(t, filepath.Join(dir, "sub", "b.go"), "package b")
	git("add", ".")
	require.Equal(t, "none", detect(t, dir, state).Kind, "there is no commit")
	git("commit", "-q", "-m", "first")

	at := time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC)
	now := at.Add(time.Hour)
	r := detect(t, dir, state)
	require.Equal(t, "git", r.Kind)
	require.Len(t, r.ID, 40)
	require.Equal(t, at, r.Time)
	require.True(t, r.Fixed())
	require.Equal(t, uint64(at.Unix()), r.Timestamp(now))
	require.Equal(t, uint64(at.Unix()-60), r.Timestamp(at.Add(-time.Minute)), "a commit from the future is dated now")
	require.Equal(t, r, detect(t, filepath.Join(dir, "sub"), state))

	put(t, filepath.Join(state, "config.toml"), "")
	require.Equal(t, r, detect(t, dir, state), "the state directory is not a change")
	put(t, filepath.Join(dir, "new.go"), "package a")
	dirty := detect(t, dir, state)
	require.True(t, dirty.Dirty)
	require.Equal(t, uint64(now.Unix()), dirty.Timestamp(now))
	require.False(t, detect(t, filepath.Join(dir, "sub"), state).Dirty, "changes elsewhere do not count")

	put(t, filepath.Join(dir, ".gitignore"), "ignored/")
	for _, name := range []string{"untracked", "ignored"} {
		put(t, filepath.Join(dir, name, "c.go"), "package c")
		at := detect(t, filepath.Join(dir, name), state)
		require.Equal(t, r.ID, at.ID, name)
		require.True(t, at.Dirty, "the commit does not hold %s", name)
	}
}

func TestDetectNothing(t *testing.T) {
	dir := t.TempDir()
	r := detect(t, dir, filepath.Join(dir, ".aphoria"))
	require.Equal(t, Revision{Kind: "none"}, r)
	require.Equal(t, uint64(7), r.Timestamp(time.Unix(7, 0)))
}

func TestDetectBrokenRepository(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, ".git", "HEAD"), "nonsense")
	r := detect(t, dir, filepath.Join(dir, ".aphoria"))
	require.Equal(t, "none", r.Kind)
	require.Contains(t, r.Problem, "dated now")
}

func TestDetectModuleCache(t *testing.T) {
	cache := t.TempDir()
	root := filepath.Join(cache, "github.com", "!burnt!sushi", "toml@v1.6.0")
	put(t, filepath.Join(root, "go.mod"), "module github.com/BurntSushi/toml")
	require.Equal(t, "none", detect(t, root, cache).Kind)
	info := filepath.Join(cache, "cache", "download", "github.com", "!burnt!sushi", "toml", "@v", "v1.6.0.info")
	put(t, info, `{"Version":"v1.6.0","Time":"2025-12-01T10:00:00Z"}`)
	r := detect(t, root, filepath.Join(cache, "state"))
	require.Equal(t, Revision{Kind: "module", ID: "github.com/BurntSushi/toml@v1.6.0", Time: time.Date(2025, 12, 1, 10, 0, 0, 0, time.UTC)}, r)
	require.True(t, r.Fixed())
	put(t, info, `{}`)
	require.Equal(t, "none", detect(t, root, cache).Kind)
}
