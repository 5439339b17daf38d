package source

import (
	"bytes"
	"path"
	"strings"
)

// mayHoldJSX reports, by name, whether "<" may begin an element. In .ts it
// begins a type assertion.
func mayHoldJSX(name string) bool {
	switch path.Ext(name) {
	case ".ts", ".mts", ".cts":
		return false
	default:
		return true
	}
}

// javascript is one step through JavaScript or TypeScript.
func (l *lexer) javascript() {
	f := l.top()
	switch {
	case f == nil || f.in == inBraces:
		l.jsCode(f)
	case f.in == inTemplate:
		l.jsTemplate()
	case f.in == inTag:
		l.jsxTag(f)
	default:
		l.jsxChildren()
	}
}

func (l *lexer) jsCode(f *frame) {
	c := l.text[l.pos]
	switch {
	case l.at("//"):
		l.line(Comment)
	case l.at("/*"):
		l.until("*/", 2, Comment)
	case c == '"' || c == '\'':
		l.quoted(c, false)
	case c == '`' && l.mayOpen():
		l.push(frame{in: inTemplate}, 1, String)
	case c == '/' && l.expressionMayBegin():
		l.regexp()
	case c == '<' && l.jsx && l.mayOpen() && l.expressionMayBegin() && l.elementBegins():
		l.push(frame{in: inTag}, 1, Code)
	case c == '{' && f != nil:
		f.depth++
		l.code()
	case c == '}' && f != nil && f.depth > 0:
		f.depth--
		l.code()
	case c == '}' && f != nil:
		l.pos++
		l.pop('}')
	default:
		l.code()
	}
}

// jsTemplate reads the text of a template up to its end or to code in it.
func (l *lexer) jsTemplate() {
	n := bytes.IndexAny(l.text[l.pos:], "`\\$")
	switch {
	case n < 0:
		l.mark(len(l.text)-l.pos, String)
	case n > 0:
		l.mark(n, String)
	case l.text[l.pos] == '`':
		l.mark(1, String)
		l.pop('`')
	case l.at("${"):
		l.mark(1, String)
		l.push(frame{in: inBraces}, 1, Code)
	case l.text[l.pos] == '\\':
		l.mark(2, String)
	default:
		l.mark(1, String)
	}
}

// elementBegins distinguishes an element of JSX from a comparison and from the
// type parameters of an arrow function.
func (l *lexer) elementBegins() bool {
	rest := l.text[l.pos+1:]
	name := jsxName(rest)
	if len(name) == 0 {
		return len(rest) > 0 && rest[0] == '>'
	}
	after := bytes.TrimLeft(rest[len(name):min(len(rest), len(name)+64)], " \t\r\n")
	return !bytes.HasPrefix(after, []byte(",")) && !bytes.HasPrefix(after, []byte("=")) && !bytes.HasPrefix(after, []byte("extends "))
}

// jsxName is the name that text begins with.
func jsxName(text []byte) []byte {
	n := 0
	for n < len(text) && (isWord(text[n]) || text[n] >= 0x80 || n > 0 && (text[n] == '-' || text[n] == ':')) {
		n++
	}
	if n > 0 && text[0] >= '0' && text[0] <= '9' {
		return nil
	}
	return text[:n]
}

// jsxTag reads between "<" and ">". A closing tag that does not match its
// opening shows that there was no element.
func (l *lexer) jsxTag(f *frame) {
	c := l.text[l.pos]
	switch {
	case l.at("//"):
		l.line(Comment)
	case l.at("/*"):
		l.until("*/", 2, Comment)
	case c == '"' || c == '\'': // no escapes, any number of lines
		l.until(string(c), 1, String)
		l.last = c
	case c == '{':
		l.push(frame{in: inBraces}, 1, Code)
	case c == '>' && l.last == '/':
		l.pos++
		l.pop('>')
		l.elementEnds()
	case c == '>':
		name := jsxName(l.text[f.start+1:])
		l.pos++
		f.in, f.name = inChildren, name
	default:
		l.code()
	}
}

// elementEnds makes a slash after an element a division.
func (l *lexer) elementEnds() {
	if f := l.top(); f == nil || f.in == inBraces {
		l.last = ')'
	}
}

// jsxChildren reads the text between tags.
func (l *lexer) jsxChildren() {
	n := bytes.IndexAny(l.text[l.pos:], "<{")
	switch {
	case n < 0:
		l.mark(len(l.text)-l.pos, String)
	case n > 0:
		l.mark(n, String)
	case l.text[l.pos] == '{':
		l.push(frame{in: inBraces}, 1, Code)
	case l.at("</"):
		l.jsxClosing()
	default:
		l.push(frame{in: inTag}, 1, Code)
	}
}

func (l *lexer) jsxClosing() {
	f := l.top()
	rest := bytes.TrimLeft(l.text[l.pos+2:], " \t\r\n")
	name := jsxName(rest)
	rest = bytes.TrimLeft(rest[len(name):], " \t\r\n")
	if !bytes.Equal(name, f.name) || !bytes.HasPrefix(rest, []byte(">")) {
		l.rewind()
		return
	}
	l.pos = len(l.text) - len(rest) + 1
	l.pop('>')
	l.elementEnds()
}

// expressionMayBegin distinguishes a regular expression from a division, and an
// element from a comparison, by the code before it.
func (l *lexer) expressionMayBegin() bool {
	if l.last == 0 || strings.IndexByte("(,=:[!&|?{};+*%<>~^", l.last) >= 0 {
		return true
	}
	before := bytes.TrimRight(l.text[max(0, l.pos-16):l.pos], " \t\r\n")
	for _, word := range []string{"return", "typeof", "case", "in", "of", "default", "yield", "await", "else", "do", "throw"} {
		if head, ok := bytes.CutSuffix(before, []byte(word)); ok && (len(head) == 0 || !isWord(head[len(head)-1])) {
			return true
		}
	}
	return false
}

// The states of a search for the end of a regular expression.
const (
	outsideClass byte = 1 << iota
	insideClass
)

// regexp marks a regular expression that ends on its line, or passes a slash. A
// search fails when it reaches a place in a state from which an earlier one
// found no end, so all searches together pass each byte at most twice.
func (l *lexer) regexp() {
	if l.failed == nil {
		l.failed = make([]byte, len(l.text))
	}
	state := outsideClass
	for i := l.pos + 1; i < len(l.text) && l.text[i] != '\n' && l.failed[i]&state == 0; i++ {
		l.failed[i] |= state
		switch c := l.text[i]; {
		case c == '\\':
			i++
		case c == '[':
			state = insideClass
		case c == ']':
			state = outsideClass
		case c == '/' && state == outsideClass:
			l.mark(i+1-l.pos, String)
			l.last = '/'
			return
		}
	}
	l.code() // not a regular expression
}
