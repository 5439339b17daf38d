package extract

import (
	"bytes"
	"context"
	"fmt"
	"regexp"
	"slices"

	"github.com/stemedb/stemedb/aphoria/internal/source"
	"github.com/stemedb/stemedb/record"
)

// Rule is an extractor's rule as data: it matches where Word is a separate word
// and After matches the text after it, whatever else the file contains. Value
// matches the text after that, perhaps in parentheses.
// Comments are blanked first; matches entirely inside a string are skipped,
// unless the rule asks for strings.
type Rule struct {
	Languages []source.Language
	Files     []string // names that it applies to besides its languages
	Word      string
	After     string // of package regexp; tied to the end of Word
	Value     string // likewise, tied to the end of After; "" for none
	InStrings bool
	finding
}

// finding is the observation of a matching rule.
type finding struct {
	Aspect     string
	Predicate  string
	Object     record.Object
	Confidence float64
	Verdict    Verdict
	Message    string
}

// declared is an extractor that consists only of rules.
type declared struct {
	name  string
	rules []compiledRule
}

type compiledRule struct {
	Rule
	after, value *regexp.Regexp
}

// Declare makes an extractor from rules.
func Declare(name string, rules ...Rule) (Extractor, error) {
	d := declared{name: name}
	for i, r := range rules {
		if r.Word == "" {
			return nil, fmt.Errorf("rule %d of %s has no word", i, name)
		}
		after, err := regexp.Compile(`^(?:` + r.After + `)`)
		if err != nil {
			return nil, fmt.Errorf("rule %d of %s: %w", i, name, err)
		}
		value, err := regexp.Compile(`^(?:` + r.Value + `)`)
		if err != nil {
			return nil, fmt.Errorf("rule %d of %s: %w", i, name, err)
		}
		d.rules = append(d.rules, compiledRule{r, after, value})
	}
	return d, nil
}

func (d declared) Name() string { return d.name }

func (d declared) Wants(f *source.File) bool {
	return slices.ContainsFunc(d.rules, func(r compiledRule) bool { return r.applies(f) })
}

func (r *compiledRule) applies(f *source.File) bool {
	if slices.Contains(r.Files, f.Base()) {
		return true
	}
	return isSource(f) && slices.Contains(r.Languages, f.Language)
}

// isSource distinguishes code from manifests and lists of requirements.
func isSource(f *source.File) bool { return f.Language != "" && !IsManifest(f) && !f.IsRequirements() }

func (d declared) Extract(ctx context.Context, f *source.File, m *Modules) ([]Observation, error) {
	var found []Observation
	for i := range d.rules {
		r := &d.rules[i]
		// Most files match no rule, so try the plain text before parsing the
		// language.
		if r.applies(f) && bytes.Contains(f.Text, []byte(r.Word)) {
			found = r.extract(ctx, f, m, found)
		}
	}
	return found, ctx.Err()
}

// extract goes from word to word, so that the time is proportional to the
// file's length and the end of ctx is noticed on the way.
func (r *compiledRule) extract(ctx context.Context, f *source.File, m *Modules, found []Observation) []Observation {
	text, kinds := f.WithoutComments(ctx), f.Kinds(ctx)
	for at := 0; ctx.Err() == nil; {
		n := bytes.Index(text[at:], []byte(r.Word))
		if n < 0 {
			break
		}
		start := at + n
		at = start + len(r.Word)
		if start > 0 && isIdentifier(text[start-1]) {
			continue
		}
		fits := r.after.FindIndex(text[at:])
		if fits == nil {
			continue
		}
		end := at + fits[1]
		if r.Value != "" {
			if end = inParentheses(text, end, r.value); end < 0 {
				continue
			}
		}
		if r.InStrings || kinds[start] == source.Code || kinds[end-1] == source.Code {
			found = append(found, r.observe(f, m, start))
		}
	}
	return found
}

// inParentheses matches value at offset, after spaces and any number of opening
// parentheses that are closed immediately after it. It returns the offset after
// them, -1 for no match.
func inParentheses(text []byte, at int, value *regexp.Regexp) int {
	open := 0
	for ; at < len(text) && (isSpace(text[at]) || text[at] == '('); at++ {
		if text[at] == '(' {
			open++
		}
	}
	fits := value.FindIndex(text[at:])
	if fits == nil {
		return -1
	}
	for at += fits[1]; open > 0; at++ {
		switch {
		case at == len(text) || !isSpace(text[at]) && text[at] != ')':
			return -1
		case text[at] == ')':
			open--
		}
	}
	return at
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }

func isIdentifier(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// observe makes the observation of the place at offset.
func (r *finding) observe(f *source.File, m *Modules, offset int) Observation {
	o := Observation{
		Language: f.Language, Module: m.Of(f), Aspect: r.Aspect, Predicate: r.Predicate, Object: r.Object,
		Confidence: r.Confidence, Line: f.Line(offset), Verdict: r.Verdict, Message: r.Message,
	}
	if f.IsTest() && o.Verdict == Block {
		o.Verdict = Flag // a test server's certificate protects nothing
	}
	return o
}

// softer is the finding as a FLAG with half the confidence.
func (r finding) softer() finding {
	r.Verdict, r.Confidence = Flag, r.Confidence/2
	return r
}
