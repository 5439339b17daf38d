package extract

import (
	"slices"
	"strings"
)

// pyImports knows the full names of imported names, so that an alias is judged
// like the name itself. A name that the file also binds in another way, such as
// a parameter or a variable, has no known full name.
type pyImports struct {
	full  map[string][]string // by local name; more than one in try … except ImportError
	other pyBindings

	stage  pyStage
	module string // of "from module import"
	path   string // the name that is being imported
	alias  string
	as     bool // the alias comes next
	parens bool // the list is in parentheses
}

type pyStage uint8

const (
	pyOutside pyStage = iota
	pyFrom            // after from
	pyImport          // after import
	pyList            // after from … import
)

// maxPyFull bounds the full names of one local name.
const maxPyFull = 4

func newPyImports() *pyImports {
	return &pyImports{full: make(map[string][]string), other: pyBindings{names: make(map[string]bool)}}
}

// inside reports whether the last token named an imported name.
func (im *pyImports) inside() bool { return im.stage == pyImport || im.stage == pyList }

// resolve returns the possible full names of a dotted name.
func (im *pyImports) resolve(path string) []string {
	root, rest, dotted := strings.Cut(path, ".")
	full := im.full[root]
	if len(full) == 0 || im.other.names[root] {
		return []string{path}
	}
	if !dotted {
		return full
	}
	all := make([]string, len(full))
	for i, name := range full {
		all[i] = name + "." + rest
	}
	return all
}

// token reads the next token of the file.
func (im *pyImports) token(t pyToken) {
	before := im.inside()
	switch im.stage {
	case pyOutside:
		im.outside(t)
	case pyFrom:
		im.from(t)
	default:
		im.names(t)
	}
	if !before || !im.inside() {
		im.other.token(t)
	}
}

func (im *pyImports) outside(t pyToken) {
	if t.kind != pyName {
		return
	}
	switch t.text {
	case "from":
		im.stage, im.module = pyFrom, ""
	case "import":
		im.stage, im.module = pyImport, ""
	}
}

// from reads the module's name. A from that belongs to yield or raise has no
// import after it.
func (im *pyImports) from(t pyToken) {
	switch {
	case t.kind == pyName && t.text == "import":
		im.stage = pyList
	case (t.kind == pyName || t.is(".")) && len(im.module) < maxPyPath:
		im.module += t.text
	default:
		im.stage = pyOutside
	}
}

func (im *pyImports) names(t pyToken) {
	switch {
	case t.kind == pyName && t.text == "as":
		im.as = true
	case t.kind == pyName && im.as:
		im.alias, im.as = t.text, false
	case t.kind == pyName || t.is("."):
		if len(im.path) < maxPyPath {
			im.path += t.text
		}
	case t.is(","):
		im.commit()
	case t.is("(") && im.stage == pyList:
		im.parens = true
	case t.kind == pyLineEnd && im.parens, t.is("*"):
	default:
		im.commit()
		im.stage, im.parens = pyOutside, false
	}
}

// commit records one imported name.
func (im *pyImports) commit() {
	local, full := im.alias, im.path
	if im.stage == pyList {
		full = im.module + "." + im.path
	}
	if local == "" && im.stage == pyImport {
		full, _, _ = strings.Cut(full, ".") // import a.b binds a
	}
	if local == "" {
		local = strings.TrimPrefix(full, im.module+".")
	}
	if im.path != "" && !slices.Contains(im.full[local], full) {
		if len(im.full[local]) == maxPyFull {
			im.other.names[local] = true // too many to judge
		} else {
			im.full[local] = append(im.full[local], full)
		}
	}
	im.path, im.alias, im.as = "", "", false
}

// pyBindings finds names that are bound by anything except an import: assigned,
// defined, a parameter, or the target of for, with or except. In doubt a name
// counts as bound.
type pyBindings struct {
	names map[string]bool

	last      pyToken
	open      []bool   // for each open bracket, whether it holds parameters
	deeper    int      // brackets beyond maxPyDepth
	statement []string // its names outside of brackets that are not followed by . ( or [
	colon     string   // the name before the last colon
	define    bool     // the parameters of a def come next
	targets   bool     // between for and in
	lambda    bool     // between lambda and its colon
}

func (b *pyBindings) token(t pyToken) {
	switch {
	case t.kind == pyLineEnd && len(b.open)+b.deeper > 0:
		return
	case t.kind == pyLineEnd || t.is(";"):
		b.statement, b.define, b.targets, b.lambda = b.statement[:0], false, false, false
	case t.kind == pyName:
		b.name(t.text)
	case t.kind == pyOperator:
		b.operator(t.text)
	}
	b.last = t
}

func (b *pyBindings) name(word string) {
	switch word {
	case "def", "for", "lambda", "in":
		b.define = word == "def" || b.define
		b.targets = word == "for" || b.targets && word != "in"
		b.lambda = word == "lambda" || b.lambda
		return
	}
	after := func(words ...string) bool { return b.last.kind != pyString && slices.Contains(words, b.last.text) }
	parameters := len(b.open) > 0 && b.open[len(b.open)-1] && b.deeper == 0
	switch {
	case after("."):
	case after("def", "class", "as"), b.targets,
		parameters && after("(", ",", "*"),
		b.lambda && after("lambda", ",", "*"):
		b.names[word] = true
	case len(b.open)+b.deeper == 0:
		b.statement = append(b.statement, word)
	}
}

func (b *pyBindings) operator(op string) {
	switch op {
	case "(", "[", "{", ".":
		if n := len(b.statement); n > 0 && b.last.kind == pyName && len(b.open)+b.deeper == 0 {
			b.statement = b.statement[:n-1]
		}
		if op != "." {
			b.push(op)
		}
	case ")", "]", "}":
		if b.deeper > 0 {
			b.deeper--
		} else if len(b.open) > 0 {
			b.open = b.open[:len(b.open)-1]
		}
	case ":":
		b.lambda, b.colon = false, ""
		if b.last.kind == pyName {
			b.colon = b.last.text
		}
	case "=":
		b.assign()
	}
}

func (b *pyBindings) push(op string) {
	if len(b.open) == maxPyDepth {
		b.deeper++
		return
	}
	parameters := op == "(" && b.define
	b.open = append(b.open, parameters)
	b.define = b.define && !parameters
}

func (b *pyBindings) assign() {
	switch {
	case b.last.is(":"):
		b.names[b.colon] = true
	case b.last.is("<"), b.last.is(">"), b.last.is("!"):
	case len(b.open)+b.deeper == 0:
		for _, name := range b.statement {
			b.names[name] = true
		}
		b.statement = b.statement[:0]
	}
}
