package record

import (
	"crypto/ed25519"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/stretchr/testify/require"
)

// testKey is a private key that depends on n alone.
func testKey(n byte) ed25519.PrivateKey {
	seed := make([]byte, ed25519.SeedSize)
	for i := range seed {
		seed[i] = n
	}
	return ed25519.NewKeyFromSeed(seed)
}

func sampleContent() Content {
	return Content{
		Subject:     "code://go/github.com/x/y/tls/cert_verification",
		Predicate:   "enabled",
		Object:      Boolean(false),
		Confidence:  0.9,
		SourceClass: Observational,
		SourceMetadata: map[string]string{
			"file": "internal/client/http.go", "line": "42", "commit": "0123456789abcdef0123456789abcdef01234567",
		},
		Timestamp: 1_760_000_000,
	}
}

func sampleAssertion() *Assertion {
	a := &Assertion{Content: sampleContent()}
	a.Sign(testKey(1))
	return a
}

func randomText(r *rand.Rand, least, most int, control bool) string {
	letters := []rune("abcXYZ019/-_. äßλ中\u2028😀\u00a0\"\\<&")
	if control {
		letters = append(letters, '\n', '\t', 0, 0x7f, 0x85)
	}
	var b strings.Builder
	for n := least + r.IntN(most-least+1); b.Len() < n; {
		b.WriteRune(letters[r.IntN(len(letters))])
	}
	return b.String()
}

func randomHash(r *rand.Rand) *Hash {
	if r.IntN(2) == 0 {
		return nil
	}
	var h Hash
	for i := range h {
		h[i] = byte(r.Uint32())
	}
	return &h
}

func randomNumber(r *rand.Rand) float64 {
	fixed := []float64{0, math.Copysign(0, -1), 1, -1, 0.5, 1.5, 65504, 65505, 5.960464477539063e-8, 2.9802322387695312e-8, 1e300, math.MaxFloat64, math.SmallestNonzeroFloat64, math.MaxFloat32, math.Pi, 100000, 3.4028234663852886e+38, 1e10}
	if n := r.IntN(len(fixed) + 5); n < len(fixed) {
		return fixed[n]
	}
	for {
		if f := math.Float64frombits(r.Uint64()); !math.IsNaN(f) && !math.IsInf(f, 0) {
			return f
		}
	}
}

func randomContent(r *rand.Rand) Content {
	c := Content{
		Subject:     randomText(r, 1, 200, false),
		Predicate:   randomText(r, 1, 60, false),
		Confidence:  []float64{0, 1, 0.5, 0.1, r.Float64(), math.Copysign(0, -1)}[r.IntN(6)],
		SourceClass: SourceClasses()[r.IntN(6)],
		Lifecycle:   Lifecycles()[r.IntN(5)],
		Timestamp:   r.Uint64N(MaxTimestamp+1) >> r.UintN(38),
		SourceHash:  randomHash(r),
		ParentHash:  randomHash(r),
		Epoch:       randomHash(r),
	}
	switch r.IntN(4) {
	case 0:
		c.Object = Text(randomText(r, 0, 400, true))
	case 1:
		c.Object = Object{Type: TypeNumber, Num: randomNumber(r)}
	case 2:
		c.Object = Boolean(r.IntN(2) == 0)
	default:
		c.Object = Reference(randomText(r, 1, 100, false))
	}
	if n := r.IntN(30); n > 0 {
		c.SourceMetadata = make(map[string]string)
		for range n {
			c.SourceMetadata[randomText(r, 1, 40, true)] = randomText(r, 0, 40, true)
		}
	}
	return c
}

// referenceMode is fxamacker's core deterministic encoding, as the package
// comment describes it.
func referenceMode(t testing.TB) cbor.EncMode {
	t.Helper()
	mode, err := cbor.CoreDetEncOptions().EncMode()
	require.NoError(t, err)
	return mode
}

// referenceMap builds the content independently of the package's encoder.
func referenceMap(c *Content) map[string]any {
	object := map[string]any{"type": c.Object.Type.String()}
	switch c.Object.Type {
	case TypeNumber:
		object["value"] = noMinusZero(c.Object.Num)
	case TypeBoolean:
		object["value"] = c.Object.Bool
	default:
		object["value"] = c.Object.Str
	}
	m := map[string]any{
		"subject": c.Subject, "predicate": c.Predicate, "object": object,
		"confidence": noMinusZero(c.Confidence), "source_class": c.SourceClass.String(),
		"lifecycle": c.Lifecycle.String(), "timestamp": c.Timestamp,
	}
	for name, h := range map[string]*Hash{"source_hash": c.SourceHash, "parent_hash": c.ParentHash, "epoch": c.Epoch} {
		if h != nil {
			m[name] = h[:]
		}
	}
	if len(c.SourceMetadata) > 0 {
		m["source_metadata"] = c.SourceMetadata
	}
	return m
}

func noMinusZero(f float64) float64 {
	if f == 0 {
		return 0
	}
	return f
}

func requireField(t testing.TB, err error, field, code string) {
	t.Helper()
	var fe *FieldError
	require.ErrorAs(t, err, &fe)
	require.Equal(t, field, fe.Field, "%v", err)
	require.Equal(t, code, fe.Code, "%v", err)
	require.NotEmpty(t, fe.Problem)
	require.NotEmpty(t, fe.Remedy, "%v", err)
}
