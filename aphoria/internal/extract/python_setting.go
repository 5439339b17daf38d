package extract

import "slices"

// setting is a name that gets a value which is being read: a literal or a
// dotted name, perhaps negated and in parentheses.
type setting struct {
	target pyPath // "" for none
	in     pyBracket
	top    bool // it is outside of brackets

	value    string // "" until it begins
	quoted   bool   // the value is a string
	negated  bool
	dot      bool // the value continues
	parens   int  // open ones around the value
	computed bool // an operator follows the value, so it is only part of one
}

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
	case t.is("("):
		s.parens++
	case t.kind == pyName && t.text == "not":
		s.negated = !s.negated
	case t.kind == pyName || t.kind == pyString:
		s.value, s.quoted = t.text, t.kind == pyString
	case t.kind == pyLineEnd && (s.parens > 0 || !s.top):
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
