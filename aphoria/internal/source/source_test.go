package source

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// shape writes one letter for each byte: c(ode), C(omment), s(tring).
func shape(name, text string) string {
	var b strings.Builder
	for _, k := range NewFile(name, []byte(text)).Kinds(context.Background()) {
		b.WriteByte("cCs"[k])
	}
	return b.String()
}

func TestKinds(t *testing.T) {
	for _, tc := range []struct{ file, text, want string }{
		{"a.go", `x // "y"`, `ccCCCCCC`},
		{"a.go", "/*a\n*/b", `CCCCCCc`},
		{"a.go", `"//\"" x`, `ssssss` + `cc`},
		{"a.go", "`\"\n//`x", `ssssss` + `c`},
		{"a.go", `'"' "a"`, `ssscsss`},
		{"a.go", "\"open\nx", `sssss` + `cc`},
		{"a.go", "/* open", `CCCCCCC`},
		{"a.js", `a = /["']/g; b`, `ccccsssssscccc`},
		{"a.js", `a / b / "c"`, `ccccccccsss`},
		{"a.js", "return /'/;x", `cccccccssscc`},
		{"a.js", "`a\n'` b", `sssss` + `cc`},
		{"a.ts", `'a\'//' b`, `sssssss` + `cc`},
		{"a.py", `x # 'y'`, `ccCCCCC`},
		{"a.py", "'''a\n#'''b", `sssssssssc`},
		{"a.py", `"#" 'a' x`, `ssscssscc`},
		{"a.py", `"""a\""" """ x`, strings.Repeat("s", 12) + "cc"},
		{"a.rs", `'a' 'b "x"`, `ssscccc` + `sss`},
		{"a.txt", `"a" // b`, `cccccccc`},
	} {
		require.Equal(t, tc.want, shape(tc.file, tc.text), "%s %q", tc.file, tc.text)
	}
}

func FuzzKinds(f *testing.F) {
	for _, s := range []string{`a /* " */ 'x' "\"`, "`${a}` /[/]/ \\", "'''x\\", `r"\" # x`, "'\\"} {
		for i := range uint8(4) {
			f.Add(i, []byte(s))
		}
	}
	f.Fuzz(func(t *testing.T, lang uint8, text []byte) {
		file := NewFile([]string{"a.go", "a.js", "a.py", "a.rs"}[lang%4], text)
		require.Len(t, file.Kinds(t.Context()), len(text))
		require.Len(t, file.WithoutComments(t.Context()), len(text))
		require.Equal(t, strings.Count(string(text), "\n"), strings.Count(string(file.WithoutComments(t.Context())), "\n"))
	})
}

func TestLine(t *testing.T) {
	f := NewFile("a.go", []byte("a\nbc\n\nd"))
	for offset, want := range []int{1, 1, 2, 2, 2, 3, 4} {
		require.Equal(t, want, f.Line(offset), offset)
	}
	require.Equal(t, 1, NewFile("a.go", nil).Line(0))
}

func TestIsTest(t *testing.T) {
	for name, want := range map[string]bool{
		"a_test.go": true, "a.go": false, "x/testdata/a.go": true, "test_a.py": true, "conftest.py": true, "a.py": false,
		"a.spec.ts": true, "__tests__/a.js": true, "contest.go": false, "tests/a.rs": true,
	} {
		require.Equal(t, want, NewFile(name, nil).IsTest(), name)
	}
}

// ignoring takes patterns of the configuration and the ignore file of each directory.
func ignoring(t *testing.T, exclude []string, files map[string]string) *Ignore {
	t.Helper()
	ig, err := NewIgnore(nil, func(dir string) ([]byte, error) { return []byte(files[dir]), nil }, exclude)
	require.NoError(t, err)
	return ig
}

func ignored(t *testing.T, ig *Ignore, name string, dir bool) bool {
	t.Helper()
	is, err := ig.Ignored(name, dir)
	require.NoError(t, err)
	return is
}

func TestIgnore(t *testing.T) {
	ig := ignoring(t, []string{"# comment", "", "*.log", "!keep.log", "build/", "/top", "a/b", "**/deep/*.x", "q?z"}, nil)
	for name, want := range map[string]bool{
		"x.log": true, "d/x.log": true, "keep.log": false, "build/a": true, "d/build/a": true, "build": false,
		"top": true, "d/top": false, "a/b": true, "a/b/c": true, "d/a/b": false, "m/deep/f.x": true, "deep/f.x": true, "m/deep/n/f.x": false,
		"qaz": true, "q/z": false, "plain": false,
	} {
		require.Equal(t, want, ignored(t, ig, name, false), name)
	}
	require.True(t, ignored(t, ig, "a/b", true))
	_, err := NewIgnore(nil, nil, []string{"/"})
	require.ErrorContains(t, err, "scan.exclude")
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	file := filepath.Join(dir, filepath.FromSlash(name))
	require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
	require.NoError(t, os.WriteFile(file, []byte(text), 0o644))
}

func open(t *testing.T, dir string, opts Options) *Tree {
	t.Helper()
	tree, err := Open(t.Context(), dir, opts)
	require.NoError(t, err)
	t.Cleanup(func() { tree.Close() })
	return tree
}

func counts(tree *Tree) map[string]int {
	n := make(map[string]int)
	for reason, names := range tree.Passed {
		n[reason] = len(names)
	}
	return n
}

func TestTree(t *testing.T) {
	outside := t.TempDir()
	write(t, outside, "secret.go", "package secret")
	dir := t.TempDir()
	for _, name := range []string{"a.go", "b/c.go", "vendor/v.go", "node_modules/m/i.js", "testdata/t.go", ".aphoria/agent.key", "skip/s.go", "x.gen.go"} {
		write(t, dir, name, "text")
	}
	write(t, dir, IgnoreFile, "skip/\n")
	write(t, dir, "large.go", strings.Repeat("x", 101))
	write(t, dir, "binary.go", "a\x00b")
	require.NoError(t, os.Symlink(filepath.Join(outside, "secret.go"), filepath.Join(dir, "link.go")))
	require.NoError(t, os.Symlink(outside, filepath.Join(dir, "linked")))

	tree := open(t, dir, Options{MaxFileBytes: 100, Exclude: []string{"*.gen.go"}})
	require.Equal(t, []string{IgnoreFile, "a.go", "b/c.go", "binary.go", "large.go"}, tree.Names())
	require.Equal(t, "text", string(tree.Read("a.go").Text))
	for _, name := range []string{"large.go", "binary.go", "link.go", "linked/secret.go", "../" + filepath.Base(outside) + "/secret.go", "gone.go"} {
		require.Nil(t, tree.Read(name), name)
	}
	require.Equal(t, map[string]int{"too large": 1, "binary": 1, "no regular file": 3, "unreadable": 3}, counts(tree))

	require.Contains(t, open(t, dir, Options{MaxFileBytes: 100, IncludeTestdata: true}).Names(), "testdata/t.go")
	_, err := Open(t.Context(), filepath.Join(dir, "none"), Options{})
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestTreeOfGit(t *testing.T) {
	dir := t.TempDir()
	git := func(args ...string) {
		cmd := exec.Command("git", args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	git("init", "-q")
	write(t, dir, ".gitignore", "ignored.go\n")
	write(t, dir, "ignored.go", "")
	write(t, dir, "tracked.go", "")
	write(t, dir, "sub/own.go", "")
	git("add", ".")
	write(t, dir, "new.go", "")
	require.Equal(t, []string{".gitignore", "new.go", "sub/own.go", "tracked.go"}, open(t, dir, Options{}).Names())
	require.Equal(t, []string{"own.go"}, open(t, filepath.Join(dir, "sub"), Options{}).Names())
	// A directory that git ignores as a whole is listed completely, one in which
	// it only tracks nothing is not.
	write(t, dir, "untracked/x.go", "")
	write(t, dir, "untracked/ignored.go", "")
	require.Equal(t, []string{"x.go"}, open(t, filepath.Join(dir, "untracked"), Options{}).Names())
	write(t, dir, "ignored.d/x.go", "")
	write(t, dir, ".gitignore", "ignored.go\nignored.d\n")
	require.Equal(t, []string{"x.go"}, open(t, filepath.Join(dir, "ignored.d"), Options{}).Names())
}
