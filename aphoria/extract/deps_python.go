package extract

import (
	"regexp"
	"strings"

	"github.com/stemedb/stemedb/aphoria/source"
)

// requirement is PEP 508 as far as it matters here: name, extras, and either
// versions or an address, before a marker.
func requirement() *regexp.Regexp {
	return regexp.MustCompile(`^([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?:\[[^\]]*\])?\s*(?:@\s*(\S+)|\(?\s*((?:(?:===|==|~=|!=|<=|>=|<|>)\s*[^\s,;()]+\s*,?\s*)*)\)?)\s*(?:;.*)?$`)
}

// readRequirements reads a requirements file of pip. Options (-r, --hash) and
// bare addresses name no requirement and are passed over.
func readRequirements(f *source.File) ([]dependency, error) {
	form := requirement()
	scope := "runtime"
	if strings.Contains(f.Base(), "dev") || strings.Contains(f.Base(), "test") {
		scope = "dev"
	}
	var deps []dependency
	lines := strings.Split(string(f.Text), "\n")
	for i := 0; i < len(lines); i++ {
		number, text := i+1, strings.TrimRight(lines[i], "\r")
		for strings.HasSuffix(text, `\`) && i+1 < len(lines) {
			i++
			text = strings.TrimSuffix(text, `\`) + " " + strings.TrimSpace(lines[i])
		}
		text = pythonComment(text)
		if at := strings.Index(text, " --"); at >= 0 { // --hash and such
			text = strings.TrimSpace(text[:at])
		}
		m := form.FindStringSubmatch(text)
		if m == nil {
			continue
		}
		deps = append(deps, dependency{
			name: pythonName(m[1]), version: strings.Join(strings.Fields(m[3]), ""), source: m[2], line: number, scope: scope,
		})
	}
	return deps, nil
}

// pythonComment cuts a comment, which begins the line or follows a space: an
// address may hold a "#".
func pythonComment(text string) string {
	if strings.HasPrefix(strings.TrimSpace(text), "#") {
		return ""
	}
	if at := strings.Index(text, " #"); at >= 0 {
		text = text[:at]
	}
	return strings.TrimSpace(text)
}

// pythonName is the normal form of PEP 503: one name for one project.
func pythonName(name string) string {
	var b strings.Builder
	dash := false
	for _, r := range strings.ToLower(name) {
		if r == '-' || r == '_' || r == '.' {
			dash = true
			continue
		}
		if dash && b.Len() > 0 {
			b.WriteByte('-')
		}
		dash = false
		b.WriteRune(r)
	}
	return b.String()
}
