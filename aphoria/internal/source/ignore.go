package source

import (
	"fmt"
	"path"
	"regexp"
	"strings"
)

// Ignore decides which paths are skipped. Its patterns follow .gitignore: there
// may be a file in each directory, the last matching pattern decides, and a
// nearer file takes precedence over those of the directories above. A path
// below a skipped directory cannot be included again.
type Ignore struct {
	always  []pattern // weaker than any file
	exclude []pattern // stronger than any file
	read    func(dir string) ([]byte, error)
	files   map[string][]pattern
	dirs    map[string]bool // whether the directory is skipped
	invalid []string        // lines of the files that are no pattern
}

// pattern is one line.
type pattern struct {
	match *regexp.Regexp
	keep  bool // the pattern began with "!"
	dirs  bool // directories only
	tied  bool // to the file's directory: it had a slash
}

// NewIgnore takes patterns from three places: the defaults of every project,
// the ignore file of each directory (read returns its content, nil for none)
// and the configuration.
func NewIgnore(always []string, read func(dir string) ([]byte, error), exclude []string) (*Ignore, error) {
	ig := &Ignore{read: read, files: make(map[string][]pattern), dirs: map[string]bool{".": false}}
	var err error
	if ig.always, err = parsePatterns(always); err != nil {
		return nil, err
	}
	if ig.exclude, err = parsePatterns(exclude); err != nil {
		return nil, fmt.Errorf("scan.exclude: %w", err)
	}
	return ig, nil
}

func parsePatterns(lines []string) ([]pattern, error) {
	var ps []pattern
	for _, line := range lines {
		p, ok, err := parsePattern(line)
		if err != nil {
			return nil, err
		}
		if ok {
			ps = append(ps, p)
		}
	}
	return ps, nil
}

// parsePattern reads one line; ok is false for blank lines and comments.
func parsePattern(line string) (p pattern, ok bool, err error) {
	text := trimSpaces(strings.TrimSuffix(line, "\r"))
	if text == "" || text[0] == '#' {
		return p, false, nil
	}
	text, p.keep = strings.CutPrefix(text, "!")
	text, p.dirs = strings.CutSuffix(text, "/")
	p.tied = strings.Contains(text, "/")
	text = strings.TrimPrefix(text, "/")
	if text == "" {
		return p, false, fmt.Errorf("the pattern %q names no file; write a file or directory name", line)
	}
	expr, err := globExpr(latin(text), p.tied)
	if err != nil {
		return p, false, fmt.Errorf("the pattern %q %w", line, err)
	}
	if p.match, err = regexp.Compile("(?s)^(?:" + expr + ")$"); err != nil {
		return p, false, fmt.Errorf("the pattern %q cannot be read: %w", line, err)
	}
	return p, true, nil
}

// trimSpaces cuts trailing spaces that are not escaped with a backslash.
func trimSpaces(s string) string {
	cut := strings.TrimRight(s, " ")
	if len(cut) == len(s) {
		return s
	}
	if slashes := len(cut) - len(strings.TrimRight(cut, `\`)); slashes%2 == 1 {
		cut += " "
	}
	return cut
}

// latin maps each byte to one character, since git compares bytes.
func latin(s string) string {
	for i := range len(s) {
		if s[i] >= 0x80 {
			runes := make([]rune, len(s))
			for i := range runes {
				runes[i] = rune(s[i])
			}
			return string(runes)
		}
	}
	return s
}

// Ignored reports whether the path, or a directory above it, is skipped.
func (ig *Ignore) Ignored(name string, dir bool) (bool, error) {
	if dir {
		if known, ok := ig.dirs[name]; ok {
			return known, nil
		}
	}
	ignored, err := ig.Ignored(path.Dir(name), true)
	if err != nil {
		return false, err
	}
	if !ignored {
		if ignored, err = ig.decide(name, dir); err != nil {
			return false, err
		}
	}
	if dir {
		ig.dirs[name] = ignored
	}
	return ignored, nil
}

// decide matches one path against the patterns, the strongest first.
func (ig *Ignore) decide(name string, dir bool) (bool, error) {
	if ignored, ok := lastMatch(ig.exclude, name, dir); ok {
		return ignored, nil
	}
	for at := path.Dir(name); ; at = path.Dir(at) {
		patterns, err := ig.file(at)
		if err != nil {
			return false, err
		}
		relative := name
		if at != "." {
			relative = name[len(at)+1:]
		}
		if ignored, ok := lastMatch(patterns, relative, dir); ok {
			return ignored, nil
		}
		if at == "." {
			break
		}
	}
	ignored, _ := lastMatch(ig.always, name, dir)
	return ignored, nil
}

func lastMatch(patterns []pattern, name string, dir bool) (ignored, ok bool) {
	if len(patterns) == 0 {
		return false, false
	}
	whole := latin(name)
	base := path.Base(whole)
	for i := len(patterns) - 1; i >= 0; i-- {
		p := &patterns[i]
		subject := base
		if p.tied {
			subject = whole
		}
		if (dir || !p.dirs) && p.match.MatchString(subject) {
			return !p.keep, true
		}
	}
	return false, false
}

// file returns the patterns of a directory's ignore file. As in git, an invalid
// pattern matches nothing.
func (ig *Ignore) file(dir string) ([]pattern, error) {
	if known, ok := ig.files[dir]; ok {
		return known, nil
	}
	raw, err := ig.read(dir)
	if err != nil {
		return nil, err
	}
	var patterns []pattern
	for i, line := range strings.Split(string(decodeText(raw)), "\n") {
		p, ok, err := parsePattern(line)
		if err != nil {
			ig.invalid = append(ig.invalid, fmt.Sprintf("%s line %d is ignored: %v", path.Join(dir, IgnoreFile), i+1, err))
		}
		if ok {
			patterns = append(patterns, p)
		}
	}
	ig.files[dir] = patterns
	return patterns, nil
}
