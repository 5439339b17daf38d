package api

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/cluster"
)

// A problem names the node that made it, and that node counts it by code, also when
// the gateway then gets an answer from another node.
func TestAProblemIsCountedByTheNodeThatItNames(t *testing.T) {
	c := newTrio(t, nil)
	const series = `stemedb_http_problems_total{code="no_quorum"}`
	counts := func() (all [3]float64) {
		for i, n := range c.nodes {
			all[i] = n.figure(series)
		}
		return all
	}
	require.Contains(t, c.nodes[0].do(request{method: "GET", path: "/metrics"}).Body.String(), series+" 0", "shown before the first one")
	c.nodes[0].backend.failWith(noQuorum()) // it is not ready either, so it is not asked
	c.nodes[1].backend.failWith(noQuorum())
	require.Equal(t, http.StatusCreated, c.ask(c.write(t)).Code)
	require.Equal(t, [3]float64{0, 1, 0}, counts())

	c.nodes[2].backend.failWith(noQuorum())
	p := problemOf(t, c.ask(c.write(t)))
	require.Equal(t, cluster.CodeNoQuorum, p.Code)
	require.Equal(t, "n2", p.Node, "the last one that was asked")
	require.Equal(t, [3]float64{0, 2, 1}, counts())
}

// Problems of requests that reach no handler are counted and name the node too.
func TestAProblemThatReachesNoHandlerNamesTheNode(t *testing.T) {
	l := listen(t, newWorld(t, nil), nil)
	const series = `stemedb_http_problems_total{code="malformed_request"}`
	before := l.figure(series)
	_, body, _ := raw(t, l.api, "GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n")
	require.Contains(t, string(body), `"node":"n0"`)
	require.Equal(t, before+1, l.figure(series))
}
