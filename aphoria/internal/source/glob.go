package source

import (
	"errors"
	"regexp"
	"strings"
)

// globExpr translates one pattern of git into package regexp, whose matching
// takes linear time whatever the pattern. Where slashes count, "**" as a whole
// component means any number of directories; everywhere else it means "*". Git
// removes the text before the first wildcard before it matches the rest, so
// "**" right after that text also counts as whole.
func globExpr(p string, slashes bool) (string, error) {
	var b strings.Builder
	whole := slashes // no wildcard yet
	for p != "" {
		c := p[0]
		switch {
		case whole && strings.HasPrefix(p, "**/"):
			b.WriteString("(?:.*/)?")
			p = p[len("**/"):]
		case slashes && p == "/**":
			b.WriteString("/.+")
			p = ""
		case slashes && strings.HasPrefix(p, "/**/"):
			b.WriteString("/(?:.*/)?")
			p = p[len("/**/"):]
			for strings.HasPrefix(p, "**/") {
				p = p[len("**/"):]
			}
		case c == '*':
			b.WriteString("[^/]*")
			p = strings.TrimLeft(p, "*")
		case c == '?':
			b.WriteString("[^/]")
			p = p[1:]
		case c == '[':
			expr, rest, err := globClass(p)
			if err != nil {
				return "", err
			}
			b.WriteString(expr)
			p = rest
		case c == '\\' && len(p) == 1:
			return "", errors.New("ends with a backslash; write two for a literal backslash")
		case c == '\\':
			p = p[1:]
			fallthrough
		default:
			n := len(firstRune(p))
			b.WriteString(regexp.QuoteMeta(p[:n]))
			p = p[n:]
		}
		whole = whole && strings.IndexByte(`*?[\`, c) < 0
	}
	return b.String(), nil
}

func firstRune(s string) string {
	for i := range s {
		if i > 0 {
			return s[:i]
		}
	}
	return s
}

// globClass translates the bracket that p begins with. It never matches a
// slash.
func globClass(p string) (expr, rest string, err error) {
	rest = p[1:]
	negated := strings.HasPrefix(rest, "!") || strings.HasPrefix(rest, "^")
	if negated {
		rest = rest[1:]
	}
	var b strings.Builder
	for first := true; first || !strings.HasPrefix(rest, "]"); first = false {
		if named, tail, ok := namedClass(rest); ok {
			b.WriteString(named)
			rest = tail
			continue
		}
		low, tail, ok := classRune(rest)
		if !ok {
			return "", "", errors.New("has a bracket without an end; write \\[ for a literal bracket")
		}
		high := low
		if strings.HasPrefix(tail, "-") && !strings.HasPrefix(tail, "-]") {
			if high, tail, ok = classRune(tail[1:]); !ok {
				return "", "", errors.New("has a bracket without an end; write \\[ for a literal bracket")
			}
		}
		// As in git, a range that runs backwards contains only its first letter.
		writeRange(&b, low, max(low, high))
		rest = tail
	}
	rest = rest[1:]
	inner := b.String()
	switch {
	case negated:
		return "[^/" + inner + "]", rest, nil
	case inner == "":
		return `[^\x{0}-\x{10FFFF}]`, rest, nil // only a slash could match
	default:
		return "[" + inner + "]", rest, nil
	}
}

// writeRange leaves the slash out.
func writeRange(b *strings.Builder, low, high rune) {
	for _, part := range [][2]rune{{low, min(high, '/'-1)}, {max(low, '/'+1), high}} {
		if part[0] <= part[1] {
			b.WriteString(quoteRune(part[0]) + "-" + quoteRune(part[1]))
		}
	}
}

func quoteRune(r rune) string {
	const hex = "0123456789abcdef"
	return `\x` + string(hex[r>>4&15]) + string(hex[r&15]) // r is a byte, see latin
}

// classRune reads one member of a bracket.
func classRune(s string) (r rune, rest string, ok bool) {
	first := firstRune(strings.TrimPrefix(s, `\`))
	if first == "" {
		return 0, "", false
	}
	s = strings.TrimPrefix(s, `\`)
	return []rune(first)[0], s[len(first):], true
}

// namedClass reads [:name:] as defined by POSIX.
func namedClass(s string) (expr, rest string, ok bool) {
	if !strings.HasPrefix(s, "[:") {
		return "", "", false
	}
	end := strings.Index(s, ":]")
	if end < 0 {
		return "", "", false
	}
	switch s[2:end] {
	case "alnum", "alpha", "cntrl", "digit", "lower", "upper", "xdigit", "blank", "space":
		return s[:end+2], s[end+2:], true
	case "graph", "print", "punct": // without the slash
		parts := map[string]string{"graph": `!-.0-~`, "print": ` -.0-~`, "punct": "!-.:-@[-`{-~"}
		return strings.NewReplacer("[", `\[`).Replace(parts[s[2:end]]), s[end+2:], true
	default:
		return "", "", false
	}
}
