package source

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/aphoria/internal/revision"
)

// The reference is git itself.
func TestAPatternMatchesAsInGit(t *testing.T) {
	names := []string{
		"a.py", "b.py", "c.py", "ab.py", "]x", "-x", "^x", "!x", "#x", "x ", "x", `x\`, "d/a.py", "d/e/a.py", "d/e/f/a.py", "d/x", "d/e/x",
		"foo", "foo/a", "d/foo", "d/foo/a", "é", "ab", "a/b", "a/c/b", "a/c/d/b", "axb", "build/x", "src/build/x", "keep/a.log", "a.log",
		"d/a.log", "A.py", "7z", "xy", "a*b", "a?b", "[ab].py", "tab\t", "x.tar.gz", "deep/1/2/3", "d/.hidden", ".hidden", "a-b", "aXb", "a.b", "a_b", "a b",
	}
	for _, file := range []map[string]string{
		{".": "[ab].py"},
		{".": "[!a].py"},
		{".": "[^a].py"},
		{".": "[]x]x"},
		{".": "[]-]x"},
		{".": "[a-c].py"},
		{".": "[c-a].py"},
		{".": "[[:digit:]]z"},
		{".": "[[:upper:]].py"},
		{".": "a[!x]b"},
		{".": "a[/]b"},
		{".": "a[!/]b"},
		{".": "a[[:punct:]]b"},
		{".": "a[[:space:]]b"},
		{".": `[\]]x`},
		{".": `\[ab].py`},
		{".": "[+--]x"},
		{".": `\#x`},
		{".": `\!x`},
		{".": "#x"},
		{".": `x\ `},
		{".": "x "},
		{".": "x   "},
		{".": "\ufeffa.py"},
		{".": "a.py\r\nb.py\r\n"},
		{".": "tab\t"},
		{".": `x\\`},
		{".": "**/a.py"},
		{".": "d/**/a.py"},
		{".": "d/**"},
		{".": "**/foo/**"},
		{".": "a/**/b"},
		{".": "a/**/**/b"},
		{".": "a**b"},
		{".": "**"},
		{".": "d/**/"},
		{".": "/**/a.py"},
		{".": "foo**"},
		{".": "**foo"},
		{".": "d**/a.py"},
		{".": "/a.py"},
		{".": "d/a.py"},
		{".": "foo/"},
		{".": "/foo/"},
		{".": "d/*"},
		{".": "d/*\n!d/a.py"},
		{".": "d/\n!d/a.py"},
		{".": "*\n!a.py"},
		{".": "*\n!*/\n!a.py"},
		{".": "*.log\n!keep/*.log"},
		{".": "?"},
		{".": "??"},
		{".": "a?b"},
		{".": `a\*b`},
		{".": `a\?b`},
		{".": "*.tar.*"},
		{".": ".*"},
		{".": "é"},
		{".": "a/b\n!a/b\n"},
		{".": "deep/*/2"},
		{".": "//a.py"},
		{".": "d//a.py"},
		{".": "a.py", "d": "!a.py"},
		{".": "!a.py", "d": "a.py"},
		{".": "*.py", "d": "!*.py", "d/e": "a.py"},
		{"d": "/a.py"},
		{"d": "e/"},
		{"d": "**/f"},
		{".": "d/e/\n", "d/e": "!a.py"},
	} {
		dir := t.TempDir()
		git(t, dir, "init", "-q")
		for at, text := range file {
			write(t, dir, filepath.Join(at, ".gitignore"), text)
		}
		ig := ignoring(t, nil, file)
		want := checkIgnore(t, dir, names)
		for _, name := range names {
			require.Equal(t, want[name], ignored(t, ig, name, false), "%q of %q", name, file)
		}
	}
}

func checkIgnore(t *testing.T, dir string, names []string) map[string]bool {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", "check-ignore", "-z", "--no-index", "--stdin")
	cmd.Dir = dir
	cmd.Stdin = strings.NewReader(strings.Join(names, "\x00") + "\x00")
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil {
		require.ErrorAs(t, err, &exit)
		require.Equal(t, 1, exit.ExitCode(), "%s", exit.Stderr) // none is ignored
	}
	is := make(map[string]bool)
	for name := range strings.SplitSeq(string(out), "\x00") {
		is[name] = true
	}
	return is
}

func git(t *testing.T, dir string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", append([]string{"-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false", "-c", "protocol.file.allow=always"}, args...)...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func TestAnInvalidPatternIsIgnoredAsInGitWithAWarningThatNamesItsLine(t *testing.T) {
	for _, bad := range []string{"[ab", "lit[.py", "[", "x[!", `x\`, "/", "[a-", "!/"} {
		dir := t.TempDir()
		git(t, dir, "init", "-q")
		names := []string{"d/fine", "d/last", "d/x", "d/[ab", "d/lit[.py", "d/ab", "d/[", "d/x[!", `d/x\`, "d/[a-"}
		text := "fine\n" + bad + "\nlast\n"
		write(t, dir, "d/.gitignore", text)
		want := checkIgnore(t, dir, names)
		ig := ignoring(t, nil, map[string]string{"d": text})
		for _, name := range names {
			require.Equal(t, want[name], ignored(t, ig, name, false), "%q of %q", name, bad)
		}
		require.Len(t, ig.invalid, 1, bad)
		require.Contains(t, ig.invalid[0], "d/.aphoriaignore line 2", bad)
	}
}

func TestIgnoreFilesHoldInTheirDirectoriesWhereverTheScanBegins(t *testing.T) {
	for _, inGit := range []bool{false, true} {
		dir := t.TempDir()
		for _, name := range []string{"a.py", "gen/a.py", "sub/a.py", "sub/gen/a.py", "sub/deep/b.py", "sub/deep/c.py"} {
			write(t, dir, name, "x")
		}
		write(t, dir, IgnoreFile, "\ufeffgen/\n[b].py\n")
		write(t, dir, "sub/deep/"+IgnoreFile, "!b.py\n/c.py\n")
		if inGit {
			git(t, dir, "init", "-q")
			git(t, dir, "add", ".")
		}
		require.Equal(t, []string{IgnoreFile, "a.py", "sub/a.py", "sub/deep/" + IgnoreFile, "sub/deep/b.py"}, open(t, dir, Options{}).Names(), inGit)
		require.Equal(t, []string{"sub/a.py", "sub/deep/" + IgnoreFile, "sub/deep/b.py"}, open(t, dir, Options{Under: "sub"}).Names(), inGit)
		require.Equal(t, []string{"sub/gen/a.py"}, open(t, dir, Options{Under: "sub/gen"}).Names(), "a directory that is given by name is scanned")
		require.Empty(t, open(t, dir, Options{Under: "sub", Exclude: []string{"sub"}}).Names()[3:], inGit)
	}
}

func TestAnIgnoreFileThatIsNoFileIsAnError(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, IgnoreFile), 0o755))
	write(t, dir, "a.py", "x")
	_, err := Open(t.Context(), dir, Options{})
	require.ErrorContains(t, err, IgnoreFile)
}

func TestSubmodulesAreCountedAndNamed(t *testing.T) {
	inner, dir := t.TempDir(), t.TempDir()
	for _, d := range []string{inner, dir} {
		git(t, d, "init", "-q")
		write(t, d, "a.py", "x")
		git(t, d, "add", ".")
		git(t, d, "commit", "-q", "-m", "first")
	}
	git(t, dir, "submodule", "--quiet", "add", inner, "mod")
	git(t, dir, "clone", "-q", inner, "loose")
	tree := open(t, dir, Options{})
	require.Equal(t, []string{".gitmodules", "a.py"}, tree.Names())
	require.Equal(t, map[string][]string{Submodule: {"mod", "loose"}}, tree.Passed)
}

func TestASubmoduleWithoutItsGitFolderIsCountedAndNamed(t *testing.T) {
	inner, dir := t.TempDir(), t.TempDir()
	for _, d := range []string{inner, dir} {
		git(t, d, "init", "-q")
		write(t, d, "a.py", "x")
		git(t, d, "add", ".")
		git(t, d, "commit", "-q", "-m", "first")
	}
	git(t, dir, "submodule", "--quiet", "add", inner, "mod")
	git(t, dir, "commit", "-q", "-m", "second")
	require.NoError(t, os.RemoveAll(filepath.Join(dir, ".git", "modules", "mod")))
	tree := open(t, dir, Options{})
	require.Equal(t, []string{".gitmodules", "a.py"}, tree.Names())
	require.Equal(t, map[string][]string{Submodule: {"mod"}}, tree.Passed)
	r, err := revision.Detect(t.Context(), dir, "")
	require.NoError(t, err)
	require.True(t, r.Fixed())
	require.Contains(t, r.Problem, "mod")
	write(t, dir, "a.py", "y")
	r, err = revision.Detect(t.Context(), dir, "")
	require.NoError(t, err)
	require.True(t, r.Dirty)
}

func TestNamesThatAreNotUTF8AreListedAndRead(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "d\xff/a\xfe.py", "x")
	tree := open(t, dir, Options{MaxFileBytes: 10})
	require.Equal(t, []string{"d\xff/a\xfe.py"}, tree.Names())
	require.NotNil(t, tree.Read("d\xff/a\xfe.py"))
	require.Empty(t, tree.Passed)
}
