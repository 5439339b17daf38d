package record

import (
	"encoding/binary"
	"math"
)

// The parts of CBOR (RFC 8949) that records use. The encoder writes only the
// core deterministic form; the reader refuses everything else, so that its
// input is byte for byte the encoder's output.

const (
	majorUint  = 0 << 5
	majorBytes = 2 << 5
	majorText  = 3 << 5
	majorArray = 4 << 5
	majorMap   = 5 << 5
	majorOther = 7 << 5

	cborFalse = majorOther | 20
	cborTrue  = majorOther | 21
	cborNull  = majorOther | 22
	cborF16   = majorOther | 25
	cborF32   = majorOther | 26
	cborF64   = majorOther | 27
)

func appendHead(dst []byte, major byte, n uint64) []byte {
	switch {
	case n < 24:
		return append(dst, major|byte(n))
	case n <= math.MaxUint8:
		return append(dst, major|24, byte(n))
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(dst, major|25), uint16(n))
	case n <= math.MaxUint32:
		return binary.BigEndian.AppendUint32(append(dst, major|26), uint32(n))
	default:
		return binary.BigEndian.AppendUint64(append(dst, major|27), n)
	}
}

func appendText(dst []byte, s string) []byte {
	return append(appendHead(dst, majorText, uint64(len(s))), s...)
}

func appendBytes(dst, b []byte) []byte {
	return append(appendHead(dst, majorBytes, uint64(len(b))), b...)
}

func appendBool(dst []byte, b bool) []byte {
	if b {
		return append(dst, cborTrue)
	}
	return append(dst, cborFalse)
}

// appendFloat writes the shortest of the three widths that keeps f. Callers
// have refused NaN and the infinities.
func appendFloat(dst []byte, f float64) []byte {
	f = plusZero(f)
	f32 := float32(f)
	if float64(f32) != f {
		return binary.BigEndian.AppendUint64(append(dst, cborF64), math.Float64bits(f))
	}
	if h, ok := toFloat16(f32); ok {
		return binary.BigEndian.AppendUint16(append(dst, cborF16), h)
	}
	return binary.BigEndian.AppendUint32(append(dst, cborF32), math.Float32bits(f32))
}

// toFloat16 returns the half-precision bits of f when they hold it exactly.
func toFloat16(f float32) (uint16, bool) {
	bits := math.Float32bits(f)
	sign := uint16(bits >> 16 & 0x8000)
	exp := int(bits>>23&0xff) - 127
	frac := bits & 0x7fffff
	switch {
	case bits&0x7fffffff == 0:
		return sign, true
	case exp >= -14 && exp <= 15: // normal: 10 bits of fraction remain of 23
		if frac&0x1fff != 0 {
			return 0, false
		}
		return sign | uint16(exp+15)<<10 | uint16(frac>>13), true
	case exp >= -24 && exp < -14: // subnormal: the leading 1 becomes explicit
		shift := uint(-exp - 1)
		full := frac | 0x800000
		if full&(1<<shift-1) != 0 {
			return 0, false
		}
		return sign | uint16(full>>shift), true
	default:
		return 0, false
	}
}

// fromFloat16 widens half-precision bits; exp 31 (NaN, infinities) is refused
// by the caller.
func fromFloat16(h uint16) float64 {
	sign := 1.0
	if h&0x8000 != 0 {
		sign = -1
	}
	exp, frac := int(h>>10&0x1f), float64(h&0x3ff)
	if exp == 0 {
		return sign * math.Ldexp(frac, -24)
	}
	return sign * math.Ldexp(1024+frac, exp-25)
}

// cborReader reads deterministic CBOR. After the first failure err is set and
// every further read returns a zero value, so that callers check once per value
// that they use.
type cborReader struct {
	buf []byte
	pos int
	err *FieldError
}

const deterministic = "encode it deterministically (RFC 8949 section 4.2.1): definite lengths, shortest forms, sorted keys"

func (r *cborReader) fail(field, code, problem, remedy string) {
	if r.err == nil {
		r.err = fieldErr(field, code, problem, remedy)
	}
}

func (r *cborReader) truncated(field string) {
	r.fail(field, CodeMalformed, "ends before its value does", "send the whole CBOR item")
}

// head reads one head of the given major type. want names the expected type
// for the error.
func (r *cborReader) head(field string, major byte, want string) uint64 {
	if r.err != nil {
		return 0
	}
	if r.pos >= len(r.buf) {
		r.truncated(field)
		return 0
	}
	b := r.buf[r.pos]
	if b&0xe0 != major {
		r.fail(field, CodeWrongType, "is "+describe(b)+" instead of "+want, "give "+want)
		return 0
	}
	n, size, ok := readArgument(r.buf[r.pos:])
	if size == 0 {
		r.truncated(field)
		return 0
	}
	if !ok {
		r.fail(field, CodeNotCanonical, "has an indefinite length or a head that is not the shortest", deterministic)
		return 0
	}
	r.pos += size
	return n
}

// readArgument reads the argument of the head that begins b. size is 0 when b
// is too short; ok is false when the head is indefinite, reserved or longer
// than needed.
func readArgument(b []byte) (n uint64, size int, ok bool) {
	info := b[0] & 0x1f
	switch {
	case info < 24:
		return uint64(info), 1, true
	case info > 27:
		return 0, 1, false
	}
	width := 1 << (info - 24)
	if len(b) < 1+width {
		return 0, 0, false
	}
	for _, c := range b[1 : 1+width] {
		n = n<<8 | uint64(c)
	}
	// The least value that needs this width.
	least := [...]uint64{24, 1 << 8, 1 << 16, 1 << 32}[info-24]
	return n, 1 + width, n >= least
}

// take returns the next n bytes; they alias the input.
func (r *cborReader) take(field string, n uint64) []byte {
	if r.err != nil {
		return nil
	}
	if n > uint64(len(r.buf)-r.pos) {
		r.truncated(field)
		return nil
	}
	b := r.buf[r.pos : r.pos+int(n)]
	r.pos += int(n)
	return b
}

// text returns the bytes of a text string; they alias the input. Its length is
// bounded by the input, its UTF-8 is left to the caller's checks.
func (r *cborReader) text(field string) []byte {
	return r.take(field, r.head(field, majorText, "text"))
}

func (r *cborReader) uint(field string) uint64 {
	return r.head(field, majorUint, "an unsigned integer")
}

// fixed fills dst from a byte string of exactly its length.
func (r *cborReader) fixed(field string, dst []byte) {
	n := r.head(field, majorBytes, "a byte string")
	if r.err == nil && n != uint64(len(dst)) {
		r.fail(field, CodeWrongType, "is "+utoa(n)+" bytes long", "give a byte string of "+utoa(uint64(len(dst)))+" bytes")
		return
	}
	copy(dst, r.take(field, n))
}

func (r *cborReader) float(field string) float64 {
	if r.err != nil {
		return 0
	}
	if r.pos >= len(r.buf) {
		r.truncated(field)
		return 0
	}
	start := r.pos
	b := r.buf[start]
	if b < cborF16 || b > cborF64 {
		r.fail(field, CodeWrongType, "is "+describe(b)+" instead of a float", "give a CBOR float, also for whole numbers")
		return 0
	}
	r.pos++
	raw := r.take(field, 2<<(b-cborF16))
	if r.err != nil {
		return 0
	}
	var f float64
	switch b {
	case cborF16:
		h := binary.BigEndian.Uint16(raw)
		if h&0x7c00 == 0x7c00 {
			f = math.NaN()
		} else {
			f = fromFloat16(h)
		}
	case cborF32:
		f = float64(math.Float32frombits(binary.BigEndian.Uint32(raw)))
	default:
		f = math.Float64frombits(binary.BigEndian.Uint64(raw))
	}
	if math.IsNaN(f) || math.IsInf(f, 0) {
		r.fail(field, CodeOutOfRange, "is not a finite number", "give a finite number")
		return 0
	}
	var short [9]byte
	if string(appendFloat(short[:0], f)) != string(r.buf[start:r.pos]) {
		r.fail(field, CodeNotCanonical, "is a float that is not in its shortest form, or is -0", deterministic)
		return 0
	}
	return f
}

func (r *cborReader) bool(field string) bool {
	if r.err != nil {
		return false
	}
	if r.pos >= len(r.buf) {
		r.truncated(field)
		return false
	}
	b := r.buf[r.pos]
	if b != cborFalse && b != cborTrue {
		r.fail(field, CodeWrongType, "is "+describe(b)+" instead of a boolean", "give true or false")
		return false
	}
	r.pos++
	return b == cborTrue
}

// end refuses trailing bytes.
func (r *cborReader) end() {
	if r.err == nil && r.pos != len(r.buf) {
		r.fail("", CodeMalformed, utoa(uint64(len(r.buf)-r.pos))+" bytes follow the item", "send one CBOR item, or a batch to the batch route")
	}
}

// describe names the type of the item that begins with b.
func describe(b byte) string {
	switch b & 0xe0 {
	case majorUint, 1 << 5:
		return "an integer"
	case majorBytes:
		return "a byte string"
	case majorText:
		return "text"
	case majorArray:
		return "an array"
	case majorMap:
		return "a map"
	case 6 << 5:
		return "a tag"
	}
	switch b {
	case cborFalse, cborTrue:
		return "a boolean"
	case cborNull:
		return "null"
	case cborF16, cborF32, cborF64:
		return "a float"
	default:
		return "an unknown simple value"
	}
}
