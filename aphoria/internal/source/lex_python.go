package source

import "bytes"

// python is one step through Python.
func (l *lexer) python() {
	f := l.top()
	switch {
	case f != nil && f.in == inPyString:
		l.pyString(f)
	case f != nil && f.spec:
		l.pySpec(f)
	default:
		l.pyCode(f)
	}
}

func (l *lexer) pyCode(f *frame) {
	c := l.text[l.pos]
	switch {
	case c == '#':
		l.line(Comment)
	case c == '"' || c == '\'':
		l.pyQuote(c)
	case f == nil:
		l.code()
	case c == '(' || c == '[' || c == '{':
		f.depth++
		l.code()
	case c == '}' && f.depth == 0:
		l.pos++
		l.pop('}')
	case c == ')' || c == ']' || c == '}':
		f.depth = max(f.depth-1, 0)
		l.code()
	case c == ':' && f.depth == 0:
		f.spec = true
		l.mark(1, String)
	default:
		l.code()
	}
}

// pyQuote begins a string.
func (l *lexer) pyQuote(c byte) {
	quote := string(c)
	if long := quote + quote + quote; l.at(long) && l.mayOpen() {
		quote = long
	}
	formatted := false
	for i := l.pos - 1; i >= max(l.pos-2, 0); i-- {
		formatted = formatted || bytes.IndexByte([]byte("fFtT"), l.text[i]) >= 0
		if !isWord(l.text[i]) {
			break
		}
	}
	if !formatted && len(quote) == 1 || !l.mayOpen() {
		l.quoted(c, false)
		return
	}
	f := frame{in: inPyString, quote: quote}
	if !formatted {
		f.depth = noFields
	}
	l.push(f, len(quote), String)
}

// noFields is the depth of a string that is not formatted.
const noFields = -1

// pyString reads the text of a string up to its end or to a field in it.
func (l *lexer) pyString(f *frame) {
	c := l.text[l.pos]
	switch {
	case c == '\\':
		l.mark(2, String)
	case l.at(f.quote):
		l.mark(len(f.quote), String)
		l.pop(c)
	case c == '\n' && len(f.quote) == 1:
		l.pop(c) // broken: wrong for at most a line
	case c == '{' && f.depth != noFields && l.at("{{"):
		l.mark(2, String)
	case c == '{' && f.depth != noFields:
		l.push(frame{in: inPyField, quote: f.quote}, 1, String)
	default:
		l.mark(1, String)
	}
}

// pySpec reads the format of a field, which may contain fields.
func (l *lexer) pySpec(f *frame) {
	switch c := l.text[l.pos]; {
	case c == '{':
		l.push(frame{in: inPyField, quote: f.quote}, 1, String)
	case c == '}':
		l.mark(1, String)
		l.pop(c)
	case l.at(f.quote) || c == '\n' && len(f.quote) == 1:
		l.pop(c) // broken: the string decides
	default:
		l.mark(1, String)
	}
}
