package api

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/cluster"
	"github.com/stemedb/stemedb/server/internal/keys"
	"github.com/stemedb/stemedb/server/internal/store"
)

// errorCase is one request and the expected problem.
type errorCase struct {
	name         string
	method, path string
	role         keys.Role // the role of the key; "" none
	key          string    // instead
	media, body  string
	header       http.Header
	arrange      func(w *world)

	status int
	code   string
	field  string
}

// edit returns a signed claim's JSON with one part of the text replaced.
func edit(t testing.TB, old, with string) string {
	t.Helper()
	return replaceOnce(t, jsonOf(t, claim(nil)), old, with)
}

func unavailable(code string) func(*world) {
	return func(w *world) {
		w.backend.failWith(&cluster.UnavailableError{Code: code, Message: "made to fail", RetryAfter: 3 * time.Second})
	}
}

const (
	unknownHash = "0101010101010101010101010101010101010101010101010101010101010101"
	js          = "application/json"
)

// recordErrors are the faults of an assertion. Each is tried as a single record
// and as an item of a batch.
func recordErrors(t testing.TB) []errorCase {
	t.Helper()
	long := func(n int) string { return strings.Repeat("x", n) }
	unsigned := claim(nil)
	unsigned.Signatures[0].Sig[5] ^= 1
	other := claim(nil)
	other.Subject = "code://lifted"
	rows := []errorCase{
		{name: "empty object", body: `{}`, code: record.CodeMissing, field: "subject"},
		{name: "null", body: `null`, code: record.CodeWrongType},
		{name: "a number", body: `7`, code: record.CodeWrongType},
		{name: "no predicate", body: edit(t, `"predicate":"verification",`, ``), code: record.CodeMissing, field: "predicate"},
		{name: "no object", body: edit(t, `"object":{"type":"text","value":"on"},`, ``), code: record.CodeMissing, field: "object"},
		{name: "no confidence", body: edit(t, `"confidence":0.9,`, ``), code: record.CodeMissing, field: "confidence"},
		{name: "no source class", body: edit(t, `"source_class":"expert",`, ``), code: record.CodeMissing, field: "source_class"},
		{name: "no timestamp", body: edit(t, `"timestamp":1700000000,`, ``), code: record.CodeMissing, field: "timestamp"},
		{name: "empty subject", body: edit(t, `code://go/example/tls`, ``), code: record.CodeEmpty, field: "subject"},
		{name: "subject too long", body: edit(t, `code://go/example/tls`, long(1025)), code: record.CodeTooLong, field: "subject"},
		{name: "predicate too long", body: edit(t, `verification`, long(257)), code: record.CodeTooLong, field: "predicate"},
		{name: "text too long", body: edit(t, `"value":"on"`, `"value":"`+long(64<<10+1)+`"`), code: record.CodeTooLong, field: "object.value"},
		{name: "control character", body: edit(t, `code://go`, `code:\u0007//go`), code: record.CodeControlCharacter, field: "subject"},
		{name: "not UTF-8", body: edit(t, `code://go`, "code://\xff"), code: record.CodeInvalidUTF8, field: "subject"},
		{name: "lone surrogate", body: edit(t, `code://go`, `code://\ud800`), code: record.CodeInvalidUTF8, field: "subject"},
		{name: "subject is a number", body: edit(t, `"code://go/example/tls"`, `5`), code: record.CodeWrongType, field: "subject"},
		{name: "confidence is text", body: edit(t, `0.9`, `"0.9"`), code: record.CodeWrongType, field: "confidence"},
		{name: "confidence is null", body: edit(t, `0.9`, `null`), code: record.CodeWrongType, field: "confidence"},
		{name: "confidence above 1", body: edit(t, `0.9`, `1.01`), code: record.CodeOutOfRange, field: "confidence"},
		{name: "confidence below 0", body: edit(t, `0.9`, `-0.1`), code: record.CodeOutOfRange, field: "confidence"},
		{name: "confidence NaN", body: edit(t, `0.9`, `NaN`), code: record.CodeMalformed, field: "confidence"},
		{name: "number too large for a float", body: edit(t, `{"type":"text","value":"on"}`, `{"type":"number","value":1e999}`), code: record.CodeOutOfRange, field: "object.value"},
		{name: "unknown object type", body: edit(t, `"type":"text"`, `"type":"blob"`), code: record.CodeInvalidValue, field: "object.type"},
		{name: "object of another type", body: edit(t, `"value":"on"`, `"value":true`), code: record.CodeWrongType, field: "object.value"},
		{name: "object with an unknown field", body: edit(t, `"value":"on"`, `"value":"on","unit":"s"`), code: record.CodeUnknown, field: "object.unit"},
		{name: "unknown source class", body: edit(t, `"expert"`, `"guru"`), code: record.CodeInvalidValue, field: "source_class"},
		{name: "unknown lifecycle", body: edit(t, `"lifecycle":"proposed"`, `"lifecycle":"done"`), code: record.CodeInvalidValue, field: "lifecycle"},
		{name: "timestamp in milliseconds", body: edit(t, `1700000000`, `1700000000000`), code: record.CodeOutOfRange, field: "timestamp"},
		{name: "negative timestamp", body: edit(t, `1700000000`, `-1`), code: record.CodeOutOfRange, field: "timestamp"},
		{name: "broken timestamp", body: edit(t, `1700000000`, `1700000000.5`), code: record.CodeOutOfRange, field: "timestamp"},
		{name: "timestamp in the future", body: jsonOf(t, claim(func(c *record.Content) { c.Timestamp = 250_000_000_000 })), code: record.CodeOutOfRange, field: "timestamp"},
		{name: "source hash too short", body: edit(t, `"lifecycle"`, `"source_hash":"abcd","lifecycle"`), code: record.CodeInvalidHex, field: "source_hash"},
		{name: "parent hash not hex", body: edit(t, `"lifecycle"`, `"parent_hash":"`+strings.Repeat("g", 64)+`","lifecycle"`), code: record.CodeInvalidHex, field: "parent_hash"},
		{name: "epoch is a number", body: edit(t, `"lifecycle"`, `"epoch":7,"lifecycle"`), code: record.CodeWrongType, field: "epoch"},
		{name: "metadata nested", body: edit(t, `"lifecycle"`, `"source_metadata":{"a":{}},"lifecycle"`), code: record.CodeWrongType, field: "source_metadata.a"},
		{name: "metadata too large", body: edit(t, `"lifecycle"`, `"source_metadata":{"a":"`+long(4096)+`"},"lifecycle"`), code: record.CodeTooLarge, field: "source_metadata"},
		{name: "unknown field", body: edit(t, `"lifecycle"`, `"project":"beta","lifecycle"`), code: record.CodeUnknown, field: "project"},
		{name: "duplicate field", body: edit(t, `"lifecycle"`, `"confidence":0.9,"lifecycle"`), code: record.CodeDuplicate, field: "confidence"},
		{name: "no signatures", body: edit(t, jsonOf(t, claim(nil).Signatures), `[]`), code: record.CodeEmpty, field: "signatures"},
		{name: "signatures are text", body: edit(t, jsonOf(t, claim(nil).Signatures), `"x"`), code: record.CodeWrongType, field: "signatures"},
		{name: "too many signatures", body: tooManySignatures(t), code: record.CodeTooMany, field: "signatures"},
		{name: "one agent twice", body: edit(t, jsonOf(t, claim(nil).Signatures), `[`+jsonOf(t, claim(nil).Signatures[0])+`,`+jsonOf(t, claim(nil).Signatures[0])+`]`), code: record.CodeDuplicate, field: "signatures[1].agent_id"},
		{name: "agent id not hex", body: edit(t, record.AgentOf(agentKey(1)).String(), strings.Repeat("z", 64)), code: record.CodeInvalidHex, field: "signatures[0].agent_id"},
		{name: "signature too short", body: edit(t, claim(nil).Signatures[0].Sig.String(), "abcd"), code: record.CodeInvalidHex, field: "signatures[0].signature"},
		{name: "wrong signature", body: jsonOf(t, unsigned), code: cluster.CodeInvalidSignature, field: "signatures[0].signature"},
		{name: "signature lifted onto another content", body: jsonOf(t, other), code: cluster.CodeInvalidSignature, field: "signatures[0].signature"},
		{name: "deep nesting", body: strings.Repeat("[", 5000) + strings.Repeat("]", 5000), code: record.CodeWrongType},
	}
	for i := range rows {
		rows[i].status = http.StatusBadRequest
	}
	return rows
}

func tooManySignatures(t testing.TB) string {
	t.Helper()
	a := claim(nil)
	for n := byte(2); n <= 65; n++ {
		a.Sign(agentKey(n))
	}
	return jsonOf(t, a)
}

// requestErrors are the faults of a request apart from its record.
func requestErrors(t testing.TB) []errorCase {
	t.Helper()
	good := jsonOf(t, claim(nil))
	goodVote := jsonOf(t, vote(claim(nil).ID(), 1, 1))
	badVote := vote(claim(nil).ID(), 1, 1)
	badVote.Weight = 0.5
	keyPath := "/v1/admin/api-keys/" + unknownHash
	query := "/v1/query?subject=s"
	cbor := claim(nil).AppendCBOR(nil)
	rows := []errorCase{
		// Bodies and media types.
		{name: "no body", method: "POST", path: "/v1/assert", role: keys.WriteAgent, status: 400, code: record.CodeEmpty},
		{name: "empty body", method: "POST", path: "/v1/assert", role: keys.WriteAgent, media: js, status: 400, code: record.CodeEmpty},
		{name: "no body", method: "POST", path: "/v1/assert/batch", role: keys.WriteAgent, status: 400, code: record.CodeEmpty},
		{name: "no body", method: "POST", path: "/v1/vote", role: keys.WriteAgent, status: 400, code: record.CodeEmpty},
		{name: "no body", method: "POST", path: "/v1/admin/api-keys", role: keys.Admin, status: 400, code: record.CodeEmpty},
		{name: "no body", method: "PATCH", path: keyPath, role: keys.Admin, status: 400, code: record.CodeEmpty},
		{name: "form", method: "POST", path: "/v1/assert", role: keys.WriteAgent, media: "application/x-www-form-urlencoded", body: good, status: 415, code: codeMediaType, field: "Content-Type"},
		{name: "text", method: "POST", path: "/v1/assert/batch", role: keys.WriteAgent, media: "text/plain", body: good, status: 415, code: codeMediaType, field: "Content-Type"},
		{name: "ndjson for one", method: "POST", path: "/v1/assert", role: keys.WriteAgent, media: "application/x-ndjson", body: good, status: 415, code: codeMediaType, field: "Content-Type"},
		{name: "no type", method: "POST", path: "/v1/vote", role: keys.WriteAgent, body: goodVote, status: 415, code: codeMediaType, field: "Content-Type"},
		{name: "broken type", method: "POST", path: "/v1/vote", role: keys.WriteAgent, media: "application/json; charset", body: goodVote, status: 415, code: codeMediaType, field: "Content-Type"},
		{name: "latin-1", method: "POST", path: "/v1/assert", role: keys.WriteAgent, media: "application/json; charset=latin1", body: good, status: 415, code: codeMediaType, field: "Content-Type"},
		{name: "cbor for keys", method: "POST", path: "/v1/admin/api-keys", role: keys.Admin, media: "application/cbor", body: "\xa0", status: 415, code: codeMediaType, field: "Content-Type"},
		{name: "compressed", method: "POST", path: "/v1/assert", role: keys.WriteAgent, media: js, body: good, header: http.Header{"Content-Encoding": {"gzip"}}, status: 415, code: codeMediaType, field: "Content-Encoding"},
		{name: "body too large", method: "POST", path: "/v1/assert", role: keys.WriteAgent, media: js, body: strings.Repeat(" ", 1<<20+1), status: 413, code: record.CodeTooLarge},
		{name: "body too large", method: "POST", path: "/v1/vote", role: keys.WriteAgent, media: js, body: strings.Repeat(" ", 1<<20+1), status: 413, code: record.CodeTooLarge},
		{name: "body too large", method: "POST", path: "/v1/assert/batch", role: keys.WriteAgent, media: js, body: strings.Repeat(" ", 8<<20+1), status: 413, code: record.CodeTooLarge},
		{name: "body too large", method: "POST", path: "/v1/admin/api-keys", role: keys.Admin, media: js, body: strings.Repeat(" ", 16<<10+1), status: 413, code: record.CodeTooLarge},
		{name: "body too large", method: "PATCH", path: keyPath, role: keys.Admin, media: js, body: strings.Repeat(" ", 16<<10+1), status: 413, code: record.CodeTooLarge},
		{name: "body too large", method: "POST", path: keyPath + "/rotate", role: keys.Admin, media: js, body: strings.Repeat(" ", 16<<10+1), status: 413, code: record.CodeTooLarge},
		{name: "not JSON", method: "POST", path: "/v1/assert", role: keys.WriteAgent, media: js, body: `{"subject":`, status: 400, code: record.CodeMalformed, field: "subject"},
		{name: "two values", method: "POST", path: "/v1/assert", role: keys.WriteAgent, media: js, body: good + good, status: 400, code: record.CodeMalformed},
		{name: "a CBOR break", method: "POST", path: "/v1/assert", role: keys.WriteAgent, media: "application/cbor", body: "\xff\xff", status: 400, code: record.CodeWrongType},
		{name: "CBOR cut short", method: "POST", path: "/v1/assert", role: keys.WriteAgent, media: "application/cbor", body: string(cbor[:40]), status: 400, code: record.CodeMalformed, field: "subject"},
		{name: "CBOR with a long head", method: "POST", path: "/v1/assert", role: keys.WriteAgent, media: "application/cbor", body: "\xb8\x09" + string(cbor[1:]), status: 400, code: record.CodeNotCanonical},

		// Batches.
		{name: "not an array", method: "POST", path: "/v1/assert/batch", role: keys.WriteAgent, media: js, body: good, status: 400, code: record.CodeMalformed},
		{name: "array cut short", method: "POST", path: "/v1/assert/batch", role: keys.WriteAgent, media: js, body: `[` + good, status: 400, code: record.CodeMalformed, field: "[1]"},
		{name: "empty array", method: "POST", path: "/v1/assert/batch", role: keys.WriteAgent, media: js, body: `[]`, status: 400, code: record.CodeEmpty},
		{name: "blank lines", method: "POST", path: "/v1/assert/batch", role: keys.WriteAgent, media: "application/x-ndjson", body: "\n\n", status: 400, code: record.CodeEmpty},
		{name: "1,001 items", method: "POST", path: "/v1/assert/batch", role: keys.WriteAgent, media: js, body: `[` + strings.Repeat(`{},`, 1000) + `{}]`, status: 413, code: record.CodeTooMany},
		{name: "1,001 lines", method: "POST", path: "/v1/assert/batch", role: keys.WriteAgent, media: "application/x-ndjson", body: strings.Repeat("{}\n", 1001), status: 413, code: record.CodeTooMany},
		{name: "CBOR sequence cut short", method: "POST", path: "/v1/assert/batch", role: keys.WriteAgent, media: "application/cbor", body: string(cbor) + string(cbor[:9]), status: 400, code: record.CodeMalformed, field: "[1]"},

		// Votes.
		{name: "empty", method: "POST", path: "/v1/vote", role: keys.WriteAgent, media: js, body: `{}`, status: 400, code: record.CodeMissing, field: "assertion"},
		{name: "no assertion", method: "POST", path: "/v1/vote", role: keys.WriteAgent, media: js, body: replaceOnce(t, goodVote, `"assertion"`, `"assertions"`), status: 400, code: record.CodeUnknown, field: "assertions"},
		{name: "weight above 1", method: "POST", path: "/v1/vote", role: keys.WriteAgent, media: js, body: replaceOnce(t, goodVote, `"weight":1`, `"weight":1.5`), status: 400, code: record.CodeOutOfRange, field: "weight"},
		{name: "weight below -1", method: "POST", path: "/v1/vote", role: keys.WriteAgent, media: js, body: replaceOnce(t, goodVote, `"weight":1`, `"weight":-2`), status: 400, code: record.CodeOutOfRange, field: "weight"},
		{name: "weight is text", method: "POST", path: "/v1/vote", role: keys.WriteAgent, media: js, body: replaceOnce(t, goodVote, `"weight":1`, `"weight":"1"`), status: 400, code: record.CodeWrongType, field: "weight"},
		{name: "bad hex", method: "POST", path: "/v1/vote", role: keys.WriteAgent, media: js, body: replaceOnce(t, goodVote, claim(nil).ID().String(), "zz"), status: 400, code: record.CodeInvalidHex, field: "assertion"},
		{name: "duplicate", method: "POST", path: "/v1/vote", role: keys.WriteAgent, media: js, body: replaceOnce(t, goodVote, `"weight":1`, `"weight":1,"weight":1`), status: 400, code: record.CodeDuplicate, field: "weight"},
		{name: "wrong signature", method: "POST", path: "/v1/vote", role: keys.WriteAgent, media: js, body: jsonOf(t, badVote), status: 400, code: cluster.CodeInvalidSignature, field: "signatures[0].signature"},

		// Reads.
		{name: "bad hash", method: "GET", path: "/v1/assertions/xyz", role: keys.ReadOnly, status: 400, code: record.CodeInvalidHex, field: "hash"},
		{name: "hash not hex", method: "GET", path: "/v1/assertions/" + strings.Repeat("q", 64), role: keys.ReadOnly, status: 400, code: record.CodeInvalidHex, field: "hash"},
		{name: "no such record", method: "GET", path: "/v1/assertions/" + unknownHash, role: keys.ReadOnly, status: 404, code: codeNoRecord, field: "hash"},
		{name: "no such record anywhere", method: "GET", path: "/v1/assertions/" + unknownHash + "?scope=own,shared", role: keys.ReadOnly, status: 404, code: codeNoRecord, field: "hash"},
		{name: "unknown parameter", method: "GET", path: "/v1/assertions/" + unknownHash + "?x=1", role: keys.ReadOnly, status: 400, code: codeUnknownParameter, field: "x"},
		{name: "no subject", method: "GET", path: "/v1/query", role: keys.ReadOnly, status: 400, code: record.CodeMissing, field: "subject"},
		{name: "empty subject", method: "GET", path: "/v1/query?subject=", role: keys.ReadOnly, status: 400, code: record.CodeEmpty, field: "subject"},
		{name: "subject too long", method: "GET", path: "/v1/query?subject=" + strings.Repeat("s", 1025), role: keys.ReadOnly, status: 400, code: record.CodeTooLong, field: "subject"},
		{name: "subject not UTF-8", method: "GET", path: "/v1/query?subject=%ff", role: keys.ReadOnly, status: 400, code: record.CodeInvalidUTF8, field: "subject"},
		{name: "predicate too long", method: "GET", path: query + "&predicate=" + strings.Repeat("p", 257), role: keys.ReadOnly, status: 400, code: record.CodeTooLong, field: "predicate"},
		{name: "misspelt parameter", method: "GET", path: query + "&predicates=p", role: keys.ReadOnly, status: 400, code: codeUnknownParameter, field: "predicates"},
		{name: "parameter twice", method: "GET", path: query + "&subject=t", role: keys.ReadOnly, status: 400, code: record.CodeDuplicate, field: "subject"},
		{name: "broken query string", method: "GET", path: query + "&predicate=%zz", role: keys.ReadOnly, status: 400, code: codeMalformedRequest},
		{name: "semicolons", method: "GET", path: query + ";predicate=p", role: keys.ReadOnly, status: 400, code: codeMalformedRequest},
		{name: "unknown lens", method: "GET", path: query + "&lens=rose", role: keys.ReadOnly, status: 400, code: record.CodeInvalidValue, field: "lens"},
		{name: "skeptic as a lens", method: "GET", path: query + "&lens=skeptic", role: keys.ReadOnly, status: 400, code: record.CodeInvalidValue, field: "lens"},
		{name: "unknown lifecycle", method: "GET", path: query + "&lifecycle=approved,done", role: keys.ReadOnly, status: 400, code: record.CodeInvalidValue, field: "lifecycle"},
		{name: "unknown source class", method: "GET", path: query + "&source_class=guru", role: keys.ReadOnly, status: 400, code: record.CodeInvalidValue, field: "source_class"},
		{name: "unknown scope", method: "GET", path: query + "&scope=beta", role: keys.ReadOnly, status: 400, code: record.CodeInvalidValue, field: "scope"},
		{name: "unknown consistency", method: "GET", path: query + "&consistency=some", role: keys.ReadOnly, status: 400, code: record.CodeInvalidValue, field: "consistency"},
		{name: "as_of is a date", method: "GET", path: query + "&as_of=2026-01-01", role: keys.ReadOnly, status: 400, code: record.CodeOutOfRange, field: "as_of"},
		{name: "as_of in milliseconds", method: "GET", path: query + "&as_of=1700000000000", role: keys.ReadOnly, status: 400, code: record.CodeOutOfRange, field: "as_of"},
		{name: "as_of 0", method: "GET", path: query + "&as_of=0", role: keys.ReadOnly, status: 400, code: record.CodeOutOfRange, field: "as_of"},
		{name: "min_confidence NaN", method: "GET", path: query + "&min_confidence=NaN", role: keys.ReadOnly, status: 400, code: record.CodeOutOfRange, field: "min_confidence"},
		{name: "min_confidence 2", method: "GET", path: query + "&min_confidence=2", role: keys.ReadOnly, status: 400, code: record.CodeOutOfRange, field: "min_confidence"},
		{name: "limit 0", method: "GET", path: query + "&limit=0", role: keys.ReadOnly, status: 400, code: record.CodeOutOfRange, field: "limit"},
		{name: "limit too high", method: "GET", path: query + "&limit=1001", role: keys.ReadOnly, status: 400, code: record.CodeOutOfRange, field: "limit"},
		{name: "limit is text", method: "GET", path: query + "&limit=many", role: keys.ReadOnly, status: 400, code: record.CodeOutOfRange, field: "limit"},
		{name: "cursor of nothing", method: "GET", path: query + "&cursor=abc", role: keys.ReadOnly, status: 400, code: codeInvalidCursor, field: "cursor"},
		{name: "cursor not base64", method: "GET", path: query + "&cursor=%2B%2B%2B", role: keys.ReadOnly, status: 400, code: codeInvalidCursor, field: "cursor"},
		{name: "cursor too long", method: "GET", path: query + "&cursor=" + strings.Repeat("A", 2049), role: keys.ReadOnly, status: 400, code: codeInvalidCursor, field: "cursor"},
		{name: "skeptic without predicate", method: "GET", path: "/v1/skeptic?subject=s", role: keys.ReadOnly, status: 400, code: record.CodeMissing, field: "predicate"},
		{name: "skeptic without subject", method: "GET", path: "/v1/skeptic?predicate=p", role: keys.ReadOnly, status: 400, code: record.CodeMissing, field: "subject"},
		{name: "skeptic with a lens", method: "GET", path: "/v1/skeptic?subject=s&predicate=p&lens=recency", role: keys.ReadOnly, status: 400, code: codeUnknownParameter, field: "lens"},
		{name: "skeptic limit", method: "GET", path: "/v1/skeptic?subject=s&predicate=p&limit=10001", role: keys.ReadOnly, status: 400, code: record.CodeOutOfRange, field: "limit"},
		{name: "layered without predicate", method: "GET", path: "/v1/layered?subject=s", role: keys.ReadOnly, status: 400, code: record.CodeMissing, field: "predicate"},
		{name: "layered with a limit", method: "GET", path: "/v1/layered?subject=s&predicate=p&limit=3", role: keys.ReadOnly, status: 400, code: codeUnknownParameter, field: "limit"},
		{name: "empty prefix", method: "GET", path: "/v1/subjects?prefix=", role: keys.ReadOnly, status: 400, code: record.CodeEmpty, field: "prefix"},
		{name: "subjects with a subject", method: "GET", path: "/v1/subjects?subject=s", role: keys.ReadOnly, status: 400, code: codeUnknownParameter, field: "subject"},
		{name: "subjects cursor", method: "GET", path: "/v1/subjects?cursor=abcd", role: keys.ReadOnly, status: 400, code: codeInvalidCursor, field: "cursor"},
		{name: "whoami with a parameter", method: "GET", path: "/v1/whoami?me=1", role: keys.ReadOnly, status: 400, code: codeUnknownParameter, field: "me"},

		// Keys.
		{name: "no project", method: "POST", path: "/v1/admin/api-keys", role: keys.Admin, media: js, body: `{"role":"read_only"}`, status: 400, code: record.CodeMissing, field: "project"},
		{name: "bad project", method: "POST", path: "/v1/admin/api-keys", role: keys.Admin, media: js, body: `{"project":"Big","role":"read_only"}`, status: 400, code: record.CodeInvalidValue, field: "project"},
		{name: "project too long", method: "POST", path: "/v1/admin/api-keys", role: keys.Admin, media: js, body: `{"project":"` + strings.Repeat("p", 64) + `","role":"read_only"}`, status: 400, code: record.CodeTooLong, field: "project"},
		{name: "no role", method: "POST", path: "/v1/admin/api-keys", role: keys.Admin, media: js, body: `{"project":"beta"}`, status: 400, code: record.CodeMissing, field: "role"},
		{name: "bad role", method: "POST", path: "/v1/admin/api-keys", role: keys.Admin, media: js, body: `{"project":"beta","role":"god"}`, status: 400, code: record.CodeInvalidValue, field: "role"},
		{name: "shared for writers", method: "POST", path: "/v1/admin/api-keys", role: keys.Admin, media: js, body: `{"project":"shared","role":"write_agent"}`, status: 400, code: record.CodeInvalidValue, field: "role"},
		{name: "label too long", method: "POST", path: "/v1/admin/api-keys", role: keys.Admin, media: js, body: `{"project":"beta","role":"admin","label":"` + strings.Repeat("l", 129) + `"}`, status: 400, code: record.CodeTooLong, field: "label"},
		{name: "label with a line end", method: "POST", path: "/v1/admin/api-keys", role: keys.Admin, media: js, body: `{"project":"beta","role":"admin","label":"a\nb"}`, status: 400, code: record.CodeControlCharacter, field: "label"},
		{name: "expired at birth", method: "POST", path: "/v1/admin/api-keys", role: keys.Admin, media: js, body: `{"project":"beta","role":"admin","expires_at":5}`, status: 400, code: record.CodeOutOfRange, field: "expires_at"},
		{name: "expiry in milliseconds", method: "POST", path: "/v1/admin/api-keys", role: keys.Admin, media: js, body: `{"project":"beta","role":"admin","expires_at":1900000000000}`, status: 400, code: record.CodeOutOfRange, field: "expires_at"},
		{name: "expiry is text", method: "POST", path: "/v1/admin/api-keys", role: keys.Admin, media: js, body: `{"project":"beta","role":"admin","expires_at":"soon"}`, status: 400, code: record.CodeWrongType, field: "expires_at"},
		{name: "bad environment", method: "POST", path: "/v1/admin/api-keys", role: keys.Admin, media: js, body: `{"project":"beta","role":"admin","environment":"prod"}`, status: 400, code: record.CodeInvalidValue, field: "environment"},
		{name: "environment with hash", method: "POST", path: "/v1/admin/api-keys", role: keys.Admin, media: js, body: `{"project":"beta","role":"admin","environment":"live","key_hash":"` + unknownHash + `"}`, status: 400, code: record.CodeInvalidValue, field: "environment"},
		{name: "bad key hash", method: "POST", path: "/v1/admin/api-keys", role: keys.Admin, media: js, body: `{"project":"beta","role":"admin","key_hash":"ab"}`, status: 400, code: record.CodeInvalidHex, field: "key_hash"},
		{name: "unknown field", method: "POST", path: "/v1/admin/api-keys", role: keys.Admin, media: js, body: `{"project":"beta","role":"admin","rate_limit":5}`, status: 400, code: record.CodeUnknown, field: "rate_limit"},
		{name: "duplicate field", method: "POST", path: "/v1/admin/api-keys", role: keys.Admin, media: js, body: `{"project":"beta","project":"gamma","role":"admin"}`, status: 400, code: record.CodeDuplicate, field: "project"},
		{name: "not JSON", method: "POST", path: "/v1/admin/api-keys", role: keys.Admin, media: js, body: `project=beta`, status: 400, code: record.CodeMalformed},
		{name: "an array", method: "POST", path: "/v1/admin/api-keys", role: keys.Admin, media: js, body: `[]`, status: 400, code: record.CodeWrongType},
		{
			name: "hash held by another project", method: "POST", path: "/v1/admin/api-keys", role: keys.Admin, media: js, body: `{"project":"beta","role":"admin","key_hash":"` + unknownHash + `"}`, status: 409, code: codeKeyExists, field: "key_hash",
			arrange: holdKey(func(*keys.Key) {}),
		},
		{
			name: "hash was revoked", method: "POST", path: "/v1/admin/api-keys", role: keys.Admin, media: js, body: `{"project":"held","role":"read_only","key_hash":"` + unknownHash + `"}`, status: 409, code: codeRevokedForGood, field: "hash",
			arrange: holdKey(func(k *keys.Key) { k.RevokedAt = 5 }),
		},
		{name: "list limit", method: "GET", path: "/v1/admin/api-keys?limit=5000", role: keys.Admin, status: 400, code: record.CodeOutOfRange, field: "limit"},
		{name: "list project", method: "GET", path: "/v1/admin/api-keys?project=A", role: keys.Admin, status: 400, code: record.CodeInvalidValue, field: "project"},
		{name: "list cursor", method: "GET", path: "/v1/admin/api-keys?cursor=AAAA", role: keys.Admin, status: 400, code: codeInvalidCursor, field: "cursor"},
		{name: "list unknown parameter", method: "GET", path: "/v1/admin/api-keys?role=admin", role: keys.Admin, status: 400, code: codeUnknownParameter, field: "role"},
		{name: "get bad hash", method: "GET", path: "/v1/admin/api-keys/steme_live", role: keys.Admin, status: 400, code: record.CodeInvalidHex, field: "hash"},
		{name: "get unknown", method: "GET", path: keyPath, role: keys.Admin, status: 404, code: codeNoKey, field: "hash"},
		{name: "get without a leader", method: "GET", path: keyPath, role: keys.Admin, arrange: leaderGone, status: 503, code: codeKeysUnavailable},
		{name: "patch without version", method: "PATCH", path: keyPath, role: keys.Admin, media: js, body: `{"label":"x"}`, status: 400, code: record.CodeMissing, field: "version"},
		{name: "patch nothing", method: "PATCH", path: keyPath, role: keys.Admin, media: js, body: `{"version":1}`, status: 400, code: record.CodeEmpty},
		{name: "patch project", method: "PATCH", path: keyPath, role: keys.Admin, media: js, body: `{"version":1,"project":"beta"}`, status: 400, code: record.CodeUnknown, field: "project"},
		{name: "patch bad role", method: "PATCH", path: keyPath, role: keys.Admin, media: js, body: `{"version":1,"role":"x"}`, status: 400, code: record.CodeInvalidValue, field: "role"},
		{name: "patch label too long", method: "PATCH", path: keyPath, role: keys.Admin, media: js, body: `{"version":1,"label":"` + strings.Repeat("l", 129) + `"}`, status: 400, code: record.CodeTooLong, field: "label"},
		{name: "patch past expiry", method: "PATCH", path: keyPath, role: keys.Admin, media: js, body: `{"version":1,"expires_at":7}`, status: 400, code: record.CodeOutOfRange, field: "expires_at"},
		{name: "patch version is text", method: "PATCH", path: keyPath, role: keys.Admin, media: js, body: `{"version":"1","label":"x"}`, status: 400, code: record.CodeWrongType, field: "version"},
		{name: "patch unknown", method: "PATCH", path: keyPath, role: keys.Admin, media: js, body: `{"version":1,"label":"x"}`, status: 404, code: codeNoKey, field: "hash"},
		{name: "patch old version", method: "PATCH", path: keyPath, role: keys.Admin, media: js, body: `{"version":1,"label":"x"}`, arrange: holdKey(func(k *keys.Key) { k.Version = 2 }), status: 409, code: codeVersionConflict, field: "version"},
		{name: "patch revoked", method: "PATCH", path: keyPath, role: keys.Admin, media: js, body: `{"version":1,"label":"x"}`, arrange: holdKey(func(k *keys.Key) { k.RevokedAt = 2 }), status: 409, code: codeRevokedForGood, field: "hash"},
		{name: "patch a shared key's role", method: "PATCH", path: keyPath, role: keys.Admin, media: js, body: `{"version":1,"role":"read_only"}`, arrange: holdKey(func(k *keys.Key) { k.Project = keys.SharedProject }), status: 400, code: record.CodeInvalidValue, field: "role"},
		{name: "patch without a leader", method: "PATCH", path: keyPath, role: keys.Admin, media: js, body: `{"version":1,"label":"x"}`, arrange: leaderGone, status: 503, code: codeKeysUnavailable},
		{name: "revoke unknown", method: "DELETE", path: keyPath, role: keys.Admin, status: 404, code: codeNoKey, field: "hash"},
		{name: "revoke bad hash", method: "DELETE", path: "/v1/admin/api-keys/zz", role: keys.Admin, status: 400, code: record.CodeInvalidHex, field: "hash"},
		{name: "revoke without a leader", method: "DELETE", path: keyPath, role: keys.Admin, arrange: leaderGone, status: 503, code: codeKeysUnavailable},
		{name: "rotate unknown", method: "POST", path: keyPath + "/rotate", role: keys.Admin, status: 404, code: codeNoKey, field: "hash"},
		{name: "rotate bad hash", method: "POST", path: "/v1/admin/api-keys/zz/rotate", role: keys.Admin, status: 400, code: record.CodeInvalidHex, field: "hash"},
		{name: "rotate bad grace", method: "POST", path: keyPath + "/rotate", role: keys.Admin, media: js, body: `{"grace":"soon"}`, status: 400, code: record.CodeOutOfRange, field: "grace"},
		{name: "rotate negative grace", method: "POST", path: keyPath + "/rotate", role: keys.Admin, media: js, body: `{"grace":"-1s"}`, status: 400, code: record.CodeOutOfRange, field: "grace"},
		{name: "rotate long grace", method: "POST", path: keyPath + "/rotate", role: keys.Admin, media: js, body: `{"grace":"721h"}`, status: 400, code: record.CodeOutOfRange, field: "grace"},
		{name: "rotate grace is a number", method: "POST", path: keyPath + "/rotate", role: keys.Admin, media: js, body: `{"grace":60}`, status: 400, code: record.CodeWrongType, field: "grace"},
		{name: "rotate bad environment", method: "POST", path: keyPath + "/rotate", role: keys.Admin, media: js, body: `{"environment":"x"}`, arrange: holdKey(func(*keys.Key) {}), status: 400, code: record.CodeInvalidValue, field: "environment"},
		{name: "rotate revoked", method: "POST", path: keyPath + "/rotate", role: keys.Admin, arrange: holdKey(func(k *keys.Key) { k.RevokedAt = 2 }), status: 409, code: codeRevokedForGood, field: "hash"},
		{name: "rotate twice", method: "POST", path: keyPath + "/rotate", role: keys.Admin, arrange: holdKey(func(k *keys.Key) { k.RotatedTo = &keys.Hash{3} }), status: 409, code: codeAlreadyRotated, field: "hash"},
		{name: "rotate without a leader", method: "POST", path: keyPath + "/rotate", role: keys.Admin, arrange: leaderGone, status: 503, code: codeKeysUnavailable},
		{name: "mint without a leader", method: "POST", path: "/v1/admin/api-keys", role: keys.Admin, media: js, body: `{"project":"beta","role":"admin"}`, arrange: leaderGone, status: 503, code: codeKeysUnavailable},

		// Header and routes.
		{name: "header too large", method: "GET", path: "/v1/whoami", role: keys.ReadOnly, header: http.Header{"X-Filler": {strings.Repeat("f", 17<<10)}}, status: 431, code: codeHeaderTooLarge},
		{name: "path too long", method: "GET", path: "/v1/query?subject=" + strings.Repeat("f", 17<<10), role: keys.ReadOnly, status: 431, code: codeHeaderTooLarge},
		{name: "time-out is text", method: "GET", path: "/v1/whoami", role: keys.ReadOnly, header: http.Header{"X-Request-Timeout": {"soon"}}, status: 400, code: record.CodeOutOfRange, field: headerTimeout},
		{name: "time-out too long", method: "GET", path: "/v1/whoami", role: keys.ReadOnly, header: http.Header{"X-Request-Timeout": {"61"}}, status: 400, code: record.CodeOutOfRange, field: headerTimeout},
		{name: "time-out NaN", method: "GET", path: "/v1/whoami", role: keys.ReadOnly, header: http.Header{"X-Request-Timeout": {"NaN"}}, status: 400, code: record.CodeOutOfRange, field: headerTimeout},
		{name: "no route", method: "GET", path: "/", role: keys.Admin, status: 404, code: codeNoRoute},
		{name: "no route without a key", method: "GET", path: "/v2/query", status: 404, code: codeNoRoute},
		{name: "trailing slash", method: "GET", path: "/v1/query/", role: keys.Admin, status: 404, code: codeNoRoute},
		{name: "case", method: "GET", path: "/V1/query", role: keys.Admin, status: 404, code: codeNoRoute},

		// Time.
		{name: "too slow", method: "POST", path: "/v1/assert", role: keys.WriteAgent, media: js, body: good, header: http.Header{"X-Request-Timeout": {"0.01"}}, arrange: func(w *world) { w.backend.slow.Store(int64(time.Minute)) }, status: 503, code: codeTimeout},
		{name: "a bug", method: "POST", path: "/v1/assert", role: keys.WriteAgent, media: js, body: good, arrange: func(w *world) { w.backend.panics.Store(true) }, status: 500, code: codeInternal},
		{name: "an unknown error", method: "GET", path: "/v1/query?subject=s", role: keys.ReadOnly, arrange: func(w *world) { w.backend.failWith(errors.New("odd")) }, status: 500, code: codeInternal},
		{name: "damaged", method: "GET", path: "/v1/assertions/" + unknownHash, role: keys.ReadOnly, arrange: func(w *world) { w.backend.failWith(&store.DamageError{Err: errors.New("crc")}) }, status: 503, code: cluster.CodeDamaged},
		{name: "busy", method: "POST", path: "/v1/assert", role: keys.WriteAgent, media: js, body: good, arrange: func(w *world) { w.backend.failWith(store.ErrBusy) }, status: 503, code: cluster.CodeOverloadedDisk},
		{name: "index failed", method: "GET", path: "/v1/subjects", role: keys.ReadOnly, arrange: func(w *world) { w.backend.failWith(store.ErrIndexFailed) }, status: 503, code: cluster.CodeStorageFailed},
		{name: "closed", method: "GET", path: "/v1/subjects", role: keys.ReadOnly, arrange: func(w *world) { w.backend.failWith(store.ErrClosed) }, status: 503, code: cluster.CodeClosed},
		{name: "a code that is not known here", method: "GET", path: "/v1/subjects", role: keys.ReadOnly, arrange: unavailable("new_code"), status: 503, code: codeUnavailable},
		{name: "not ready", method: "GET", path: "/v1/health/ready", arrange: func(w *world) { w.backend.failWith(errors.New("odd")) }, status: 503, code: codeNotReady},
		{name: "draining", method: "GET", path: "/v1/health/ready", arrange: func(w *world) { w.api.Drain() }, status: 503, code: cluster.CodeClosed},
		{name: "draining", method: "GET", path: "/v1/health", arrange: func(w *world) { w.api.Drain() }, status: 503, code: cluster.CodeClosed},
	}
	return rows
}

func leaderGone(w *world) { w.table.leaderGone.Store(true) }

// holdKey puts a key with the hash unknownHash into the table.
func holdKey(change func(*keys.Key)) func(*world) {
	return func(w *world) {
		h, err := keys.ParseHash(unknownHash)
		require.NoError(w.t, err)
		k := keys.Key{Hash: h, Project: "held", Role: keys.ReadOnly, Enabled: true, Version: 1}
		change(&k)
		w.table.keys[h] = k
	}
}

// exchanges has a request for each route that is answered with 2xx.
func exchanges(t testing.TB, rt *route) errorCase {
	t.Helper()
	path := strings.NewReplacer(":hash", unknownHash, ":name", "n0").Replace(rt.pattern)
	c := errorCase{method: rt.method, path: path, role: keys.Admin}
	switch rt.pattern {
	case "/v1/query", "/v1/skeptic", "/v1/layered":
		c.path += "?subject=s&predicate=p"
	case "/v1/assert":
		c.media, c.body = js, jsonOf(t, claim(nil))
	case "/v1/assert/batch":
		c.media, c.body = js, "["+jsonOf(t, claim(nil))+"]"
	case "/v1/vote":
		c.media, c.body = js, jsonOf(t, vote(claim(nil).ID(), 1, 1))
	case "/v1/admin/api-keys":
		if rt.method == "POST" {
			c.media, c.body = js, `{"project":"beta","role":"read_only"}`
		}
	case "/v1/admin/api-keys/:hash":
		if rt.method == "PATCH" {
			c.media, c.body = js, `{"version":1,"label":"x"}`
		}
	}
	return c
}

// guardErrors are the answers that every guarded route gives before it does
// anything.
func guardErrors(t testing.TB) (rows []errorCase) {
	t.Helper()
	for _, rt := range routes() {
		base := exchanges(t, &rt)
		add := func(name string, status int, code, field string, change func(*errorCase)) {
			c := base
			c.name, c.status, c.code, c.field = name, status, code, field
			change(&c)
			rows = append(rows, c)
		}
		for _, method := range []string{"PUT", "TRACE", "BREW"} {
			add("wrong method "+method, 405, codeMethodNotAllowed, "", func(c *errorCase) { c.method = method })
		}
		if rt.class == keys.Public {
			continue
		}
		keyed := func(change func(*keys.Key)) func(*errorCase) {
			return func(c *errorCase) {
				c.arrange = func(w *world) { w.raw["special"] = w.key("alpha", keys.Admin, change) }
				c.role = "special"
			}
		}
		add("no key", 401, codeKeyMissing, headerName, func(c *errorCase) { c.role = "" })
		add("malformed key", 401, codeKeyInvalid, headerName, func(c *errorCase) { c.key = "secret" })
		add("unknown key", 401, codeKeyInvalid, headerName, func(c *errorCase) { c.key = "steme_live_" + strings.Repeat("0", 48) })
		add("two keys", 400, record.CodeDuplicate, headerName, func(c *errorCase) { c.role, c.header = "", http.Header{headerKey: {"a", "b"}} })
		add("expired key", 401, codeKeyExpired, headerName, keyed(func(k *keys.Key) { k.ExpiresAt = 2 }))
		add("disabled key", 401, codeKeyDisabled, headerName, keyed(func(k *keys.Key) { k.Enabled = false }))
		add("revoked key", 401, codeKeyRevoked, headerName, keyed(func(k *keys.Key) { k.RevokedAt = 2 }))
		add("rotated key", 401, codeKeyRotated, headerName, keyed(func(k *keys.Key) { k.RotatedTo, k.GraceUntil = &keys.Hash{1}, 2 }))
		add("unconfirmed", 503, codeKeysUnconfirmed, headerName, func(c *errorCase) { c.arrange = func(w *world) { w.table.unconfirmed.Store(true) } })
		add("unknown key, no leader", 503, codeKeysUnconfirmed, headerName, func(c *errorCase) {
			c.key, c.arrange = "steme_live_"+strings.Repeat("0", 48), leaderGone
		})
		for _, role := range keys.Roles() {
			if !role.Allows(rt.class) {
				add("role "+string(role), 403, codeForbidden, headerName, func(c *errorCase) { c.role = role })
			}
		}
		if rt.class == keys.Read || rt.class == keys.Write {
			for code, status := range backendCodes() {
				add("backend: "+code, status, code, "", func(c *errorCase) { c.arrange = unavailable(code) })
			}
		}
	}
	return rows
}

// backendCodes are the codes of cluster.UnavailableError with their status.
func backendCodes() map[string]int {
	return map[string]int{
		cluster.CodeNoQuorum: 503, cluster.CodeOverloadedDisk: 503, cluster.CodeOverloadedWrites: 503,
		cluster.CodeOverloadedPeers: 503, cluster.CodeOverloadedSignatures: 503, cluster.CodeOverloadedComparison: 503, cluster.CodeReadOnly: 507, cluster.CodeStorageFailed: 503,
		cluster.CodeUnconfirmed: 503, cluster.CodeControlFailed: 503, cluster.CodeNotMember: 503, cluster.CodeNotWhole: 503, cluster.CodeTooFewWhole: 503, cluster.CodePeersUnreachable: 503,
		cluster.CodeCatchingUp: 503, cluster.CodeDamaged: 503, cluster.CodeClosed: 503,
	}
}

func TestEveryErrorOfEveryRoute(t *testing.T) {
	rows := requestErrors(t)
	for _, row := range recordErrors(t) {
		row.name, row.method, row.path, row.role, row.media = "record: "+row.name, "POST", "/v1/assert", keys.WriteAgent, js
		rows = append(rows, row)
	}
	rows = append(rows, guardErrors(t)...)
	require.Greater(t, len(rows), 300)
	w := newWorld(t, nil)
	fresh := func() {
		// Each row's setup is undone; the store may stay as it is.
		w.backend.failWith(nil)
		w.backend.slow.Store(0)
		w.backend.panics.Store(false)
		w.table.unconfirmed.Store(false)
		w.table.leaderGone.Store(false)
		w.api.draining.Store(false)
		w.api.unknown = newUnknownKeys()
		h, _ := keys.ParseHash(unknownHash)
		delete(w.table.keys, h)
	}
	c := newContract(t)
	for i, row := range rows {
		t.Run(strconv.Itoa(i)+" "+row.method+" "+clip(row.path)+" "+row.name, func(t *testing.T) {
			fresh()
			if row.arrange != nil {
				row.arrange(w)
			}
			key := row.key
			if key == "" && row.role != "" {
				key = w.raw[row.role]
				require.NotEmpty(t, key)
			}
			r := request{method: row.method, path: row.path, key: key, media: row.media, header: row.header}
			if row.body != "" {
				r.body = []byte(row.body)
			}
			got := w.do(r)
			p := problemOf(t, got)
			require.Equal(t, []any{row.status, row.code, row.field}, []any{got.Code, p.Code, p.Field}, "%+v", p)
			require.Contains(t, codeTable, p.Code)
			require.NotEmpty(t, p.Remedy, "%+v", p)
			require.Equal(t, strconv.Itoa(got.Body.Len()), got.Header().Get("Content-Length"))
			if got.Code == http.StatusServiceUnavailable {
				require.NotEmpty(t, got.Header().Get("Retry-After"))
			}
			if got.Code == http.StatusMethodNotAllowed {
				require.NotEmpty(t, got.Header().Get("Allow"))
			} else if row.code != codeNoRoute && row.status != 405 {
				c.check(t, r, got)
			}
		})
	}
}

// One bad item does not affect the others, whatever its fault.
func TestBatchReportsEachItem(t *testing.T) {
	w := newWorld(t, nil)
	for _, row := range recordErrors(t) {
		t.Run(row.name, func(t *testing.T) {
			good := claim(func(c *record.Content) { c.Subject = row.name })
			line := strings.ReplaceAll(row.body, "\n", " ")
			got := w.do(request{
				method: "POST", path: "/v1/assert/batch", key: w.raw[keys.WriteAgent], media: "application/x-ndjson",
				body: []byte(line + "\n" + jsonOf(t, good) + "\n" + jsonOf(t, good) + "\n"),
			})
			require.Equal(t, http.StatusOK, got.Code, "%s", got.Body)
			b := decode[batchBody](t, got)
			require.Len(t, b.Results, 3)
			require.Equal(t, 1, b.Failed)
			require.Equal(t, statusFailed, b.Results[0].Status)
			require.Equal(t, row.code, b.Results[0].Error.Code)
			require.Equal(t, row.field, b.Results[0].Error.Field)
			require.Equal(t, good.ID().String(), b.Results[1].Hash)
			require.Equal(t, 2, b.Created+b.Exists)
		})
	}
}

// A batch of which nothing could be tried is answered like a single record; no
// valid item is reported as invalid.
func TestBatchThatCannotBeTried(t *testing.T) {
	w := newWorld(t, nil)
	unavailable(cluster.CodeReadOnly)(w)
	got := w.as(keys.WriteAgent, "POST", "/v1/assert/batch", "["+jsonOf(t, claim(nil))+",{}]")
	require.Equal(t, http.StatusInsufficientStorage, got.Code)
	require.Equal(t, cluster.CodeReadOnly, problemOf(t, got).Code)
	require.Equal(t, "3", got.Header().Get("Retry-After"))
}
