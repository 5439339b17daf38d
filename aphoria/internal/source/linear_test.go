package source

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Steps are counted, not time. A frame that never ends is read again, so the
// bound is the number of rewinds.
func TestALexerTakesStepsInProportionToTheText(t *testing.T) {
	parts := []string{"`", "${", "}", "<a>", "</a>", "<", "/", "[", "]", "\\", "\n", "'", "\"", "\"\"\"", "f'", "f'''", "{", "(", "=", "//", "/*", "#", ":", " ", "x", "return "}
	random := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		var some []string
		for range 1 + random.IntN(6) {
			some = append(some, parts[random.IntN(len(parts))])
		}
		text := []byte(strings.Repeat(strings.Join(some, ""), 2000))
		for _, language := range []Language{Go, JavaScript, Python, Rust} {
			l := lexer{ctx: t.Context(), text: text, kinds: make([]Kind, len(text)), rewinds: maxRewinds, jsx: true}
			l.run(map[Language]func(){
				Go: func() { l.braces(Go) }, Rust: func() { l.braces(Rust) }, JavaScript: l.javascript, Python: l.python,
			}[language])
			require.LessOrEqual(t, l.steps, (maxRewinds+2)*(len(text)+maxFrames), "%s %q", language, some)
			require.Empty(t, l.open, "%s %q", language, some)
		}
	}
}
