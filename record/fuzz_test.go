package record

import (
	"bytes"
	stdjson "encoding/json"
	"errors"
	"io"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/go-json-experiment/json"
	"github.com/stretchr/testify/require"
)

func addSeeds(f *testing.F, asCBOR bool) {
	f.Helper()
	a := sampleAssertion()
	a.Epoch, a.ParentHash = &Hash{1}, &Hash{2}
	v := &Vote{Assertion: a.ID(), Weight: 0.5, Timestamp: 7}
	SignVote(testKey(1), v)
	if asCBOR {
		f.Add(a.AppendCanonical(nil))
		f.Add(a.AppendCBOR(nil))
		f.Add(v.AppendCanonical(nil))
		f.Add(v.AppendCBOR(nil))
		return
	}
	f.Add([]byte(sampleJSON(f)))
	for _, value := range []any{a, v, &a.Content} {
		b, err := json.Marshal(value)
		require.NoError(f, err)
		f.Add(b)
	}
	for _, c := range contentCases() {
		if len(c) < 1000 {
			f.Add([]byte(c))
		}
	}
}

// Bytes accepted as canonical are byte for byte the output of our encoder and
// of an independent one.
func FuzzDecodeCanonical(f *testing.F) {
	addSeeds(f, true)
	mode := referenceMode(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := DecodeCanonicalVote(b); err == nil {
			require.Equal(t, b, v.AppendCanonical(nil))
		}
		c, err := DecodeCanonical(b)
		if err != nil {
			requireRefusal(t, err)
			return
		}
		require.Equal(t, b, c.AppendCanonical(nil))
		want, err := mode.Marshal(referenceMap(c))
		require.NoError(t, err)
		require.Equal(t, want, b)
	})
}

func FuzzParseCBOR(f *testing.F) {
	addSeeds(f, true)
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := ParseVoteCBOR(b); err == nil {
			require.Equal(t, b, v.AppendCBOR(nil))
		} else {
			requireRefusal(t, err)
		}
		a, err := ParseAssertionCBOR(b)
		if err != nil {
			requireRefusal(t, err)
			return
		}
		require.Equal(t, b, a.AppendCBOR(nil))
		require.NoError(t, cbor.Wellformed(b))
		requireSameInJSON(t, a)
	})
}

func FuzzParseJSON(f *testing.F) {
	addSeeds(f, false)
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := ParseVoteJSON(b); err == nil {
			require.True(t, stdjson.Valid(b))
		} else {
			requireRefusal(t, err)
		}
		if c, err := ParseContentJSON(b); err == nil {
			back, err := DecodeCanonical(c.AppendCanonical(nil))
			require.NoError(t, err)
			require.Equal(t, c, back)
		}
		a, err := ParseAssertionJSON(b)
		if err != nil {
			requireRefusal(t, err)
			return
		}
		require.True(t, stdjson.Valid(b))
		requireSameInJSON(t, a)
		back, err := ParseAssertionCBOR(a.AppendCBOR(nil))
		require.NoError(t, err)
		require.Equal(t, a, back)
	})
}

// Items follow each other in the body, and an independent reader finds the same
// ones in a CBOR sequence.
func FuzzBatchItems(f *testing.F) {
	for _, body := range []string{`[{"a":1},2]`, "1\n{\"a\":[]}\n", "\x01\x82\x01\x02\xa1\x61a\xf6", "[]", "[1,]", "\x9f\xff"} {
		for kind := range uint8(3) {
			f.Add(kind, []byte(body))
		}
	}
	f.Fuzz(func(t *testing.T, kind uint8, body []byte) {
		mediaType := []string{MediaJSON, MediaNDJSON, MediaCBORSeq}[kind%3]
		rest, count := body, 0
		for item, err := range BatchItems(mediaType, body) {
			if err != nil {
				requireRefusal(t, err)
				return
			}
			count++
			require.NotEmpty(t, item)
			at := bytes.Index(rest, item)
			require.GreaterOrEqual(t, at, 0)
			if mediaType == MediaCBORSeq {
				require.Zero(t, at)
				// The reference reader takes exactly the same bytes for one item, unless it
				// refuses the content (reserved simple values, deeper nesting than its own
				// limit).
				err := cbor.Wellformed(item)
				var extra *cbor.ExtraneousDataError
				require.False(t, errors.As(err, &extra), "%v", err)
				require.NotErrorIs(t, err, io.ErrUnexpectedEOF)
			}
			rest = rest[at+len(item):]
		}
		require.LessOrEqual(t, count, MaxBatchItems)
		require.Positive(t, count)
	})
}

func requireRefusal(t *testing.T, err error) {
	t.Helper()
	var fe *FieldError
	require.ErrorAs(t, err, &fe)
	require.NotEmpty(t, fe.Code)
	require.NotEmpty(t, fe.Problem)
	require.NotEmpty(t, fe.Remedy)
	require.Less(t, len(fe.Error()), 1000)
	_, merr := json.Marshal(fe.Error()) // goes into a JSON answer
	require.NoError(t, merr)
}

func requireSameInJSON(t *testing.T, a *Assertion) {
	t.Helper()
	b, err := json.Marshal(a)
	require.NoError(t, err)
	back, err := ParseAssertionJSON(b)
	require.NoError(t, err)
	require.Equal(t, a.ID(), back.ID())
	require.Equal(t, a.Signatures, back.Signatures)
}
