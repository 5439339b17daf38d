package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/stemedb/stemedb/record"
)

// Result is the result of writing a record. Whether it was created or existed,
// it is now durable on a majority.
type Result struct {
	ID      record.Hash
	Created bool // false: it existed before, with these signatures
}

// BatchResult is the result of one record of a batch.
type BatchResult struct {
	Result
	Err error // *record.FieldError or *Error; nil is success
}

// ErrNoAgentKey is returned for an unsigned record when the client has no key
// to sign with.
var ErrNoAgentKey = errors.New("the assertion has no signature and the client has no agent key; use WithAgentKey or sign it")

// ErrOtherID is returned when the server computed a different id than the
// client: one of them does not follow the published vectors.
var ErrOtherID = errors.New("the server computed a different id for the record; client and server disagree on the canonical bytes")

type writeAnswer struct {
	Hash   record.Hash `json:"hash"`
	Status string      `json:"status"` // created or exists
}

func (w *writeAnswer) result(want record.Hash) (Result, error) {
	if w.Hash != want {
		return Result{}, fmt.Errorf("%w: %s instead of %s", ErrOtherID, w.Hash, want)
	}
	if w.Status != "created" && w.Status != "exists" {
		return Result{}, fmt.Errorf("the server returned the unknown status %q; update this client", w.Status)
	}
	return Result{ID: w.Hash, Created: w.Status == "created"}, nil
}

// Assert sends one assertion and returns when it is durable on a majority. An
// assertion without signatures is signed with the client's agent key, in
// place.
func (c *Client) Assert(ctx context.Context, a *record.Assertion) (Result, error) {
	if err := c.prepare(a); err != nil {
		return Result{}, err
	}
	var answer writeAnswer
	_, err := c.call(ctx, request{
		method: http.MethodPost, path: "/v1/assert",
		mediaType: record.MediaCBOR, body: a.AppendCBOR(nil),
	}, &answer)
	if err != nil {
		return Result{}, err
	}
	return answer.result(a.ID())
}

// Vote sends one vote. A vote without a signature is signed with the client's
// agent key, in place.
func (c *Client) Vote(ctx context.Context, v *record.Vote) (Result, error) {
	if v.Sig == (record.SigBytes{}) {
		if c.agent == nil {
			return Result{}, ErrNoAgentKey
		}
		record.SignVote(c.agent, v)
	}
	if err := v.Validate(); err != nil {
		return Result{}, err
	}
	var answer writeAnswer
	_, err := c.call(ctx, request{
		method: http.MethodPost, path: "/v1/vote",
		mediaType: record.MediaCBOR, body: v.AppendCBOR(nil),
	}, &answer)
	if err != nil {
		return Result{}, err
	}
	return answer.result(v.ID())
}

// prepare signs and checks a record before it is sent.
func (c *Client) prepare(a *record.Assertion) error {
	if len(a.Signatures) == 0 {
		if c.agent == nil {
			return ErrNoAgentKey
		}
		// Signing computes an id, which only a valid record has, so check first.
		if err := a.Content.Validate(); err != nil {
			return err
		}
		a.Sign(c.agent)
	}
	return a.Validate()
}
