package extract

import (
	"context"
	"iter"
	"strings"

	"github.com/stemedb/stemedb/aphoria/internal/source"
)

// pyToken is a token of Python. Comments, spaces and continued line ends are no
// tokens.
type pyToken struct {
	kind pyKind
	text string // of a string: its beginning, without the quotes
	at   int    // offset
	// empty: it is a string without content. The text alone does not tell, since
	// more than the outer quotes is cut off.
	empty bool
}

type pyKind uint8

const (
	pyName pyKind = iota
	pyString
	pyOperator // "==" or one character
	pyLineEnd
)

func (t pyToken) is(operator string) bool { return t.kind == pyOperator && t.text == operator }

// maxPyString bounds the text of a string; the relevant ones are short.
const maxPyString = 32

// pyTokens reads a file token by token, until ctx ends.
func pyTokens(ctx context.Context, f *source.File) iter.Seq[pyToken] {
	kinds := f.Kinds(ctx)
	return func(yield func(pyToken) bool) {
		for at, steps := 0, 0; at < len(f.Text); steps++ {
			if steps%4096 == 0 && ctx.Err() != nil {
				return
			}
			t, end, ok := pyNext(f.Text, kinds, at)
			if ok && !yield(t) {
				return
			}
			at = end
		}
	}
}

// pyNext reads at offset and returns the offset after it; ok is false where
// there is no token.
func pyNext(text []byte, kinds []source.Kind, at int) (t pyToken, end int, ok bool) {
	end = at + 1
	switch c := text[at]; {
	case kinds[at] == source.Comment:
		for end < len(text) && kinds[end] == source.Comment {
			end++
		}
		return t, end, false
	case kinds[at] == source.String:
		for end < len(text) && kinds[end] == source.String {
			end++
		}
		quoted := string(text[at:min(end, at+maxPyString)])
		empty := strings.Trim(quoted, `"`) == "" || strings.Trim(quoted, `'`) == ""
		empty = empty && (len(quoted) == 2 || len(quoted) == 6)
		return pyToken{pyString, strings.Trim(quoted, `"'`), at, empty}, end, true
	case c == '\n':
		return pyToken{pyLineEnd, "\n", at, false}, end, true
	case c == '\\':
		for end < len(text) && text[end] == '\r' {
			end++
		}
		if end < len(text) && text[end] == '\n' {
			end++
		}
		return t, end, false
	case c == ' ' || c == '\t' || c == '\r':
		return t, end, false
	case isIdentifier(c) || c >= 0x80:
		for end < len(text) && kinds[end] == source.Code && (isIdentifier(text[end]) || text[end] >= 0x80) {
			end++
		}
		return pyToken{pyName, string(text[at:end]), at, false}, end, true
	case c == '=' && end < len(text) && text[end] == '=':
		return pyToken{pyOperator, "==", at, false}, end + 1, true
	default:
		return pyToken{pyOperator, string(c), at, false}, end, true
	}
}
