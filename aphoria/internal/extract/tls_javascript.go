package extract

import (
	"bytes"
	"context"
	"regexp"
	"strings"

	"github.com/stemedb/stemedb/aphoria/internal/source"
)

const nodeVariable = "NODE_TLS_REJECT_UNAUTHORIZED"

func nodeOff() finding {
	return verificationOff(0.95, "NODE_TLS_REJECT_UNAUTHORIZED=0 accepts any certificate in the whole process")
}

var (
	// jsOwner is the text before the variable: a dotted name, and the beginning of
	// a member.
	jsOwner = regexp.MustCompile("(?:^|[^\\w$])([\\w$]+(?:\\s*\\??\\.\\s*[\\w$]+)*)\\s*(?:\\??\\.\\s*|(?:\\?\\.)?\\[\\s*['\"`])$")
	jsSet   = regexp.MustCompile("^(?:['\"`]\\s*\\])?\\s*=")
	jsZero  = regexp.MustCompile("^(?:['\"`]0['\"`]|0\\b)")
	// jsProcess is an import of Node's process, or a variable that gets it.
	jsProcess = regexp.MustCompile(`\bimport\s+(?:([\w$]+)\s*,?\s*)?(?:\*\s*as\s+([\w$]+)\s*|(\{[^{}]*\})\s*)?from\s*['"](?:node:)?process['"]` +
		`|([\w$]+|\{[^{}]*\})\s*=\s*(?:(?:globalThis\.|global\.)?process\b|require\s*\(\s*['"](?:node:)?process['"]\s*\))(\s*\.\s*env\b)?`)
	jsNamed = regexp.MustCompile(`^env(?:\s*(?::|\bas\b)\s*([\w$]+))?\b`)
)

// maxJSOwner bounds the text before the variable.
const maxJSOwner = 256

// javascriptEnv finds where the variable that switches verification off is set.
// In another object than the environment of the process it is a FLAG.
func javascriptEnv(ctx context.Context, f *source.File, m *Modules) []Observation {
	if !bytes.Contains(f.Text, []byte(nodeVariable)) {
		return nil
	}
	text, kinds := f.WithoutComments(ctx), f.Kinds(ctx)
	names := jsEnvironment(text, kinds)
	var found []Observation
	for at := 0; ctx.Err() == nil; {
		n := bytes.Index(text[at:], []byte(nodeVariable))
		if n < 0 {
			break
		}
		start := at + n
		at = start + len(nodeVariable)
		set := jsSet.FindIndex(text[at:])
		if set == nil {
			continue
		}
		end := inParentheses(text, at+set[1], jsZero)
		owner := jsOwner.FindSubmatch(text[max(0, start-maxJSOwner):start])
		if end < 0 || owner == nil || kinds[at+set[1]-1] != source.Code {
			continue
		}
		r := nodeOff()
		if !names[jsPath(owner[1])] {
			r = r.softer()
		}
		found = append(found, r.observe(f, m, start))
	}
	return found
}

// jsPath is a dotted name without spaces, and without the global object.
func jsPath(path []byte) string {
	parts := strings.FieldsFunc(string(path), func(r rune) bool { return r == '.' || r == '?' || r < 0x80 && isSpace(byte(r)) })
	if n := len(parts); n > 2 && parts[n-2] == "process" && parts[n-1] == "env" {
		parts = parts[n-2:] // globalThis.process.env
	}
	return strings.Join(parts, ".")
}

// jsEnvironment returns the names of the environment of the process in the file.
func jsEnvironment(text []byte, kinds []source.Kind) map[string]bool {
	names := map[string]bool{"process.env": true}
	for _, at := range jsProcess.FindAllSubmatchIndex(text, -1) {
		if kinds[at[0]] != source.Code {
			continue
		}
		part := func(i int) string {
			if at[2*i] < 0 {
				return ""
			}
			return string(text[at[2*i]:at[2*i+1]])
		}
		for _, name := range []string{part(1), part(2)} {
			names[name+".env"] = true
		}
		names[jsMember(part(3))] = true
		next := bytes.TrimLeft(text[at[1]:min(len(text), at[1]+maxJSOwner)], " \t")
		target := part(4)
		switch {
		case target == "" || len(next) > 0 && bytes.IndexByte([]byte(".?[("), next[0]) >= 0: // part of a longer value
		case target[0] == '{' && part(5) == "":
			names[jsMember(target)] = true
		case target[0] != '{' && part(5) == "":
			names[target+".env"] = true
		case target[0] != '{':
			names[target] = true
		}
	}
	return names
}

// jsMember is the local name of env in {env}, {env: e} or {env as e}.
func jsMember(list string) string {
	for member := range strings.SplitSeq(strings.Trim(list, "{}"), ",") {
		if named := jsNamed.FindStringSubmatch(strings.TrimSpace(member)); named != nil {
			if named[1] != "" {
				return named[1]
			}
			return "env"
		}
	}
	return ""
}
