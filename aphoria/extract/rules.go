package extract

import (
	"bytes"
	"fmt"
	"regexp"

	"github.com/stemedb/stemedb/aphoria/source"
	"github.com/stemedb/stemedb/server/record"
)

// Rule is an extractor's rule as data: where the pattern fits, the observation
// holds. Comments are blanked before the pattern is tried; what lies wholly
// inside a string is passed over, unless the rule asks for strings.
type Rule struct {
	Languages []source.Language
	Files     []string // names that it applies to beside its languages
	Pattern   string   // of package regexp
	Unless    string   // what must not fit the line that the match begins on
	InStrings bool
	// SofterNear, where it fits within a few lines of the match, makes the
	// observation one to look at, of half the confidence.
	SofterNear string
	Aspect     string
	Predicate  string
	Object     record.Object
	Confidence float64
	Verdict    Verdict
	Message    string
}

// declared is an extractor that is nothing but rules.
type declared struct {
	name  string
	rules []compiledRule
}

type compiledRule struct {
	Rule
	pattern, unless, softer *regexp.Regexp // the latter two may be nil
}

// Declare makes an extractor out of rules.
func Declare(name string, rules ...Rule) (Extractor, error) {
	d := declared{name: name}
	for i, r := range rules {
		c := compiledRule{Rule: r}
		for _, p := range []struct {
			text string
			into **regexp.Regexp
		}{{r.Pattern, &c.pattern}, {r.Unless, &c.unless}, {r.SofterNear, &c.softer}} {
			if p.text == "" {
				continue
			}
			compiled, err := regexp.Compile(p.text)
			if err != nil {
				return nil, fmt.Errorf("rule %d of %s: %w", i, name, err)
			}
			*p.into = compiled
		}
		if c.pattern == nil {
			return nil, fmt.Errorf("rule %d of %s has no pattern", i, name)
		}
		d.rules = append(d.rules, c)
	}
	return d, nil
}

func (d declared) Name() string { return d.name }

func (d declared) Wants(f *source.File) bool {
	for i := range d.rules {
		if d.rules[i].applies(f) {
			return true
		}
	}
	return false
}

func (r *compiledRule) applies(f *source.File) bool {
	for _, name := range r.Files {
		if f.Base() == name {
			return true
		}
	}
	if IsManifest(f) || f.IsRequirements() {
		return false
	}
	for _, l := range r.Languages {
		if f.Language == l {
			return true
		}
	}
	return false
}

func (d declared) Extract(f *source.File, m *Modules) ([]Observation, error) {
	// Most files fit no rule: try the plain text before reading the language.
	var found []Observation
	var text []byte
	for i := range d.rules {
		r := &d.rules[i]
		if !r.applies(f) || !r.pattern.Match(f.Text) {
			continue
		}
		if text == nil {
			text = f.WithoutComments()
		}
		for _, at := range r.pattern.FindAllIndex(text, -1) {
			if r.holds(f, text, at[0], at[1]) {
				found = append(found, r.observe(f, m, text, at[0]))
			}
		}
	}
	return found, nil
}

// holds decides whether a match is meant: some of it must be code.
func (r *compiledRule) holds(f *source.File, text []byte, start, end int) bool {
	kinds := f.Kinds()
	if !r.InStrings && kinds[start] != source.Code && kinds[end-1] != source.Code {
		return false
	}
	if r.unless == nil {
		return true
	}
	return !r.unless.Match(around(text, start, 0))
}

// around is the line at offset with so many lines before and after it.
func around(text []byte, offset, lines int) []byte {
	from, to := offset, offset
	for range lines + 1 {
		from = max(bytes.LastIndexByte(text[:from], '\n'), 0)
		n := bytes.IndexByte(text[min(to+1, len(text)):], '\n')
		if n < 0 {
			to = len(text)
		} else {
			to += 1 + n
		}
	}
	if from > 0 {
		from++ // past the line break
	}
	return text[from:to]
}

// nearby is how many lines around a match belong to it.
const nearby = 12

func (r *compiledRule) observe(f *source.File, m *Modules, text []byte, offset int) Observation {
	o := Observation{
		Language: f.Language, Module: m.Of(f), Aspect: r.Aspect, Predicate: r.Predicate, Object: r.Object,
		Confidence: r.Confidence, Line: f.Line(offset), Verdict: r.Verdict, Message: r.Message,
	}
	if r.softer != nil && r.softer.Match(around(text, offset, nearby)) {
		o.Verdict, o.Confidence = Flag, o.Confidence/2
	}
	if f.IsTest() && o.Verdict == Block {
		o.Verdict = Flag // a test server's certificate is nobody's secret
	}
	return o
}
