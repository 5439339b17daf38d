package record

// Codes of a FieldError. They are part of the API: callers compare them.
const (
	CodeMalformed        = "malformed"         // not JSON or CBOR at all
	CodeNotCanonical     = "not_canonical"     // CBOR, but not in the deterministic encoding
	CodeMissing          = "missing_field"     // a required field is absent
	CodeUnknown          = "unknown_field"     // a field that a record does not have
	CodeDuplicate        = "duplicate_field"   // a field or a signer given twice
	CodeWrongType        = "wrong_type"        // for example text where a number belongs
	CodeEmpty            = "empty"             // no value where one is required
	CodeTooLong          = "too_long"          // one value over its limit
	CodeTooLarge         = "too_large"         // a whole record or body over its limit
	CodeTooMany          = "too_many"          // more elements than allowed
	CodeOutOfRange       = "out_of_range"      // a number outside its range
	CodeInvalidUTF8      = "invalid_utf8"      // text that is not UTF-8
	CodeControlCharacter = "control_character" // in a name
	CodeInvalidHex       = "invalid_hex"       // wrong length or digits
	CodeInvalidValue     = "invalid_value"     // not one of the defined values
)

// FieldError names the invalid field of a record, the problem and the remedy.
type FieldError struct {
	Field   string // path such as "signatures[2].agent_id"; "" is the whole record
	Code    string // one of the Code constants
	Problem string // without the field's name
	Remedy  string // the caller's next step
}

// Error returns "field: problem; remedy".
func (e *FieldError) Error() string {
	field := e.Field
	if field == "" {
		field = "record"
	}
	if e.Remedy == "" {
		return field + ": " + e.Problem
	}
	return field + ": " + e.Problem + "; " + e.Remedy
}

func fieldErr(field, code, problem, remedy string) *FieldError {
	return &FieldError{Field: field, Code: code, Problem: problem, Remedy: remedy}
}
