package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/client"
	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/config"
	"github.com/stemedb/stemedb/server/internal/keys"
)

// smokeClaims are the claims of smoke tests that a caller sees in its own
// project.
func smokeClaims(t *testing.T, c *client.Client) int {
	t.Helper()
	got, err := c.Claims(t.Context(), client.Query{Subject: "stemedb://smoke"})
	require.NoError(t, err)
	return len(got.Claims)
}

// The claims of a smoke test stay out of the shared corpus, which every project
// reads, and, with an administrator's key, out of that key's project.
func TestSmokeWritesIntoAProjectOfItsOwn(t *testing.T) {
	raw, err := keys.Generate(keys.Test, nil)
	require.NoError(t, err)
	url := running(t, func(c *config.Config) { c.AuthEnabled, c.RootAPIKey = true, config.Secret(raw) })
	admin, err := client.New(url, raw, client.WithRetries())
	require.NoError(t, err)
	require.Eventually(t, func() bool { // until the root key is registered
		_, err := admin.WhoAmI(t.Context())
		return err == nil
	}, time.Minute, 10*time.Millisecond)
	smokeWith := func(key string, args ...string) (int, string) {
		file := filepath.Join(t.TempDir(), "key")
		require.NoError(t, os.WriteFile(file, []byte(key), 0o600))
		code, out, errOut := command("", append([]string{"smoke", "--url", url, "--api-key-file", file}, args...)...)
		return code, out + errOut
	}
	keysOf := func(project string) []client.Key {
		list, err := admin.Keys(t.Context(), project, "", 0)
		require.NoError(t, err)
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
	_, err = admin.RegisterKey(t.Context(), record.Hash(keys.HashOf(agent)), client.NewKey{Project: "payments", Role: "write_agent"})
	require.NoError(t, err)
	code, said = smokeWith(agent)
	require.Equal(t, exitOK, code, said)
	require.Len(t, keysOf("smoke"), 2)
	payments, err := client.New(url, agent)
	require.NoError(t, err)
	require.Equal(t, 1, smokeClaims(t, payments))
}

func TestSmokeWithoutAuth(t *testing.T) {
	url := running(t, nil)
	code, out, errOut := command("", "smoke", "--url", url)
	require.Equal(t, exitOK, code, out+errOut)
	anyone, err := client.New(url, "")
	require.NoError(t, err)
	require.Equal(t, 1, smokeClaims(t, anyone))
}
