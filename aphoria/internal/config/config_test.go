package config

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTemplateIsTheDefault(t *testing.T) {
	c, err := Parse(Template("p", "auto", "https://stemedb.example.org"))
	require.NoError(t, err)
	want := Default()
	want.Project.Name, want.Hosted.URL, want.Scan.Exclude = "p", "https://stemedb.example.org", []string{}
	require.Equal(t, want, c)
	c, err = Parse(Template("p", "go", ""))
	require.NoError(t, err)
	require.Empty(t, c.Hosted.URL)
	c, err = Parse("")
	require.NoError(t, err)
	require.Equal(t, Default(), c)
}

func TestParseRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"unknown key":     {"[hosted]\nurll = 'x'", "hosted.urll is not a setting; did you mean hosted.url?"},
		"dash":            {"[hosted]\noffline-fallback = 'skip'", "did you mean hosted.offline_fallback?"},
		"wrong table":     {"[project]\nurl = 'x'", "did you mean hosted.url?"},
		"no table":        {"language = 'go'", "did you mean project.language?"},
		"unknown table":   {"[hostd]\nurl = 'x'", "did you mean hosted?"},
		"fallback":        {"[hosted]\noffline_fallback = 'quue'", "nearest: queue"},
		"language":        {"[project]\nlanguage = 'golang'", "nearest: go)"},
		"address":         {"[hosted]\nurl = 'stemedb.example.org'", "hosted.url is"},
		"key in the file": {"[hosted]\napi_key_env = 'steme_live_0123 456'", "hosted.api_key_env"},
		"wrong type":      {"[hosted]\nurl = 5", "line 2: hosted.url: "},
		"broken":          {"[hosted\n", "line 1: "},
		"file size":       {"[scan]\nmax_file_bytes = 0", "scan.max_file_bytes"},
		"empty pattern":   {"[scan]\nexclude = ['']", "scan.exclude"},
		"control":         {"[project]\nname = \"a\\u0001\"", "project.name"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse(tc.text)
			require.ErrorContains(t, err, tc.want)
		})
	}
}

func TestFindLooksAbove(t *testing.T) {
	root := t.TempDir()
	deep := filepath.Join(root, "a", "b")
	require.NoError(t, os.MkdirAll(deep, 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(root, Dir), 0o755))
	file := filepath.Join(root, Dir, File)
	require.NoError(t, os.WriteFile(file, nil, 0o644))
	got, err := Find(deep)
	require.NoError(t, err)
	require.Equal(t, file, got)
	_, err = Load(filepath.Join(root, "none.toml"))
	require.ErrorIs(t, err, os.ErrNotExist)
}
