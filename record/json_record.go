package record

import (
	"strconv"
	"strings"
)

// Bits of the fields that a JSON record must have.
const (
	bitSubject = iota
	bitPredicate
	bitObject
	bitConfidence
	bitSourceClass
	bitTimestamp
	bitSignatures
	bitSourceHash
	bitSourceMetadata
	bitParentHash
	bitEpoch
	bitLifecycle
)

func (r *jsonReader) assertion(a *Assertion) {
	got := r.fields("", func(name []byte, f *fieldSet) bool {
		if string(name) == "signatures" {
			f.seen(bitSignatures)
			r.signatures(a)
			return true
		}
		return r.contentField(&a.Content, name, f)
	})
	r.require(got, "subject", "predicate", "object", "confidence", "source_class", "timestamp", "signatures")
}

func (r *jsonReader) content(c *Content) {
	got := r.fields("", func(name []byte, f *fieldSet) bool {
		return r.contentField(c, name, f)
	})
	r.require(got, "subject", "predicate", "object", "confidence", "source_class", "timestamp")
}

// require refuses a record that lacks a field; names are in the order of their
// bits, from 0.
func (r *jsonReader) require(got uint, names ...string) {
	for bit, name := range names {
		if got>>bit&1 == 0 {
			r.fail(name, CodeMissing, "is missing", "add it")
		}
	}
}

func (r *jsonReader) contentField(c *Content, name []byte, f *fieldSet) bool {
	switch string(name) {
	case "subject":
		f.seen(bitSubject)
		c.Subject = string(r.text("subject"))
	case "predicate":
		f.seen(bitPredicate)
		c.Predicate = string(r.text("predicate"))
	case "object":
		f.seen(bitObject)
		r.object("object", &c.Object)
	case "confidence":
		f.seen(bitConfidence)
		c.Confidence = r.float("confidence")
	case "source_class":
		f.seen(bitSourceClass)
		c.SourceClass = jsonEnum(r, "source_class", ParseSourceClass, oneOfSourceClasses)
	case "timestamp":
		f.seen(bitTimestamp)
		c.Timestamp = r.uint("timestamp")
	case "source_hash":
		f.seen(bitSourceHash)
		c.SourceHash = r.hash("source_hash")
	case "source_metadata":
		f.seen(bitSourceMetadata)
		c.SourceMetadata = r.metadata()
	case "parent_hash":
		f.seen(bitParentHash)
		c.ParentHash = r.hash("parent_hash")
	case "epoch":
		f.seen(bitEpoch)
		c.Epoch = r.hash("epoch")
	case "lifecycle":
		f.seen(bitLifecycle)
		c.Lifecycle = jsonEnum(r, "lifecycle", ParseLifecycle, oneOfLifecycles)
	default:
		return false
	}
	return true
}

// object reads {"type":…,"value":…} in either order.
func (r *jsonReader) object(path string, o *Object) {
	if r.err != nil {
		return
	}
	if r.objectFields(o); r.err != nil {
		r.err.Field = joinPath(path, r.err.Field)
	}
}

// objectFields reads an object; paths in its errors begin inside it.
func (r *jsonReader) objectFields(o *Object) {
	*o = Object{}
	var kind byte // of the value: '"', '0', or 'b' for a boolean
	got := r.fields("", func(name []byte, f *fieldSet) bool {
		switch string(name) {
		case "type":
			f.seen(0)
			o.Type = jsonEnum(r, "type", ParseObjectType, oneOfObjectTypes)
		case "value":
			f.seen(1)
			kind = r.objectValue("value", o)
		default:
			return false
		}
		return true
	})
	r.require(got, "type", "value")
	want, name := byte('"'), "a string"
	switch o.Type {
	case TypeNumber:
		want, name = '0', "a number"
	case TypeBoolean:
		want, name = 'b', "true or false"
	}
	if r.err == nil && kind != want {
		r.fail("value", CodeWrongType, "does not fit type "+o.Type.String(), "give "+name+", or another type")
	}
}

func (r *jsonReader) objectValue(field string, o *Object) byte {
	if r.err != nil {
		return 0
	}
	switch r.dec.PeekKind() {
	case '0':
		o.Num = r.float(field)
		return '0'
	case 't', 'f':
		raw := r.scalar(field)
		o.Bool = len(raw) == len("true")
		return 'b'
	default:
		o.Str = string(r.text(field))
		return '"'
	}
}

func (r *jsonReader) metadata() map[string]string {
	const path = "source_metadata"
	m := make(map[string]string)
	r.fields(path, func(name []byte, _ *fieldSet) bool {
		key := string(name)
		if _, dup := m[key]; dup {
			r.fail("", CodeDuplicate, "is given twice", "give each key once")
		}
		m[key] = string(r.text(""))
		if r.err != nil {
			// Only now, so that good input pays for no path.
			r.err.Field = path + "." + pathKey(key)
		}
		return true
	})
	if r.err == nil && len(m) == 0 {
		r.fail(path, CodeEmpty, "is empty", "leave it out")
	}
	return m
}

func (r *jsonReader) signatures(a *Assertion) {
	if !r.peek("signatures", '[', "an array") {
		return
	}
	if _, err := r.dec.ReadToken(); err != nil {
		r.err = jsonFault("signatures", err)
		return
	}
	a.Signatures = make([]Signature, 0, 1)
	for r.err == nil && r.dec.PeekKind() != ']' {
		if len(a.Signatures) == MaxSignatures {
			r.fail("signatures", CodeTooMany, "has more than "+strconv.Itoa(MaxSignatures)+" entries", "send at most that many in one request, the rest in another")
			return
		}
		var s Signature
		r.signature(&s)
		if r.err != nil {
			r.err.Field = joinPath(sigField(len(a.Signatures)), r.err.Field)
			return
		}
		a.Signatures = append(a.Signatures, s)
	}
	r.closing("signatures")
}

// signature reads one entry; paths in its errors begin inside the entry.
func (r *jsonReader) signature(s *Signature) {
	got := r.fields("", func(name []byte, f *fieldSet) bool {
		switch string(name) {
		case "agent_id":
			f.seen(0)
			r.hex("agent_id", s.Agent[:])
		case "signature":
			f.seen(1)
			r.hex("signature", s.Sig[:])
		default:
			return false
		}
		return true
	})
	r.require(got, "agent_id", "signature")
}

func (r *jsonReader) vote(v *Vote) {
	got := r.fields("", func(name []byte, f *fieldSet) bool {
		switch string(name) {
		case "assertion":
			f.seen(0)
			r.hex("assertion", v.Assertion[:])
		case "agent":
			f.seen(1)
			r.hex("agent", v.Agent[:])
		case "weight":
			f.seen(2)
			v.Weight = r.float("weight")
		case "timestamp":
			f.seen(3)
			v.Timestamp = r.uint("timestamp")
		case "signature":
			f.seen(4)
			r.hex("signature", v.Sig[:])
		default:
			return false
		}
		return true
	})
	r.require(got, "assertion", "agent", "weight", "timestamp", "signature")
}

// isUTF8Fault recognises an unexported error of the JSON library by its text:
// bytes that are not UTF-8, or an escape that is half a surrogate pair.
func isUTF8Fault(cause string) bool {
	return strings.Contains(cause, "invalid UTF-8") || strings.Contains(cause, "surrogate")
}
