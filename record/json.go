package record

import (
	"errors"
	"math"
	"strconv"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// ParseAssertionJSON reads the JSON wire form of one assertion and validates
// it. Its errors are *FieldErrors that name the field. Signatures are not
// verified. The result does not alias b.
func ParseAssertionJSON(b []byte) (*Assertion, error) {
	var a Assertion
	if err := parseJSON(b, func(r *jsonReader) { r.assertion(&a) }); err != nil {
		return nil, err
	}
	if err := a.Validate(); err != nil {
		return nil, err
	}
	return &a, nil
}

// ParseContentJSON reads a content that is not signed yet and validates it.
func ParseContentJSON(b []byte) (*Content, error) {
	var c Content
	if err := parseJSON(b, func(r *jsonReader) { r.content(&c) }); err != nil {
		return nil, err
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return &c, nil
}

// ParseVoteJSON reads the JSON wire form of one vote and validates it.
func ParseVoteJSON(b []byte) (*Vote, error) {
	var v Vote
	if err := parseJSON(b, func(r *jsonReader) { r.vote(&v) }); err != nil {
		return nil, err
	}
	if err := v.Validate(); err != nil {
		return nil, err
	}
	return &v, nil
}

// MarshalJSON returns {"type":…,"value":…}.
func (o Object) MarshalJSON() ([]byte, error) {
	dst := append([]byte(`{"type":"`), o.Type.String()...)
	dst = append(dst, `","value":`...)
	switch o.Type {
	case TypeNumber:
		if math.IsNaN(o.Num) || math.IsInf(o.Num, 0) {
			return nil, o.validate()
		}
		dst = jsontext.AppendFloat(dst, o.Num, 64)
	case TypeBoolean:
		dst = strconv.AppendBool(dst, o.Bool)
	default:
		var err error
		if dst, err = jsontext.AppendQuote(dst, o.Str); err != nil {
			return nil, fieldErr("object.value", CodeInvalidUTF8, "is not valid UTF-8", "encode it as UTF-8")
		}
	}
	return append(dst, '}'), nil
}

// UnmarshalJSON is the inverse of MarshalJSON.
func (o *Object) UnmarshalJSON(b []byte) error {
	return parseJSON(b, func(r *jsonReader) { r.object("object", o) })
}

// parseJSON runs read over b, which must hold exactly one value. It calls
// json.Unmarshal to use the library's pooled decoders.
func parseJSON(b []byte, read func(*jsonReader)) error {
	if err := checkRecordSize(b); err != nil {
		return err
	}
	r := jsonReader{buf: b, read: read}
	// The reader itself finds duplicate names, since it knows their path.
	err := json.Unmarshal(b, &r, jsontext.AllowDuplicateNames(true))
	switch {
	case r.err != nil:
		return r.err
	case err != nil:
		return jsonFault("", err)
	default:
		return nil
	}
}

// jsonReader reads the values of a record token by token. After the first
// failure err is set and every further read returns a zero value.
type jsonReader struct {
	buf  []byte // dec's input
	read func(*jsonReader)
	dec  *jsontext.Decoder
	err  *FieldError
}

// UnmarshalJSONFrom is called by json.Unmarshal.
func (r *jsonReader) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	r.dec = dec
	r.read(r)
	if r.err != nil {
		return r.err
	}
	return nil
}

func (r *jsonReader) fail(field, code, problem, remedy string) {
	if r.err == nil {
		r.err = fieldErr(field, code, problem, remedy)
	}
}

// peek returns the kind of the next value and refuses every kind but want.
func (r *jsonReader) peek(field string, want jsontext.Kind, name string) bool {
	if r.err != nil {
		return false
	}
	kind := r.dec.PeekKind()
	if kind == want {
		return true
	}
	remedy := "give " + name
	if kind == 'n' {
		remedy += ", or leave the field out when it is optional"
	}
	if text := kindName(kind); text != "" {
		r.fail(field, CodeWrongType, "is "+text+" instead of "+name, remedy)
		return false
	}
	_, err := r.dec.ReadToken() // for the library's own error
	r.err = jsonFault(field, err)
	return false
}

// scalar reads the next value, which is no object or array. The bytes alias
// the input.
func (r *jsonReader) scalar(field string) []byte {
	v, err := r.dec.ReadValue()
	if err != nil {
		r.err = jsonFault(field, err)
		return nil
	}
	end := int(r.dec.InputOffset())
	return r.buf[end-len(v) : end]
}

// fieldSet records which fields of one object were given.
type fieldSet struct {
	r    *jsonReader
	path string
	name []byte // of the member being read
	got  uint   // a bit for each field seen
}

// seen notes a field and refuses it when it was given before.
func (f *fieldSet) seen(bit uint) {
	if f.got>>bit&1 == 1 {
		f.r.fail(joinPath(f.path, string(f.name)), CodeDuplicate, "is given twice", "give each field once")
	}
	f.got |= 1 << bit
}

// fields reads an object and calls value for each name. value notes the field
// in f before it reads the value, and returns false for a name that does not
// exist. path is "" for the record itself.
func (r *jsonReader) fields(path string, value func(name []byte, f *fieldSet) bool) (got uint) {
	if !r.peek(path, '{', "an object") {
		return 0
	}
	if _, err := r.dec.ReadToken(); err != nil {
		r.err = jsonFault(path, err)
		return 0
	}
	f := fieldSet{r: r, path: path}
	for r.err == nil && r.dec.PeekKind() != '}' {
		f.name = r.name(path)
		if r.err == nil && !value(f.name, &f) {
			r.fail(joinPath(path, pathKey(string(f.name))), CodeUnknown, "is not a field of this record", "leave it out or correct its name")
		}
	}
	r.closing(path)
	return f.got
}

// name reads the name of a member. It aliases the input unless it is escaped.
func (r *jsonReader) name(path string) []byte {
	if kind := r.dec.PeekKind(); kind != '"' {
		_, err := r.dec.ReadToken()
		if err == nil {
			err = jsontext.ErrNonStringName
		}
		r.err = jsonFault(path, err)
		return nil
	}
	return r.unquote(path, r.scalar(path))
}

// closing reads the end of an object or array.
func (r *jsonReader) closing(path string) {
	if r.err != nil {
		return
	}
	if _, err := r.dec.ReadToken(); err != nil {
		r.err = jsonFault(path, err)
	}
}

func (r *jsonReader) unquote(field string, quoted []byte) []byte {
	if r.err != nil {
		return nil
	}
	inner := quoted[1 : len(quoted)-1]
	for _, c := range inner {
		if c == '\\' {
			s, err := jsontext.AppendUnquote(nil, quoted)
			if err != nil {
				r.err = jsonFault(field, err)
			}
			return s
		}
	}
	return inner
}

// text reads a string. It aliases the input unless it is escaped.
func (r *jsonReader) text(field string) []byte {
	if !r.peek(field, '"', "a string") {
		return nil
	}
	return r.unquote(field, r.scalar(field))
}

func (r *jsonReader) hex(field string, dst []byte) {
	s := r.text(field)
	if r.err != nil {
		return
	}
	if err := decodeHex(dst, s); err != nil {
		r.fail(field, CodeInvalidHex, err.Error(), "give "+strconv.Itoa(2*len(dst))+" hex digits")
	}
}

func (r *jsonReader) hash(field string) *Hash {
	h := new(Hash)
	r.hex(field, h[:])
	return h
}

func (r *jsonReader) float(field string) float64 {
	if !r.peek(field, '0', "a number") {
		return 0
	}
	raw := r.scalar(field)
	if r.err != nil {
		return 0
	}
	f, err := strconv.ParseFloat(string(raw), 64)
	if err != nil {
		r.fail(field, CodeOutOfRange, "is "+clip(string(raw))+", which no 64-bit float holds", "give a finite number of at most about 1.8e308")
		return 0
	}
	return plusZero(f)
}

func (r *jsonReader) uint(field string) uint64 {
	if !r.peek(field, '0', "a number") {
		return 0
	}
	raw := r.scalar(field)
	if r.err != nil {
		return 0
	}
	n, err := strconv.ParseUint(string(raw), 10, 64)
	if err != nil {
		r.fail(field, CodeOutOfRange, "is "+clip(string(raw)), "give a whole number from 0 without fraction or exponent")
	}
	return n
}

func jsonEnum[T any](r *jsonReader, field string, parse func(string) (T, error), remedy string) T {
	var zero T
	s := r.text(field)
	if r.err != nil {
		return zero
	}
	v, err := parse(string(s))
	if err != nil {
		r.fail(field, CodeInvalidValue, "is "+strconv.Quote(clip(string(s))), remedy)
		return zero
	}
	return v
}

// jsonFault turns an error of the JSON library into a *FieldError.
func jsonFault(field string, err error) *FieldError {
	var syntactic *jsontext.SyntacticError
	if !errors.As(err, &syntactic) {
		return fieldErr(field, CodeMalformed, "is not valid JSON", "send one JSON value that is complete")
	}
	problem := "is not valid JSON at byte " + strconv.FormatInt(syntactic.ByteOffset, 10)
	if syntactic.Err == nil {
		return fieldErr(field, CodeMalformed, problem, "send complete JSON")
	}
	cause := syntactic.Err.Error()
	if isUTF8Fault(cause) {
		return fieldErr(field, CodeInvalidUTF8, "has invalid UTF-8 at byte "+strconv.FormatInt(syntactic.ByteOffset, 10), "encode text as UTF-8, and surrogates in pairs; nothing is replaced on your behalf")
	}
	return fieldErr(field, CodeMalformed, problem+": "+printable(cause), "send complete JSON")
}

func kindName(k jsontext.Kind) string {
	switch k {
	case 'n':
		return "null"
	case 't', 'f':
		return "a boolean"
	case '"':
		return "a string"
	case '0':
		return "a number"
	case '{':
		return "an object"
	case '[':
		return "an array"
	default:
		return ""
	}
}

func printable(s string) string {
	if utf8.ValidString(s) {
		return clip(s)
	}
	return strconv.Quote(clip(s))
}
