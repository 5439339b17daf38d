package client

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/stemedb/stemedb/record"
)

// Key is an API key as an administrator sees it. Times are unix seconds, 0 for none.
type Key struct {
	Hash    record.Hash `json:"hash"` // BLAKE3-256 of the key's text
	Secret  string      `json:"key"`  // the key itself, only in the answer that minted it
	Project string      `json:"project"`
	Role    string      `json:"role"` // read_only, write_agent, backup or admin
	Label   string      `json:"label"`
	Status  string      `json:"status"` // active, disabled, expired, revoked or rotated
	Root    bool        `json:"root"`
	Enabled bool        `json:"enabled"`

	CreatedAt  int64  `json:"created_at"`
	ExpiresAt  int64  `json:"expires_at"`
	RevokedAt  int64  `json:"revoked_at"`
	RotatedTo  string `json:"rotated_to"` // the hash of its successor
	GraceUntil int64  `json:"grace_until"`
	// Version changes with every change of the key; ChangeKey needs it.
	Version uint64 `json:"version"`
}

// NewKey describes a key to be registered or minted.
type NewKey struct {
	Project   string `json:"project"`
	Role      string `json:"role"`
	Label     string `json:"label,omitzero"`
	ExpiresAt int64  `json:"expires_at,omitzero"` // unix seconds; 0 is never
	// Environment is live (the default) or test; only for MintKey.
	Environment string `json:"environment,omitzero"`
}

// KeyChange changes the fields that are not nil.
type KeyChange struct {
	Version   uint64  `json:"version"` // as it was read
	Label     *string `json:"label,omitzero"`
	Role      *string `json:"role,omitzero"`
	Enabled   *bool   `json:"enabled,omitzero"`
	ExpiresAt *int64  `json:"expires_at,omitzero"`
}

// KeyPage is one page of keys, by hash.
type KeyPage struct {
	Keys   []Key  `json:"keys"`
	Cursor string `json:"cursor"` // of the next page; "" on the last one
}

const keysPath = "/v1/admin/api-keys"

func keyPath(hash record.Hash) string { return keysPath + "/" + hash.String() }

// RegisterKey registers a key that the caller has generated, by its hash: the key
// itself is not sent. It is idempotent, unlike MintKey.
func (c *Client) RegisterKey(ctx context.Context, hash record.Hash, k NewKey) (*Key, error) {
	body := struct {
		Hash record.Hash `json:"key_hash"`
		NewKey
	}{hash, k}
	var out Key
	return &out, c.send(ctx, http.MethodPost, keysPath, body, &out)
}

// MintKey makes the server generate a key. It is never retried, since a second attempt
// would mint a second key; after an error without an answer, look at the list.
func (c *Client) MintKey(ctx context.Context, k NewKey) (*Key, error) {
	var out Key
	return &out, c.sendOnce(ctx, http.MethodPost, keysPath, k, &out)
}

// Keys lists keys, of all projects or of one, at most limit per page (0 is the server's
// default). cursor is "" for the first page.
func (c *Client) Keys(ctx context.Context, project, cursor string, limit int) (*KeyPage, error) {
	query := url.Values{}
	if project != "" {
		query.Set("project", project)
	}
	if cursor != "" {
		query.Set("cursor", cursor)
	}
	if limit > 0 {
		query.Set("limit", strconv.Itoa(limit))
	}
	var out KeyPage
	return &out, c.get(ctx, keysPath, query, &out)
}

// Key reads one key.
func (c *Client) Key(ctx context.Context, hash record.Hash) (*Key, error) {
	var out Key
	return &out, c.get(ctx, keyPath(hash), nil, &out)
}

// ChangeKey changes a key. It is never retried: an attempt whose answer was lost has
// changed the version, so read the key again.
func (c *Client) ChangeKey(ctx context.Context, hash record.Hash, change KeyChange) (*Key, error) {
	var out Key
	return &out, c.sendOnce(ctx, http.MethodPatch, keyPath(hash), change, &out)
}

// RotateKey mints a successor. The old key works for the grace period, in whole
// seconds. It is never retried, like MintKey.
func (c *Client) RotateKey(ctx context.Context, hash record.Hash, grace time.Duration) (*Key, error) {
	var out Key
	body := struct {
		Grace string `json:"grace"`
	}{grace.String()}
	return &out, c.sendOnce(ctx, http.MethodPost, keyPath(hash)+"/rotate", body, &out)
}

// RevokeKey ends a key permanently. It is idempotent.
func (c *Client) RevokeKey(ctx context.Context, hash record.Hash) error {
	return c.send(ctx, http.MethodDelete, keyPath(hash), nil, nil)
}

// send sends a request that may be repeated, with a JSON body unless it is nil.
func (c *Client) send(ctx context.Context, method, path string, body, out any) error {
	r, err := jsonRequest(method, path, body)
	if err != nil {
		return err
	}
	_, err = c.call(ctx, r, out)
	return err
}

// sendOnce sends a request that must not be repeated.
func (c *Client) sendOnce(ctx context.Context, method, path string, body, out any) error {
	once := *c
	once.delays = nil
	return once.send(ctx, method, path, body, out)
}

func jsonRequest(method, path string, body any) (request, error) {
	r := request{method: method, path: path}
	if body == nil {
		return r, nil
	}
	var err error
	if r.body, err = json.Marshal(body); err != nil {
		return r, errors.Join(errors.New("encode the request"), err)
	}
	r.mediaType = "application/json"
	return r, nil
}
