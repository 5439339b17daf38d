package record

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func collect(mediaType, body string) (items []string, err error) {
	for item, e := range BatchItems(mediaType, []byte(body)) {
		if e != nil {
			return items, e
		}
		items = append(items, string(item))
	}
	return items, nil
}

func TestBatchItems(t *testing.T) {
	for name, tc := range map[string]struct {
		mediaType, body string
		want            []string
	}{
		"array":             {MediaJSON, ` [ {"a":1} ,2,"x" ]` + "\n", []string{`{"a":1}`, `2`, `"x"`}},
		"array charset":     {"application/json; charset=utf-8", `[1]`, []string{`1`}},
		"duplicate in item": {MediaJSON, `[{"a":1,"a":2},3]`, []string{`{"a":1,"a":2}`, `3`}},
		"bad text in item":  {MediaJSON, "[\"\xff\",3]", []string{"\"\xff\"", `3`}},
		"lines":             {MediaNDJSON, "{\"a\":1}\r\n\n{broken\n3", []string{`{"a":1}`, `{broken`, `3`}},
		"sequence":          {MediaCBORSeq, "\x01\x82\x01\x02\xa1\x61a\xf6\x42hi\xf9\x3c\x00\xc1\x01", []string{"\x01", "\x82\x01\x02", "\xa1\x61a\xf6", "\x42hi", "\xf9\x3c\x00", "\xc1\x01"}},
		"long head in item": {MediaCBOR, "\x18\x01\x02", []string{"\x18\x01", "\x02"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := collect(tc.mediaType, tc.body)
			require.NoError(t, err)
			require.Equal(t, tc.want, got)
		})
	}
}

func TestBatchItemsRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		mediaType, body string
		items           int // that come before the error
		field, code     string
	}{
		"other type":       {"text/plain", `[1]`, 0, "Content-Type", CodeInvalidValue},
		"no type":          {"", `[1]`, 0, "Content-Type", CodeInvalidValue},
		"too large":        {MediaJSON, strings.Repeat(" ", MaxBatchBytes+1), 0, "", CodeTooLarge},
		"empty array":      {MediaJSON, `[]`, 0, "", CodeEmpty},
		"empty lines":      {MediaNDJSON, "\n \n", 0, "", CodeEmpty},
		"empty sequence":   {MediaCBOR, ``, 0, "", CodeEmpty},
		"empty body":       {MediaJSON, ``, 0, "", CodeMalformed},
		"one record":       {MediaJSON, `{"a":1}`, 0, "", CodeMalformed},
		"cut array":        {MediaJSON, `[1,2`, 2, "[2]", CodeMalformed},
		"bad item":         {MediaJSON, `[1,{broken},3]`, 1, "[1]", CodeMalformed},
		"trailing comma":   {MediaJSON, `[1,]`, 1, "[1]", CodeMalformed},
		"after the array":  {MediaJSON, `[1][2]`, 1, "", CodeMalformed},
		"deep":             {MediaJSON, "[" + strings.Repeat("[", 20_000), 0, "[0]", CodeMalformed},
		"cut item":         {MediaCBOR, "\x01\x82\x01", 1, "[1]", CodeMalformed},
		"indefinite":       {MediaCBOR, "\x9f\x01\xff", 0, "[0]", CodeMalformed},
		"huge length":      {MediaCBOR, "\x5b\xff\xff\xff\xff\xff\xff\xff\xff", 0, "[0]", CodeMalformed},
		"huge array":       {MediaCBOR, "\x9b\xff\xff\xff\xff\xff\xff\xff\xff", 0, "[0]", CodeMalformed},
		"huge map":         {MediaCBOR, "\xbb\x80\x00\x00\x00\x00\x00\x00\x00", 0, "[0]", CodeMalformed},
		"deep sequence":    {MediaCBOR, strings.Repeat("\x81", 1000) + "\x01", 0, "[0]", CodeMalformed},
		"too many array":   {MediaJSON, "[" + strings.Repeat("1,", MaxBatchItems) + "1]", MaxBatchItems, "", CodeTooMany},
		"too many lines":   {MediaNDJSON, strings.Repeat("1\n", MaxBatchItems+1), MaxBatchItems, "", CodeTooMany},
		"too many in CBOR": {MediaCBOR, strings.Repeat("\x01", MaxBatchItems+1), MaxBatchItems, "", CodeTooMany},
	} {
		t.Run(name, func(t *testing.T) {
			items, err := collect(tc.mediaType, tc.body)
			requireField(t, err, tc.field, tc.code)
			require.Len(t, items, tc.items)
		})
	}
}

func TestBatchItemsStopsEarly(t *testing.T) {
	for mediaType, body := range map[string]string{MediaJSON: `[1,2,3]`, MediaNDJSON: "1\n2\n3", MediaCBOR: "\x01\x02\x03"} {
		n := 0
		for range BatchItems(mediaType, []byte(body)) {
			if n++; n == 2 {
				break
			}
		}
		require.Equal(t, 2, n)
	}
}

func TestBatchOfRecords(t *testing.T) {
	var array, lines, seq []byte
	const n = 5
	var want []Hash
	for i := range n {
		a := sampleAssertion()
		a.Subject = fmt.Sprintf("s/%d", i)
		a.Sign(testKey(1))
		want = append(want, a.ID())
		j := []byte(strings.Replace(sampleJSON(t), "code://go/github.com/x/y/tls/cert_verification", a.Subject, 1))
		array = append(append(array, ','), j...)
		lines = append(append(lines, j...), '\n')
		seq = a.AppendCBOR(seq)
	}
	array[0] = '['
	array = append(array, ']')
	for mediaType, body := range map[string][]byte{MediaJSON: array, MediaNDJSON: lines, MediaCBORSeq: seq} {
		parse := ParseAssertionJSON
		if mediaType == MediaCBORSeq {
			parse = ParseAssertionCBOR
		}
		var got []Hash
		for item, err := range BatchItems(mediaType, body) {
			require.NoError(t, err)
			a, err := parse(item)
			require.NoError(t, err)
			got = append(got, a.ID())
		}
		require.Equal(t, want, got)
	}
}
