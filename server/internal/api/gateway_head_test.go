package api

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/keys"
)

// HEAD returns the length of the GET answer, whichever node answers.
func TestGatewayPassesOnTheLengthOfHEAD(t *testing.T) {
	c := newTrio(t, nil)
	r := c.write(t)
	for _, n := range c.nodes[:2] {
		require.Equal(t, http.StatusCreated, n.do(r).Code)
	}
	for _, row := range []struct {
		path   string
		status int
	}{
		{"/v1/query?subject=code://go/example/tls", 200},
		{"/v1/assertions/" + claim(nil).ID().String(), 200},
		{"/v1/assertions/" + unknownHash, 404},
	} {
		get := request{method: "GET", path: row.path, key: c.nodes[0].raw[keys.ReadOnly], header: http.Header{headerRequestID: {"mine"}}}
		head := get
		head.method = "HEAD"
		c.nodes[0].backend.failWith(nil)
		local := c.ask(head)
		c.nodes[0].backend.failWith(noQuorum())
		before := c.nodes[1].backend.calls.Load()
		byPeer := c.ask(head)
		require.Equal(t, before+1, c.nodes[1].backend.calls.Load(), "the peer answered")
		want := c.ask(get)
		for _, got := range []struct {
			by     string
			header http.Header
			status int
			body   int
		}{
			{"this node", local.Header(), local.Code, local.Body.Len()},
			{"a peer", byPeer.Header(), byPeer.Code, byPeer.Body.Len()},
		} {
			require.Equal(t, row.status, got.status)
			require.Zero(t, got.body, "%s to HEAD %s", got.by, row.path)
			require.Equal(t, want.Header().Get("Content-Length"), got.header.Get("Content-Length"), "%s to HEAD %s", got.by, row.path)
			require.Equal(t, want.Header().Get("Content-Type"), got.header.Get("Content-Type"), "%s to HEAD %s", got.by, row.path)
		}
	}
}
