package client

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
)

// fieldRow is one field as docs/claims.md describes it.
type fieldRow struct{ kind, required, limits, example string }

// claimsPage reads the page's tables and its examples.
func claimsPage(t *testing.T) (claim, vote map[string]fieldRow, added []string, examples []string) {
	t.Helper()
	raw, err := os.ReadFile("../docs/claims.md")
	require.NoError(t, err)
	sections := strings.Split(string(raw), "\n## ")
	require.Len(t, sections, 4)
	rows := func(section string) map[string]fieldRow {
		out := map[string]fieldRow{}
		for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| ([^|]+) \\| ([^|]+) \\| ([^|]+) \\| `([^|]+)` \\| [^|]+ \\|$").FindAllStringSubmatch(section, -1) {
			out[m[1]] = fieldRow{m[2], m[3], m[4], m[5]}
		}
		return out
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` ").FindAllStringSubmatch(sections[3], -1) {
		added = append(added, m[1])
	}
	for _, m := range regexp.MustCompile("(?s)```json\n(.*?)```").FindAllStringSubmatch(string(raw), -1) {
		examples = append(examples, m[1])
	}
	require.Len(t, examples, 2)
	return rows(sections[1]), rows(sections[2]), added, examples
}

// wireNames are the JSON names of a struct's fields, those of embedded structs
// included.
func wireNames(typ reflect.Type) (names []string) {
	for _, f := range reflect.VisibleFields(typ) {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name != "-" {
			names = append(names, name)
		}
	}
	return names
}

func TestTheClaimsPageListsEveryField(t *testing.T) {
	claim, vote, added, _ := claimsPage(t)
	want := append(wireNames(reflect.TypeFor[record.Assertion]()), "object.type", "object.value")
	for _, name := range wireNames(reflect.TypeFor[record.Signature]()) {
		want = append(want, "signatures[]."+name)
	}
	require.ElementsMatch(t, want, slices.Collect(maps.Keys(claim)))
	require.ElementsMatch(t, wireNames(reflect.TypeFor[record.Vote]()), slices.Collect(maps.Keys(vote)))

	inAnswers := map[string]bool{}
	for _, name := range slices.Concat(wireNames(reflect.TypeFor[Claim]()), wireNames(reflect.TypeFor[Record]())) {
		if _, sent := claim[name]; !sent {
			inAnswers[name] = true
		}
	}
	require.ElementsMatch(t, slices.Collect(maps.Keys(inAnswers)), added)
}

// grouped writes 65536 as 65,536.
func grouped(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func quotedNames[T fmt.Stringer](values ...T) string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = "`" + v.String() + "`"
	}
	return strings.Join(out, ", ")
}

func TestTheClaimsPageGivesTheCodesLimits(t *testing.T) {
	claim, vote, _, _ := claimsPage(t)
	name := func(limit int) string { return "1 to " + grouped(limit) + " bytes of UTF-8, no control characters" }
	when := "0 to " + grouped(record.MaxTimestamp) + "; at most 5 minutes ahead of the server"
	for field, limits := range map[string]string{
		"subject":                name(record.MaxSubject),
		"predicate":              name(record.MaxPredicate),
		"object":                 "exactly `type` and `value`",
		"object.type":            quotedNames(record.TypeText, record.TypeNumber, record.TypeBoolean, record.TypeReference),
		"object.value":           "text up to " + grouped(record.MaxText) + " bytes of UTF-8; a finite number; `true` or `false`; a reference as `subject`",
		"confidence":             "0 to 1",
		"source_class":           quotedNames(record.SourceClasses()...),
		"source_hash":            "64 hex digits",
		"source_metadata":        "not empty; string values; no empty key; keys and values together up to " + grouped(record.MaxMetadata) + " bytes of UTF-8",
		"parent_hash":            "64 hex digits",
		"epoch":                  "64 hex digits",
		"lifecycle":              quotedNames(record.Lifecycles()...),
		"timestamp":              when,
		"signatures":             fmt.Sprintf("1 to %d of different agents", record.MaxSignatures),
		"signatures[].agent_id":  "64 hex digits",
		"signatures[].signature": "128 hex digits",
	} {
		require.Equal(t, limits, claim[field].limits, field)
	}
	for field, limits := range map[string]string{
		"assertion": "64 hex digits", "agent": "64 hex digits", "weight": "-1 to 1", "timestamp": when, "signature": "128 hex digits",
	} {
		require.Equal(t, limits, vote[field].limits, field)
	}
	require.Equal(t, record.MaxSubject, record.MaxReference, "the page gives references the rules of subjects")
	page, err := os.ReadFile("../docs/claims.md")
	require.NoError(t, err)
	require.Contains(t, strings.Join(strings.Fields(string(page)), " "), fmt.Sprintf("One claim is at most %s bytes on the wire, a batch at most %s claims and %s bytes.",
		grouped(record.MaxRecordBytes), grouped(record.MaxBatchItems), grouped(record.MaxBatchBytes)))
}

// The examples are one valid claim and one valid vote, whose signatures verify;
// each row's example is the value in the claim and of the row's type, and a
// field is required exactly when the row says so.
func TestTheClaimsPageShowsARealClaim(t *testing.T) {
	claim, vote, _, examples := claimsPage(t)
	a, err := record.ParseAssertionJSON([]byte(examples[0]))
	require.NoError(t, err)
	v, err := record.ParseVoteJSON([]byte(examples[1]))
	require.NoError(t, err)
	require.Equal(t, a.ID(), v.Assertion)
	page, err := os.ReadFile("../docs/claims.md")
	require.NoError(t, err)
	require.Contains(t, string(page), "Its hash is `"+a.ID().String()+"`")
	signed := append(a.AppendSigned(nil, a.ID()), v.Signed())
	require.Equal(t, []bool{true, true}, record.NewVerifier(8).Verify(signed), "the signatures verify")

	checkRows(t, claim, examples[0], func(b []byte) error { _, err := record.ParseAssertionJSON(b); return err })
	checkRows(t, vote, examples[1], func(b []byte) error { _, err := record.ParseVoteJSON(b); return err })
}

func checkRows(t *testing.T, rows map[string]fieldRow, example string, parse func([]byte) error) {
	t.Helper()
	for field, row := range rows {
		var whole map[string]any
		require.NoError(t, json.Unmarshal([]byte(example), &whole))
		holder, name := whole, field
		if outer, inner, nested := strings.Cut(field, "."); nested {
			name = inner
			if list, isList := strings.CutSuffix(outer, "[]"); isList {
				holder = whole[list].([]any)[0].(map[string]any)
			} else {
				holder = whole[outer].(map[string]any)
			}
		}
		var want any
		require.NoError(t, json.Unmarshal([]byte(row.example), &want), field)
		require.Equal(t, want, holder[name], field)
		require.Contains(t, row.kind, kindOf(want), field)
		delete(holder, name)
		text, err := json.Marshal(whole)
		require.NoError(t, err)
		if err := parse(text); row.required == "yes" {
			require.Error(t, err, field)
		} else {
			require.Equal(t, "no", row.required, field)
			require.NoError(t, err, field)
		}
	}
}

func kindOf(v any) string {
	switch v := v.(type) {
	case string:
		return "string"
	case float64:
		if v == float64(int64(v)) {
			return "integer"
		}
		return "number"
	case bool:
		return "boolean"
	case []any:
		return "array"
	default:
		return "object"
	}
}
