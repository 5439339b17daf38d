package main

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/config"
	"github.com/stemedb/stemedb/server/internal/keys"
)

// smokeClaims are the claims of smoke tests that a caller sees in its own
// project.
func smokeClaims(t *testing.T, c *client) int {
	t.Helper()
	var got struct{ Claims []struct{ Hash string } }
	require.NoError(t, c.get(t.Context(), "/v1/query?subject=stemedb://smoke", &got))
	return len(got.Claims)
}

// The claims of a smoke test stay out of the shared corpus, which every project
// reads, and, with an administrator's key, out of that key's project.
func TestSmokeWritesIntoAProjectOfItsOwn(t *testing.T) {
	raw, err := keys.Generate(keys.Test, nil)
	require.NoError(t, err)
	admin := &client{base: running(t, func(c *config.Config) { c.AuthEnabled, c.RootAPIKey = true, config.Secret(raw) }), key: raw, http: http.DefaultClient}
	require.Eventually(t, func() bool { // until the root key is registered
		return admin.get(t.Context(), "/v1/whoami", &struct{}{}) == nil
	}, time.Minute, 10*time.Millisecond)
	smokeWith := func(key string, args ...string) (int, string) {
		file := filepath.Join(t.TempDir(), "key")
		require.NoError(t, os.WriteFile(file, []byte(key), 0o600))
		code, out, errOut := command("", append([]string{"smoke", "--url", admin.base, "--api-key-file", file}, args...)...)
		return code, out + errOut
	}
	type key struct {
		Project, Role, Label, Status string
		ExpiresAt                    int64 `json:"expires_at"`
	}
	keysOf := func(project string) []key {
		var list struct{ Keys []key }
		require.NoError(t, admin.get(t.Context(), "/v1/admin/api-keys?project="+project, &list))
		return list.Keys
	}

	code, said := smokeWith(raw)
	require.Equal(t, exitOK, code, said)
	require.Equal(t, 7, strings.Count(said, "ok  "), said)
	require.Zero(t, smokeClaims(t, admin), "the shared corpus")
	require.Len(t, keysOf("smoke"), 1)
	lent := keysOf("smoke")[0]
	require.Equal(t, "write_agent", lent.Role)
	require.Equal(t, "revoked", lent.Status)
	require.NotZero(t, lent.ExpiresAt, "in case the revocation is lost")

	// Also when the test fails.
	code, said = smokeWith(raw, "--members", "3", "--timeout", "2s")
	require.Equal(t, exitNo, code, said)
	require.Contains(t, said, "1 members, not 3")
	require.Len(t, keysOf("smoke"), 2)
	for _, k := range keysOf("smoke") {
		require.Equal(t, "revoked", k.Status)
	}

	// A key that is not an administrator's is used directly.
	agent, err := keys.Generate(keys.Test, nil)
	require.NoError(t, err)
	made, err := admin.do(t.Context(), http.MethodPost, "/v1/admin/api-keys", map[string]string{
		"project": "payments", "role": "write_agent", "key_hash": keys.HashOf(agent).String(),
	})
	require.NoError(t, err)
	require.Equal(t, http.StatusCreated, made.status)
	code, said = smokeWith(agent)
	require.Equal(t, exitOK, code, said)
	require.Len(t, keysOf("smoke"), 2)
	require.Equal(t, 1, smokeClaims(t, &client{base: admin.base, key: agent, http: http.DefaultClient}))
}

func TestSmokeWithoutAuth(t *testing.T) {
	url := running(t, nil)
	code, out, errOut := command("", "smoke", "--url", url)
	require.Equal(t, exitOK, code, out+errOut)
	require.Equal(t, 1, smokeClaims(t, &client{base: url, http: http.DefaultClient}))
}
