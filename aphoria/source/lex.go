package source

import (
	"bytes"
	"strings"
)

// Kind is what a byte of source text belongs to.
type Kind uint8

// The kinds.
const (
	Code Kind = iota
	Comment
	String // with its quotes
)

// Kinds gives the kind of every byte of the text. It knows as much of each
// language as that needs, and no more; where a file is broken it errs for a
// line, not for the rest, because quotes of one line end with it.
func (f *File) Kinds() []Kind {
	if f.kinds == nil {
		l := lexer{text: f.Text, kinds: make([]Kind, len(f.Text))}
		switch f.Language {
		case Go, JavaScript, Rust:
			l.braces(f.Language)
		case Python:
			l.python()
		}
		f.kinds = l.kinds
	}
	return f.kinds
}

// WithoutComments is the text with every byte of a comment, but line breaks,
// turned into a space, so that offsets stay.
func (f *File) WithoutComments() []byte {
	out := bytes.Clone(f.Text)
	for i, k := range f.Kinds() {
		if k == Comment && out[i] != '\n' {
			out[i] = ' '
		}
	}
	return out
}

type lexer struct {
	text  []byte
	kinds []Kind
	pos   int
	last  byte // the last byte of code that was no space
}

func (l *lexer) at(s string) bool {
	return len(l.text)-l.pos >= len(s) && string(l.text[l.pos:l.pos+len(s)]) == s
}

// mark gives the next n bytes a kind.
func (l *lexer) mark(n int, kind Kind) {
	for end := min(l.pos+n, len(l.text)); l.pos < end; l.pos++ {
		l.kinds[l.pos] = kind
	}
}

// code passes one byte of code.
func (l *lexer) code() {
	if c := l.text[l.pos]; c != ' ' && c != '\t' && c != '\n' && c != '\r' {
		l.last = c
	}
	l.pos++
}

// line marks what remains of the line.
func (l *lexer) line(kind Kind) {
	n := bytes.IndexByte(l.text[l.pos:], '\n')
	if n < 0 {
		n = len(l.text) - l.pos
	}
	l.mark(n, kind)
}

// until marks up to and with the end mark, or all that is left.
func (l *lexer) until(end string, skip int, kind Kind) {
	from := min(l.pos+skip, len(l.text))
	n := bytes.Index(l.text[from:], []byte(end))
	if n < 0 {
		l.mark(len(l.text)-l.pos, kind)
		return
	}
	l.mark(from-l.pos+n+len(end), kind)
}

// quoted marks a string that ends with quote, with backslash escapes. Unless
// it may span lines, it ends with the line.
func (l *lexer) quoted(quote byte, lines bool) {
	i := l.pos + 1
	for ; i < len(l.text) && l.text[i] != quote; i++ {
		if l.text[i] == '\\' {
			i++
		} else if l.text[i] == '\n' && !lines {
			i--
			break
		}
	}
	l.mark(i+1-l.pos, String)
	l.last = quote
}

// braces reads Go, JavaScript and Rust, which share their comments.
func (l *lexer) braces(lang Language) {
	for l.pos < len(l.text) {
		c := l.text[l.pos]
		switch {
		case l.at("//"):
			l.line(Comment)
		case l.at("/*"):
			l.until("*/", 2, Comment)
		case c == '"':
			l.quoted('"', lang == Rust)
		case c == '`' && lang == Go:
			l.until("`", 1, String)
			l.last = '`'
		case c == '`' && lang == JavaScript:
			l.quoted('`', true)
		case c == '\'' && lang == JavaScript:
			l.quoted('\'', false)
		case c == '\'' && lang == Go:
			l.quoted('\'', false)
		case c == '\'' && lang == Rust:
			l.rustQuote()
		case c == '/' && lang == JavaScript && l.regexpMayBegin():
			l.regexp()
		default:
			l.code()
		}
	}
}

// rustQuote tells a character from a lifetime.
func (l *lexer) rustQuote() {
	rest := l.text[l.pos+1:]
	if len(rest) >= 2 && (rest[0] == '\\' || rest[1] == '\'') {
		l.quoted('\'', false)
		return
	}
	l.code()
}

// regexpMayBegin tells a regular expression from a division by what stands
// before the slash.
func (l *lexer) regexpMayBegin() bool {
	if l.last == 0 || strings.IndexByte("(,=:[!&|?{};+*%<>~^", l.last) >= 0 {
		return true
	}
	before := strings.TrimRight(string(l.text[max(0, l.pos-16):l.pos]), " \t")
	for _, word := range []string{"return", "typeof", "case", "in", "of"} {
		if head, ok := strings.CutSuffix(before, word); ok && (head == "" || !isWord(head[len(head)-1])) {
			return true
		}
	}
	return false
}

func isWord(c byte) bool {
	return c == '_' || c == '$' || c == '.' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

func (l *lexer) regexp() {
	class := false
	i := l.pos + 1
	for ; i < len(l.text) && l.text[i] != '\n'; i++ {
		switch c := l.text[i]; {
		case c == '\\':
			i++
		case c == '[':
			class = true
		case c == ']':
			class = false
		case c == '/' && !class:
			l.mark(i+1-l.pos, String)
			l.last = '/'
			return
		}
	}
	l.code() // no regular expression after all
}

func (l *lexer) python() {
	for l.pos < len(l.text) {
		switch c := l.text[l.pos]; {
		case c == '#':
			l.line(Comment)
		case l.at(`"""`):
			l.triple(`"""`)
		case l.at(`'''`):
			l.triple(`'''`)
		case c == '"' || c == '\'':
			l.quoted(c, false)
		default:
			l.code()
		}
	}
}

// triple marks a long string; a backslash escapes a quote in it.
func (l *lexer) triple(quotes string) {
	for i := l.pos + 3; i < len(l.text); i++ {
		if l.text[i] == '\\' {
			i++
		} else if bytes.HasPrefix(l.text[i:], []byte(quotes)) {
			l.mark(i+3-l.pos, String)
			return
		}
	}
	l.mark(len(l.text)-l.pos, String)
}
