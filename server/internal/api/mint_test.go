package api

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/keys"
)

// A peer that answers a mint with 503 may have proposed it, and the table may
// still accept it: asking the next peer would mint a second key.
func TestGatewayDoesNotRepeatAMintThatAPeerRefused(t *testing.T) {
	for _, row := range []struct {
		name, body string
		repeats    bool
	}{
		{"mint", `{"project":"beta","role":"read_only"}`, false},
		{"register", `{"project":"beta","role":"read_only","key_hash":"` + strings.Repeat("ab", 32) + `"}`, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := newTrio(t, nil)
			c.nodes[0].backend.failWith(noQuorum()) // it did not begin
			// n1's table accepts no change; n2's does.
			broken := newTable()
			broken.keys = c.nodes[0].table.keys
			broken.leaderGone.Store(true)
			c.nodes[1].world.api.services.Store(&services{c.nodes[1].backend, broken})
			got := c.ask(request{method: "POST", path: "/v1/admin/api-keys", key: c.nodes[0].raw[keys.Admin], media: js, body: []byte(row.body)})
			if row.repeats {
				require.Equal(t, http.StatusCreated, got.Code, "%s", got.Body)
				require.EqualValues(t, 2, c.dials.Load())
				return
			}
			require.Equal(t, codeKeysUnavailable, problemOf(t, got).Code)
			require.EqualValues(t, 1, c.dials.Load())
		})
	}
}
