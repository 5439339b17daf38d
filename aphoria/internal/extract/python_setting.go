package extract

import (
	"regexp"
	"slices"
)

// setting is a name that gets a value which is being read: a literal or a
// dotted name, perhaps negated and in parentheses.
type setting struct {
	target pyPath // "" for none
	in     pyBracket
	top    bool // it is outside of brackets

	value    string // "" until it begins; pyEmpty for an empty string or bracket
	closes   string // the end of a bracket that counts only if it is empty
	quoted   bool   // the value is a string
	negated  bool
	dot      bool // the value continues
	parens   int  // open ones around the value
	computed bool // an operator follows the value, so it is only part of one
}

// pyEmpty is the value of a setting that gets an empty string, list, tuple or
// dict.
const pyEmpty = "()"

var (
	pyNumber = regexp.MustCompile(`^[0-9]`)
	pyZero   = regexp.MustCompile(`^(?i:0[xob][0_]+|0[0_]*(?:\.[0_]*)?(?:e[0-9_]+)?j?)$`)
)

// off reports whether Python treats the value as false. None is not among them:
// see pythonFinder.verify.
func (s *setting) off() bool {
	off := s.value == "False" || s.value == pyEmpty || s.isZero()
	on := s.value == "True" || pyNumber.MatchString(s.value) && !s.isZero()
	if s.quoted {
		off, on = s.value == pyEmpty, s.value != pyEmpty
	}
	if s.negated {
		return on
	}
	return off
}

func (s *setting) isZero() bool { return !s.quoted && pyZero.MatchString(s.value) }

func (s *setting) isNone() bool { return !s.quoted && !s.negated && s.value == "None" }

// declared reports whether the place is a parameter's default.
func (s *setting) declared() bool { return s.in.declares || s.in.lambda }

// begin starts to read the value of a setting that matters.
func (p *pythonFinder) begin(target pyPath) {
	p.setting = setting{}
	if slices.Contains([]string{"verify", "verify_mode", "cert_reqs"}, target.name()) {
		p.setting = setting{target: target, in: *p.bracket(), top: len(p.open) == 1 && p.deeper == 0}
	}
}

// value reads the next token as part of the setting's value.
func (p *pythonFinder) value(t pyToken) {
	s := &p.setting
	switch {
	case s.target.text == "":
	case s.value == "":
		p.beginValue(t)
	case t.kind == pyLineEnd:
		if s.top && s.parens == 0 || t.at == len(p.file.Text) {
			p.end()
		}
	case s.dot && t.kind == pyName:
		s.dot = false
		if len(s.value) < maxPyPath {
			s.value += "." + t.text
		}
	case t.is("."):
		s.dot = true
	case t.is(")") && s.parens > 0:
		s.parens--
	default:
		p.afterValue(t)
	}
}

func (p *pythonFinder) beginValue(t pyToken) {
	s := &p.setting
	switch {
	case s.closes != "" && t.is(s.closes):
		s.value = pyEmpty
	case s.closes != "" && t.kind != pyLineEnd:
		p.setting = setting{}
	case t.is(")") && p.last == "(" && s.parens > 0:
		s.value = pyEmpty
		s.parens--
	case t.is("["):
		s.closes = "]"
	case t.is("{"):
		s.closes = "}"
	case t.is("("):
		s.parens++
	case t.kind == pyName && t.text == "not":
		s.negated = !s.negated
	case t.kind == pyName || t.kind == pyString:
		s.value, s.quoted = t.text, t.kind == pyString
		switch {
		case t.empty:
			s.value = pyEmpty
		case s.quoted && (t.text == "" || t.text == pyEmpty):
			s.value = "'" // any other text
		}
	case t.kind == pyLineEnd && (s.parens > 0 || s.closes != "" || !s.top):
	default:
		p.setting = setting{}
	}
}

// afterValue decides by the token after the value. "x if y" is x, like the same
// call below an if.
func (p *pythonFinder) afterValue(t pyToken) {
	s := &p.setting
	switch {
	case t.is(",") && s.parens > 0, t.is("("), t.is("["), t.is("="):
		p.setting = setting{} // a tuple, a call, an entry, or another target
		return
	case t.kind == pyName:
		s.computed = slices.Contains([]string{"and", "or", "in", "is", "not"}, t.text)
	case t.kind == pyOperator:
		s.computed = !slices.Contains([]string{",", ")", "]", "}", ";", ":"}, t.text)
	}
	p.end()
}

func (p *pythonFinder) end() {
	s := p.setting
	p.setting = setting{}
	p.judge(&s)
}
