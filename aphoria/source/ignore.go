package source

import (
	"fmt"
	"regexp"
	"strings"
)

// Ignore decides which paths are passed over, by patterns as in .gitignore:
// "*" and "?" do not cross slashes, "**" does, a slash at the beginning or in
// the middle ties a pattern to the root, one at the end restricts it to
// directories, "!" takes back. The last pattern that fits decides.
type Ignore struct {
	rules []ignoreRule
}

type ignoreRule struct {
	match *regexp.Regexp
	keep  bool // the pattern began with "!"
	dirs  bool // directories only
}

// NewIgnore reads patterns, one each; blank ones and those that begin with "#"
// are comments.
func NewIgnore(patterns []string) (*Ignore, error) {
	ig := &Ignore{}
	for _, p := range patterns {
		p = strings.TrimRight(p, " \t\r")
		if p == "" || strings.HasPrefix(p, "#") {
			continue
		}
		var r ignoreRule
		p, r.keep = strings.CutPrefix(p, "!")
		p, r.dirs = strings.CutSuffix(p, "/")
		tied := strings.Contains(p, "/")
		p = strings.TrimPrefix(p, "/")
		if p == "" {
			return nil, fmt.Errorf("the pattern %q names nothing; write a file or directory name", p)
		}
		expr := globExpr(p)
		if !tied {
			expr = "(?:.*/)?" + expr
		}
		re, err := regexp.Compile("^" + expr + "$")
		if err != nil {
			return nil, fmt.Errorf("the pattern %q cannot be read: %w", p, err)
		}
		r.match = re
		ig.rules = append(ig.rules, r)
	}
	return ig, nil
}

func globExpr(p string) string {
	var b strings.Builder
	for len(p) > 0 {
		switch {
		case strings.HasPrefix(p, "**/"):
			b.WriteString("(?:.*/)?")
			p = p[3:]
		case strings.HasPrefix(p, "**"):
			b.WriteString(".*")
			p = p[2:]
		case p[0] == '*':
			b.WriteString("[^/]*")
			p = p[1:]
		case p[0] == '?':
			b.WriteString("[^/]")
			p = p[1:]
		case p[0] == '\\' && len(p) > 1:
			b.WriteString(regexp.QuoteMeta(p[1:2]))
			p = p[2:]
		default:
			b.WriteString(regexp.QuoteMeta(p[:1]))
			p = p[1:]
		}
	}
	return b.String()
}

// Match reports whether the path itself is passed over. Directories above it
// are not looked at: a walk that does not enter them asks about each once.
func (ig *Ignore) Match(name string, dir bool) bool {
	ignored := false
	for _, r := range ig.rules {
		if (dir || !r.dirs) && r.match.MatchString(name) {
			ignored = !r.keep
		}
	}
	return ignored
}

// MatchBelow reports whether the file or a directory above it is passed over.
func (ig *Ignore) MatchBelow(name string) bool {
	for i, c := range name {
		if c == '/' && ig.Match(name[:i], true) {
			return true
		}
	}
	return ig.Match(name, false)
}
