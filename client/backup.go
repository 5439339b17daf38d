package client

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
)

// Backup and restore, for keys with the role backup or admin.

// BackupPoint describes a backup of one node that can be taken now. It holds every
// record that was acknowledged before the request.
type BackupPoint struct {
	ClusterID string `json:"cluster_id"`
	// Node is the node whose log is copied, and Incarnation identifies the log: it
	// changes when the node's volumes are replaced.
	Node        string `json:"node"`
	Incarnation string `json:"incarnation"`
	// First and End are positions of the log, as 16 hex digits each: later ones are
	// greater as text.
	First      string `json:"first"`
	End        string `json:"end"`
	Assertions int64  `json:"assertions"`
	// Keys are all API keys, by their hashes.
	Keys []Key `json:"keys"`
}

// BackupPoint asks a node for a backup point; an empty name means any node.
func (c *Client) BackupPoint(ctx context.Context, node string) (*BackupPoint, error) {
	query := url.Values{}
	if node != "" {
		query.Set("node", node)
	}
	var p BackupPoint
	if err := c.get(ctx, "/v1/admin/backup", query, &p, nil); err != nil {
		return nil, err
	}
	return &p, nil
}

// BackupRecords reads a piece of the log of p, of about 2 MiB: the records from a
// position on and below to. next is where the next piece begins; it is to when this
// piece is the last one.
func (c *Client) BackupRecords(ctx context.Context, p *BackupPoint, from, to string) (records []byte, next string, err error) {
	r := request{method: http.MethodGet, path: "/v1/admin/backup/records", query: url.Values{
		"node": {p.Node}, "incarnation": {p.Incarnation}, "from": {from}, "to": {to},
	}, header: &http.Header{}}
	err = c.retry(ctx, r.method, r.path, func(ctx context.Context) error {
		_, body, err := c.once(ctx, r)
		if err != nil {
			return err
		}
		if next = r.header.Get("X-Stemedb-Next"); next <= from {
			return fmt.Errorf("the server gave %q as the next position after %q; is this a StemeDB server?", next, from)
		}
		records = body
		return nil
	})
	return records, next, err
}

// Restored counts the records of one call of Restore.
type Restored struct {
	Created  int `json:"created"`
	Existing int `json:"existing"` // held already
	Invalid  int `json:"invalid"`  // not signed by their agent; left out
}

// Restore makes the records of a piece durable. It is idempotent.
func (c *Client) Restore(ctx context.Context, records []byte) (Restored, error) {
	var done Restored
	_, err := c.call(ctx, request{
		method: http.MethodPost, path: "/v1/admin/restore", mediaType: "application/vnd.stemedb.records", body: records,
	}, &done)
	return done, err
}
