package chart

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the generated parts instead of comparing them")

const (
	tableBegin = "<!-- Written from values.yaml by `make generate`. -->\n"
	tableEnd   = "<!-- End of the table. -->"
)

// The README's table of values is generated from values.yaml and cannot drift:
// it contains every value, with its default and its comment.
func TestReadmeListsTheValues(t *testing.T) {
	file := filepath.Join(chartDir, "README.md")
	raw, err := os.ReadFile(file)
	require.NoError(t, err)
	before, rest, ok := strings.Cut(string(raw), tableBegin)
	require.True(t, ok, "README.md has no place for the table")
	_, after, ok := strings.Cut(rest, tableEnd)
	require.True(t, ok, "README.md has no end of the table")

	want := before + tableBegin + valuesTable(t) + "\n" + tableEnd + after
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(want), 0o644))
		return
	}
	require.Equal(t, want, string(raw), "run: make generate")
}

var (
	sectionLine = regexp.MustCompile(`^# @section (.+)$`)
	docLine     = regexp.MustCompile(`^ *# -- (.+)$`)
	keyLine     = regexp.MustCompile(`^( *)([A-Za-z][A-Za-z0-9]*):`)
)

// valuesTable reads values.yaml line by line: "# @section" begins a table, "#
// --" documents the key on the next line and everything below it.
func valuesTable(t *testing.T) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(chartDir, "values.yaml"))
	require.NoError(t, err)
	var vals map[string]any
	require.NoError(t, yaml.UnmarshalStrict(raw, &vals))

	var table strings.Builder
	var path []string
	documented := "" // the innermost documented key that we are in
	doc := ""
	for number, line := range strings.Split(string(raw), "\n") {
		if m := sectionLine.FindStringSubmatch(line); m != nil {
			fmt.Fprintf(&table, "\n### %s\n\n| Value | Default | Meaning |\n|---|---|---|\n", m[1])
			continue
		}
		if m := docLine.FindStringSubmatch(line); m != nil {
			doc = m[1]
			continue
		}
		m := keyLine.FindStringSubmatch(line)
		if m == nil {
			require.Empty(t, doc, "line %d: a comment with -- must be directly above its key", number+1)
			continue
		}
		path = append(path[:len(m[1])/2], m[2])
		name := strings.Join(path, ".")
		inside := documented != "" && strings.HasPrefix(name, documented+".")
		value := lookup(vals, path)
		_, isMap := value.(map[string]any)
		switch {
		case doc != "":
			preset, err := json.Marshal(value)
			require.NoError(t, err)
			fmt.Fprintf(&table, "| `%s` | `%s` | %s |\n", name, preset, strings.ReplaceAll(doc, "|", "\\|"))
			documented, doc = name, ""
		case !inside:
			require.True(t, isMap && strings.HasSuffix(strings.TrimSpace(line), ":"), "values.yaml line %d: %s has no comment with --", number+1, name)
		}
	}
	return table.String()
}

// A comment directly above a key has the key's indentation, so that it visibly
// documents that key and not the one around it.
func TestCommentsAreIndentedLikeTheirKeys(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(valuesDir, "*.yaml"))
	require.NoError(t, err)
	comment, indent := regexp.MustCompile(`^ *#`), regexp.MustCompile(`^ *`)
	checked := 0
	for _, file := range append(files, filepath.Join(chartDir, "values.yaml")) {
		lines := strings.Split(readFile(t, file), "\n")
		for i := len(lines) - 2; i >= 0; i-- {
			if !comment.MatchString(lines[i]) || strings.TrimSpace(lines[i+1]) == "" {
				continue
			}
			checked++
			require.Equal(t, indent.FindString(lines[i+1]), indent.FindString(lines[i]), "%s:%d: %s", file, i+1, lines[i])
		}
	}
	require.Greater(t, checked, 200)
}

func lookup(vals map[string]any, path []string) any {
	var value any = vals
	for _, key := range path {
		value = asMap(value)[key]
	}
	return value
}

// Each values file and each value that README and values/README.md name exists.
func TestDocumentsNameWhatExists(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(chartDir, "values.yaml"))
	require.NoError(t, err)
	var vals map[string]any
	require.NoError(t, yaml.Unmarshal(raw, &vals))
	named := regexp.MustCompile("`([a-z][A-Za-z]*(?:\\.[a-z][A-Za-z]*)+)`")
	for _, file := range []string{filepath.Join(chartDir, "README.md"), filepath.Join(valuesDir, "README.md")} {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, m := range named.FindAllStringSubmatch(string(text), -1) {
			path := strings.Split(m[1], ".")
			if _, ours := vals[path[0]]; ours {
				require.NotNil(t, lookup(vals, path), "%s names %s", file, m[1])
			}
		}
		for _, m := range regexp.MustCompile(`values/([a-z-]+\.yaml)`).FindAllStringSubmatch(string(text), -1) {
			require.FileExists(t, filepath.Join(valuesDir, m[1]), file)
		}
	}
}
