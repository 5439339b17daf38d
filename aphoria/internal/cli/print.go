package cli

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// A scanned tree chooses its names and texts, and a server chooses its answers.
// Neither may control the terminal or the CI system that reads the output, by
// control characters, ESC, marks of text direction, or the marks that begin a
// CI system's command in the middle of a line. So all output goes through one
// of the functions here.

// printable escapes unsafe characters as \n, \x1b or \u202e.
func printable(s string) string {
	safe := func(r rune) bool { return strconv.IsPrint(r) && r != utf8.RuneError }
	if !strings.ContainsFunc(s, func(r rune) bool { return !safe(r) }) && !strings.Contains(s, "##") {
		return s
	}
	var b strings.Builder
	for last := rune(0); len(s) > 0; {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case r == '#' && last == '#': // ##[…] and ##vso[…] are commands anywhere in a line
			b.WriteString(`\x23`)
		case safe(r):
			b.WriteRune(r)
		default:
			quoted := strconv.QuoteToASCII(string(r))
			b.WriteString(quoted[1 : len(quoted)-1])
		}
		s, last = s[n:], r
	}
	return b.String()
}

// line prints exactly one line, whatever its parts contain.
func line(w io.Writer, format string, args ...any) error {
	_, err := io.WriteString(w, printable(fmt.Sprintf(format, args...))+"\n")
	return err
}

// out prints one line of the result.
func (a *app) out(format string, args ...any) error { return line(a.Stdout, format, args...) }

// say prints one line to standard error. A closed standard error stops nothing.
func (a *app) say(format string, args ...any) {
	_ = line(a.Stderr, "aphoria: "+format, args...)
}

func (a *app) warn(format string, args ...any) { a.say("warning: "+format, args...) }

// safeJSON replaces unsafe characters by JSON's own escapes, which mean the same:
// outside of strings JSON has no such characters.
func safeJSON(doc []byte) []byte {
	out := make([]byte, 0, len(doc))
	for len(doc) > 0 {
		r, n := utf8.DecodeRune(doc)
		switch {
		case r == '#' && len(out) > 0 && out[len(out)-1] == '#', r != '\n' && !strconv.IsPrint(r) && r <= 0xffff:
			out = fmt.Appendf(out, `\u%04x`, r)
		case r != '\n' && !strconv.IsPrint(r):
			high, low := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		default:
			out = append(out, doc[:n]...)
		}
		doc = doc[n:]
	}
	return out
}
