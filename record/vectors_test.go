package record

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	stdjson "encoding/json"
	"flag"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/zeebo/blake3"
)

var update = flag.Bool("update", false, "write testdata/vectors.json anew")

// vectorFile holds the vectors that verify a client in another language.
type vectorFile struct {
	About    []string        `json:"about"`
	Contents []contentVector `json:"contents"`
	Votes    []voteVector    `json:"votes"`
	Refused  []refusedVector `json:"refused"`
}

type contentVector struct {
	Name      string             `json:"name"`
	Seed      string             `json:"seed"`       // Ed25519 seed, hex
	PublicKey string             `json:"public_key"` // agent_id, hex
	Content   stdjson.RawMessage `json:"content"`
	Canonical string             `json:"canonical"` // hex
	ID        string             `json:"id"`
	Signature string             `json:"signature"`
}

type voteVector struct {
	Name      string             `json:"name"`
	Seed      string             `json:"seed"`
	Vote      stdjson.RawMessage `json:"vote"` // as sent, with agent and signature
	Canonical string             `json:"canonical"`
	ID        string             `json:"id"`
}

type refusedVector struct {
	Name   string `json:"name"`
	Kind   string `json:"kind"` // assertion or vote
	JSON   string `json:"json,omitempty"`
	CBOR   string `json:"cbor,omitempty"` // hex
	Field  string `json:"field"`
	Code   string `json:"code"`
	Reason string `json:"reason"`
}

func vectorPath() string { return filepath.Join("testdata", "vectors.json") }

// contentCases are the contents as a client would write them.
func contentCases() map[string]string {
	base := func(change ...string) string {
		fields := map[string]string{
			"subject":      `"code://go/github.com/x/y/tls/cert_verification"`,
			"predicate":    `"enabled"`,
			"object":       `{"type":"boolean","value":false}`,
			"confidence":   `0.9`,
			"source_class": `"observational"`,
			"timestamp":    `1760000000`,
		}
		for i := 0; i < len(change); i += 2 {
			fields[change[i]] = change[i+1]
		}
		var b strings.Builder
		for _, name := range []string{"subject", "predicate", "object", "confidence", "source_class", "source_hash", "source_metadata", "parent_hash", "epoch", "lifecycle", "timestamp"} {
			if v := fields[name]; v != "" {
				b.WriteString(`,"` + name + `":` + v)
			}
		}
		return "{" + b.String()[1:] + "}"
	}
	text := func(s string) string { return `{"type":"text","value":"` + s + `"}` }
	number := func(s string) string { return `{"type":"number","value":` + s + `}` }
	hash := func(d string) string { return `"` + strings.Repeat(d, 32) + `"` }
	return map[string]string{
		"01 least":                     base(),
		"02 every field":               base("object", text("on"), "source_hash", hash("ab"), "parent_hash", hash("01"), "epoch", hash("ff"), "lifecycle", `"approved"`, "source_metadata", `{"file":"a.go","line":"7"}`),
		"03 boolean true":              base("object", `{"type":"boolean","value":true}`),
		"04 number zero":               base("object", number("0")),
		"05 number minus zero is zero": base("object", number("-0")),
		"06 number one":                base("object", number("1")),
		"07 number half":               base("object", number("1.5")),
		"08 number single":             base("object", number("100000")),
		"09 number double":             base("object", number("0.1")),
		"10 number 1e300":              base("object", number("1e300")),
		"11 number least subnormal":    base("object", number("5e-324")),
		"12 number half subnormal":     base("object", number("5.960464477539063e-8")),
		"13 number greatest half":      base("object", number("65504")),
		"14 number above half":         base("object", number("65505")),
		"15 number negative":           base("object", number("-273.15")),
		"16 text empty":                base("object", text("")),
		"17 text with controls":        base("object", text(`a\n\tb\u0000c`)),
		"18 text unicode":              base("object", text(`Grüße 中文 😀 e\u0301`)),
		"19 text not normalised":       base("object", text(`\u00e9`)),
		"20 reference":                 base("object", `{"type":"reference","value":"code://go/github.com/x/y"}`),
		"21 subject unicode":           base("subject", `"größe/中/😀"`),
		"22 subject longest":           base("subject", `"`+strings.Repeat("s", MaxSubject)+`"`),
		"23 predicate longest":         base("predicate", `"`+strings.Repeat("p", MaxPredicate)+`"`),
		"24 text longest":              base("object", text(strings.Repeat("t", MaxText))),
		"25 metadata largest":          base("source_metadata", `{"k":"`+strings.Repeat("v", MaxMetadata-1)+`"}`),
		"26 metadata key order":        base("source_metadata", `{"b":"1","aa":"2","a":"3","ä":"4"}`),
		"27 metadata of 25 entries":    base("source_metadata", manyEntries(25)),
		"28 confidence zero":           base("confidence", "0"),
		"29 confidence one":            base("confidence", "1"),
		"30 timestamp zero":            base("timestamp", "0"),
		"31 timestamp latest":          base("timestamp", "253402300799"),
		"32 regulatory under review":   base("source_class", `"regulatory"`, "lifecycle", `"under_review"`),
		"33 clinical deprecated":       base("source_class", `"clinical"`, "lifecycle", `"deprecated"`),
		"34 expert rejected":           base("source_class", `"expert"`, "lifecycle", `"rejected"`),
		"35 community proposed":        base("source_class", `"community"`, "lifecycle", `"proposed"`),
		"36 anecdotal":                 base("source_class", `"anecdotal"`),
	}
}

func manyEntries(n int) string {
	m := map[string]string{}
	for i := range n {
		m[strings.Repeat("k", i+1)] = strings.Repeat("v", n-i)
	}
	b, err := stdjson.Marshal(m)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func refusedCases(t *testing.T) []refusedVector {
	t.Helper()
	good := sampleAssertion()
	wire := good.AppendCBOR(nil)
	body := sampleJSON(t)
	swap := func(old, new string) string {
		require.Contains(t, body, old)
		return strings.Replace(body, old, new, 1)
	}
	cborSwap := func(old, new string) string {
		require.Contains(t, string(wire), old)
		return hex.EncodeToString([]byte(strings.Replace(string(wire), old, new, 1)))
	}
	before, rest, _ := strings.Cut(body, `"source_metadata":`)
	_, after, _ := strings.Cut(rest, "}")
	emptyMetadata := before + `"source_metadata":{}` + after
	const confidence = "\x6aconfidence\xfb\x3f\xec\xcc\xcc\xcc\xcc\xcc\xcd"
	return []refusedVector{
		{Name: "confidence above one", Kind: "assertion", JSON: swap(":0.9", ":1.5"), Reason: "confidence is 0..1"},
		{Name: "unknown field", Kind: "assertion", JSON: swap(`"subject"`, `"colour":"red","subject"`), Reason: "unknown fields are refused"},
		{Name: "duplicate field", Kind: "assertion", JSON: swap(`"subject"`, `"subject":"x","subject"`), Reason: "each field once"},
		{Name: "null", Kind: "assertion", JSON: swap(`"subject"`, `"epoch":null,"subject"`), Reason: "a field that is not given is absent"},
		{Name: "NaN", Kind: "assertion", JSON: swap(":0.9", ":NaN"), Reason: "not JSON"},
		{Name: "number too large", Kind: "assertion", JSON: swap(`{"type":"boolean","value":false}`, `{"type":"number","value":1e999}`), Reason: "no 64-bit float holds it"},
		{Name: "half a surrogate", Kind: "assertion", JSON: swap("cert_verification", `\ud800`), Reason: "not UTF-8, and nothing is replaced"},
		{Name: "control character", Kind: "assertion", JSON: swap("cert_verification", `\u0085`), Reason: "names have no control characters"},
		{Name: "subject too long", Kind: "assertion", JSON: swap("cert_verification", strings.Repeat("x", MaxSubject)), Reason: "1,024 bytes"},
		{Name: "capital source class", Kind: "assertion", JSON: swap(`"observational"`, `"Observational"`), Reason: "names are exact"},
		{Name: "milliseconds", Kind: "assertion", JSON: swap("1760000000", "1760000000000"), Reason: "timestamps are seconds"},
		{Name: "empty metadata", Kind: "assertion", JSON: emptyMetadata, Reason: "leave it out when it is empty"},
		{Name: "object without type", Kind: "assertion", JSON: swap(`"type":"boolean",`, ``), Reason: "objects are tagged"},
		{Name: "no signature", Kind: "assertion", JSON: body[:strings.Index(body, `"signatures"`)] + `"signatures":[]}`, Reason: "at least one"},
		{Name: "bytes after the item", Kind: "assertion", CBOR: hex.EncodeToString(append(append([]byte(nil), wire...), 0)), Reason: "one item"},
		{Name: "indefinite map", Kind: "assertion", CBOR: "bf" + hex.EncodeToString(wire[1:]) + "ff", Reason: "definite lengths only"},
		{Name: "head too long", Kind: "assertion", CBOR: cborSwap("\x67subject", "\x78\x07subject"), Reason: "shortest heads only"},
		{Name: "integer confidence", Kind: "assertion", CBOR: cborSwap(confidence, "\x6aconfidence\x01"), Reason: "confidence is a float"},
		{Name: "float too wide", Kind: "assertion", CBOR: cborSwap(confidence, "\x6aconfidence\xfb\x3f\xe0\x00\x00\x00\x00\x00\x00"), Reason: "0.5 fits in half precision"},
		{Name: "minus zero", Kind: "assertion", CBOR: cborSwap(confidence, "\x6aconfidence\xf9\x80\x00"), Reason: "-0 is written as 0"},
		{Name: "NaN in CBOR", Kind: "assertion", CBOR: cborSwap(confidence, "\x6aconfidence\xf9\x7e\x00"), Reason: "finite numbers only"},
		{Name: "null in CBOR", Kind: "assertion", CBOR: cborSwap("\x69lifecycle\x68proposed", "\x69lifecycle\xf6"), Reason: "never null"},
		{Name: "vote weight", Kind: "vote", JSON: `{"assertion":"` + strings.Repeat("0", 64) + `","agent":"` + strings.Repeat("0", 64) + `","weight":-1.5,"timestamp":1,"signature":"` + strings.Repeat("0", 128) + `"}`, Reason: "weights are -1..1"},
		{Name: "vote without agent", Kind: "vote", JSON: `{"assertion":"` + strings.Repeat("0", 64) + `","weight":1,"timestamp":1,"signature":"` + strings.Repeat("0", 128) + `"}`, Reason: "all fields are required"},
	}
}

func parseRefused(t *testing.T, v refusedVector) error {
	t.Helper()
	body, err := hex.DecodeString(v.CBOR)
	require.NoError(t, err)
	switch {
	case v.Kind == "assertion" && v.JSON != "":
		_, err = ParseAssertionJSON([]byte(v.JSON))
	case v.Kind == "assertion":
		_, err = ParseAssertionCBOR(body)
	case v.JSON != "":
		_, err = ParseVoteJSON([]byte(v.JSON))
	default:
		_, err = ParseVoteCBOR(body)
	}
	return err
}

func generateVectors(t *testing.T) []byte {
	t.Helper()
	file := vectorFile{About: []string{
		"Published vectors of StemeDB's records. All byte strings are hex.",
		"canonical is the deterministic CBOR of content, id its BLAKE3-256.",
		"signature is Ed25519 over the ASCII bytes stemedb:v2: and the 32 bytes of id; for a vote the prefix is stemedb:vote:v2:.",
		"refused holds bodies that every node refuses, with the field and the code of the error.",
	}}
	cases := contentCases()
	for i, name := range slices.Sorted(maps.Keys(cases)) {
		c, err := ParseContentJSON([]byte(cases[name]))
		require.NoError(t, err, name)
		key := testKey(byte(i % 3))
		s := SignContent(key, c.ID())
		file.Contents = append(file.Contents, contentVector{
			Name: name, Seed: hex.EncodeToString(key.Seed()), PublicKey: s.Agent.String(),
			Content: stdjson.RawMessage(cases[name]), Canonical: hex.EncodeToString(c.AppendCanonical(nil)),
			ID: c.ID().String(), Signature: s.Sig.String(),
		})
	}
	for i, weight := range []float64{1, -1, 0, 0.5, 0.1} {
		id, err := ParseHash(file.Contents[i].ID)
		require.NoError(t, err)
		key := testKey(byte(i))
		v := &Vote{Assertion: id, Weight: weight, Timestamp: 1_760_000_000 + uint64(i)}
		SignVote(key, v)
		raw, err := stdjson.Marshal(v)
		require.NoError(t, err)
		file.Votes = append(file.Votes, voteVector{
			Name: "weight " + Number(weight).String(), Seed: hex.EncodeToString(key.Seed()), Vote: raw,
			Canonical: hex.EncodeToString(v.AppendCanonical(nil)), ID: v.ID().String(),
		})
	}
	for _, v := range refusedCases(t) {
		var fe *FieldError
		require.ErrorAs(t, parseRefused(t, v), &fe, v.Name)
		v.Field, v.Code = fe.Field, fe.Code
		file.Refused = append(file.Refused, v)
	}
	var b bytes.Buffer
	enc := stdjson.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	require.NoError(t, enc.Encode(&file))
	return b.Bytes()
}

// The package computes the published vectors. A difference means that ids have
// changed, and the ids of published records must never change.
func TestVectorsAreCurrent(t *testing.T) {
	got := generateVectors(t)
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(vectorPath(), got, 0o644))
	}
	want, err := os.ReadFile(vectorPath())
	require.NoError(t, err, "run go test -run TestVectorsAreCurrent -update")
	require.Equal(t, string(want), string(got))
}

func readVectors(t testing.TB) vectorFile {
	t.Helper()
	raw, err := os.ReadFile(vectorPath())
	require.NoError(t, err)
	var file vectorFile
	require.NoError(t, stdjson.Unmarshal(raw, &file))
	require.GreaterOrEqual(t, len(file.Contents), 20)
	require.GreaterOrEqual(t, len(file.Votes), 5)
	require.GreaterOrEqual(t, len(file.Refused), 20)
	return file
}

// The vectors are checked with none of this package's code, as a client in
// another language would: standard JSON, fxamacker's CBOR, BLAKE3, Ed25519.
func TestVectorsIndependently(t *testing.T) {
	mode := referenceMode(t)
	file := readVectors(t)
	check := func(name string, m map[string]any, prefix, canonical, id, signature, seed, public string) {
		b, err := mode.Marshal(m)
		require.NoError(t, err)
		require.Equal(t, canonical, hex.EncodeToString(b), name)
		sum := blake3.Sum256(b)
		require.Equal(t, id, hex.EncodeToString(sum[:]), name)
		rawSeed, err := hex.DecodeString(seed)
		require.NoError(t, err)
		key := ed25519.NewKeyFromSeed(rawSeed)
		require.Equal(t, public, hex.EncodeToString(key.Public().(ed25519.PublicKey)), name)
		message := append([]byte(prefix), sum[:]...)
		require.Equal(t, signature, hex.EncodeToString(ed25519.Sign(key, message)), name)
	}
	bytesOf := func(s any) []byte {
		b, err := hex.DecodeString(s.(string))
		require.NoError(t, err)
		return b
	}
	for _, v := range file.Contents {
		m := map[string]any{}
		require.NoError(t, stdjson.Unmarshal(v.Content, &m))
		for _, name := range []string{"source_hash", "parent_hash", "epoch"} {
			if s, ok := m[name]; ok {
				m[name] = bytesOf(s)
			}
		}
		m["timestamp"] = uint64(m["timestamp"].(float64))
		if m["lifecycle"] == nil {
			m["lifecycle"] = "proposed"
		}
		object := m["object"].(map[string]any)
		if f, ok := object["value"].(float64); ok {
			object["value"] = math.Abs(f) * map[bool]float64{true: -1, false: 1}[f < 0]
		}
		check(v.Name, m, "stemedb:v2:", v.Canonical, v.ID, v.Signature, v.Seed, v.PublicKey)
	}
	for _, v := range file.Votes {
		m := map[string]any{}
		require.NoError(t, stdjson.Unmarshal(v.Vote, &m))
		agent, signature := m["agent"].(string), m["signature"].(string)
		delete(m, "signature")
		m["agent"], m["assertion"] = bytesOf(m["agent"]), bytesOf(m["assertion"])
		m["timestamp"] = uint64(m["timestamp"].(float64))
		check(v.Name, m, "stemedb:vote:v2:", v.Canonical, v.ID, signature, v.Seed, agent)
	}
}

func TestVectorsWithThePackage(t *testing.T) {
	file := readVectors(t)
	verifier := NewVerifier(4)
	var items []SignedItem
	for _, v := range file.Contents {
		c, err := ParseContentJSON(v.Content)
		require.NoError(t, err, v.Name)
		canonical := c.AppendCanonical(nil)
		require.Equal(t, v.Canonical, hex.EncodeToString(canonical), v.Name)
		back, err := DecodeCanonical(canonical)
		require.NoError(t, err, v.Name)
		require.Equal(t, v.ID, back.ID().String(), v.Name)
		s := Signature{}
		require.NoError(t, s.Agent.UnmarshalText([]byte(v.PublicKey)))
		require.NoError(t, s.Sig.UnmarshalText([]byte(v.Signature)))
		items = (&Assertion{Content: *c, Signatures: []Signature{s}}).AppendSigned(items, back.ID())
	}
	for _, v := range file.Votes {
		vote, err := ParseVoteJSON(v.Vote)
		require.NoError(t, err, v.Name)
		require.Equal(t, v.ID, vote.ID().String(), v.Name)
		items = append(items, vote.Signed())
	}
	require.NotContains(t, verifier.Verify(items), false)
	for _, v := range file.Refused {
		requireField(t, parseRefused(t, v), v.Field, v.Code)
	}
}
