package extract

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"strings"

	"github.com/stemedb/stemedb/aphoria/internal/source"
)

// requirement is the relevant part of PEP 508: name, extras, and either
// versions or an address, before a marker.
func requirement() *regexp.Regexp {
	return regexp.MustCompile(`^([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?:\[[^\]]*\])?\s*(?:@\s*(\S+)|\(?\s*((?:(?:===|==|~=|!=|<=|>=|<|>)\s*[^\s,;()]+\s*,?\s*)*)\)?)\s*(?:;.*)?$`)
}

// readRequirements reads a requirements file of pip. Options such as -r and
// --hash name no requirement and are skipped. Any other line without one is an
// error.
func readRequirements(f *source.File) ([]dependency, error) {
	form := requirement()
	scope := "runtime"
	if strings.Contains(f.Base(), "dev") || strings.Contains(f.Base(), "test") {
		scope = "dev"
	}
	var deps []dependency
	var unread unreadLines
	for number, text := range requirementLines(string(f.Text)) {
		text = pythonComment(text)
		if at := strings.Index(text, " --"); at >= 0 { // --hash and such
			text = strings.TrimSpace(text[:at])
		}
		text, editable := cutEditable(text)
		if text == "" || strings.HasPrefix(text, "-") {
			continue
		}
		d := dependency{line: number, scope: scope}
		if m := form.FindStringSubmatch(text); m != nil && !editable {
			d.name, d.version, d.source = pythonName(m[1]), strings.Join(strings.Fields(m[3]), ""), m[2]
		} else if d.name, d.version = addressedRequirement(text); d.name != "" {
			d.source, _, _ = strings.Cut(text, " ")
		} else {
			unread.add(number)
			continue
		}
		deps = append(deps, d)
	}
	return deps, unread.err()
}

// requirementLines yields the lines with their numbers. A line that ends with a
// backslash is joined with the next one.
func requirementLines(text string) func(yield func(int, string) bool) {
	return func(yield func(int, string) bool) {
		var parts []string
		first, number := 0, 0
		for line := range strings.Lines(text) {
			number++
			if len(parts) == 0 {
				first = number
			}
			line = strings.TrimRight(line, "\r\n")
			head, goesOn := strings.CutSuffix(line, `\`)
			parts = append(parts, head)
			if goesOn {
				continue
			}
			if !yield(first, strings.Join(parts, " ")) {
				return
			}
			parts = parts[:0]
		}
		if len(parts) > 0 {
			yield(first, strings.Join(parts, " "))
		}
	}
}

// unreadLines are the lines in which no requirement was recognised.
type unreadLines struct {
	first []string
	count int
}

func (u *unreadLines) add(number int) {
	if u.count++; len(u.first) < 5 {
		u.first = append(u.first, fmt.Sprint(number))
	}
}

func (u *unreadLines) err() error {
	if u.count == 0 {
		return nil
	}
	more := ""
	if n := u.count - len(u.first); n > 0 {
		more = fmt.Sprintf(" and %d more", n)
	}
	return errors.New("no requirement could be read from line " + strings.Join(u.first, ", ") + more +
		"; write NAME==VERSION, NAME @ ADDRESS, or an address that ends with #egg=NAME")
}

// cutEditable removes -e or --editable.
func cutEditable(text string) (rest string, editable bool) {
	for _, option := range []string{"-e ", "--editable ", "--editable="} {
		if rest, ok := strings.CutPrefix(text, option); ok {
			return strings.TrimSpace(rest), true
		}
	}
	return text, false
}

// addressedRequirement takes the name from a bare address: from its egg fragment,
// or from the archive's name.
func addressedRequirement(text string) (name, version string) {
	address, _, _ := strings.Cut(text, " ")
	u, err := url.Parse(address)
	if err != nil {
		return "", ""
	}
	for part := range strings.SplitSeq(u.Fragment, "&") {
		if egg, ok := strings.CutPrefix(part, "egg="); ok {
			egg, _, _ = strings.Cut(egg, "[")
			egg, version, _ = strings.Cut(egg, "==")
			return pythonName(egg), withEquals(version)
		}
	}
	file := path.Base(u.Path)
	if wheel, ok := strings.CutSuffix(file, ".whl"); ok {
		if parts := strings.Split(wheel, "-"); len(parts) >= 5 { // name, version, build, three tags
			return pythonName(parts[0]), withEquals(parts[1])
		}
		return "", ""
	}
	for _, end := range []string{".tar.gz", ".tar.bz2", ".tgz", ".zip"} {
		archive, ok := strings.CutSuffix(file, end)
		if at := strings.LastIndexByte(archive, '-'); ok && at > 0 && at+1 < len(archive) && archive[at+1] >= '0' && archive[at+1] <= '9' {
			return pythonName(archive[:at]), withEquals(archive[at+1:])
		}
	}
	return "", ""
}

func withEquals(version string) string {
	if version == "" {
		return ""
	}
	return "==" + version
}

// pythonComment cuts a comment, which begins the line or follows a space: an
// address may contain a "#".
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
