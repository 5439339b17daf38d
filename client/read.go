package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/stemedb/stemedb/record"
)

// Record is an assertion as the server holds it, with all signatures and the
// newest vote of each agent.
type Record struct {
	Hash    record.Hash `json:"hash"`
	Project string      `json:"project"`
	record.Assertion
	// EffectiveLifecycle is that of the newest successor by parent_hash, or the
	// assertion's own when there is no successor.
	EffectiveLifecycle record.Lifecycle `json:"effective_lifecycle"`
	Votes              []record.Vote    `json:"votes"`
	// Partial: there are more signatures or votes than the server shows.
	Partial     bool        `json:"partial"`
	Consistency Consistency `json:"consistency"`
	// Incomplete says why records may be missing from the answer: the node lost
	// records, or left damaged claims out. It is empty when nothing is missing.
	Incomplete string `json:"-"`
}

// Consistency selects the members that a read asks.
type Consistency string

// The consistencies. A quorum read sees every acknowledged write; a local one
// sees only one node's records.
const (
	Quorum Consistency = "quorum"
	Local  Consistency = "local"
)

// Get reads one assertion. IsNotFound distinguishes an unknown id from other
// errors.
func (c *Client) Get(ctx context.Context, id record.Hash) (*Record, error) {
	return c.GetWith(ctx, id, Quorum)
}

// GetWith reads one assertion with the given consistency.
func (c *Client) GetWith(ctx context.Context, id record.Hash, consistency Consistency) (*Record, error) {
	return c.GetIn(ctx, id, Own, consistency)
}

// GetIn reads one assertion of the given scope with the given consistency.
func (c *Client) GetIn(ctx context.Context, id record.Hash, scope Scope, consistency Consistency) (*Record, error) {
	query := url.Values{}
	if consistency != Quorum {
		query.Set("consistency", string(consistency))
	}
	if scope != Own {
		query.Set("scope", string(scope))
	}
	var out Record
	if err := c.get(ctx, "/v1/assertions/"+id.String(), query, &out, &out.Incomplete); err != nil {
		return nil, err
	}
	return &out, nil
}

// SubjectPage is one page of subjects, in byte order.
type SubjectPage struct {
	Subjects []string `json:"subjects"`
	Cursor   string   `json:"cursor"` // of the next page; "" on the last one
	// Incomplete is as in Record.
	Incomplete string `json:"-"`
}

// Subjects lists the subjects below a prefix, at most limit per page (0 is the
// server's default). cursor is "" for the first page.
func (c *Client) Subjects(ctx context.Context, prefix, cursor string, limit int) (*SubjectPage, error) {
	query := url.Values{"prefix": {prefix}}
	if cursor != "" {
		query.Set("cursor", cursor)
	}
	if limit > 0 {
		query.Set("limit", strconv.Itoa(limit))
	}
	var out SubjectPage
	if err := c.get(ctx, "/v1/subjects", query, &out, &out.Incomplete); err != nil {
		return nil, err
	}
	return &out, nil
}

// Identity is the server's record of the caller's key.
type Identity struct {
	Auth       bool   `json:"auth"` // false: the server requires no keys
	Project    string `json:"project"`
	Role       string `json:"role"` // read_only, write_agent, backup or admin
	Label      string `json:"label"`
	Hash       string `json:"hash"`        // BLAKE3-256 of the key
	ExpiresAt  int64  `json:"expires_at"`  // unix seconds; 0 is never
	GraceUntil int64  `json:"grace_until"` // unix seconds; 0 unless it was rotated
}

// WhoAmI returns the project and the role of the client's key.
func (c *Client) WhoAmI(ctx context.Context) (*Identity, error) {
	var out Identity
	if err := c.get(ctx, "/v1/whoami", nil, &out, nil); err != nil {
		return nil, err
	}
	return &out, nil
}

func (c *Client) get(ctx context.Context, path string, query url.Values, out any, incomplete *string) error {
	r := request{method: http.MethodGet, path: path, query: query}
	if incomplete == nil {
		_, err := c.call(ctx, r, out)
		return err
	}
	r.header = &http.Header{}
	_, err := c.call(ctx, r, out)
	*incomplete = r.header.Get(headerIncomplete)
	return err
}
