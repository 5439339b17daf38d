package client

import (
	"context"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
)

// Every administrative call with its request, and whether it may be repeated.
func TestAdministrativeCallsAndTheirRetries(t *testing.T) {
	hash := record.Hash{1}
	path := "/v1/admin/api-keys/" + hash.String()
	enabled := false
	for name, row := range map[string]struct {
		call                func(context.Context, *Client) error
		method, target, got string
		repeats             bool
	}{
		"register": {func(ctx context.Context, c *Client) error {
			_, err := c.RegisterKey(ctx, hash, NewKey{Project: "p", Role: "read_only"})
			return err
		}, "POST", "/v1/admin/api-keys", `{"key_hash":"` + hash.String() + `","project":"p","role":"read_only"}`, true},
		"mint": {func(ctx context.Context, c *Client) error {
			_, err := c.MintKey(ctx, NewKey{Project: "p", Role: "admin", Label: "l", ExpiresAt: 5, Environment: "test"})
			return err
		}, "POST", "/v1/admin/api-keys", `{"project":"p","role":"admin","label":"l","expires_at":5,"environment":"test"}`, false},
		"list": {func(ctx context.Context, c *Client) error {
			_, err := c.Keys(ctx, "p", "c", 2)
			return err
		}, "GET", "/v1/admin/api-keys?cursor=c&limit=2&project=p", "", true},
		"read": {func(ctx context.Context, c *Client) error { _, err := c.Key(ctx, hash); return err }, "GET", path, "", true},
		"change": {func(ctx context.Context, c *Client) error {
			_, err := c.ChangeKey(ctx, hash, KeyChange{Version: 3, Enabled: &enabled})
			return err
		}, "PATCH", path, `{"version":3,"enabled":false}`, false},
		"rotate": {func(ctx context.Context, c *Client) error {
			_, err := c.RotateKey(ctx, hash, 90*time.Second)
			return err
		}, "POST", path + "/rotate", `{"grace":"1m30s"}`, false},
		"revoke":      {func(ctx context.Context, c *Client) error { return c.RevokeKey(ctx, hash) }, "DELETE", path, "", true},
		"accept loss": {func(ctx context.Context, c *Client) error { return c.AcceptLoss(ctx, "a/b%") }, "POST", "/v1/admin/members/a%2Fb%25/accept-loss", "", false},
		"cancel":      {func(ctx context.Context, c *Client) error { return c.CancelChange(ctx, 7) }, "DELETE", "/v1/admin/change?id=7", "", false},
		"cancel any":  {func(ctx context.Context, c *Client) error { return c.CancelChange(ctx, 0) }, "DELETE", "/v1/admin/change", "", false},
	} {
		t.Run(name, func(t *testing.T) {
			attempts, broken := 0, true
			c, _ := newClient(t, func(w http.ResponseWriter, r *http.Request) {
				attempts++
				body, err := io.ReadAll(r.Body)
				if err != nil || r.Method != row.method || r.URL.RequestURI() != row.target || string(body) != row.got {
					t.Errorf("%s %s %s", r.Method, r.URL.RequestURI(), body)
				}
				if broken {
					problem(w, 503, "unavailable")
					return
				}
				answer(w, 200, map[string]any{"version": 9})
			})
			require.Error(t, row.call(t.Context(), c))
			want := 1
			if row.repeats {
				want = 4
			}
			require.Equal(t, want, attempts)
			broken = false
			require.NoError(t, row.call(t.Context(), c))
		})
	}
}

func TestKeysAreReadInFull(t *testing.T) {
	c, _ := serve(t, "/v1/admin/api-keys/"+record.Hash{2}.String(), `{"hash":"`+record.Hash{2}.String()+`","key":"steme_live_x","project":"p","role":"backup","label":"l","status":"rotated","root":true,"enabled":true,"created_at":1,"expires_at":2,"revoked_at":3,"rotated_to":"x","grace_until":4,"version":5}`)
	got, err := c.Key(t.Context(), record.Hash{2})
	require.NoError(t, err)
	require.Equal(t, &Key{
		Hash: record.Hash{2}, Secret: "steme_live_x", Project: "p", Role: "backup", Label: "l", Status: "rotated", Root: true, Enabled: true,
		CreatedAt: 1, ExpiresAt: 2, RevokedAt: 3, RotatedTo: "x", GraceUntil: 4, Version: 5,
	}, got)
}

func TestHealth(t *testing.T) {
	c, _ := serve(t, "/v1/health/ready", `{"status":"ready","node":"a"}`)
	status, err := c.Health(t.Context(), Ready)
	require.NoError(t, err)
	require.Equal(t, "ready", status)
}
