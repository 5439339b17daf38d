package record

import (
	"bytes"
	"slices"
	"strconv"

	"github.com/zeebo/blake3"
)

// idBuffer is large enough for the canonical bytes of nearly every record, so
// that computing an id does not touch the heap.
const idBuffer = 2048

// AppendCanonical appends the canonical bytes of c (see the package comment).
// They are meaningful only for a content that Validate accepts.
func (c *Content) AppendCanonical(dst []byte) []byte {
	return c.appendMap(dst, nil)
}

// AppendCBOR appends the wire form: the canonical map plus "signatures".
func (a *Assertion) AppendCBOR(dst []byte) []byte {
	return a.appendMap(dst, a.Signatures)
}

// ID is the BLAKE3-256 of the canonical bytes.
func (c *Content) ID() Hash {
	var buf [idBuffer]byte
	return HashOf(c.AppendCanonical(buf[:0]))
}

// HashOf is the BLAKE3-256 of b. Of canonical bytes it is the id.
func HashOf(b []byte) Hash { return blake3.Sum256(b) }

// appendMap writes the fields in the deterministic order of their keys. With
// sigs it is the wire form.
func (c *Content) appendMap(dst []byte, sigs []Signature) []byte {
	n := uint64(7)
	for _, given := range [...]bool{c.Epoch != nil, c.ParentHash != nil, c.SourceHash != nil, len(c.SourceMetadata) > 0, sigs != nil} {
		if given {
			n++
		}
	}
	dst = appendHead(dst, majorMap, n)
	dst = appendHash(dst, "epoch", c.Epoch)
	dst = c.Object.append(appendText(dst, "object"))
	dst = appendText(appendText(dst, "subject"), c.Subject)
	dst = appendText(appendText(dst, "lifecycle"), c.Lifecycle.String())
	dst = appendText(appendText(dst, "predicate"), c.Predicate)
	dst = appendHead(appendText(dst, "timestamp"), majorUint, c.Timestamp)
	dst = appendFloat(appendText(dst, "confidence"), c.Confidence)
	if sigs != nil {
		dst = appendSignatures(appendText(dst, "signatures"), sigs)
	}
	dst = appendHash(dst, "parent_hash", c.ParentHash)
	dst = appendHash(dst, "source_hash", c.SourceHash)
	dst = appendText(appendText(dst, "source_class"), c.SourceClass.String())
	if len(c.SourceMetadata) > 0 {
		dst = appendMetadata(appendText(dst, "source_metadata"), c.SourceMetadata)
	}
	return dst
}

func (o *Object) append(dst []byte) []byte {
	dst = appendHead(dst, majorMap, 2)
	dst = appendText(appendText(dst, "type"), o.Type.String())
	dst = appendText(dst, "value")
	switch o.Type {
	case TypeNumber:
		return appendFloat(dst, o.Num)
	case TypeBoolean:
		return appendBool(dst, o.Bool)
	default:
		return appendText(dst, o.Str)
	}
}

func appendHash(dst []byte, name string, h *Hash) []byte {
	if h == nil {
		return dst
	}
	return appendBytes(appendText(dst, name), h[:])
}

func appendSignatures(dst []byte, sigs []Signature) []byte {
	dst = appendHead(dst, majorArray, uint64(len(sigs)))
	for i := range sigs {
		dst = appendHead(dst, majorMap, 2)
		dst = appendBytes(appendText(dst, "agent_id"), sigs[i].Agent[:])
		dst = appendBytes(appendText(dst, "signature"), sigs[i].Sig[:])
	}
	return dst
}

func appendMetadata(dst []byte, m map[string]string) []byte {
	var buf [16]string
	keys := buf[:0]
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, compareKeys)
	dst = appendHead(dst, majorMap, uint64(len(m)))
	for _, k := range keys {
		dst = appendText(appendText(dst, k), m[k])
	}
	return dst
}

// compareKeys orders text as its encoded bytes are ordered: the head holds the
// length, so the shorter key comes first.
func compareKeys(a, b string) int {
	if len(a) != len(b) {
		return len(a) - len(b)
	}
	if a < b {
		return -1
	}
	if a > b {
		return 1
	}
	return 0
}

// AppendCanonical appends the canonical bytes of the vote, without its
// signature.
func (v *Vote) AppendCanonical(dst []byte) []byte { return v.appendMap(dst, false) }

// AppendCBOR appends the wire form: the canonical map plus "signature".
func (v *Vote) AppendCBOR(dst []byte) []byte { return v.appendMap(dst, true) }

// ID is the BLAKE3-256 of the canonical bytes.
func (v *Vote) ID() Hash {
	var buf [256]byte
	return HashOf(v.AppendCanonical(buf[:0]))
}

func (v *Vote) appendMap(dst []byte, signed bool) []byte {
	n := uint64(4)
	if signed {
		n++
	}
	dst = appendHead(dst, majorMap, n)
	dst = appendBytes(appendText(dst, "agent"), v.Agent[:])
	dst = appendFloat(appendText(dst, "weight"), v.Weight)
	dst = appendBytes(appendText(dst, "assertion"), v.Assertion[:])
	if signed {
		dst = appendBytes(appendText(dst, "signature"), v.Sig[:])
	}
	return appendHead(appendText(dst, "timestamp"), majorUint, v.Timestamp)
}

// DecodeCanonical reads the canonical bytes of a content. It accepts exactly
// the output of AppendCanonical for a valid content and refuses everything else
// with a *FieldError. The result does not alias b.
func DecodeCanonical(b []byte) (*Content, error) {
	a, err := decodeAssertion(b, false)
	if err != nil {
		return nil, err
	}
	return &a.Content, nil
}

// ParseAssertionCBOR reads the wire form and validates it: the canonical map
// plus "signatures", deterministically encoded. Its errors are *FieldErrors.
// Signatures are not verified. The result does not alias b.
func ParseAssertionCBOR(b []byte) (*Assertion, error) {
	return decodeAssertion(b, true)
}

// DecodeCanonicalVote reads the canonical bytes of a vote, without signature.
func DecodeCanonicalVote(b []byte) (*Vote, error) { return decodeVote(b, false) }

// ParseVoteCBOR reads the wire form of a vote and validates it.
func ParseVoteCBOR(b []byte) (*Vote, error) { return decodeVote(b, true) }

// Fields of an assertion in the order of the deterministic encoding, and
// whether each must be there.
type fieldSpec struct {
	name     string
	required bool
}

func contentFields() [12]fieldSpec {
	return [12]fieldSpec{
		{"epoch", false},
		{"object", true},
		{"subject", true},
		{"lifecycle", true},
		{"predicate", true},
		{"timestamp", true},
		{"confidence", true},
		{"signatures", false},
		{"parent_hash", false},
		{"source_hash", false},
		{"source_class", true},
		{"source_metadata", false},
	}
}

func decodeAssertion(b []byte, signed bool) (*Assertion, error) {
	if err := checkRecordSize(b); err != nil {
		return nil, err
	}
	specs := contentFields()
	specs[7].required = signed
	r := cborReader{buf: b}
	var a Assertion
	r.fields(specs[:], func(name string) {
		if name == "signatures" {
			if !signed {
				r.fail(name, CodeUnknown, "is not a field of a content", "leave it out: the id does not cover signatures")
				return
			}
			r.signatures(&a)
			return
		}
		r.contentField(&a.Content, name)
	})
	r.end()
	if r.err != nil {
		return nil, r.err
	}
	err := a.Content.Validate()
	if err == nil && signed {
		err = checkSigners(a.Signatures)
	}
	if err != nil {
		return nil, err
	}
	return &a, nil
}

// fields reads a map whose keys are a subset of specs in the same order, and
// calls value for each.
func (r *cborReader) fields(specs []fieldSpec, value func(name string)) {
	n := r.head("", majorMap, "a map")
	next, seen := 0, uint(0)
	for ; n > 0 && r.err == nil; n-- {
		key := r.text("")
		if r.err != nil {
			return
		}
		i := slices.IndexFunc(specs, func(s fieldSpec) bool { return s.name == string(key) })
		switch {
		case i < 0:
			r.fail(clip(string(key)), CodeUnknown, "is not a field of this record", "leave it out or correct its name")
			return
		case seen>>i&1 == 1:
			r.fail(specs[i].name, CodeDuplicate, "is given twice", "give each field once")
			return
		case i < next:
			r.fail(specs[i].name, CodeNotCanonical, "is out of order", deterministic)
			return
		}
		seen |= 1 << i
		next = i + 1
		value(specs[i].name)
	}
	r.missing(specs, seen)
}

// missing refuses a map that lacks a required field.
func (r *cborReader) missing(specs []fieldSpec, seen uint) {
	for i, s := range specs {
		if s.required && seen>>i&1 == 0 {
			r.fail(s.name, CodeMissing, "is missing", "add it")
		}
	}
}

func (r *cborReader) contentField(c *Content, name string) {
	switch name {
	case "epoch":
		c.Epoch = r.hash(name)
	case "object":
		r.object(&c.Object)
	case "subject":
		c.Subject = r.name(name, MaxSubject)
	case "lifecycle":
		c.Lifecycle = readEnum(r, name, ParseLifecycle, oneOfLifecycles)
	case "predicate":
		c.Predicate = r.name(name, MaxPredicate)
	case "timestamp":
		c.Timestamp = r.uint(name)
	case "confidence":
		c.Confidence = r.float(name)
	case "parent_hash":
		c.ParentHash = r.hash(name)
	case "source_hash":
		c.SourceHash = r.hash(name)
	case "source_class":
		c.SourceClass = readEnum(r, name, ParseSourceClass, oneOfSourceClasses)
	case "source_metadata":
		c.SourceMetadata = r.metadata()
	}
}

func (r *cborReader) hash(field string) *Hash {
	h := new(Hash)
	r.fixed(field, h[:])
	return h
}

// name reads text of a bounded length, so that a hostile length is refused
// before it is copied.
func (r *cborReader) name(field string, limit int) string {
	b := r.text(field)
	if r.err == nil && len(b) > limit {
		r.err = tooLong(field, len(b), limit)
		return ""
	}
	return string(b)
}

func readEnum[T any](r *cborReader, field string, parse func(string) (T, error), remedy string) T {
	var zero T
	b := r.text(field)
	if r.err != nil {
		return zero
	}
	v, err := parse(string(b))
	if err != nil {
		r.fail(field, CodeInvalidValue, "is "+strconv.Quote(clip(string(b))), remedy)
		return zero
	}
	return v
}

func (r *cborReader) object(o *Object) {
	if n := r.head("object", majorMap, "a map"); r.err == nil && n != 2 {
		r.fail("object", CodeWrongType, "has "+utoa(n)+" entries", `give exactly "type" and "value"`)
	}
	if key := r.text("object"); r.err == nil && string(key) != "type" {
		r.fail("object", CodeUnknown, "has "+strconv.Quote(clip(string(key)))+" where \"type\" belongs", deterministic)
	}
	o.Type = readEnum(r, "object.type", ParseObjectType, oneOfObjectTypes)
	if key := r.text("object"); r.err == nil && string(key) != "value" {
		r.fail("object", CodeUnknown, "has "+strconv.Quote(clip(string(key)))+" where \"value\" belongs", deterministic)
	}
	switch o.Type {
	case TypeNumber:
		o.Num = r.float("object.value")
	case TypeBoolean:
		o.Bool = r.bool("object.value")
	default:
		o.Str = r.name("object.value", MaxText)
	}
}

func (r *cborReader) metadata() map[string]string {
	const field = "source_metadata"
	n := r.head(field, majorMap, "a map")
	if r.err != nil {
		return nil
	}
	if n == 0 {
		r.fail(field, CodeEmpty, "is empty", "leave it out")
		return nil
	}
	if n > MaxMetadata {
		r.fail(field, CodeTooLarge, "has "+utoa(n)+" entries", "keep it to "+utoa(MaxMetadata)+" bytes of keys and values")
		return nil
	}
	m := make(map[string]string, min(n, 64))
	last := ""
	for i := range n {
		key := r.name(field, MaxMetadata)
		if r.err != nil {
			return nil
		}
		if i > 0 && compareKeys(key, last) <= 0 {
			code, problem := CodeNotCanonical, "is out of order"
			if _, dup := m[key]; dup {
				code, problem = CodeDuplicate, "is given twice"
			}
			r.fail(field+"."+pathKey(key), code, problem, deterministic)
			return nil
		}
		m[key] = r.name("", MaxMetadata)
		if r.err != nil {
			// Only now, so that good input pays for no path.
			r.err.Field = field + "." + pathKey(key)
			return nil
		}
		last = key
	}
	return m
}

func (r *cborReader) signatures(a *Assertion) {
	n := r.head("signatures", majorArray, "an array")
	if r.err != nil {
		return
	}
	if n > MaxSignatures {
		r.fail("signatures", CodeTooMany, "has "+utoa(n)+" entries", "send at most "+utoa(MaxSignatures)+" in one request, the rest in another")
		return
	}
	a.Signatures = make([]Signature, 0, n)
	for i := range n {
		var s Signature
		r.fields([]fieldSpec{{"agent_id", true}, {"signature", true}}, func(name string) {
			if name == "agent_id" {
				r.fixed(name, s.Agent[:])
			} else {
				r.fixed(name, s.Sig[:])
			}
		})
		if r.err != nil {
			r.err.Field = joinPath(sigField(int(i)), r.err.Field)
			return
		}
		a.Signatures = append(a.Signatures, s)
	}
}

func decodeVote(b []byte, signed bool) (*Vote, error) {
	if err := checkRecordSize(b); err != nil {
		return nil, err
	}
	specs := []fieldSpec{{"agent", true}, {"weight", true}, {"assertion", true}, {"signature", signed}, {"timestamp", true}}
	r := cborReader{buf: b}
	var v Vote
	r.fields(specs, func(name string) {
		switch name {
		case "agent":
			r.fixed(name, v.Agent[:])
		case "weight":
			v.Weight = r.float(name)
		case "assertion":
			r.fixed(name, v.Assertion[:])
		case "signature":
			if !signed {
				r.fail(name, CodeUnknown, "is not part of a vote's canonical bytes", "leave it out")
				return
			}
			r.fixed(name, v.Sig[:])
		case "timestamp":
			v.Timestamp = r.uint(name)
		}
	})
	r.end()
	if r.err != nil {
		return nil, r.err
	}
	if err := v.Validate(); err != nil {
		return nil, err
	}
	return &v, nil
}

func checkRecordSize(b []byte) error {
	if len(b) == 0 {
		return fieldErr("", CodeEmpty, "is empty", "send one record")
	}
	if len(b) > MaxRecordBytes {
		return fieldErr("", CodeTooLarge, "is "+utoa(uint64(len(b)))+" bytes long", "keep one record to "+utoa(MaxRecordBytes)+" bytes")
	}
	return nil
}

func sigField(i int) string { return "signatures[" + strconv.Itoa(i) + "]" }

// joinPath joins a path and a member's name, either of which may be "".
func joinPath(path, name string) string {
	if path == "" || name == "" {
		return path + name
	}
	return path + "." + name
}

func utoa(n uint64) string { return strconv.FormatUint(n, 10) }

// clip bounds a caller's text in an error, and keeps it on one line.
func clip(s string) string {
	const limit = 64
	if len(s) > limit {
		s = s[:limit] + "…"
	}
	return string(bytes.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f {
			return '\uFFFD'
		}
		return r
	}, []byte(s)))
}
