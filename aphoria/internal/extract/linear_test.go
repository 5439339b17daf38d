package extract

import (
	"context"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/aphoria/internal/source"
)

// hostile are files that cause much work for their length, by name and number
// of repetitions.
func hostile() map[string]func(n int) (file, text string) {
	repeat := func(file, before, part, after string) func(int) (string, string) {
		return func(n int) (string, string) { return file, before + strings.Repeat(part, n) + after }
	}
	numbered := func(file, before, part, after string) func(int) (string, string) {
		return func(n int) (string, string) {
			var b strings.Builder
			for i := range n {
				b.WriteString(strings.ReplaceAll(part, "%d", strconv.Itoa(i)))
			}
			return file, strings.Replace(before, "LONG", strings.Repeat("a", 20*n), 1) + b.String() + after
		}
	}
	return map[string]func(n int) (string, string){
		"python, calls on one line":             repeat("a.py", "", "f(x,verify=False);", ""),
		"python, open brackets":                 repeat("a.py", "", "f((verify=False,", ""),
		"python, one dotted name":               repeat("a.py", "verify=", "a.verify", ""),
		"python, f-strings in f-strings":        repeat("a.py", "verify", "f\"{", ""),
		"python, formats":                       repeat("a.py", "verify f'", "{a:", ""),
		"python, long strings that never end":   repeat("a.py", "verify ", "f'''{", ""),
		"python, contexts":                      repeat("a.py", "", "ssl._create_unverified_context ", ""),
		"python, comments":                      repeat("a.py", "verify", "#", ""),
		"python, open parentheses":              repeat("a.py", "verify=", "(verify=", ""),
		"python, only parentheses":              repeat("a.py", "f(verify=", "(", ""),
		"python, unpacked dicts":                repeat("a.py", "", "f(**{'verify':", ""),
		"python, imports":                       numbered("a.py", "import LONG as verify\n", "from a import b%d as c%d\n", ""),
		"python, one name imported often":       numbered("a.py", "verify\n", "from a%d import b as c;", "\nc(verify=False)"),
		"python, one long import":               repeat("a.py", "import verify", ".verify", " as x"),
		"python, names of one statement":        repeat("a.py", "verify\n", "x,", "= 1"),
		"python, nots":                          repeat("a.py", "f(verify=", "not ", "True)"),
		"python, keywords without an end":       repeat("a.py", "verify\n", "for lambda def(", ""),
		"go, parentheses":                       repeat("a.go", "", "InsecureSkipVerify: (", ""),
		"go, stars":                             repeat("a.go", "package a\nfunc f() { (", "*", "a).InsecureSkipVerify = true }"),
		"go, literals on one line":              repeat("a.go", "package a\nvar x = []any{", "a{InsecureSkipVerify: true},", "}"),
		"go, literals in literals":              repeat("a.go", "package a\nvar x = ", "a{InsecureSkipVerify: true, a: ", ""),
		"go, no syntax":                         repeat("a.go", "", "InsecureSkipVerify: true,", ""),
		"go, assignments":                       repeat("a.go", "package a\nfunc f() {", "a.InsecureSkipVerify = true;", "}"),
		"go, one long selector":                 repeat("a.go", "package a\nfunc f() { a", ".InsecureSkipVerify", "= true }"),
		"javascript, options on one line":       repeat("a.js", "", "a({rejectUnauthorized: false});", ""),
		"javascript, classes that never end":    repeat("a.js", "x={rejectUnauthorized: false};", "(/[", ""),
		"javascript, classes that end late":     repeat("a.js", "x={rejectUnauthorized: false};", "(/[", "]"),
		"javascript, escapes":                   repeat("a.js", "x={rejectUnauthorized: false};", "(/\\[", ""),
		"javascript, templates in templates":    repeat("a.js", "rejectUnauthorized", "`${", ""),
		"javascript, templates that never end":  repeat("a.js", "rejectUnauthorized", "`a` b ` c", "`"),
		"javascript, elements in elements":      repeat("a.jsx", "rejectUnauthorized:", "<a>", ""),
		"javascript, elements that do not fit":  repeat("a.jsx", "rejectUnauthorized:", "<a>`</b>,", ""),
		"javascript, spaces after the word":     repeat("a.js", "rejectUnauthorized", " ", ""),
		"javascript, words":                     repeat("a.js", "", "rejectUnauthorized ", ""),
		"javascript, environment":               repeat("a.js", "", "process.env[ ", ""),
		"javascript, parentheses":               repeat("a.js", "rejectUnauthorized:", "(", ""),
		"javascript, words and parentheses":     repeat("a.js", "", "rejectUnauthorized:(((", ""),
		"javascript, variables":                 repeat("a.js", "", "a.NODE_TLS_REJECT_UNAUTHORIZED = (", ""),
		"javascript, one long owner":            repeat("a.js", "", "a.", "NODE_TLS_REJECT_UNAUTHORIZED = 0"),
		"javascript, owners":                    repeat("a.js", "", "a. NODE_TLS_REJECT_UNAUTHORIZED = 0\n", ""),
		"javascript, imports":                   repeat("a.js", "NODE_TLS_REJECT_UNAUTHORIZED", "import {env as a} from 'process'\n", ""),
		"javascript, imports without an end":    repeat("a.js", "NODE_TLS_REJECT_UNAUTHORIZED", "import { ", ""),
		"javascript, braces":                    repeat("a.js", "NODE_TLS_REJECT_UNAUTHORIZED", "{ } = ", "process"),
		"javascript, one long list":             repeat("a.js", "NODE_TLS_REJECT_UNAUTHORIZED; const {", "a,", "} = process"),
		"package.json, scripts":                 repeat("package.json", `{"scripts":{"a":"`, "NODE_TLS_REJECT_UNAUTHORIZED=0 ", `"}}`),
		"package.json, nesting":                 repeat("package.json", `{"a":`, "[", ""),
		"package.json, a long name":             numbered("package.json", `{"name":"LONG","dependencies":{"z":"1"`, `,"a%d":"1"`, "}}"),
		"requirements, lines that go on":        repeat("requirements.txt", "", "a \\\n", ""),
		"requirements, extras":                  repeat("requirements.txt", "a", "[", ""),
		"requirements, versions":                repeat("requirements.txt", "a", "==1,", ""),
		"requirements, lines that name nothing": repeat("requirements.txt", "", "==\n", ""),
		"requirements, fragments":               repeat("requirements.txt", "git+https://a/b#", "&", "egg=a"),
		"Cargo.toml, a dotted key":              repeat("Cargo.toml", "[dependencies]\n", "a.", "a=1"),
		"Cargo.toml, a long table":              numbered("Cargo.toml", "[dependencies.LONG]\n", "a%d='1'\n", ""),
		"Cargo.toml, a deep table":              repeat("Cargo.toml", "[", "a.", "a]\nb='1'\n"),
		"Cargo.toml, tables":                    numbered("Cargo.toml", "", "[dependencies.a%d]\nversion='1'\n", ""),
		"Cargo.toml, nesting":                   repeat("Cargo.toml", "a=", "{a=", ""),
		"go.mod, requirements":                  numbered("go.mod", "module LONG.b/c\nrequire (\n", "a.b/x%d v1.0.0\n", ")\n"),
		"go.mod, blocks":                        repeat("go.mod", "module a.b/c\n", "require (\n)\n", ""),
		"pyproject.toml, a dotted key":          repeat("pyproject.toml", "", "a.", "a=1"),
	}
}

// cpu is the least processor time of several runs of f, to exclude other
// processes and garbage collection.
func cpu(t *testing.T, f func()) time.Duration {
	t.Helper()
	used := func() time.Duration {
		var r syscall.Rusage
		require.NoError(t, syscall.Getrusage(syscall.RUSAGE_SELF, &r))
		return time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	least := time.Duration(1 << 62)
	for range 3 {
		start := used()
		f()
		least = min(least, used()-start)
	}
	return least
}

func TestTimeGrowsWithTheLengthOfAFileAndNoFaster(t *testing.T) {
	registry, err := Default()
	require.NoError(t, err)
	look := func(file, text string) time.Duration {
		return cpu(t, func() {
			f := source.NewFile(file, []byte(text))
			m := NewModules("p")
			if IsManifest(f) {
				m.Add(f)
			}
			found, _ := registry.Extract(t.Context(), f, m) // most are broken
			for i := range found {
				_ = found[i].Subject()
			}
		})
	}
	for name, gen := range hostile() {
		t.Run(name, func(t *testing.T) {
			// Eight times the length takes eight times the time, or 64 times where the
			// time is quadratic.
			const factor, most = 8, 30
			n := 500
			file, text := gen(n)
			small := look(file, text)
			for ; small < 4*time.Millisecond && n < 16_000; n *= 2 {
				file, text = gen(2 * n)
				small = look(file, text)
			}
			var large time.Duration
			for range 3 { // retries help a busy machine, but not quadratic time
				file, text = gen(factor * n)
				if large = look(file, text); large < most*max(small, time.Millisecond) {
					return
				}
				file, text = gen(n)
				small = look(file, text)
			}
			require.Less(t, large, most*max(small, time.Millisecond), "%d bytes", len(text))
		})
	}
}

// countdown is a context that ends after a number of calls.
type countdown struct {
	context.Context
	left int
}

func (c *countdown) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

func TestTheEndOfAContextIsSeenWithinAFile(t *testing.T) {
	registry, err := Default()
	require.NoError(t, err)
	for _, tc := range []struct{ file, before, part, after string }{
		{"a.py", "", "f(x,verify=False);", ""},
		{"a.go", "package a\nvar x = []any{", "a{InsecureSkipVerify: true},", "}"},
		{"a.go", "", "InsecureSkipVerify: true,", ""},
		{"a.js", "", "a({rejectUnauthorized: false});", ""},
		{"package.json", `{"scripts":{"a":"`, "NODE_TLS_REJECT_UNAUTHORIZED=0 ", `"}}`},
	} {
		f := source.NewFile(tc.file, []byte(tc.before+strings.Repeat(tc.part, 20_000)+tc.after))
		found, _ := registry.Extract(&countdown{t.Context(), 3}, f, NewModules("p"))
		require.Less(t, len(found), 10_000, tc.file)
	}
}
