package extract

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/aphoria/internal/source"
)

// run returns "line subject predicate value [scope] [source]" of each
// observation, in order.
func run(t *testing.T, e Extractor, name, text string, manifests ...*source.File) ([]string, error) {
	t.Helper()
	f := source.NewFile(name, []byte(text))
	require.True(t, e.Wants(f), name)
	m := NewModules("proj")
	for _, manifest := range append(manifests, f) {
		if IsManifest(manifest) {
			m.Add(manifest)
		}
	}
	found, err := e.Extract(t.Context(), f, m)
	var lines []string
	for _, o := range found {
		line := fmt.Sprintf("%d %s %s %s", o.Line, o.Subject(), o.Predicate, o.Object.String())
		for _, k := range []string{"scope", "source"} {
			if o.Detail[k] != "" {
				line += " " + o.Detail[k]
			}
		}
		lines = append(lines, line)
	}
	return lines, err
}

func TestGoMod(t *testing.T) {
	got, err := run(t, DepVersions(), "go.mod", `module github.com/x/y

go 1.26

require github.com/a/b v1.2.3

require (
	github.com/c/d v0.0.0-20230904125328-1f23a7beb09a // indirect
	github.com/e/f v1.0.0
	github.com/g/h v1.0.0 // a comment
)

replace github.com/e/f => ../f

replace github.com/g/h v1.0.0 => github.com/fork/h v1.0.1
`)
	require.NoError(t, err)
	require.Equal(t, []string{
		"5 code://go/github.com/x/y/dep/github.com/a/b version v1.2.3 runtime",
		"8 code://go/github.com/x/y/dep/github.com/c/d version v0.0.0-20230904125328-1f23a7beb09a indirect",
		"9 code://go/github.com/x/y/dep/github.com/e/f version v1.0.0 runtime ../f",
		"10 code://go/github.com/x/y/dep/github.com/g/h version v1.0.0 runtime github.com/fork/h@v1.0.1",
	}, got)

	got, err = run(t, DepVersions(), "go.mod", "module x.y/z\nfuture thing\nrequire a.b/c v1.0.0\n")
	require.NoError(t, err)
	require.Equal(t, []string{"3 code://go/x.y/z/dep/a.b/c version v1.0.0 runtime"}, got)
	_, err = run(t, DepVersions(), "go.mod", "module x\nrequire (")
	require.Error(t, err)
}

func TestPackageJSON(t *testing.T) {
	got, err := run(t, DepVersions(), "web/package.json", `{
  "name": "@corp/app",
  "scripts": {"dependencies": {"no": "1"}},
  "dependencies": {
    "react": "^18.2.0",
    "@scope/pkg": "workspace:*"
  },
  "devDependencies": {"jest": "~29.0.0", "odd": 5},
  "peerDependencies": {"x": ">=1 <2"}, "optionalDependencies": {}
}`)
	require.NoError(t, err)
	require.Equal(t, []string{
		"5 code://javascript/@corp/app/dep/react version ^18.2.0 runtime",
		"6 code://javascript/@corp/app/dep/@scope/pkg version workspace:* runtime",
		"8 code://javascript/@corp/app/dep/jest version ~29.0.0 dev",
		"9 code://javascript/@corp/app/dep/x version >=1 <2 peer",
	}, got)
	got, err = run(t, DepVersions(), "package.json", `{"dependencies":{"a":"1","b":`)
	require.Error(t, err)
	require.Equal(t, []string{"1 code://javascript/proj/dep/a version 1 runtime"}, got)
	for _, bad := range []string{``, `[]`, `{`, `{"dependencies":{"a"`} {
		_, err := run(t, DepVersions(), "package.json", bad)
		require.Error(t, err, bad)
	}
}

func TestRequirements(t *testing.T) {
	got, err := run(t, DepVersions(), "requirements.txt", `# comment
requests==2.31.0
Django >= 4.2, <5  # why
Foo_Bar.baz[extra1,extra2]~=1.0 ; python_version < "3.12"
plain
pkg @ https://example.org/pkg.zip#sha1=abc
hashed==1.0 \
    --hash=sha256:abc
-r other.txt
--index-url https://example.org
https://example.org/x.whl
broken==
three===1.0
`)
	require.ErrorContains(t, err, "line 11, 12;", "lines without a name are reported")
	require.Equal(t, []string{
		"2 code://python/proj/dep/requests version ==2.31.0 runtime",
		"3 code://python/proj/dep/django version >=4.2,<5 runtime",
		"4 code://python/proj/dep/foo-bar-baz version ~=1.0 runtime",
		"5 code://python/proj/dep/plain version * runtime",
		"6 code://python/proj/dep/pkg version * runtime https://example.org/pkg.zip#sha1=abc",
		"7 code://python/proj/dep/hashed version ==1.0 runtime",
		"13 code://python/proj/dep/three version ===1.0 runtime",
	}, got)
	got, err = run(t, DepVersions(), "requirements/dev.txt", "pytest>=8\r\n",
		source.NewFile("pyproject.toml", []byte("[project]\nname = 'My.App'\n")))
	require.NoError(t, err)
	require.Equal(t, []string{"1 code://python/my-app/dep/pytest version >=8 dev"}, got)
}

func TestARequirementThatOnlyAnAddressNamesIsNamedByIt(t *testing.T) {
	got, err := run(t, DepVersions(), "requirements.txt", `-e git+https://example.org/a.git@v1#egg=My_App[x]&subdirectory=d
--editable=git+ssh://git@example.org/b.git#subdirectory=d&egg=b
git+https://example.org/c.git#egg=c==1.2 ; python_version > "3"
https://example.org/dist/d_d-1.2.3-py3-none-any.whl
https://example.org/dist/e-e-1.2.3.tar.gz --hash=sha256:abc
./local/f-2.0.zip
-e git+https://example.org/g.git
--editable .
./local
-r other.txt
--extra-index-url https://example.org/simple
`)
	require.ErrorContains(t, err, "no requirement could be read from line 7, 8, 9; write ")
	require.Equal(t, []string{
		"1 code://python/proj/dep/my-app version * runtime git+https://example.org/a.git@v1#egg=My_App[x]&subdirectory=d",
		"2 code://python/proj/dep/b version * runtime git+ssh://git@example.org/b.git#subdirectory=d&egg=b",
		"3 code://python/proj/dep/c version ==1.2 runtime git+https://example.org/c.git#egg=c==1.2",
		"4 code://python/proj/dep/d-d version ==1.2.3 runtime https://example.org/dist/d_d-1.2.3-py3-none-any.whl",
		"5 code://python/proj/dep/e-e version ==1.2.3 runtime https://example.org/dist/e-e-1.2.3.tar.gz",
		"6 code://python/proj/dep/f version ==2.0 runtime ./local/f-2.0.zip",
	}, got)
}

func TestAByteOrderMarkIsNoPartOfAFile(t *testing.T) {
	for name, text := range map[string]string{
		"requirements.txt": "a==1\nb==2\n",
		"package.json":     "{\"dependencies\":{\"a\":\"1\",\n\"b\":\"2\"}}",
		"Cargo.toml":       "[dependencies]\na = '1'\nb = '2'\n",
		"go.mod":           "module a.b/c\nrequire a.b/d v1.0.0\nrequire a.b/e v1.0.0\n",
	} {
		want, err := run(t, DepVersions(), name, text)
		require.NoError(t, err, name)
		require.Len(t, want, 2, name)
		wide := utf16.Encode([]rune("\ufeff" + text))
		little, big := make([]byte, 0, 2*len(wide)), make([]byte, 0, 2*len(wide))
		for _, u := range wide {
			little, big = binary.LittleEndian.AppendUint16(little, u), binary.BigEndian.AppendUint16(big, u)
		}
		for _, marked := range []string{"\ufeff" + text, string(little), string(big)} {
			got, err := run(t, DepVersions(), name, marked)
			require.NoError(t, err, name)
			require.Equal(t, want, got, name)
		}
	}
}

// On any tree, an extractor ends without a panic and reports only existing
// lines.
func FuzzExtract(f *testing.F) {
	names := []string{"a.go", "a.jsx", "a.ts", "a.py", "package.json", "Cargo.toml", "requirements.txt", "go.mod", "pyproject.toml"}
	for _, gen := range hostile() {
		name, text := gen(3)
		f.Add(uint8(slices.Index(names, name)), []byte(text))
	}
	registry, err := Default()
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, name uint8, text []byte) {
		file := source.NewFile(names[int(name)%len(names)], text)
		m := NewModules("p")
		if IsManifest(file) {
			m.Add(file)
		}
		found, _ := registry.Extract(t.Context(), file, m) // most are broken
		for i := range found {
			require.LessOrEqual(t, found[i].Line, strings.Count(string(file.Text), "\n")+1)
		}
	})
}

func TestCargo(t *testing.T) {
	got, err := run(t, DepVersions(), "Cargo.toml", `[package]
name = "tool"
version = "0.1.0"

[dependencies]
serde = { version = "1.0", features = ["derive"] }
rand = "0.8"
renamed = { package = "real", git = "https://example.org/r", rev = "abc" }
inherited = { workspace = true }
also.workspace = true

[dependencies.tokio]
version = "1"

[dev-dependencies]
rand = "0.9"

[build-dependencies]
cc = "1"

[target.'cfg(unix)'.dependencies]
libc = "0.2"
local = { path = "../l" }
`)
	require.NoError(t, err)
	require.Equal(t, []string{
		"7 code://rust/tool/dep/rand version 0.8 runtime",
		"8 code://rust/tool/dep/real version * runtime git:https://example.org/r#abc",
		"6 code://rust/tool/dep/serde version 1.0 runtime",
		"12 code://rust/tool/dep/tokio version 1 runtime",
		"16 code://rust/tool/dep/rand version 0.9 dev",
		"19 code://rust/tool/dep/cc version 1 build",
		"22 code://rust/tool/dep/libc version 0.2 runtime",
		"23 code://rust/tool/dep/local version * runtime path:../l",
	}, got)
	_, err = run(t, DepVersions(), "Cargo.toml", "[dependencies\n")
	require.Error(t, err)
}

func TestTLSVerify(t *testing.T) {
	e, err := TLSVerify()
	require.NoError(t, err)
	for name, tc := range map[string]struct {
		file, text string
		lines      []int
	}{
		"go literal":       {"a.go", "package a\nvar c = &tls.Config{InsecureSkipVerify: true}\n", []int{2}},
		"go assignment":    {"a.go", "c.InsecureSkipVerify=true", []int{1}},
		"go false":         {"a.go", "c.InsecureSkipVerify = false // InsecureSkipVerify = true", nil},
		"go compared":      {"a.go", "if c.InsecureSkipVerify == true {", nil},
		"go variable":      {"a.go", "InsecureSkipVerify: trueish", nil},
		"go comment":       {"a.go", "/* InsecureSkipVerify: true */ // InsecureSkipVerify: true", nil},
		"go string":        {"a.go", "s := \"InsecureSkipVerify: true\" + `InsecureSkipVerify: true`", nil},
		"go aligned":       {"a.go", "\tInsecureSkipVerify:    true,\n\n\tInsecureSkipVerify /* why */ : true", []int{1, 3}},
		"python verify":    {"a.py", "requests.get(u, verify=False)\ns.verify = False\n# verify=False\nx = 'verify=False'", []int{1, 2}},
		"python declared":  {"a.py", "def f(verify=False):\n  async def g(verify=False): pass\njwt.decode(t, verify=False)", nil},
		"python lower":     {"a.py", "verify=false; verify==False; verify=FalseX", nil},
		"python context":   {"a.py", "import ssl\nc = ssl._create_unverified_context()\nssl._create_default_https_context = ssl._create_unverified_context", []int{2, 3}},
		"python none":      {"a.py", "c.verify_mode = ssl.CERT_NONE\nP(cert_reqs='CERT_NONE')\nif c.verify_mode == ssl.CERT_NONE: pass\nx = ssl.VerifyMode.CERT_NONE\nc.verify_mode = ssl.VerifyMode.CERT_NONE", []int{1, 2, 5}},
		"python docstring": {"a.py", "\"\"\"\nverify=False\n\"\"\"\n", nil},
		"js option":        {"a.js", "new Agent({ rejectUnauthorized: false })\no.rejectUnauthorized = false;\n// rejectUnauthorized: false\n'rejectUnauthorized: false'", []int{1, 2}},
		"js quoted":        {"a.ts", "const o = {\"rejectUnauthorized\": false}", []int{1}},
		"js true":          {"a.js", "rejectUnauthorized: true, rejectUnauthorized === false", nil},
		"js env":           {"a.mjs", "process.env.NODE_TLS_REJECT_UNAUTHORIZED = '0'\nprocess.env[\"NODE_TLS_REJECT_UNAUTHORIZED\"] = 0;\nprocess.env.NODE_TLS_REJECT_UNAUTHORIZED = '1'", []int{1, 2}},
		"js script":        {"package.json", "{\n \"scripts\": {\"start\": \"NODE_TLS_REJECT_UNAUTHORIZED=0 node .\"}}", []int{2}},
	} {
		t.Run(name, func(t *testing.T) {
			f := source.NewFile(tc.file, []byte(tc.text))
			require.True(t, e.Wants(f))
			found, err := e.Extract(t.Context(), f, NewModules("proj"))
			if f.Language == source.Go && !strings.HasPrefix(tc.text, "package ") && strings.Contains(tc.text, "Skip") {
				require.ErrorContains(t, err, "cannot be parsed") // and read token by token
			} else {
				require.NoError(t, err)
			}
			var lines []int
			for _, o := range found {
				lines = append(lines, o.Line)
				require.Equal(t, Block, o.Verdict)
				require.Equal(t, "enabled", o.Predicate)
				require.True(t, strings.HasSuffix(o.Subject(), "/proj/tls/cert_verification"), o.Subject())
				require.NotEmpty(t, o.Message)
			}
			require.ElementsMatch(t, tc.lines, lines)
		})
	}
}

func TestTLSVerifySofter(t *testing.T) {
	e, err := TLSVerify()
	require.NoError(t, err)
	verdict := func(name, text string) Verdict {
		found, err := e.Extract(t.Context(), source.NewFile(name, []byte("package p\nfunc f() {\n"+text+"\n}\n")), NewModules("p"))
		require.NoError(t, err)
		require.Len(t, found, 1)
		return found[0].Verdict
	}
	for text, want := range map[string]Verdict{
		"x := tls.Config{\nInsecureSkipVerify: true,\nVerifyConnection: v,\n}":                                                                  Flag,
		"x := tls.Config{VerifyPeerCertificate: func(a [][]byte, b [][]*x509.Certificate) error { return check(a) }, InsecureSkipVerify: true}": Flag,
		"c.InsecureSkipVerify = true; c.VerifyConnection = v":                                                                                   Flag,
		"c.InsecureSkipVerify, c.VerifyConnection = true, v":                                                                                    Flag,
		"x := tls.Config{InsecureSkipVerify: true}" + strings.Repeat("\n", 20) + "c.VerifyConnection = v":                                       Block,
		"x := tls.Config{InsecureSkipVerify: true} // VerifyConnection":                                                                         Block,
		"x := tls.Config{InsecureSkipVerify: true, VerifyConnection: nil}":                                                                      Block,
		"x := tls.Config{InsecureSkipVerify: true, VerifyConnection: (nil)}":                                                                    Block,
		"x := tls.Config{InsecureSkipVerify: true, VerifyConnection: func(tls.ConnectionState) error { return nil }}":                           Block,
		"x := tls.Config{InsecureSkipVerify: true, VerifyConnection: func(tls.ConnectionState) error { }}":                                      Block,
		"x := tls.Config{InsecureSkipVerify: true, ServerName: \"VerifyConnection\"}":                                                           Block,
		"x := tls.Config{InsecureSkipVerify: (true)}":                                                                                           Block,
		"x := tls.Config{InsecureSkipVerify: !false}":                                                                                           Block,
		"x := []any{tls.Config{InsecureSkipVerify: true}, tls.Config{VerifyConnection: v}}":                                                     Block,
		"x := outer{VerifyConnection: v, tls: tls.Config{InsecureSkipVerify: true}}":                                                            Block,
		"c.InsecureSkipVerify = true; d.VerifyConnection = v":                                                                                   Block,
		"c.InsecureSkipVerify = true; c.VerifyConnection = nil":                                                                                 Block,
		"c.InsecureSkipVerify = true; if x { c.VerifyConnection = v }":                                                                          Block,
		"c.InsecureSkipVerify = true\n}\nfunc g() {\nc.VerifyConnection = v":                                                                    Block,
		"switch { case a: c.InsecureSkipVerify = true }":                                                                                        Block,
		"again: c.InsecureSkipVerify = true":                                                                                                    Block,
		"if c.tls.InsecureSkipVerify = true; a { }":                                                                                             Block,
	} {
		require.Equal(t, want, verdict("a.go", text), text)
		require.Equal(t, Flag, verdict("a_test.go", text), text)
	}
}

func TestModules(t *testing.T) {
	m := NewModules("the project\n")
	m.Add(source.NewFile("go.mod", []byte("module example.org/root\n")))
	m.Add(source.NewFile("sub/go.mod", []byte("module example.org/sub\n")))
	m.Add(source.NewFile("bad/go.mod", []byte("nothing")))
	for name, want := range map[string]string{
		"a.go": "example.org/root", "x/y/a.go": "example.org/root", "sub/x/a.go": "example.org/sub", "bad/a.go": "example.org/root",
		"a.py": "the-project-",
	} {
		require.Equal(t, want, m.Of(source.NewFile(name, nil)), name)
	}
}

func TestRegistry(t *testing.T) {
	r, err := Default()
	require.NoError(t, err)
	require.Equal(t, []string{"dep_versions", "tls_verify"}, r.Names())
	_, err = NewRegistry(DepVersions(), DepVersions())
	require.ErrorContains(t, err, "dep_versions")
	_, err = Declare("x", Rule{Word: "w", After: "("})
	require.Error(t, err)
	_, err = Declare("x", Rule{})
	require.Error(t, err)
	require.False(t, r.Wants(source.NewFile("README.md", nil)))

	found, warnings := r.Extract(t.Context(), source.NewFile("package.json", []byte(`{"scripts":{"a":"NODE_TLS_REJECT_UNAUTHORIZED=0 x"},"dependencies":{"b":"1"}`)), NewModules("p"))
	require.Len(t, found, 2)
	require.Len(t, warnings, 1)
	require.Contains(t, warnings[0], "package.json: dep_versions")
}
