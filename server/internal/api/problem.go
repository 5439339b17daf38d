package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/cluster"
	"github.com/stemedb/stemedb/server/internal/keys"
)

// Codes of problems besides those of package record. They are part of the API:
// callers compare them, so no code ever changes its meaning.
const (
	codeUnknownParameter   = "unknown_parameter"
	codeInvalidCursor      = "invalid_cursor"
	codeMalformedRequest   = "malformed_request"
	codeKeyMissing         = "key_missing"
	codeKeyInvalid         = "key_invalid"
	codeKeyExpired         = "key_expired"
	codeKeyDisabled        = "key_disabled"
	codeKeyRevoked         = "key_revoked"
	codeKeyRotated         = "key_rotated"
	codeForbidden          = "forbidden"
	codeNoRoute            = "no_such_route"
	codeNoRecord           = "no_such_record"
	codeNoKey              = "no_such_key"
	codeNoSuchMember       = "no_such_member"
	codeNoSuchChange       = "no_such_change"
	codeNoSuchLog          = "no_such_log"
	codeLossStands         = "loss_stands"
	codeMethodNotAllowed   = "method_not_allowed"
	codeBodyTimeout        = "body_timeout"
	codeKeyExists          = "key_exists"
	codeVersionConflict    = "version_conflict"
	codeRevokedForGood     = "revoked_for_good"
	codeAlreadyRotated     = "already_rotated"
	codeMediaType          = "unsupported_media_type"
	codeSubjectTooLarge    = "subject_too_large"
	codeHeaderTooLarge     = "header_too_large"
	codeExpectation        = "expectation_failed"
	codeTransferEncoding   = "unsupported_transfer_encoding"
	codeHTTPVersion        = "unsupported_http_version"
	codeInternal           = "internal"
	codeStarting           = "starting"
	codeNotReady           = "not_ready"
	codeUnavailable        = "unavailable"
	codeTimeout            = "timeout"
	codeKeysUnconfirmed    = "keys_unconfirmed"
	codeKeysUnavailable    = "keys_unavailable"
	codeNoNode             = "no_node"
	codeOverloadedBodies   = "overloaded_bodies"
	codeOverloadedReads    = "overloaded_reads"
	codeOverloadedKeys     = "overloaded_keys"
	mediaProblem           = "application/problem+json"
	problemType            = "urn:stemedb:problem:"
	retrySoon              = time.Second
	retryAfterLeaderVote   = 2 * time.Second
	statusClientWentAway   = 499 // never sent: for metrics only
	maxDetail              = 1024
	remedyRetry            = "send the request again after the time in Retry-After; sending a record twice is harmless"
	remedyAskAdministrator = "ask the administrator of this StemeDB for a key with the required role"
)

// codeInfo is the fixed part of a code.
type codeInfo struct {
	status int
	title  string
}

// codeTable gives every code its status and title. docs/errors.md gives the
// remedy for each; a test keeps the two in step. A too_large field of a record
// is 400; a body that is too large is 413.
var codeTable = map[string]codeInfo{
	record.CodeMalformed:        {400, "The body cannot be decoded"},
	record.CodeNotCanonical:     {400, "The CBOR is not in the deterministic encoding"},
	record.CodeMissing:          {400, "A required field is missing"},
	record.CodeUnknown:          {400, "A field is unknown"},
	record.CodeDuplicate:        {400, "A value is given twice"},
	record.CodeWrongType:        {400, "A value has the wrong type"},
	record.CodeEmpty:            {400, "A required value is empty"},
	record.CodeTooLong:          {400, "A value is too long"},
	record.CodeTooLarge:         {413, "The body is too large"},
	record.CodeTooMany:          {400, "There are too many elements"},
	record.CodeOutOfRange:       {400, "A number is out of its range"},
	record.CodeInvalidUTF8:      {400, "Text is not UTF-8"},
	record.CodeControlCharacter: {400, "A name has a control character"},
	record.CodeInvalidHex:       {400, "A value is not the right number of hex digits"},
	record.CodeInvalidValue:     {400, "A value is not one of the defined values"},

	codeUnknownParameter: {400, "A query parameter is unknown"},
	codeInvalidCursor:    {400, "The cursor does not belong to this query"},
	codeMalformedRequest: {400, "The request cannot be understood"},
	codeKeyMissing:       {401, "An API key is needed"},
	codeKeyInvalid:       {401, "The API key is unknown"},
	codeKeyExpired:       {401, "The API key has expired"},
	codeKeyDisabled:      {401, "The API key is disabled"},
	codeKeyRevoked:       {401, "The API key is revoked"},
	codeKeyRotated:       {401, "The API key was replaced"},
	codeForbidden:        {403, "The key's role does not allow this"},
	codeNoRoute:          {404, "There is no such route"},
	codeNoRecord:         {404, "There is no such record in this project"},
	codeNoKey:            {404, "There is no such key"},
	codeNoSuchMember:     {404, "The cluster has no such member"},
	codeLossStands:       {409, "The loss is not accepted"},
	codeNoSuchChange:     {404, "There is no such change of members"},
	codeNoSuchLog:        {404, "There is no such part of this node's log"},
	codeMethodNotAllowed: {405, "The route has no such method"},
	codeBodyTimeout:      {408, "The body did not arrive in time"},
	codeKeyExists:        {409, "The key is registered with other fields"},
	codeVersionConflict:  {409, "The key has changed since it was read"},
	codeRevokedForGood:   {409, "A revoked key cannot be restored"},
	codeAlreadyRotated:   {409, "The key was rotated before"},
	codeMediaType:        {415, "The body's media type is not accepted here"},
	codeExpectation:      {417, "The expectation is not supported"},
	cluster.CodeLost:     {410, "The record is lost"},
	codeSubjectTooLarge:  {422, "The subject has too much data for one answer"},
	codeHeaderTooLarge:   {431, "The request's header is too large"},
	codeInternal:         {500, "The server failed"},
	codeTransferEncoding: {501, "The transfer encoding is not supported"},
	codeHTTPVersion:      {505, "The HTTP version is not supported"},
	codeStarting:         {503, "The node is starting"},
	codeNotReady:         {503, "The node cannot serve now"},
	codeUnavailable:      {503, "This cannot be done now"},
	codeTimeout:          {503, "The work was not done in time"},
	codeKeysUnconfirmed:  {503, "API keys cannot be checked now"},
	codeKeysUnavailable:  {503, "API keys cannot be changed now"},
	codeNoNode:           {503, "No node can serve now"},
	codeOverloadedBodies: {503, "Too many large bodies are being received"},
	codeOverloadedReads:  {503, "Too many large reads are in progress"},
	codeOverloadedKeys:   {503, "Too many unknown keys are being looked up"},

	cluster.CodeInvalidSignature: {400, "A signature does not verify"},
	cluster.CodeNoQuorum:         {503, "Too few members made the record durable"},
	cluster.CodeOverloadedDisk:   {503, "The node's disk does not keep up"},
	cluster.CodeOverloadedWrites: {503, "Too many writes are in progress"},
	cluster.CodeOverloadedPeers:  {503, "The queues to the other members are full"},
	cluster.CodeStorageFailed:    {503, "The node's storage failed"},
	cluster.CodeUnconfirmed:      {503, "The node does not know the members and keys yet"},
	cluster.CodeControlFailed:    {503, "The node's copy of the control table failed"},
	cluster.CodeNotMember:        {503, "The node is not a member of a cluster"},
	cluster.CodeNotWhole:         {503, "The node does not hold everything"},
	cluster.CodeTooFewWhole:      {503, "Too few members hold everything"},
	cluster.CodePeersUnreachable: {503, "Too few members answered"},
	cluster.CodeCatchingUp:       {503, "The node is catching up"},
	cluster.CodeDamaged:          {503, "The record cannot be read now"},
	cluster.CodeClocksApart:      {503, "The members' clocks disagree"},
	cluster.CodeClosed:           {503, "The node is shutting down"},
	cluster.CodeReadOnly:         {507, "The node's disk is full"},

	cluster.CodeOverloadedSignatures: {503, "Too many signatures wait to be verified"},
	cluster.CodeOverloadedComparison: {503, "The records could not be compared in time"},
}

// Problem is an error in its form for callers.
type Problem struct {
	Status     int
	Code       string
	Field      string // the offending field, parameter or header
	Detail     string
	Remedy     string
	RetryAfter time.Duration // sent in whole seconds, rounded up; 0: not sent
	Allow      string        // of a 405
	Progress   *Progress     // of a node that is starting
	Reasons    []cluster.Trouble
	cause      error // for the log, never sent
}

func (p *Problem) Error() string {
	if p.Field != "" {
		return fmt.Sprintf("%s: %s: %s", p.Code, p.Field, p.Detail)
	}
	return p.Code + ": " + p.Detail
}

func (p *Problem) Unwrap() error { return p.cause }

// problem makes a Problem with the status of its code.
func problem(code, field, detail, remedy string) *Problem {
	return &Problem{Status: codeTable[code].status, Code: code, Field: field, Detail: detail, Remedy: remedy}
}

func (p *Problem) retry(after time.Duration) *Problem { p.RetryAfter = after; return p }
func (p *Problem) because(err error) *Problem         { p.cause = err; return p }

// problemBody is the wire form, RFC 9457 with extension members.
type problemBody struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Code      string `json:"code"`
	Detail    string `json:"detail"`
	Field     string `json:"field,omitempty"`
	Remedy    string `json:"remedy,omitempty"`
	RequestID string `json:"request_id,omitempty"`
	// Node is the node that made the problem: its metrics count it, and its log has
	// the cause.
	Node     string    `json:"node,omitempty"`
	Progress *Progress `json:"progress,omitempty"`
	// Reasons are those of the health summary.
	Reasons []cluster.Trouble `json:"reasons,omitempty"`
}

func (p *Problem) body(requestID, node string) problemBody {
	detail := p.Detail
	if len(detail) > maxDetail {
		detail = detail[:maxDetail] + "…"
	}
	return problemBody{
		Type: problemType + p.Code, Title: codeTable[p.Code].title, Status: p.Status,
		Code: p.Code, Detail: detail, Field: p.Field, Remedy: p.Remedy, RequestID: requestID, Node: node,
		Progress: p.Progress, Reasons: p.Reasons,
	}
}

// writeTo makes the problem the answer of the call, and counts it.
func (p *Problem) writeTo(c *call) {
	c.api.meters.problem(p)
	c.status = p.Status
	c.contentType = mediaProblem
	c.out = c.out[:0]
	body, err := json.Marshal(p.body(c.requestID, c.api.opts.Node))
	if err != nil { // cannot happen: strings and a number
		body = []byte(`{"code":"internal","status":500}`)
	}
	c.out = append(append(c.out, body...), '\n')
	if p.RetryAfter > 0 {
		seconds := int64((p.RetryAfter + time.Second - 1) / time.Second)
		c.header("Retry-After", strconv.FormatInt(seconds, 10))
	}
	if p.Allow != "" {
		c.header("Allow", p.Allow)
	}
	if p.Status == http.StatusUnauthorized {
		c.header("Www-Authenticate", `ApiKey realm="stemedb", header="X-API-Key"`)
	}
}

// asProblem maps every error that a handler can return to a code of the table.
func asProblem(err error) *Problem {
	var p *Problem
	if errors.As(err, &p) {
		return p
	}
	var f *record.FieldError
	if errors.As(err, &f) {
		return fieldProblem(f)
	}
	if p := keyProblem(err); p != nil {
		return p
	}
	if p := backendProblem(err); p != nil {
		return p
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return problem(codeTimeout, "", "the work for this request was not done in time", remedyRetry).retry(retrySoon).because(err)
	case errors.Is(err, context.Canceled):
		p := problem(codeTimeout, "", "the caller disconnected", "").because(err)
		p.Status = statusClientWentAway
		return p
	}
	return problem(codeInternal, "", "an internal error; the server's log has the cause under this request's id",
		"report it with the request's id").because(err)
}

func fieldProblem(f *record.FieldError) *Problem {
	info, known := codeTable[f.Code]
	if !known {
		info.status = http.StatusBadRequest
	}
	if f.Code == record.CodeTooLarge && f.Field != "" {
		info.status = http.StatusBadRequest
	}
	detail := f.Problem
	if f.Field != "" {
		detail = f.Field + " " + detail
	} else {
		detail = "the body " + detail
	}
	return &Problem{Status: info.status, Code: f.Code, Field: f.Field, Detail: detail, Remedy: f.Remedy}
}

func keyProblem(err error) *Problem {
	switch {
	case errors.Is(err, keys.ErrNotFound):
		return problem(codeNoKey, "hash", "no key has this hash", "list the keys with GET /v1/admin/api-keys")
	case errors.Is(err, keys.ErrExists):
		return problem(codeKeyExists, "key_hash", "a key with this hash is registered with another project, role or expiry", "read it with GET /v1/admin/api-keys/{hash} and change it with PATCH, or register another key")
	case errors.Is(err, keys.ErrRevoked):
		return problem(codeRevokedForGood, "hash", "the key with this hash is revoked", "mint or register a new key")
	case errors.Is(err, keys.ErrVersion):
		return problem(codeVersionConflict, "version", "the key has changed since the version that you sent", "read the key again and decide with its current version")
	case errors.Is(err, keys.ErrNoTime):
		return problem(cluster.CodeClocksApart, "grace", "the members' clocks disagree, so no grace period can be set", "set the members' clocks (GET /v1/cluster/status shows them), or rotate with the grace 0s, which ends the old key immediately").retry(retryAfterLeaderVote)
	case errors.Is(err, keys.ErrRotated):
		return problem(codeAlreadyRotated, "hash", "the key was rotated before", "rotate its successor, named by rotated_to")
	}
	return nil
}
