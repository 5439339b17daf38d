// Package mutants tests the tests. A mutant is a small patch that puts a bug
// into the product, and the name of the test that must detect it. The suite
// plants one bug at a time in a copy of the checkout and runs that test.
//
// It promises: a mutant counts as caught only if its test passes without the
// patch and fails an assertion with it. A patch that no longer applies or does
// not compile, and a test that does not run, are errors of the suite.
package mutants

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Dir is where the patches are, from the root of the checkout.
const Dir = "test/mutants"

// Mutant is one seeded bug: a unified diff below a header of three fields, each
// of which may continue on indented lines.
//
//	Defect: the mistake in the code
//	Effect: the symptom that a user would see
//	Test: PACKAGE -run TestName[|TestName] [NAME=VALUE ...]
type Mutant struct {
	Name   string // of the file, without .patch
	Defect string
	Effect string
	// Package is the folder of the tests as go test takes it, from the root.
	Package string
	// Tests are alternatives: one of them has to fail.
	Tests []string
	Env   []string

	patch []byte
}

// Load reads the mutants of a checkout in the order of their names; with names
// given, only those.
func Load(root string, names ...string) ([]Mutant, error) {
	files, err := filepath.Glob(filepath.Join(root, Dir, "*.patch"))
	if err != nil {
		return nil, fmt.Errorf("list the mutants: %w", err)
	}
	var all []Mutant
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".patch")
		if len(names) > 0 && !slices.Contains(names, name) {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read a mutant: %w", err)
		}
		m, err := parse(name, text)
		if err != nil {
			return nil, fmt.Errorf("%s/%s.patch: %w", Dir, name, err)
		}
		all = append(all, m)
	}
	for _, name := range names {
		if !slices.ContainsFunc(all, func(m Mutant) bool { return m.Name == name }) {
			return nil, fmt.Errorf("there is no mutant %q: its file would be %s/%s.patch", name, Dir, name)
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("there are no mutants in %s", Dir)
	}
	return all, nil
}

var diffBegins = regexp.MustCompile(`(?m)^(diff --git|---) `)

func parse(name string, text []byte) (Mutant, error) {
	m := Mutant{Name: name, patch: text}
	diff := diffBegins.FindIndex(text)
	if diff == nil {
		return m, errors.New("it contains no diff: a line that begins with \"--- \" is missing")
	}
	fields := map[string]string{}
	last := ""
	for line := range strings.Lines(string(text[:diff[0]])) {
		line = strings.TrimRight(line, "\n")
		key, value, isField := strings.Cut(line, ": ")
		switch {
		case line == "":
		case strings.HasPrefix(line, " ") && last != "":
			fields[last] += " " + strings.TrimSpace(line)
		case isField && (key == "Defect" || key == "Effect" || key == "Test"):
			fields[key], last = value, key
		default:
			return m, fmt.Errorf("the header's line %q is neither one of Defect, Effect and Test nor indented", line)
		}
	}
	m.Defect, m.Effect = fields["Defect"], fields["Effect"]
	if m.Defect == "" || m.Effect == "" {
		return m, errors.New("the header needs Defect (the mistake in the code) and Effect (the symptom that a user would see)")
	}
	return m, m.parseTest(fields["Test"])
}

var testName = regexp.MustCompile(`^Test\w+$`)

// parseTest reads "PACKAGE -run NAMES [NAME=VALUE ...]".
func (m *Mutant) parseTest(text string) error {
	words := strings.Fields(text)
	if len(words) < 3 || words[1] != "-run" || !strings.HasPrefix(words[0], "./") {
		return fmt.Errorf("the field Test is %q, but must be ./FOLDER -run TestName, followed by NAME=VALUE for the environment", text)
	}
	m.Package, m.Tests, m.Env = words[0], strings.Split(words[2], "|"), words[3:]
	for _, name := range m.Tests {
		if !testName.MatchString(name) {
			return fmt.Errorf("%q is not the name of a test: use complete names, with | between alternatives", name)
		}
	}
	for _, v := range m.Env {
		if !strings.Contains(v, "=") {
			return fmt.Errorf("%q is not an environment setting: use NAME=VALUE", v)
		}
	}
	return nil
}

// where names the Mutant's tests in the table, with package and environment.
func (m *Mutant) where(tests string) string {
	return strings.Join(slices.Concat([]string{strings.TrimPrefix(m.Package, "./server/internal/"), tests}, m.Env), " ")
}
