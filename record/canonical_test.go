package record

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/stretchr/testify/require"
)

// The encoder must agree with an independent one on every content.
func TestCanonicalAgreesWithReference(t *testing.T) {
	mode := referenceMode(t)
	r := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		c := randomContent(r)
		require.NoError(t, c.Validate())
		want, err := mode.Marshal(referenceMap(&c))
		require.NoError(t, err)
		require.Equal(t, want, c.AppendCanonical(nil), "%+v", c)
	}
}

func TestFloatAgreesWithReference(t *testing.T) {
	mode := referenceMode(t)
	check := func(f float64) {
		if math.IsNaN(f) || math.IsInf(f, 0) {
			return
		}
		want, err := mode.Marshal(noMinusZero(f))
		require.NoError(t, err)
		got := appendFloat(nil, f)
		require.Equal(t, want, got, "%v", f)
		r := cborReader{buf: got}
		back := r.float("x")
		require.Nil(t, r.err)
		require.Equal(t, noMinusZero(f), back)
	}
	for h := range 1 << 16 { // every half-precision value
		if h&0x7c00 != 0x7c00 {
			check(fromFloat16(uint16(h)))
		}
	}
	r := rand.New(rand.NewPCG(3, 4))
	for range 20000 {
		check(math.Float64frombits(r.Uint64()))
		check(float64(math.Float32frombits(r.Uint32())))
		check(float64(math.Float32frombits(r.Uint32() &^ 0x1fff)))
	}
}

func TestWireFormsAgreeWithReference(t *testing.T) {
	mode := referenceMode(t)
	r := rand.New(rand.NewPCG(5, 6))
	for range 500 {
		a := &Assertion{Content: randomContent(r)}
		for i := range 1 + r.IntN(3) {
			a.Sign(testKey(byte(i)))
		}
		m := referenceMap(&a.Content)
		var sigs []any
		for _, s := range a.Signatures {
			sigs = append(sigs, map[string]any{"agent_id": s.Agent[:], "signature": s.Sig[:]})
		}
		m["signatures"] = sigs
		want, err := mode.Marshal(m)
		require.NoError(t, err)
		got := a.AppendCBOR(nil)
		require.Equal(t, want, got)

		back, err := ParseAssertionCBOR(got)
		require.NoError(t, err)
		require.Equal(t, a.ID(), back.ID())
		require.Equal(t, a.Signatures, back.Signatures)
	}
}

func TestVoteAgreesWithReference(t *testing.T) {
	mode := referenceMode(t)
	for _, weight := range []float64{-1, -0.25, math.Copysign(0, -1), 0, 0.1, 1} {
		v := &Vote{Assertion: Hash{1, 2}, Weight: weight, Timestamp: 1_760_000_000}
		SignVote(testKey(2), v)
		m := map[string]any{"assertion": v.Assertion[:], "agent": v.Agent[:], "weight": noMinusZero(weight), "timestamp": v.Timestamp}
		want, err := mode.Marshal(m)
		require.NoError(t, err)
		require.Equal(t, want, v.AppendCanonical(nil))
		back, err := DecodeCanonicalVote(want)
		require.NoError(t, err)
		require.Equal(t, v.ID(), back.ID())

		m["signature"] = v.Sig[:]
		want, err = mode.Marshal(m)
		require.NoError(t, err)
		require.Equal(t, want, v.AppendCBOR(nil))
		back, err = ParseVoteCBOR(want)
		require.NoError(t, err)
		require.Equal(t, v.Sig, back.Sig)
		require.Equal(t, v.ID(), back.ID())
	}
}

func TestDecodeCanonicalRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for range 2000 {
		c := randomContent(r)
		b := c.AppendCanonical(nil)
		back, err := DecodeCanonical(b)
		require.NoError(t, err)
		require.Equal(t, b, back.AppendCanonical(nil))
		require.Equal(t, c.ID(), back.ID())
	}
}

// After a change of any one byte, canonical bytes are either refused or the
// canonical form of another content.
func TestDecodeCanonicalEveryByteChanged(t *testing.T) {
	c := sampleContent()
	c.Epoch = &Hash{9}
	good := c.AppendCanonical(nil)
	for i := range good {
		for _, flip := range []byte{0x01, 0x20, 0x80, 0xff} {
			bad := append([]byte(nil), good...)
			bad[i] ^= flip
			got, err := DecodeCanonical(bad)
			if err != nil {
				continue
			}
			require.Equal(t, bad, got.AppendCanonical(nil))
			require.NotEqual(t, c.ID(), got.ID())
		}
	}
	for i := range good {
		_, err := DecodeCanonical(good[:i])
		require.Error(t, err)
	}
	_, err := DecodeCanonical(append(good, 0))
	requireField(t, err, "", CodeMalformed)
}

func TestParseCBORRefuses(t *testing.T) {
	det := referenceMode(t)
	marshal := func(v any) []byte {
		b, err := det.Marshal(v)
		require.NoError(t, err)
		return b
	}
	with := func(change func(m map[string]any)) []byte {
		a := sampleAssertion()
		m := referenceMap(&a.Content)
		m["signatures"] = []any{map[string]any{"agent_id": a.Signatures[0].Agent[:], "signature": a.Signatures[0].Sig[:]}}
		change(m)
		return marshal(m)
	}
	set := func(name string, v any) []byte { return with(func(m map[string]any) { m[name] = v }) }
	without := func(name string) []byte { return with(func(m map[string]any) { delete(m, name) }) }
	good := with(func(map[string]any) {})
	long := func(n int) string { return string(make([]byte, n)) }

	unsorted, err := cbor.EncOptions{Sort: cbor.SortCTAP2, ShortestFloat: cbor.ShortestFloatNone}.EncMode()
	require.NoError(t, err)
	longFloat, err := unsorted.Marshal(map[string]any{"agent": make([]byte, 32), "weight": 0.5, "assertion": make([]byte, 32), "signature": make([]byte, 64), "timestamp": uint64(1)})
	require.NoError(t, err)

	_, err = ParseAssertionCBOR(good)
	require.NoError(t, err)
	for name, tc := range map[string]struct {
		body        []byte
		field, code string
	}{
		"nothing":              {nil, "", CodeEmpty},
		"not a map":            {marshal([]int{1}), "", CodeWrongType},
		"too large":            {make([]byte, MaxRecordBytes+1), "", CodeTooLarge},
		"cut":                  {good[:len(good)-1], "source_metadata.commit", CodeMalformed},
		"more follows":         {append(append([]byte(nil), good...), 0xf6), "", CodeMalformed},
		"indefinite map":       {append([]byte{0xbf}, good[1:]...), "", CodeNotCanonical},
		"long head":            {append([]byte{0xb8, good[0] & 0x1f}, good[1:]...), "", CodeNotCanonical},
		"unknown field":        {set("colour", "red"), "colour", CodeUnknown},
		"integer key":          {marshal(map[any]any{1: 2}), "", CodeWrongType},
		"no subject":           {without("subject"), "subject", CodeMissing},
		"no lifecycle":         {without("lifecycle"), "lifecycle", CodeMissing},
		"no signatures":        {without("signatures"), "signatures", CodeMissing},
		"null epoch":           {set("epoch", nil), "epoch", CodeWrongType},
		"short hash":           {set("epoch", make([]byte, 31)), "epoch", CodeWrongType},
		"hash as hex":          {set("parent_hash", Hash{}.String()), "parent_hash", CodeWrongType},
		"long subject":         {set("subject", string(make([]byte, MaxSubject+1))), "subject", CodeTooLong},
		"empty subject":        {set("subject", ""), "subject", CodeEmpty},
		"control in subject":   {set("subject", "a\x00b"), "subject", CodeControlCharacter},
		"C1 in predicate":      {set("predicate", "a\u0085b"), "predicate", CodeControlCharacter},
		"subject as number":    {set("subject", 5), "subject", CodeWrongType},
		"confidence integer":   {set("confidence", 1), "confidence", CodeWrongType},
		"confidence above 1":   {set("confidence", 1.5), "confidence", CodeOutOfRange},
		"confidence NaN":       {set("confidence", math.NaN()), "confidence", CodeOutOfRange},
		"confidence infinite":  {set("confidence", math.Inf(1)), "confidence", CodeOutOfRange},
		"number infinite":      {set("object", map[string]any{"type": "number", "value": math.Inf(-1)}), "object.value", CodeOutOfRange},
		"minus zero":           {set("confidence", math.Copysign(0, -1)), "confidence", CodeNotCanonical},
		"timestamp negative":   {set("timestamp", -1), "timestamp", CodeWrongType},
		"timestamp float":      {set("timestamp", 1.0), "timestamp", CodeWrongType},
		"timestamp millis":     {set("timestamp", uint64(1_760_000_000_000)), "timestamp", CodeOutOfRange},
		"unknown lifecycle":    {set("lifecycle", "draft"), "lifecycle", CodeInvalidValue},
		"unknown class":        {set("source_class", "Expert"), "source_class", CodeInvalidValue},
		"empty class":          {set("source_class", ""), "source_class", CodeInvalidValue},
		"object bare":          {set("object", "x"), "object", CodeWrongType},
		"object empty":         {set("object", map[string]any{}), "object", CodeWrongType},
		"object unknown type":  {set("object", map[string]any{"type": "date", "value": "x"}), "object.type", CodeInvalidValue},
		"object other key":     {set("object", map[string]any{"type": "text", "worth": "x"}), "object", CodeUnknown},
		"object wrong value":   {set("object", map[string]any{"type": "boolean", "value": "x"}), "object.value", CodeWrongType},
		"object number as int": {set("object", map[string]any{"type": "number", "value": 1}), "object.value", CodeWrongType},
		"text too long":        {set("object", map[string]any{"type": "text", "value": long(MaxText + 1)}), "object.value", CodeTooLong},
		"reference empty":      {set("object", map[string]any{"type": "reference", "value": ""}), "object.value", CodeEmpty},
		"metadata empty":       {set("source_metadata", map[string]string{}), "source_metadata", CodeEmpty},
		"metadata nested":      {set("source_metadata", map[string]any{"a": map[string]any{}}), "source_metadata.a", CodeWrongType},
		"metadata number":      {set("source_metadata", map[string]any{"a": 1}), "source_metadata.a", CodeWrongType},
		"metadata too large":   {set("source_metadata", map[string]any{"a": long(2100), "b": long(2100)}), "source_metadata", CodeTooLarge},
		"metadata empty key":   {set("source_metadata", map[string]any{"": "x"}), "source_metadata", CodeEmpty},
		"signatures empty":     {set("signatures", []any{}), "signatures", CodeEmpty},
		"signatures as map":    {set("signatures", map[string]any{}), "signatures", CodeWrongType},
		"too many signatures":  {set("signatures", make([]any, MaxSignatures+1)), "signatures", CodeTooMany},
		"signature short":      {set("signatures", []any{map[string]any{"agent_id": make([]byte, 32), "signature": make([]byte, 63)}}), "signatures[0].signature", CodeWrongType},
		"signature missing":    {set("signatures", []any{map[string]any{"agent_id": make([]byte, 32)}}), "signatures[0].signature", CodeMissing},
		"signature version":    {set("signatures", []any{map[string]any{"agent_id": make([]byte, 32), "signature": make([]byte, 64), "version": 1}}), "signatures[0].version", CodeUnknown},
		"same agent twice": {set("signatures", []any{
			map[string]any{"agent_id": make([]byte, 32), "signature": make([]byte, 64)},
			map[string]any{"agent_id": make([]byte, 32), "signature": make([]byte, 64)},
		}), "signatures[1].agent_id", CodeDuplicate},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := ParseAssertionCBOR(tc.body)
			requireField(t, err, tc.field, tc.code)
			require.Nil(t, a)
		})
	}

	t.Run("vote with a long float", func(t *testing.T) {
		_, err := ParseVoteCBOR(longFloat)
		requireField(t, err, "weight", CodeNotCanonical)
	})
}

// Keys out of order and keys given twice must be built by hand: no encoder
// writes them.
func TestParseCBORRefusesKeyOrder(t *testing.T) {
	v := Vote{Timestamp: 1}
	agent := appendBytes(appendText(nil, "agent"), v.Agent[:])
	weight := appendFloat(appendText(nil, "weight"), 1)
	assertion := appendBytes(appendText(nil, "assertion"), v.Assertion[:])
	signature := appendBytes(appendText(nil, "signature"), v.Sig[:])
	timestamp := appendHead(appendText(nil, "timestamp"), majorUint, 1)
	build := func(parts ...[]byte) []byte {
		b := appendHead(nil, majorMap, uint64(len(parts)))
		for _, p := range parts {
			b = append(b, p...)
		}
		return b
	}
	_, err := ParseVoteCBOR(build(agent, weight, assertion, signature, timestamp))
	require.NoError(t, err)
	_, err = ParseVoteCBOR(build(weight, agent, assertion, signature, timestamp))
	requireField(t, err, "agent", CodeNotCanonical)
	_, err = ParseVoteCBOR(build(agent, agent, weight, assertion, signature, timestamp))
	requireField(t, err, "agent", CodeDuplicate)
	_, err = DecodeCanonicalVote(build(agent, weight, assertion, signature, timestamp))
	requireField(t, err, "signature", CodeUnknown)

	c := sampleContent()
	c.SourceMetadata = nil
	b := c.AppendCanonical(nil)
	b[0]++
	pair := func(k, v string) []byte { return appendText(appendText(nil, k), v) }
	meta := func(parts ...[]byte) []byte {
		m := appendText(append([]byte(nil), b...), "source_metadata")
		return append(m, build(parts...)...)
	}
	_, err = DecodeCanonical(meta(pair("a", ""), pair("b", ""), pair("aa", "")))
	require.NoError(t, err)
	_, err = DecodeCanonical(meta(pair("aa", ""), pair("b", "")))
	requireField(t, err, "source_metadata.b", CodeNotCanonical)
	_, err = DecodeCanonical(meta(pair("b", ""), pair("b", "")))
	requireField(t, err, "source_metadata.b", CodeDuplicate)
	_, err = DecodeCanonical(meta(pair("b", "\xff")))
	requireField(t, err, "source_metadata.b", CodeInvalidUTF8)
	_, err = DecodeCanonical(sampleAssertion().AppendCBOR(nil))
	requireField(t, err, "signatures", CodeUnknown)
}

func TestMinusZeroIsZero(t *testing.T) {
	minus := math.Copysign(0, -1)
	a, b := sampleContent(), sampleContent()
	a.Object, b.Object = Object{Type: TypeNumber, Num: minus}, Number(0)
	a.Confidence, b.Confidence = minus, 0
	require.Equal(t, b.ID(), a.ID())
	require.False(t, math.Signbit(Number(minus).Num))
	require.Equal(t, Number(0), Number(minus))
}
