package scan

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/aphoria/internal/config"
	"github.com/stemedb/stemedb/aphoria/internal/extract"
	"github.com/stemedb/stemedb/record"
)

func project(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		file := filepath.Join(dir, filepath.FromSlash(name))
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, []byte(text), 0o644))
	}
	return dir
}

func commit(t *testing.T, dir string) {
	t.Helper()
	for _, args := range [][]string{{"init", "-q"}, {"add", "."}, {"commit", "-q", "-m", "first"}} {
		cmd := exec.Command("git", append([]string{"-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"}, args...)...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_COMMITTER_DATE=2025-01-02T03:04:05Z", "GIT_AUTHOR_DATE=2025-01-02T03:04:05Z")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
}

func run(t *testing.T, dir string, cfg config.Config, now time.Time) *Result {
	t.Helper()
	registry, err := extract.Default()
	require.NoError(t, err)
	at, err := Find(t.Context(), dir, dir)
	require.NoError(t, err)
	res, err := Run(t.Context(), at, filepath.Join(dir, ".aphoria"), cfg, registry, now)
	require.NoError(t, err)
	return res
}

func ids(r *Result) (ids []record.Hash) {
	for _, f := range r.Findings {
		ids = append(ids, f.ID)
	}
	return ids
}

var mixed = map[string]string{
	"go.mod":           "module example.org/a\n\nrequire example.org/b v1.0.0\n",
	"sub/go.mod":       "module example.org/a/sub\n\nrequire example.org/b v1.1.0\n",
	"sub/x.go":         "var c = tls.Config{InsecureSkipVerify: true}\n",
	"web/package.json": `{"name":"web","dependencies":{"x":"1"}}`,
	"web/a.js":         "o = {rejectUnauthorized: false}",
	"requirements.txt": "a==1\n",
	"Cargo.toml":       "[package]\nname = 'c'\n[dependencies]\nd = '1'\n",
}

func TestSameCommitSameClaims(t *testing.T) {
	first, second := project(t, mixed), project(t, mixed)
	commit(t, first)
	commit(t, second)
	cfg := config.Default()
	cfg.Project.Name = "proj"
	a := run(t, first, cfg, time.Unix(1_770_000_000, 0))
	b := run(t, second, cfg, time.Unix(1_780_000_000, 0))
	require.Len(t, a.Findings, 7)
	require.Equal(t, ids(a), ids(b), "another clone, another time, the same claims")
	require.Equal(t, 2, a.Count(extract.Block))
	for _, f := range a.Findings {
		require.NoError(t, f.Content.Validate())
		require.Equal(t, f.Content.ID(), f.ID)
	}
}

func TestWithoutRevisionClaimsAreDatedNow(t *testing.T) {
	dir := project(t, mixed)
	a := run(t, dir, config.Default(), time.Unix(1_770_000_000, 0))
	require.Equal(t, uint64(1_770_000_000), a.Findings[0].Content.Timestamp)
	require.NotContains(t, a.Findings[0].Content.SourceMetadata, "commit")
	b := run(t, dir, config.Default(), time.Unix(1_770_000_001, 0))
	require.NotEqual(t, ids(a), ids(b))
}

func TestLanguage(t *testing.T) {
	cfg := config.Default()
	cfg.Project.Language = "go"
	res := run(t, project(t, mixed), cfg, time.Unix(1, 0))
	require.Len(t, res.Findings, 3)
	for _, f := range res.Findings {
		require.True(t, strings.HasPrefix(f.Content.Subject, "code://go/"))
	}
}

func TestOneClaimForTheSameTwice(t *testing.T) {
	res := run(t, project(t, map[string]string{"a.go": "InsecureSkipVerify: true, InsecureSkipVerify: true"}), config.Default(), time.Unix(1, 0))
	require.Len(t, res.Findings, 1)
}

func TestAnObservationWithoutAClaimIsAFindingAllTheSame(t *testing.T) {
	res := run(t, project(t, map[string]string{
		"package.json": `{"dependencies":{"` + strings.Repeat("n", 2000) + `":"1","ok":"2"}`,
	}), config.Default(), time.Unix(1, 0))
	require.Len(t, res.Findings, 2)
	require.Equal(t, 1, res.NotKept())
	require.Len(t, res.Warnings, 1, "the file is cut short")
}

func TestRootMayBeALink(t *testing.T) {
	dir := project(t, mixed)
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(dir, link))
	res := run(t, link, config.Default(), time.Unix(1, 0))
	require.Len(t, res.Findings, 7)
	require.Equal(t, filepath.Base(dir), res.Project)
}
