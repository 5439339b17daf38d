package extract

import (
	"bytes"
	"context"
	"strings"

	"github.com/stemedb/stemedb/aphoria/internal/source"
)

// pythonTLS finds verify=False where a client of HTTP is called or set up, and
// CERT_NONE where a context or a client is. It reads the code token by token
// and tracks the call that each place is an argument of; nothing else decides.
func pythonTLS(ctx context.Context, f *source.File, m *Modules) []Observation {
	if !bytes.Contains(f.Text, []byte("verify")) && !bytes.Contains(f.Text, []byte("CERT_NONE")) {
		return nil
	}
	p := pythonFinder{file: f, modules: m, open: []pyBracket{{}}}
	kinds := f.Kinds(ctx)
	for at, steps := 0, 0; at < len(f.Text); steps++ {
		if steps%4096 == 0 && ctx.Err() != nil {
			break
		}
		at = p.token(kinds, at)
	}
	return p.found
}

// pyBracket is an open bracket, or the file itself.
type pyBracket struct {
	call      string // the dotted name before it; "" for none
	declares  bool   // the parameters of a def, or the bases of a class
	lambda    bool   // the parameters of a lambda are being read
	first     string // the first argument, when it is a dotted name
	arguments int
}

type pythonFinder struct {
	file    *source.File
	modules *Modules
	found   []Observation
	open    []pyBracket
	deeper  int // brackets beyond maxPyDepth

	path   pyPath // the dotted name that was read last
	target pyPath // the dotted name before the last "=", when nothing is in between
	last   string // the last token; a name is "name", a string "string"
}

// pyPath is a dotted name.
type pyPath struct {
	text   string
	before string // the token before it
	offset int    // of its last part
}

func (p pyPath) name() string { return p.text[strings.LastIndexByte(p.text, '.')+1:] }

// token reads the token at offset and returns the offset after it.
func (p *pythonFinder) token(kinds []source.Kind, at int) int {
	text := p.file.Text
	c := text[at]
	switch {
	case kinds[at] == source.Comment || c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == '\\':
		return at + 1
	case kinds[at] == source.String:
		end := at
		for end < len(text) && kinds[end] == source.String {
			end++
		}
		p.text(string(text[at:min(end, at+32)]), at)
		return end
	case isIdentifier(c) || c >= 0x80:
		end := at
		for end < len(text) && kinds[end] == source.Code && (isIdentifier(text[end]) || text[end] >= 0x80) {
			end++
		}
		p.word(string(text[at:end]), at)
		return end
	case c == '=' && at+1 < len(text) && text[at+1] == '=':
		p.operator("==")
		return at + 2
	default:
		p.operator(string(c))
		return at + 1
	}
}

// maxPyDepth bounds the brackets that are tracked; Python itself allows 200.
const maxPyDepth = 1000

// maxPyPath bounds a dotted name; no relevant one comes near it.
const maxPyPath = 256

func (p *pythonFinder) word(word string, at int) {
	if p.last == "." && len(p.path.text)+len(word) < maxPyPath {
		p.path.text += "." + word
		p.path.offset = at
	} else {
		p.path = pyPath{text: word, before: p.last, offset: at}
	}
	if word == "lambda" {
		p.bracket().lambda = true
	}
	p.last = "name"
	if word == "def" || word == "class" {
		p.last = word
	}
	if p.path.before == "=" {
		p.value(p.path.name())
	}
}

func (p *pythonFinder) text(quoted string, at int) {
	if p.last == "=" {
		p.value(strings.Trim(quoted, `"'`))
	}
	p.path, p.last = pyPath{offset: at}, "string"
}

func (p *pythonFinder) bracket() *pyBracket { return &p.open[len(p.open)-1] }

func (p *pythonFinder) operator(op string) {
	b := p.bracket()
	switch op {
	case "(", "[", "{":
		if len(p.open) > maxPyDepth {
			p.deeper++
			break
		}
		n := pyBracket{}
		if op == "(" && p.last == "name" {
			n.call, n.declares = p.path.text, p.path.before == "def" || p.path.before == "class"
		}
		p.open = append(p.open, n)
	case ")", "]", "}":
		if p.deeper > 0 {
			p.deeper--
		} else if len(p.open) > 1 {
			p.open = p.open[:len(p.open)-1]
		}
	case ",":
		if b.arguments++; b.arguments == 1 && p.last == "name" {
			b.first = p.path.text
		}
	case ":":
		b.lambda = false
	case "=":
		p.target = pyPath{}
		if p.last == "name" {
			p.target = p.path
		}
	}
	if op == "." && p.last != "name" {
		p.path = pyPath{before: p.last} // a member of a call's result, or of a text
	}
	p.last = op
}

// value handles the value after an equals sign.
func (p *pythonFinder) value(value string) {
	switch name := p.target.name(); {
	case name == "verify" && value == "False":
		p.verify()
	case (name == "verify_mode" || name == "cert_reqs") && value == "CERT_NONE":
		r := verificationOff(0.9, "CERT_NONE asks for no certificate")
		if p.declared() {
			r = r.softer()
		}
		p.add(r)
	}
}

func (p *pythonFinder) add(r finding) {
	p.found = append(p.found, r.observe(p.file, p.modules, p.target.offset))
}

// declared reports whether the place is a parameter's default.
func (p *pythonFinder) declared() bool { return p.bracket().declares || p.bracket().lambda }

// verify judges verify=False, which is also an ordinary name.
func (p *pythonFinder) verify() {
	r := verificationOff(0.85, "verify=False accepts any certificate")
	b := p.bracket()
	switch {
	case p.declared():
		return
	case len(p.open) == 1 || b.call == "" && p.target.text != "verify": // an assignment
		owner := strings.TrimSuffix(strings.TrimSuffix(p.target.text, "verify"), ".")
		if p.target.text == "verify" || owner == "self" || owner == "cls" {
			r = r.softer()
		}
	default:
		call := b.call
		if strings.HasSuffix("."+call, ".partial") {
			call = b.first
		}
		switch kindOfCall(call) {
		case callsElse:
			return
		case callsUnknown:
			r = r.softer()
		}
	}
	p.add(r)
}

type callKind uint8

const (
	callsUnknown callKind = iota
	callsHTTP
	callsElse
)

// kindOfCall judges a call with verify=False by its dotted name.
func kindOfCall(call string) callKind {
	root, _, _ := strings.Cut(call, ".")
	name := call[strings.LastIndexByte(call, '.')+1:]
	if root == "jwt" || root == "jose" || name == "decode" {
		return callsElse // of a token
	}
	switch root {
	case "requests", "httpx", "boto3", "botocore", "hvac", "aiohttp", "urllib3", "niquests":
		return callsHTTP
	}
	switch name {
	case "get", "post", "put", "patch", "delete", "head", "options", "request", "stream", "send", "urlopen", "client", "resource":
		return callsHTTP
	}
	for _, end := range []string{"Client", "Session", "Transport", "Adapter"} {
		if strings.HasSuffix(name, end) {
			return callsHTTP
		}
	}
	for _, part := range []string{"request", "http", "fetch"} { // self._request, http_get
		if strings.Contains(strings.ToLower(name), part) {
			return callsHTTP
		}
	}
	return callsUnknown
}
