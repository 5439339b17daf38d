package cli

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const offJS = "const a = new https.Agent({rejectUnauthorized: false})\n"

func TestAnObservationWithoutAClaimBlocksAllTheSame(t *testing.T) {
	long := strings.Repeat("n", 1100)
	for name, files := range map[string]map[string]string{
		"package.json":     {"package.json": `{"name":"` + long + `"}`, "a.js": offJS},
		"pyproject.toml":   {"pyproject.toml": "[project]\nname = '" + long + "'\n", "a.py": "requests.get(u, verify=False)\n"},
		"poetry":           {"pyproject.toml": "[tool.poetry]\nname = '" + long + "'\n", "a.py": "requests.get(u, verify=False)\n"},
		"go.mod":           {"go.mod": "module example.org/" + long + "\n", "a.go": "package a\nvar c = tls.Config{InsecureSkipVerify: true}\n"},
		"a very long name": {"package.json": `{"name":"` + strings.Repeat(long, 500) + `"}`, "a.js": offJS},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.dir = t.TempDir()
			for file, text := range files {
				b.write(file, text)
			}
			code, out, stderr := b.run("scan", b.dir, "--exit-code")
			require.Equal(t, 1, code)
			require.Contains(t, out, "BLOCK    a.")
			require.Contains(t, out, "(1 blocked, 0 flagged)")
			require.Contains(t, out, "not kept: 1")
			require.Contains(t, stderr, "not kept: BLOCK a.")
			require.Contains(t, stderr, "1 observations are blocked; 1 observations were not kept")
			b.env["STEME_PRIVATE_KEY"] = strings.Repeat("01", 32)
			code, _, stderr = b.run("scan", b.dir, "--persist", "--url", b.url)
			require.Equal(t, 1, code, "a claim that was not kept is not a success")
			require.Contains(t, stderr, "were not kept")
			require.Empty(t, b.server.held)

			_, out, _ = b.run("scan", b.dir, "--format", "json")
			var doc struct {
				Observations []map[string]any
				Summary      map[string]any
			}
			require.NoError(t, json.Unmarshal([]byte(out), &doc))
			require.Equal(t, "BLOCK", doc.Observations[0]["verdict"])
			require.Contains(t, doc.Observations[0]["not_kept"], "subject")
			require.NotContains(t, doc.Observations[0], "claim")
			require.EqualValues(t, 1, doc.Summary["not_kept"])
		})
	}
}

func TestANameThatIsNotUTF8HidesNothing(t *testing.T) {
	b := newBench(t)
	b.dir = t.TempDir()
	b.write("d\xfe/a\xff.js", offJS)
	code, out, _ := b.run("scan", b.dir, "--exit-code")
	require.Equal(t, 1, code)
	require.Contains(t, out, `BLOCK    d\xfe/a\xff.js:1`)
	_, out, _ = b.run("scan", b.dir, "--format", "json")
	require.True(t, json.Valid([]byte(out)), out)
	require.Contains(t, out, `"file": "d\\xfe/a\\xff.js"`)
	b.env["STEME_PRIVATE_KEY"] = strings.Repeat("01", 32)
	b.mustRun("scan", b.dir, "--persist", "--url", b.url)
	for _, a := range b.server.held {
		require.Equal(t, `d\xfe/a\xff.js`, a.SourceMetadata["file"])
	}
	require.Len(t, b.server.held, 1)
}

func TestNothingOfATreeSteersTheTerminalOrTheCI(t *testing.T) {
	for _, evil := range []string{"x\n::add-mask::secret", "x\x1b[31m", "##[add-mask]x", "##vso[task.x]y", "x\u202ey", "x\u009by", "x\x7f\r\b", "x\u2028y", "x\ufeff", "x\xff\n::error::", "x\U000e0001"} {
		b := newBench(t)
		b.dir = filepath.Join(t.TempDir(), evil)
		b.write("sub/package.json", "no JSON") // a warning
		b.write(evil+"/a.js", offJS)
		b.write(evil+"/package.json", "[")
		b.write(evil+"/large.py", strings.Repeat("#", 2<<20))
		b.write(evil+"/requirements.txt", "==\n")
		b.write(evil+".js", offJS)
		b.write("package.json", `{"dependencies":{`+strconv.Quote(strings.ToValidUTF8(strings.Map(printableOnly, evil), "?"))+`:`+jsonText(t, evil)+`}}`)
		require.NoError(t, os.Symlink("nowhere", filepath.Join(b.dir, evil, "link.js")))
		b.server.status = 400
		b.env["STEME_PRIVATE_KEY"] = strings.Repeat("01", 32)
		for _, args := range [][]string{
			{"scan", b.dir, "--show-observations", "--show-skipped"},
			{"scan", b.dir, "--show-skipped", "--format", "json"},
			{"scan", b.dir, "--persist", "--url", b.url, "--exit-code"},
			{"scan", b.dir, "--persist", "--url", b.url, "--format", "json"},
			{"scan", filepath.Join(b.dir, "none")},
			{"scan", filepath.Join(b.dir, evil, "a.js")},
			{"check-remote", b.dir, "--url", b.url},
			{"init", b.dir, "--url", b.url},
			{"init", b.dir, "--url", b.url + "/x"},
		} {
			_, out, stderr := b.run(args...)
			for _, text := range []string{out, stderr} {
				require.NotContains(t, text, "##[", args)
				require.NotContains(t, text, "##vso", args)
				for line := range strings.Lines(text) {
					require.False(t, strings.HasPrefix(strings.TrimSpace(line), "::"), "%q of %q", line, args)
					for _, r := range strings.TrimSuffix(line, "\n") {
						require.True(t, strconv.IsPrint(r), "%q of %q", line, args)
					}
				}
			}
			if len(args) > 3 && strings.Contains(strings.Join(args, " "), "json") {
				require.True(t, json.Valid([]byte(out)), out)
			}
		}
	}
}

func printableOnly(r rune) rune {
	if strconv.IsPrint(r) {
		return r
	}
	return '?'
}

func jsonText(t *testing.T, s string) string {
	t.Helper()
	raw, err := json.Marshal(s)
	require.NoError(t, err)
	return string(raw)
}

func TestClaimsInJSONAreExactThoughTheyAreEscaped(t *testing.T) {
	in := []byte("\"a##b\u202e\u0085\U000e0001\u00e9\"\n")
	out := safeJSON(in)
	require.Equal(t, `"a#\u0023b\u202e\u0085\udb40\udc01é"`+"\n", string(out))
	var before, after string
	require.NoError(t, json.Unmarshal(in, &before))
	require.NoError(t, json.Unmarshal(out, &after))
	require.Equal(t, before, after)
}

func TestAPartOfAProjectIsScannedAsPartOfIt(t *testing.T) {
	b := newBench(t)
	b.write(".aphoriaignore", "\ufeffgen/\n*_pb.py\n")
	b.write("sub/a.go", "package sub\nvar c = tls.Config{InsecureSkipVerify: true}\n")
	b.write("sub/gen/b.go", "package gen\nvar c = tls.Config{InsecureSkipVerify: true}\n")
	b.write("sub/a_pb.py", "requests.get(u, verify=False)\n")
	b.write("sub/old/c.go", "package old\nvar c = tls.Config{InsecureSkipVerify: true}\n")
	b.mustRun("init", b.dir, "--name", "whole", "--url", b.url)
	config := filepath.Join(b.dir, ".aphoria", "config.toml")
	text, err := os.ReadFile(config)
	require.NoError(t, err)
	b.write(".aphoria/config.toml", strings.Replace(string(text), "exclude = []", `exclude = ["/sub/old"]`, 1))
	hashes := func(args ...string) []string {
		out, _ := b.mustRun(append([]string{"scan", "--format", "json"}, args...)...)
		var doc struct {
			Project      string
			Observations []struct{ File, Hash string }
		}
		require.NoError(t, json.Unmarshal([]byte(out), &doc))
		require.Equal(t, "whole", doc.Project)
		var hs []string
		for _, o := range doc.Observations {
			if strings.HasPrefix(o.File, "sub/") {
				hs = append(hs, o.File+" "+o.Hash)
			}
		}
		return hs
	}
	for _, inGit := range []bool{false, true} {
		if inGit {
			b.git("init", "-q")
			b.git("add", ".")
			b.git("commit", "-q", "-m", "first")
		}
		whole := hashes(b.dir)
		require.Len(t, whole, 1)
		require.Equal(t, whole, hashes(filepath.Join(b.dir, "sub")))
	}
	require.NoError(t, os.RemoveAll(filepath.Join(b.dir, ".aphoria")))
	out, _ := b.mustRun("scan", filepath.Join(b.dir, "sub"))
	require.Contains(t, out, "2 observations in 2 files", "without a configuration git's root is the project's")
}

func TestSkippedFilesAreReported(t *testing.T) {
	b := newBench(t)
	_, stderr := b.mustRun("scan", t.TempDir())
	require.Contains(t, stderr, "no file was read")
	b.write("large.py", strings.Repeat("#", 2<<20))
	out, stderr := b.mustRun("scan", b.dir)
	require.NotContains(t, stderr, "no file was read")
	require.Contains(t, stderr, "skipped files: 1 too large; --show-skipped names them; scan.max_file_bytes is 1048576")
	require.NotContains(t, out, "large.py")
	out, _ = b.mustRun("scan", b.dir, "--show-skipped")
	require.Contains(t, out, "skipped files: 1 too large\n  too large: large.py\n")
	out, _ = b.mustRun("scan", b.dir, "--show-skipped", "--format", "json")
	require.Contains(t, out, `"file": "large.py"`)
}

func TestAScanThatReadsNothingSaysWhy(t *testing.T) {
	const large = 2 << 20
	for name, tc := range map[string]struct {
		prepare func(b *bench)
		says    []string
	}{
		"an empty directory": {func(*bench) {}, []string{"the directory holds no files"}},
		"other kinds":        {func(b *bench) { b.write("README.md", "x"); b.write("a.c", "x") }, []string{"2 files are of a kind that aphoria does not scan"}},
		"too large":          {func(b *bench) { b.write("a.py", strings.Repeat("#", large)) }, []string{"1 path was skipped (1 too large)"}},
		"binary":             {func(b *bench) { b.write("a.py", "\x00") }, []string{"1 path was skipped (1 binary)"}},
		"a link":             {func(b *bench) { require.NoError(b.t, os.Symlink("b.py", filepath.Join(b.dir, "a.py"))) }, []string{"1 path was skipped (1 no regular file)"}},
		"unreadable": {func(b *bench) {
			b.git("init", "-q")
			b.write("a.py", "x")
			b.git("add", ".")
			require.NoError(b.t, os.Remove(filepath.Join(b.dir, "a.py")))
		}, []string{"1 path was skipped (1 unreadable)"}},
		"submodules": {func(b *bench) {
			b.git("init", "-q")
			b.git("init", "-q", "inner")
			b.write("inner/a.py", "x")
		}, []string{"1 path was skipped (1 submodule)"}},
		"an ignore file": {func(b *bench) { b.write(".aphoriaignore", "*.py"); b.write("a.py", "x") }, []string{"1 file is of a kind", "1 path is excluded by .aphoriaignore"}},
		"the defaults":   {func(b *bench) { b.write("vendor/a.go", "x") }, []string{"1 path is excluded by .aphoriaignore, scan.exclude or the default patterns"}},
		"ignored by git": {func(b *bench) { b.git("init", "-q"); b.write(".git/info/exclude", "*.py"); b.write("a.py", "x") }, []string{"1 file is ignored by git"}},
		"another language": {func(b *bench) {
			b.write(".aphoria/config.toml", "[project]\nlanguage = 'go'\n")
			b.write("a.py", "x")
		}, []string{`1 file is in another language than project.language = "go"`}},
		"several reasons": {func(b *bench) {
			b.write("a.py", strings.Repeat("#", large))
			b.write("b.c", "x")
		}, []string{"1 path was skipped (1 too large); 1 file is of a kind"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.dir = t.TempDir()
			tc.prepare(b)
			_, stderr := b.mustRun("scan", b.dir)
			_, why, ok := strings.Cut(stderr, "no file was read in "+b.dir+": ")
			require.True(t, ok, stderr)
			for _, says := range tc.says {
				require.Contains(t, why, says)
			}
			if len(tc.says) == 1 && !strings.Contains(tc.says[0], ";") {
				require.NotContains(t, why, ";", "no other reason")
			}
		})
	}
	b := newBench(t)
	b.write("docs/a.md", "x")
	_, stderr := b.mustRun("scan", filepath.Join(b.dir, "docs"))
	require.Contains(t, stderr, "no file was read in "+filepath.Join(b.dir, "docs")+": 1 file is of a kind", "it names the scanned part")
}

func TestFindingsArePrintedBeforeAnythingIsSent(t *testing.T) {
	for _, format := range []string{"table", "json"} {
		b := newBench(t)
		b.env["STEME_PRIVATE_KEY"] = strings.Repeat("01", 32)
		var out, errs bytes.Buffer
		var seen string
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			seen = out.String() + errs.String()
			b.server.ServeHTTP(w, r)
		}))
		t.Cleanup(srv.Close)
		code := Run(t.Context(), []string{"scan", b.dir, "--persist", "--url", srv.URL, "--format", format},
			Env{Stdout: &out, Stderr: &errs, Getenv: func(k string) string { return b.env[k] }, Version: "test"})
		require.Zero(t, code, errs.String())
		require.Contains(t, seen, "BLOCK    client.go:3")
		require.Contains(t, seen, "sending 4 claims to "+srv.URL)
		if format == "json" {
			require.True(t, json.Valid(out.Bytes()))
		}
	}
}

func TestInitChangesNoConfigurationAndSaysSo(t *testing.T) {
	b := newBench(t)
	b.mustRun("init", b.dir, "--url", b.url, "--name", "app")
	b.mustRun("init", b.dir, "--url", b.url, "--name", "app", "--language", "auto")
	file := filepath.Join(b.dir, ".aphoria", "config.toml")
	before, err := os.ReadFile(file)
	require.NoError(t, err)
	for flag, want := range map[string]string{"--url": "hosted.url = " + strconv.Quote(b.url), "--name": `project.name = "app"`, "--language": `project.language = "auto"`} {
		value := map[string]string{"--url": "https://new.example.org", "--name": "other", "--language": "go"}[flag]
		code, out, stderr := b.run("init", b.dir, flag, value)
		require.Equal(t, 2, code)
		require.Empty(t, out)
		require.Contains(t, stderr, want)
		require.Contains(t, stderr, flag)
	}
	after, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, before, after)
}

func TestFlagAndCommandPrintTheVersion(t *testing.T) {
	for _, arg := range []string{"version", "--version"} {
		out, _ := newBench(t).mustRun(arg)
		require.Equal(t, "test\n", out)
	}
}
