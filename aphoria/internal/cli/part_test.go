package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// found is the part of a scan's document that these tests compare.
type found struct {
	Project      string
	Revision     struct{ Kind, ID string }
	Observations []struct{ File, Hash string }
}

func (b *bench) found(args ...string) found {
	b.t.Helper()
	out, _ := b.mustRun(append([]string{"scan", "--format", "json"}, args...)...)
	var f found
	require.NoError(b.t, json.Unmarshal([]byte(out), &f))
	return f
}

// below returns "file hash" of the observations below a directory.
func (f found) below(dir string) []string {
	var all []string
	for _, o := range f.Observations {
		if strings.HasPrefix(o.File, dir+"/") {
			all = append(all, o.File+" "+o.Hash)
		}
	}
	return all
}

// partOf writes a project with an ignore file and a part with one observation
// that counts, two that .aphoriaignore excludes and one that git ignores.
func partOf(t *testing.T) *bench {
	t.Helper()
	b := newBench(t)
	b.dir = filepath.Join(t.TempDir(), "whole")
	b.write(".aphoriaignore", "gen/\n*_pb.py\n")
	b.write(".gitignore", "*_local.py\n")
	for _, name := range []string{"a.py", "gen/b.py", "a_pb.py", "a_local.py"} {
		b.write("sub/"+name, "requests.get(u, verify=False)\n")
	}
	return b
}

func TestAPartBelongsToItsRepositoryWhateverGitTracks(t *testing.T) {
	for name, prepare := range map[string]func(b *bench){
		"nothing is tracked": func(b *bench) { b.git("init", "-q") },
		"nothing is committed": func(b *bench) {
			b.git("init", "-q")
			b.git("add", ".")
		},
		"the part is not tracked": func(b *bench) {
			b.git("init", "-q")
			b.git("add", ".aphoriaignore", ".gitignore")
			b.git("commit", "-q", "-m", "first")
		},
		"everything is committed": func(b *bench) {
			b.git("init", "-q")
			b.git("add", ".")
			b.git("commit", "-q", "-m", "first")
		},
		"a linked work tree": func(b *bench) {
			b.git("init", "-q")
			b.git("add", ".")
			b.git("commit", "-q", "-m", "first")
			linked := filepath.Join(b.t.TempDir(), "whole")
			b.git("worktree", "add", "-q", linked)
			b.dir = linked
			b.write("sub/new.py", "requests.get(u, verify=False)\n")
		},
		"a submodule": func(b *bench) {
			b.git("init", "-q")
			b.git("add", ".")
			b.git("commit", "-q", "-m", "first")
			inner := b.dir
			b.dir = b.t.TempDir()
			b.git("init", "-q")
			b.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", inner, "whole")
			b.dir = filepath.Join(b.dir, "whole")
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := partOf(t)
			prepare(b)
			whole, part := b.found(b.dir), b.found(filepath.Join(b.dir, "sub"))
			require.NotEmpty(t, part.below("sub"))
			require.Equal(t, whole.below("sub"), part.below("sub"))
			require.NotContains(t, strings.Join(part.below("sub"), " "), "_")
			require.Equal(t, "whole", part.Project)
			require.Equal(t, whole.Revision, part.Revision)
			require.Equal(t, strings.Contains(name, "nothing"), part.Revision.Kind == "none", "no commit is no revision")
		})
	}
}

func TestADirectoryThatGitIgnoresIsScannedByNameAsAPart(t *testing.T) {
	b := partOf(t)
	b.write(".gitignore", "sub/\n")
	b.git("init", "-q")
	b.git("add", ".")
	b.git("commit", "-q", "-m", "first")
	require.Empty(t, b.found(b.dir).Observations)
	part := b.found(filepath.Join(b.dir, "sub"))
	require.Len(t, part.below("sub"), 2, "a.py and a_local.py; .aphoriaignore excludes the others")
	require.Equal(t, "git", part.Revision.Kind)
	out, _ := b.mustRun("scan", filepath.Join(b.dir, "sub"))
	require.Contains(t, out, "with changes", "the commit holds none of these files")
}

func TestWithoutGitTheRepositoryIsFoundByItsFolder(t *testing.T) {
	b := partOf(t)
	b.git("init", "-q")
	t.Setenv("PATH", "")
	require.Equal(t, b.found(b.dir).below("sub"), b.found(filepath.Join(b.dir, "sub")).below("sub"))
	require.Len(t, b.found(filepath.Join(b.dir, "sub")).below("sub"), 2, ".gitignore needs git, .aphoriaignore does not")
	require.NoError(t, os.RemoveAll(filepath.Join(b.dir, ".git")))
	require.NoError(t, os.Mkdir(filepath.Join(b.dir, ".git"), 0o755))
	require.Len(t, b.found(filepath.Join(b.dir, "sub")).Observations, 4, "an empty folder .git is no repository")
}

func TestAPartBehindALinkHasTheConfigurationOfItsProject(t *testing.T) {
	b := partOf(t)
	b.write(".aphoria/config.toml", "[project]\nname = 'named'\n[scan]\nexclude = ['a_local.py']\n")
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(filepath.Join(b.dir, "sub"), link))
	got := b.found(link)
	require.Equal(t, "named", got.Project)
	require.Len(t, got.below("sub"), 1)
}
