// Package config reads .aphoria/config.toml. It promises that nothing in the
// file is ignored: an unknown name is an error that suggests the nearest known
// one.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/stemedb/stemedb/internal/spelling"
)

// Locations below a project's root.
const (
	Dir  = ".aphoria"
	File = "config.toml"
)

// Config is the whole file.
type Config struct {
	Project Project `toml:"project"`
	Hosted  Hosted  `toml:"hosted"`
	Scan    Scan    `toml:"scan"`
}

// Project describes the scanned project.
type Project struct {
	// Name is used in subjects where the code itself names no module. Default: the
	// name of the scanned directory.
	Name string `toml:"name"`
	// Language restricts the scan to one language; "auto" is all of them.
	Language string `toml:"language"`
}

// Hosted is the StemeDB server that receives observations.
type Hosted struct {
	URL             string   `toml:"url"`         // "" means none
	APIKeyEnv       string   `toml:"api_key_env"` // name of the variable that holds the key
	OfflineFallback Fallback `toml:"offline_fallback"`
}

// Scan selects the scanned files.
type Scan struct {
	Exclude         []string `toml:"exclude"`          // patterns as in .gitignore
	IncludeTestdata bool     `toml:"include_testdata"` // also scan below testdata/
	MaxFileBytes    int64    `toml:"max_file_bytes"`   // larger files are skipped
}

// Fallback is the behaviour when the server cannot be reached.
type Fallback string

// The fallbacks.
const (
	Skip  Fallback = "skip"  // warn, and succeed
	Fail  Fallback = "fail"  // exit with 1
	Queue Fallback = "queue" // keep the batch in a file and send it first next time
)

// Languages are the values of project.language besides "auto".
func Languages() []string { return []string{"go", "javascript", "python", "rust"} }

// Default is the configuration when nothing is set.
func Default() Config {
	return Config{
		Project: Project{Language: "auto"},
		Hosted:  Hosted{APIKeyEnv: "STEMEDB_API_KEY", OfflineFallback: Skip},
		Scan:    Scan{MaxFileBytes: 1 << 20},
	}
}

// Load reads one file.
func Load(file string) (Config, error) {
	raw, err := read(file)
	if err != nil {
		return Config{}, fmt.Errorf("read the configuration: %w", err)
	}
	c, err := Parse(strings.TrimPrefix(string(raw), "\ufeff"))
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

// maxFile bounds the configuration, which may come from a scanned tree.
const maxFile = 64 << 10

func read(file string) ([]byte, error) {
	info, err := os.Stat(file)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular(): // opening a pipe would wait for its writer
		return nil, fmt.Errorf("%s is not a regular file; remove it", file)
	case info.Size() > maxFile:
		return nil, fmt.Errorf("%s has %d bytes; keep it to %d", file, info.Size(), maxFile)
	}
	return os.ReadFile(file)
}

// Parse reads the text of a configuration and checks it.
func Parse(text string) (Config, error) {
	c := Default()
	err := toml.NewDecoder(strings.NewReader(text)).DisallowUnknownFields().Decode(&c)
	var unknown *toml.StrictMissingError
	var wrong *toml.DecodeError
	switch {
	case errors.As(err, &unknown):
		key := strings.Join(unknown.Errors[0].Key(), ".")
		return Config{}, fmt.Errorf("%s is not a setting; did you mean %s?", key, nearestSetting(key))
	case errors.As(err, &wrong):
		line, _ := wrong.Position()
		name := ""
		if key := wrong.Key(); len(key) > 0 {
			name = strings.Join(key, ".") + ": "
		}
		return Config{}, fmt.Errorf("line %d: %s%s", line, name, strings.TrimPrefix(wrong.Error(), "toml: "))
	case err != nil:
		return Config{}, err
	}
	return c, c.check()
}

func settings() []string {
	return []string{
		"project", "project.name", "project.language",
		"hosted", "hosted.url", "hosted.api_key_env", "hosted.offline_fallback",
		"scan", "scan.exclude", "scan.include_testdata", "scan.max_file_bytes",
	}
}

func (c *Config) check() error {
	if strings.ContainsFunc(c.Project.Name, func(r rune) bool { return r < ' ' || r == 0x7f }) || len(c.Project.Name) > 200 {
		return errors.New("project.name must be at most 200 bytes without control characters")
	}
	if err := oneOf("project.language", c.Project.Language, append([]string{"auto"}, Languages()...)); err != nil {
		return err
	}
	if err := oneOf("hosted.offline_fallback", string(c.Hosted.OfflineFallback), []string{string(Skip), string(Fail), string(Queue)}); err != nil {
		return err
	}
	if c.Hosted.URL != "" {
		if u, err := url.Parse(c.Hosted.URL); err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			return fmt.Errorf("hosted.url is %q; give an address such as https://stemedb.example.org", c.Hosted.URL)
		}
	}
	if !regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`).MatchString(c.Hosted.APIKeyEnv) {
		return errors.New("hosted.api_key_env must be the name of an environment variable; the key itself does not belong in the file")
	}
	if c.Scan.MaxFileBytes < 1 || c.Scan.MaxFileBytes > 64<<20 {
		return fmt.Errorf("scan.max_file_bytes is %d; give 1 to %d", c.Scan.MaxFileBytes, 64<<20)
	}
	for _, p := range c.Scan.Exclude {
		if p == "" || strings.Contains(p, "\n") {
			return errors.New("scan.exclude has an empty pattern; remove it")
		}
	}
	return nil
}

func oneOf(name, value string, allowed []string) error {
	for _, a := range allowed {
		if value == a {
			return nil
		}
	}
	return fmt.Errorf("%s is %q; use one of %s (nearest: %s)", name, value, strings.Join(allowed, ", "), spelling.Nearest(value, allowed))
}

// nearestSetting is the setting with the fewest changed letters. The same name in the
// wrong table is nearer than a similar one in the right table.
func nearestSetting(key string) string {
	return spelling.NearestBy(settings(), func(candidate string) int {
		return min(spelling.Distance(key, candidate), spelling.Distance(last(key), last(candidate))+1)
	})
}

func last(key string) string { return key[strings.LastIndexByte(key, '.')+1:] }

// Find looks for a configuration in dir and the directories above it, and
// returns "" when there is none. If the path leads through a link, it also looks
// above the link's target.
func Find(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("find the configuration: %w", err)
	}
	file, err := findAbove(dir)
	if err != nil || file != "" {
		return file, err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return "", fmt.Errorf("find the configuration: %w", err)
	}
	return findAbove(dir)
}

func findAbove(dir string) (string, error) {
	for {
		file := filepath.Join(dir, Dir, File)
		_, err := os.Stat(file)
		if err == nil {
			return file, nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
			return "", fmt.Errorf("find the configuration: %w", err)
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", nil
		}
		dir = parent
	}
}

// Template is the text of a new file.
func Template(name, language, serverURL string) string {
	hosted := "# url = \"https://stemedb.example.org\""
	if serverURL != "" {
		hosted = fmt.Sprintf("url = %q", serverURL)
	}
	return fmt.Sprintf(`# Aphoria's configuration for this project. Commit this file; the key beside it
# stays out of version control.

[project]
name = %q
language = %q # auto, %s

[hosted]
%s
api_key_env = "STEMEDB_API_KEY" # the variable that holds this project's API key
offline_fallback = "skip"       # skip, fail or queue, when the server cannot be reached

[scan]
exclude = []             # patterns as in .gitignore
include_testdata = false # also scan below testdata/
max_file_bytes = 1048576 # larger files are skipped
`, name, language, strings.Join(Languages(), ", "), hosted)
}
