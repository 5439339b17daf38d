package source

import (
	"bytes"
	"context"
)

// Kind is the kind of text that a byte belongs to.
type Kind uint8

// The kinds.
const (
	Code Kind = iota
	Comment
	String // with its quotes; also the text between the tags of JSX
)

// Kinds returns the kind of every byte of the text. It knows only as much of
// each language as that needs. In a broken file it errs for at most a line,
// because single-line quotes end with their line, and an unterminated template,
// JSX element or long string is read as code, so that nothing can hide in it.
// Its time is linear in the text's length. When ctx ends it stops early, and
// the rest counts as code.
func (f *File) Kinds(ctx context.Context) []Kind {
	if f.kinds == nil {
		l := lexer{ctx: ctx, text: f.Text, kinds: make([]Kind, len(f.Text)), rewinds: maxRewinds}
		switch f.Language {
		case Go, Rust:
			l.run(func() { l.braces(f.Language) })
		case JavaScript:
			l.jsx = mayHoldJSX(f.Path)
			l.run(l.javascript)
		case Python:
			l.run(l.python)
		}
		f.kinds = l.kinds
	}
	return f.kinds
}

// WithoutComments is the text with every byte of a comment except line breaks
// replaced by a space, so that offsets do not change.
func (f *File) WithoutComments(ctx context.Context) []byte {
	out := bytes.Clone(f.Text)
	for i, k := range f.Kinds(ctx) {
		if k == Comment && out[i] != '\n' {
			out[i] = ' '
		}
	}
	return out
}

type lexer struct {
	ctx   context.Context
	text  []byte
	kinds []Kind
	pos   int
	last  byte // the last byte of code that was not a space

	// open are the templates, f-strings and elements that are being read,
	// outermost first.
	open    []frame
	rewinds int    // still allowed, see rewind
	plain   bool   // nothing more may be opened
	jsx     bool   // the file may hold elements
	skip    int    // offset of a false opening, which is code; -1 means none
	failed  []byte // for each byte, the states in which a search for a regular expression from there failed
	steps   int
}

// maxRewinds bounds how often one file is read again from a false opening.
const maxRewinds = 16

// maxFrames bounds the nesting of templates and elements.
const maxFrames = 10_000

// run calls step until the text is read. A step moves on by at least a byte.
func (l *lexer) run(step func()) {
	l.skip = -1
	for {
		for l.pos < len(l.text) {
			if l.steps++; l.steps%4096 == 0 && l.ctx.Err() != nil {
				return
			}
			step()
		}
		if len(l.open) == 0 {
			return
		}
		l.rewind()
	}
}

// rewind goes back to the start of the outermost frame, which then counts as
// code. The number of rewinds is bounded, and after the last one nothing more
// is opened, so the text is read a bounded number of times.
func (l *lexer) rewind() {
	f := l.open[0]
	clear(l.kinds[f.start:])
	l.pos, l.last, l.skip = f.start, f.last, f.start
	l.open, l.failed = nil, nil
	if l.rewinds--; l.rewinds == 0 {
		l.plain = true
	}
}

// frame is a construct that holds code up to an end mark.
type frame struct {
	in    mode
	start int    // offset of its first byte
	last  byte   // lexer.last before it
	depth int    // of brackets that are open in it, for modes of code
	quote string // that ends a Python string
	spec  bool   // a Python field is past its colon
	name  []byte // of an element of JSX
}

type mode uint8

const (
	inTemplate mode = iota // JavaScript: between back-ticks
	inBraces               // JavaScript: code in ${} or {}
	inTag                  // JSX: between < and >
	inChildren             // JSX: between an opening and its closing tag
	inPyString             // Python: a string, of any kind
	inPyField              // Python: code between the braces of an f-string
)

func (l *lexer) top() *frame {
	if len(l.open) == 0 {
		return nil
	}
	return &l.open[len(l.open)-1]
}

// push opens a frame at the current position and marks its first n bytes.
func (l *lexer) push(f frame, n int, kind Kind) {
	if len(l.open) == maxFrames {
		l.rewind()
		return
	}
	f.start, f.last = l.pos, l.last
	l.open = append(l.open, f)
	l.mark(n, kind)
	l.last = 0
}

// pop ends the innermost frame; after becomes the last byte of code.
func (l *lexer) pop(after byte) {
	l.open = l.open[:len(l.open)-1]
	l.last = after
}

func (l *lexer) mayOpen() bool { return !l.plain && l.pos != l.skip }

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

// line marks the rest of the line.
func (l *lexer) line(kind Kind) {
	n := bytes.IndexByte(l.text[l.pos:], '\n')
	if n < 0 {
		n = len(l.text) - l.pos
	}
	l.mark(n, kind)
}

// until marks the text up to and including the end mark, or all remaining text.
func (l *lexer) until(end string, skip int, kind Kind) {
	from := min(l.pos+skip, len(l.text))
	n := bytes.Index(l.text[from:], []byte(end))
	if n < 0 {
		l.mark(len(l.text)-l.pos, kind)
		return
	}
	l.mark(from-l.pos+n+len(end), kind)
}

// quoted marks a string with backslash escapes that ends with quote. Unless it
// may span lines, it also ends with the line.
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

// braces reads Go and Rust, which have the same comments.
func (l *lexer) braces(lang Language) {
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
	case c == '\'' && lang == Go:
		l.quoted('\'', false)
	case c == '\'' && lang == Rust:
		l.rustQuote()
	default:
		l.code()
	}
}

// rustQuote distinguishes a character from a lifetime.
func (l *lexer) rustQuote() {
	rest := l.text[l.pos+1:]
	if len(rest) >= 2 && (rest[0] == '\\' || rest[1] == '\'') {
		l.quoted('\'', false)
		return
	}
	l.code()
}

func isWord(c byte) bool {
	return c == '_' || c == '$' || c == '.' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}
