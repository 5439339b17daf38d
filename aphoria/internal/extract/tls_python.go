package extract

import (
	"bytes"
	"context"
	"slices"
	"strings"

	"github.com/stemedb/stemedb/aphoria/internal/source"
)

const unverifiedContext = "_create_unverified_context"

// pythonTLS finds verify=False where a client of HTTP is called or set up,
// CERT_NONE where a context or a client is, and unverified contexts. It reads
// the code token by token. Only the call that contains a token and the full names
// of the file's imports decide.
func pythonTLS(ctx context.Context, f *source.File, m *Modules) []Observation {
	if !slices.ContainsFunc([]string{"verify", "cert_reqs", "CERT_NONE", unverifiedContext}, func(word string) bool {
		return bytes.Contains(f.Text, []byte(word))
	}) {
		return nil
	}
	p := pythonFinder{file: f, modules: m, open: []pyBracket{{}}, imports: newPyImports(), place: newPyImports()}
	end := pyToken{kind: pyLineEnd, at: len(f.Text)}
	for t := range pyTokens(ctx, f) {
		p.imports.token(t)
	}
	p.imports.token(end)
	for t := range pyTokens(ctx, f) {
		p.token(t)
	}
	p.token(end)
	return p.found
}

// pyBracket is an open bracket, or the file itself.
type pyBracket struct {
	call      string // the dotted name before it; "" for none
	declares  bool   // the parameters of a def, or the bases of a class
	lambda    bool   // the parameters of a lambda are being read
	first     string // the first argument, when it is a dotted name
	arguments int
	unpacks   bool // it follows **, and encloses keyword arguments of call
	keywords  bool // a dict of keyword arguments of call: **{…}
}

type pythonFinder struct {
	file    *source.File
	modules *Modules
	found   []Observation
	imports *pyImports // of the whole file
	place   *pyImports // read up to the last token: whether that is in an import
	open    []pyBracket
	deeper  int // brackets beyond maxPyDepth

	path    pyPath  // the dotted name that was read last
	mention pyPath  // an unverified context, unless "=" follows
	key     pyPath  // the string that was read last, if it may be a keyword
	stars   int     // the "*" that were read last
	last    string  // the last token; a name is "name", a string "string"
	setting setting // the setting whose value is being read
}

// pyPath is a dotted name.
type pyPath struct {
	text   string
	before string // the token before it
	stars  int    // of the "*" before it
	offset int    // of its last part
}

func (p pyPath) name() string { return p.text[strings.LastIndexByte(p.text, '.')+1:] }

// maxPyDepth bounds the brackets that are tracked; Python itself allows 200.
const maxPyDepth = 1000

// maxPyPath bounds a dotted name; no relevant one comes near it.
const maxPyPath = 256

func (p *pythonFinder) token(t pyToken) {
	p.place.token(t)
	p.value(t)
	p.mentioned(t)
	switch t.kind {
	case pyName:
		p.word(t)
	case pyString:
		p.key = pyPath{}
		if p.bracket().keywords && (p.last == "{" || p.last == ",") {
			p.key = pyPath{text: t.text, offset: t.at}
		}
		p.path, p.last, p.stars = pyPath{offset: t.at}, "string", 0
	case pyOperator:
		p.operator(t.text)
	}
}

func (p *pythonFinder) word(t pyToken) {
	word := t.text
	if p.last == "." && len(p.path.text)+len(word) < maxPyPath {
		p.path.text += "." + word
		p.path.offset = t.at
	} else {
		p.path = pyPath{text: word, before: p.last, stars: p.stars, offset: t.at}
	}
	if word == "lambda" {
		p.bracket().lambda = true
	}
	p.last, p.stars = "name", 0
	if word == "def" || word == "class" {
		p.last = word
	}
	if !p.place.inside() && slices.Contains(p.imports.resolve(p.path.text), "ssl."+unverifiedContext) {
		p.mention = p.path
	}
}

// mentioned observes an unverified context that is used. A name before "=" is
// that of an argument.
func (p *pythonFinder) mentioned(t pyToken) {
	if p.mention.text == "" {
		return
	}
	if strings.Contains(p.mention.text, ".") || !t.is("=") {
		r := verificationOff(0.95, "an unverified context accepts any certificate")
		p.add(r, p.mention.offset)
	}
	p.mention = pyPath{}
}

func (p *pythonFinder) bracket() *pyBracket { return &p.open[len(p.open)-1] }

func (p *pythonFinder) operator(op string) {
	b := p.bracket()
	switch op {
	case "(", "[", "{":
		p.opens(op)
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
		if p.last == "string" && p.key.text != "" {
			p.begin(p.key)
		}
	case "=":
		if p.last == "name" {
			p.begin(p.path)
		}
	}
	if op == "." && p.last != "name" {
		p.path = pyPath{before: p.last} // a member of a call's result, or of a text
	}
	if p.stars++; op != "*" {
		p.stars = 0
	}
	p.last = op
}

// opens enters a bracket. Keyword arguments of a call may be in a dict or in a
// call of dict that is unpacked into it.
func (p *pythonFinder) opens(op string) {
	if len(p.open) > maxPyDepth {
		p.deeper++
		return
	}
	b := p.bracket()
	unpacked := pyBracket{call: b.call, first: b.first, arguments: 1}
	mayUnpack := b.call != "" && !b.declares
	n := pyBracket{}
	switch after := p.stars == 2 || b.unpacks && p.last == "("; {
	case op == "(" && p.last == "name" && mayUnpack && p.path.text == "dict" && (p.path.stars == 2 || b.unpacks):
		n = unpacked
	case op == "(" && p.last == "name":
		n.call, n.declares = p.path.text, p.path.before == "def" || p.path.before == "class"
	case op == "(" && after && mayUnpack:
		n = unpacked
		n.unpacks = true
	case op == "{" && after && mayUnpack:
		n = unpacked
		n.keywords = true
	}
	p.open = append(p.open, n)
}

func (p *pythonFinder) add(r finding, offset int) {
	p.found = append(p.found, r.observe(p.file, p.modules, offset))
}

// judge handles a setting with its value.
func (p *pythonFinder) judge(s *setting) {
	switch name := s.target.name(); {
	case name == "verify" && (s.off() || s.isNone()):
		p.verify(s)
	case (name == "verify_mode" || name == "cert_reqs") && !s.negated && p.isCertNone(s):
		r := verificationOff(0.9, "CERT_NONE asks for no certificate")
		if s.declared() || s.computed {
			r = r.softer()
		}
		p.add(r, s.target.offset)
	}
}

func (p *pythonFinder) isCertNone(s *setting) bool {
	if s.isZero() {
		return true // the number of CERT_NONE
	}
	values := []string{s.value}
	if !s.quoted {
		values = p.imports.resolve(s.value)
	}
	return !slices.ContainsFunc(values, func(v string) bool { return pyPath{text: v}.name() != "CERT_NONE" })
}

// verify judges verify=False, which is also an ordinary name. To a call, None
// means the default, which verifies; a session with None does not verify. An
// ordinary name is often empty.
func (p *pythonFinder) verify(s *setting) {
	r := verificationOff(0.85, "verify=False accepts any certificate")
	b := &s.in
	switch {
	case s.declared():
		return
	case s.top || b.call == "" && s.target.text != "verify": // an assignment
		owner := strings.TrimSuffix(strings.TrimSuffix(s.target.text, "verify"), ".")
		if s.target.text == "verify" || owner == "self" || owner == "cls" {
			if s.isNone() || s.value == pyEmpty {
				return
			}
			r = r.softer()
		}
	case s.isNone():
		return
	default:
		calls := p.imports.resolve(b.call)
		if slices.ContainsFunc(calls, func(call string) bool { return strings.HasSuffix("."+call, ".partial") }) {
			calls = p.imports.resolve(b.first)
		}
		switch kindOfCalls(calls) {
		case callsElse:
			return
		case callsUnknown:
			r = r.softer()
		}
	}
	if s.computed && r.Verdict == Block {
		r = r.softer()
	}
	p.add(r, s.target.offset)
}

type callKind uint8

const (
	callsUnknown callKind = iota
	callsHTTP
	callsElse
)

// kindOfCalls judges a call that has one of several full names.
func kindOfCalls(calls []string) callKind {
	kind := kindOfCall(calls[0])
	for _, call := range calls[1:] {
		if kindOfCall(call) != kind {
			return callsUnknown
		}
	}
	return kind
}

// kindOfCall judges a call with verify=False by its full dotted name.
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
