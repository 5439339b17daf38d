package record

import (
	stdjson "encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/stretchr/testify/require"
)

func sampleJSON(t testing.TB) string {
	t.Helper()
	b, err := json.Marshal(sampleAssertion(), json.Deterministic(true))
	require.NoError(t, err)
	return string(b)
}

func TestJSONRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	for range 1000 {
		a := &Assertion{Content: randomContent(r)}
		a.Sign(testKey(1))
		for _, marshal := range []func() ([]byte, error){
			func() ([]byte, error) { return json.Marshal(a) },
			func() ([]byte, error) { return stdjson.Marshal(a) },
		} {
			b, err := marshal()
			require.NoError(t, err)
			back, err := ParseAssertionJSON(b)
			require.NoError(t, err, "%s", b)
			require.Equal(t, a.ID(), back.ID(), "%s", b)
			require.Equal(t, a.Signatures, back.Signatures)
		}
	}
}

// A client may also decode answers with the standard library.
func TestJSONUnmarshalLenient(t *testing.T) {
	var a Assertion
	require.NoError(t, stdjson.Unmarshal([]byte(sampleJSON(t)), &a))
	want := sampleAssertion()
	require.Equal(t, want.ID(), a.ID())
	require.Equal(t, want.Signatures, a.Signatures)
}

func TestParseJSONForms(t *testing.T) {
	want := sampleAssertion()
	for name, body := range map[string]string{
		"as it is":          sampleJSON(t),
		"value before type": strings.Replace(sampleJSON(t), `{"type":"boolean","value":false}`, `{"value":false,"type":"boolean"}`, 1),
		"spaces":            " \n" + strings.ReplaceAll(sampleJSON(t), ",", " ,\t") + "\r\n",
		"escaped names":     strings.Replace(sampleJSON(t), `"subject"`, `"subj\u0065ct"`, 1),
		"escaped text":      strings.Replace(sampleJSON(t), `code://`, `c\u006fde:\/\/`, 1),
		"upper-case hex":    strings.Replace(sampleJSON(t), want.Signatures[0].Agent.String(), strings.ToUpper(want.Signatures[0].Agent.String()), 1),
		"no lifecycle":      strings.Replace(sampleJSON(t), `"lifecycle":"proposed",`, ``, 1),
		"other number form": strings.Replace(sampleJSON(t), `0.9`, `9e-1`, 1),
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseAssertionJSON([]byte(body))
			require.NoError(t, err)
			require.Equal(t, want.ID(), got.ID())
			require.Equal(t, want.Signatures, got.Signatures)
		})
	}
}

func TestParseJSONRefuses(t *testing.T) {
	good := sampleJSON(t)
	swap := func(old, new string) string {
		require.Contains(t, good, old)
		return strings.Replace(good, old, new, 1)
	}
	const object = `{"type":"boolean","value":false}`
	sig := fmt.Sprintf(`{"agent_id":"%064x","signature":"%0128x"}`, 1, 2)
	sigs := func(s string) string { return good[:strings.Index(good, `"signatures"`)] + `"signatures":` + s + `}` }
	metadata := func(s string) string {
		a, rest, _ := strings.Cut(good, `"source_metadata":`)
		_, rest, _ = strings.Cut(rest, "}")
		return a + `"source_metadata":` + s + rest
	}
	for name, tc := range map[string]struct {
		body        string
		field, code string
	}{
		"nothing":                {"", "", CodeEmpty},
		"blank":                  {" ", "", CodeMalformed},
		"not JSON":               {"hello", "", CodeMalformed},
		"cut":                    {good[:len(good)-1], "", CodeMalformed},
		"cut in a string":        {`{"subject":"abc`, "subject", CodeMalformed},
		"two values":             {good + "{}", "", CodeMalformed},
		"array":                  {"[" + good + "]", "", CodeWrongType},
		"null":                   {"null", "", CodeWrongType},
		"too large":              {strings.Repeat(" ", MaxRecordBytes+1), "", CodeTooLarge},
		"comment":                {"{/*x*/}", "", CodeMalformed},
		"trailing comma":         {good[:len(good)-1] + ",}", "", CodeMalformed},
		"name is a number":       {`{1:2}`, "", CodeMalformed},
		"unknown field":          {swap(`"subject"`, `"colour":1,"subject"`), "colour", CodeUnknown},
		"other case":             {swap(`"subject"`, `"Subject"`), "Subject", CodeUnknown},
		"deep unknown":           {`{"x":` + strings.Repeat("[", 100_000), "x", CodeUnknown},
		"duplicate":              {swap(`"subject":`, `"subject":"a","subject":`), "subject", CodeDuplicate},
		"duplicate escaped":      {swap(`"subject":`, `"s\u0075bject":"a","subject":`), "subject", CodeDuplicate},
		"no subject":             {swap(`"subject":"code://go/github.com/x/y/tls/cert_verification",`, ``), "subject", CodeMissing},
		"null subject":           {swap(`"code://go/github.com/x/y/tls/cert_verification"`, `null`), "subject", CodeWrongType},
		"empty subject":          {swap(`"code://go/github.com/x/y/tls/cert_verification"`, `""`), "subject", CodeEmpty},
		"long subject":           {swap(`cert_verification`, strings.Repeat("x", MaxSubject)), "subject", CodeTooLong},
		"control in subject":     {swap(`cert_verification`, `a\u0000`), "subject", CodeControlCharacter},
		"raw control":            {swap(`cert_verification`, "a\x01"), "subject", CodeMalformed},
		"DEL in subject":         {swap(`cert_verification`, "\x7f"), "subject", CodeControlCharacter},
		"bad UTF-8":              {swap(`cert_verification`, "\xff"), "subject", CodeInvalidUTF8},
		"overlong UTF-8":         {swap(`cert_verification`, "\xc0\x80"), "subject", CodeInvalidUTF8},
		"bad UTF-8 in a name":    {swap(`"subject"`, "\"s\xff\""), "", CodeInvalidUTF8},
		"half a surrogate":       {swap(`cert_verification`, `\ud800`), "subject", CodeInvalidUTF8},
		"long predicate":         {swap(`"enabled"`, `"`+strings.Repeat("p", MaxPredicate+1)+`"`), "predicate", CodeTooLong},
		"predicate number":       {swap(`"enabled"`, `7`), "predicate", CodeWrongType},
		"no object":              {swap(`"object":`+object+`,`, ``), "object", CodeMissing},
		"bare object":            {swap(object, `false`), "object", CodeWrongType},
		"object without type":    {swap(object, `{"value":false}`), "object.type", CodeMissing},
		"object without value":   {swap(object, `{"type":"boolean"}`), "object.value", CodeMissing},
		"object unknown":         {swap(object, `{"type":"boolean","value":false,"unit":"m"}`), "object.unit", CodeUnknown},
		"object type twice":      {swap(object, `{"type":"boolean","type":"boolean","value":false}`), "object.type", CodeDuplicate},
		"object bad type":        {swap(object, `{"type":"Boolean","value":false}`), "object.type", CodeInvalidValue},
		"object mismatch":        {swap(object, `{"type":"number","value":"1"}`), "object.value", CodeWrongType},
		"object null":            {swap(object, `{"type":"text","value":null}`), "object.value", CodeWrongType},
		"object deep":            {swap(object, `{"type":"text","value":[[[[1]]]]}`), "object.value", CodeWrongType},
		"number overflow":        {swap(object, `{"type":"number","value":1e309}`), "object.value", CodeOutOfRange},
		"NaN":                    {swap(object, `{"type":"number","value":NaN}`), "object.value", CodeMalformed},
		"Infinity":               {swap(object, `{"type":"number","value":Infinity}`), "object.value", CodeMalformed},
		"leading zero":           {swap(object, `{"type":"number","value":01}`), "object", CodeMalformed},
		"text too long":          {swap(object, `{"type":"text","value":"`+strings.Repeat("x", MaxText+1)+`"}`), "object.value", CodeTooLong},
		"reference control":      {swap(object, `{"type":"reference","value":"a\nb"}`), "object.value", CodeControlCharacter},
		"confidence above":       {swap(`0.9`, `1.0000001`), "confidence", CodeOutOfRange},
		"confidence below":       {swap(`0.9`, `-0.1`), "confidence", CodeOutOfRange},
		"confidence text":        {swap(`0.9`, `"0.9"`), "confidence", CodeWrongType},
		"class case":             {swap(`"observational"`, `"Observational"`), "source_class", CodeInvalidValue},
		"class null":             {swap(`"observational"`, `null`), "source_class", CodeWrongType},
		"lifecycle":              {swap(`"proposed"`, `"draft"`), "lifecycle", CodeInvalidValue},
		"lifecycle empty":        {swap(`"proposed"`, `""`), "lifecycle", CodeInvalidValue},
		"timestamp text":         {swap(`1760000000`, `"1760000000"`), "timestamp", CodeWrongType},
		"timestamp fraction":     {swap(`1760000000`, `1760000000.5`), "timestamp", CodeOutOfRange},
		"timestamp exponent":     {swap(`1760000000`, `1e9`), "timestamp", CodeOutOfRange},
		"timestamp negative":     {swap(`1760000000`, `-1`), "timestamp", CodeOutOfRange},
		"timestamp millis":       {swap(`1760000000`, `1760000000000`), "timestamp", CodeOutOfRange},
		"timestamp huge":         {swap(`1760000000`, `99999999999999999999`), "timestamp", CodeOutOfRange},
		"hash short":             {swap(`"subject"`, `"epoch":"ab","subject"`), "epoch", CodeInvalidHex},
		"hash not hex":           {swap(`"subject"`, `"epoch":"`+strings.Repeat("z", 64)+`","subject"`), "epoch", CodeInvalidHex},
		"hash null":              {swap(`"subject"`, `"parent_hash":null,"subject"`), "parent_hash", CodeWrongType},
		"metadata empty":         {metadata(`{}`), "source_metadata", CodeEmpty},
		"metadata null":          {metadata(`null`), "source_metadata", CodeWrongType},
		"metadata nested":        {metadata(`{"a":{"b":"c"}}`), "source_metadata.a", CodeWrongType},
		"metadata number":        {metadata(`{"a":1}`), "source_metadata.a", CodeWrongType},
		"metadata twice":         {metadata(`{"a":"1","a":"2"}`), "source_metadata.a", CodeDuplicate},
		"metadata twice escaped": {metadata(`{"a":"1","\u0061":"2"}`), "source_metadata.a", CodeDuplicate},
		"metadata large":         {metadata(`{"a":"` + strings.Repeat("x", MaxMetadata) + `"}`), "source_metadata", CodeTooLarge},
		"metadata empty key":     {metadata(`{"":"x"}`), "source_metadata", CodeEmpty},
		"signatures missing":     {good[:strings.Index(good, `,"signatures"`)] + "}", "signatures", CodeMissing},
		"signatures null":        {sigs(`null`), "signatures", CodeWrongType},
		"signatures empty":       {sigs(`[]`), "signatures", CodeEmpty},
		"signature bare":         {sigs(`["ab"]`), "signatures[0]", CodeWrongType},
		"signature v1":           {sigs(`[{"agent_id":"` + strings.Repeat("0", 64) + `","signature":"` + strings.Repeat("0", 128) + `","version":1}]`), "signatures[0].version", CodeUnknown},
		"signature short":        {sigs(`[` + sig + `,{"agent_id":"` + strings.Repeat("0", 64) + `","signature":"00"}]`), "signatures[1].signature", CodeInvalidHex},
		"agent missing":          {sigs(`[{"signature":"` + strings.Repeat("0", 128) + `"}]`), "signatures[0].agent_id", CodeMissing},
		"agent twice":            {sigs(`[` + sig + `,` + sig + `]`), "signatures[1].agent_id", CodeDuplicate},
		"too many signatures":    {sigs(`[` + strings.Repeat(sig+",", MaxSignatures) + sig + `]`), "signatures", CodeTooMany},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := ParseAssertionJSON([]byte(tc.body))
			requireField(t, err, tc.field, tc.code)
			require.Nil(t, a)
		})
	}
}

func TestParseVoteJSON(t *testing.T) {
	v := &Vote{Assertion: Hash{7}, Weight: -0.5, Timestamp: 1_760_000_000}
	SignVote(testKey(3), v)
	b, err := json.Marshal(v)
	require.NoError(t, err)
	back, err := ParseVoteJSON(b)
	require.NoError(t, err)
	require.Equal(t, v, back)

	swap := func(old, new string) string { return strings.Replace(string(b), old, new, 1) }
	for name, tc := range map[string]struct{ body, field, code string }{
		"weight above":      {swap("-0.5", "1.1"), "weight", CodeOutOfRange},
		"weight text":       {swap("-0.5", `"1"`), "weight", CodeWrongType},
		"no weight":         {swap(`"weight":-0.5,`, ``), "weight", CodeMissing},
		"unknown":           {swap(`"weight"`, `"why":"x","weight"`), "why", CodeUnknown},
		"signature twice":   {swap(`"weight"`, `"signature":"`+v.Sig.String()+`","weight"`), "signature", CodeDuplicate},
		"assertion hex":     {swap(v.Assertion.String(), "xyz"), "assertion", CodeInvalidHex},
		"timestamp far off": {swap("1760000000", "253402300800"), "timestamp", CodeOutOfRange},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseVoteJSON([]byte(tc.body))
			requireField(t, err, tc.field, tc.code)
		})
	}
}

func TestParsedValueDoesNotAliasInput(t *testing.T) {
	for name, tc := range map[string]struct {
		body  []byte
		parse func([]byte) (*Assertion, error)
	}{
		"json": {[]byte(sampleJSON(t)), ParseAssertionJSON},
		"cbor": {sampleAssertion().AppendCBOR(nil), ParseAssertionCBOR},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := tc.parse(tc.body)
			require.NoError(t, err)
			clear(tc.body)
			require.Equal(t, sampleAssertion().ID(), a.ID())
		})
	}
}

func TestValidProject(t *testing.T) {
	for _, good := range []string{"a", "shared", "a-b", "0", strings.Repeat("a", 63)} {
		require.NoError(t, ValidProject(good), good)
	}
	for bad, code := range map[string]string{
		"": CodeEmpty, "-a": CodeInvalidValue, "a-": CodeInvalidValue, "A": CodeInvalidValue, "a_b": CodeInvalidValue,
		"a b": CodeInvalidValue, "ä": CodeInvalidValue, strings.Repeat("a", 64): CodeTooLong, "-": CodeInvalidValue,
	} {
		requireField(t, ValidProject(bad), "project", code)
	}
}
