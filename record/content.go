package record

import (
	"fmt"
	"math"
	"strconv"
	"unicode"
	"unicode/utf8"
)

// Object is the value that a claim gives its subject. Type selects the one
// value field that counts. Objects made by the functions below are comparable
// with ==, so that equal values make equal map keys.
type Object struct {
	Type ObjectType
	Str  string  // of a text or a reference
	Num  float64 // of a number; finite
	Bool bool    // of a boolean
}

// Text is an object of free text, at most 64 KiB.
func Text(s string) Object { return Object{Type: TypeText, Str: s} }

// Number is an object holding a finite number; -0 becomes 0.
func Number(f float64) Object { return Object{Type: TypeNumber, Num: plusZero(f)} }

// Boolean is an object holding true or false.
func Boolean(b bool) Object { return Object{Type: TypeBoolean, Bool: b} }

// Reference is an object that names another subject, by the rules for
// subjects.
func Reference(subject string) Object { return Object{Type: TypeReference, Str: subject} }

// String shows the value alone, for people.
func (o Object) String() string {
	switch o.Type {
	case TypeNumber:
		return strconv.FormatFloat(o.Num, 'g', -1, 64)
	case TypeBoolean:
		return strconv.FormatBool(o.Bool)
	default:
		return o.Str
	}
}

// Content is an assertion without its signatures. Its id covers every field.
type Content struct {
	Subject        string            `json:"subject"`
	Predicate      string            `json:"predicate"`
	Object         Object            `json:"object"`
	Confidence     float64           `json:"confidence"` // 0..1
	SourceClass    SourceClass       `json:"source_class"`
	SourceHash     *Hash             `json:"source_hash,omitempty"`
	SourceMetadata map[string]string `json:"source_metadata,omitempty"` // empty is absent
	ParentHash     *Hash             `json:"parent_hash,omitempty"`
	Epoch          *Hash             `json:"epoch,omitempty"`
	Lifecycle      Lifecycle         `json:"lifecycle"`
	Timestamp      uint64            `json:"timestamp"` // unix seconds, 0..MaxTimestamp
}

// Signature is one agent's signature on the id of a content.
type Signature struct {
	Agent AgentID  `json:"agent_id"`
	Sig   SigBytes `json:"signature"`
}

// Assertion is a content with the signatures that came with it.
type Assertion struct {
	Content
	Signatures []Signature `json:"signatures"` // 1..64, distinct agents
}

// Validate checks every rule that needs neither a clock nor a key. Its errors
// are *FieldErrors.
func (c *Content) Validate() error {
	if err := checkName("subject", c.Subject, MaxSubject); err != nil {
		return err
	}
	if err := checkName("predicate", c.Predicate, MaxPredicate); err != nil {
		return err
	}
	if err := c.Object.validate(); err != nil {
		return err
	}
	if !(c.Confidence >= 0 && c.Confidence <= 1) {
		return fieldErr("confidence", CodeOutOfRange, fmt.Sprintf("is %v", c.Confidence), "give a number from 0 to 1")
	}
	if c.SourceClass == 0 {
		return fieldErr("source_class", CodeMissing, "is missing", oneOfSourceClasses)
	}
	if !c.SourceClass.Valid() {
		return fieldErr("source_class", CodeInvalidValue, "is not a source class", oneOfSourceClasses)
	}
	if !c.Lifecycle.Valid() {
		return fieldErr("lifecycle", CodeInvalidValue, "is not a lifecycle stage", oneOfLifecycles)
	}
	if err := checkTimestamp(c.Timestamp); err != nil {
		return err
	}
	return checkMetadata(c.SourceMetadata)
}

// Validate checks the content and that 1 to 64 distinct agents signed. It does
// not verify the signatures: Verifier does.
func (a *Assertion) Validate() error {
	if err := a.Content.Validate(); err != nil {
		return err
	}
	return checkSigners(a.Signatures)
}

const (
	oneOfSourceClasses = "use one of regulatory, clinical, observational, expert, community, anecdotal"
	oneOfLifecycles    = "use one of proposed, under_review, approved, deprecated, rejected, or leave it out for proposed"
	oneOfObjectTypes   = "use one of text, number, boolean, reference"
)

func (o *Object) validate() error {
	switch o.Type {
	case TypeText:
		return checkText("object.value", o.Str, MaxText)
	case TypeReference:
		return checkName("object.value", o.Str, MaxReference)
	case TypeNumber:
		if math.IsNaN(o.Num) || math.IsInf(o.Num, 0) {
			return fieldErr("object.value", CodeOutOfRange, "is not a finite number", "give a finite number, or the value as text")
		}
		return nil
	case TypeBoolean:
		return nil
	case 0:
		return fieldErr("object.type", CodeMissing, "is missing", oneOfObjectTypes)
	default:
		return fieldErr("object.type", CodeInvalidValue, "is not an object type", oneOfObjectTypes)
	}
}

// checkName is the rule for subjects, predicates and references.
func checkName(field, s string, limit int) error {
	if s == "" {
		return fieldErr(field, CodeEmpty, "is empty", fmt.Sprintf("give 1 to %d bytes of UTF-8", limit))
	}
	if err := checkText(field, s, limit); err != nil {
		return err
	}
	for i := 0; i < len(s); i++ {
		// Control characters are U+0000..U+001F, U+007F and, as two bytes
		// beginning with C2, U+0080..U+009F.
		if s[i] < 0x20 || s[i] == 0x7f || (s[i] == 0xc2 && s[i+1] < 0xa0) {
			return fieldErr(field, CodeControlCharacter, fmt.Sprintf("has a control character at byte %d", i), "remove it: names are one line of visible text")
		}
	}
	return nil
}

func checkText(field, s string, limit int) error {
	if len(s) > limit {
		return tooLong(field, len(s), limit)
	}
	if !utf8.ValidString(s) {
		return fieldErr(field, CodeInvalidUTF8, "is not valid UTF-8", "encode it as UTF-8; nothing is replaced on your behalf")
	}
	return nil
}

func tooLong(field string, size, limit int) *FieldError {
	return fieldErr(field, CodeTooLong, fmt.Sprintf("is %d bytes long", size), fmt.Sprintf("shorten it to at most %d bytes of UTF-8", limit))
}

func checkTimestamp(ts uint64) error {
	if ts > MaxTimestamp {
		return fieldErr("timestamp", CodeOutOfRange, fmt.Sprintf("is %d, after the year 9999", ts), "give unix seconds, not milliseconds")
	}
	return nil
}

func checkMetadata(m map[string]string) error {
	size := 0
	for k, v := range m {
		if k == "" {
			return fieldErr("source_metadata", CodeEmpty, "has an empty key", "name every entry")
		}
		size += len(k) + len(v)
		if !utf8.ValidString(k) {
			return fieldErr("source_metadata", CodeInvalidUTF8, "has a key that is not valid UTF-8", "encode it as UTF-8")
		}
		if !utf8.ValidString(v) {
			return fieldErr("source_metadata."+pathKey(k), CodeInvalidUTF8, "is not valid UTF-8", "encode it as UTF-8")
		}
	}
	if size > MaxMetadata {
		return fieldErr("source_metadata", CodeTooLarge, fmt.Sprintf("holds %d bytes of keys and values", size), fmt.Sprintf("keep it to %d bytes", MaxMetadata))
	}
	return nil
}

func checkSigners(sigs []Signature) error {
	if len(sigs) == 0 {
		return fieldErr("signatures", CodeEmpty, "is empty", "sign the id with at least one agent key")
	}
	if len(sigs) > MaxSignatures {
		return fieldErr("signatures", CodeTooMany, fmt.Sprintf("has %d entries", len(sigs)), fmt.Sprintf("send at most %d in one request, the rest in another", MaxSignatures))
	}
	for i := range sigs {
		for j := range i {
			if sigs[i].Agent == sigs[j].Agent {
				return fieldErr(fmt.Sprintf("signatures[%d].agent_id", i), CodeDuplicate, fmt.Sprintf("is the same agent as signatures[%d]", j), "send one signature of each agent")
			}
		}
	}
	return nil
}

// ProjectName is the name of a project: [a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?
type ProjectName = string

// ValidProject returns a *FieldError when the project's name is invalid.
func ValidProject(name string) error {
	const remedy = "use 1 to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit"
	if name == "" {
		return fieldErr("project", CodeEmpty, "is empty", remedy)
	}
	if len(name) > MaxProject {
		return fieldErr("project", CodeTooLong, fmt.Sprintf("is %d bytes long", len(name)), remedy)
	}
	for i := 0; i < len(name); i++ {
		b := name[i]
		letter := b >= 'a' && b <= 'z' || b >= '0' && b <= '9'
		inner := i > 0 && i < len(name)-1
		if !letter && (b != '-' || !inner) {
			return fieldErr("project", CodeInvalidValue, fmt.Sprintf("has %q at byte %d", b, i), remedy)
		}
	}
	return nil
}

// pathKey makes a caller's key safe to use in a field path.
func pathKey(k string) string {
	const limit = 64
	if len(k) > limit {
		k = k[:limit] + "…"
	}
	for _, r := range k {
		if r == utf8.RuneError || unicode.IsControl(r) || r == '.' || r == '"' {
			return strconv.Quote(k)
		}
	}
	return k
}

// plusZero turns -0 into 0 and leaves every other value as it is.
func plusZero(f float64) float64 { return f + 0 }
