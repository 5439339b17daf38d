package api

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/cluster"
	"github.com/stemedb/stemedb/server/internal/keys"
)

// trio is three nodes with one table of keys; gateway and API of each are on
// real sockets. Names that are in down cannot be dialled.
type trio struct {
	nodes [3]*listening
	addrs map[string]string // api addresses by peer address
	down  map[string]*atomic.Bool
	dials atomic.Int64
}

func newTrio(t testing.TB, certs *Certificates) *trio {
	t.Helper()
	c := &trio{addrs: map[string]string{}, down: map[string]*atomic.Bool{}}
	names := []string{"n0", "n1", "n2"}
	for _, n := range names {
		c.down[n] = &atomic.Bool{}
	}
	dial := func(ctx context.Context, p Peer) (net.Conn, error) {
		c.dials.Add(1)
		if c.down[p.Name].Load() {
			return nil, errors.New("connection refused")
		}
		return (&net.Dialer{}).DialContext(ctx, "tcp", c.addrs[p.APIAddr])
	}
	for i, name := range names {
		w := newWorld(t, func(o *Options) { o.Node, o.Dial, o.RequestTimeout = name, dial, 4*time.Second })
		if i > 0 {
			w.raw, w.table = c.nodes[0].raw, c.nodes[0].table
			w.api.Attach(w.backend, w.table)
		}
		for _, other := range names {
			if other != name {
				w.backend.others = append(w.backend.others, Peer{Name: other, APIAddr: other + ":18180", Alive: true, Ready: true})
			}
		}
		c.nodes[i] = listen(t, w, certs)
		c.addrs[name+":18180"] = c.nodes[i].api
	}
	return c
}

// ask sends a request through the gateway of node 0.
func (c *trio) ask(r request) *httptest.ResponseRecorder {
	return send(c.nodes[0].world.api.Gateway(), r)
}

func (c *trio) write(t testing.TB) request {
	t.Helper()
	return request{method: "POST", path: "/v1/assert", key: c.nodes[0].raw[keys.WriteAgent], media: js, body: []byte(jsonOf(t, claim(nil)))}
}

func noQuorum() error {
	return &cluster.UnavailableError{Code: cluster.CodeNoQuorum, Message: "made to fail", RetryAfter: time.Second}
}

func TestGatewayServesHereFirst(t *testing.T) {
	c := newTrio(t, nil)
	require.Equal(t, http.StatusCreated, c.ask(c.write(t)).Code)
	require.Zero(t, c.dials.Load(), "this node can serve")
	require.EqualValues(t, 1, c.nodes[0].backend.calls.Load())
	c.nodes[0].world.api.Drain()
	require.Equal(t, http.StatusOK, c.ask(c.write(t)).Code)
	require.Zero(t, c.dials.Load(), "a node that drains still serves")
}

// Each fault of this node, of the first other one or of both, and the caller's
// answer.
func TestGatewayFailsOver(t *testing.T) {
	for _, row := range []struct {
		name    string
		arrange func(c *trio)
		status  int
		by      int // the node that answered; -1 none
	}{
		{"this node is not ready", func(c *trio) { c.nodes[0].backend.failWith(noQuorum()) }, 201, 1},
		{"the keys cannot be checked here", func(c *trio) {
			c.nodes[0].world.api.services.Store(&services{c.nodes[0].backend, &table{}})
			c.nodes[0].world.api.services.Load().keys.(*table).unconfirmed.Store(true)
		}, 201, 1},
		{"the first peer is down", func(c *trio) {
			c.nodes[0].backend.failWith(noQuorum())
			c.down["n1"].Store(true)
		}, 201, 2},
		{"the first peer answers 503", func(c *trio) {
			c.nodes[0].backend.failWith(noQuorum())
			c.nodes[1].backend.failWith(noQuorum())
		}, 201, 2},
		{"the first peer is full", func(c *trio) {
			c.nodes[0].backend.failWith(noQuorum())
			c.nodes[1].backend.failWith(&cluster.UnavailableError{Code: cluster.CodeReadOnly, Message: "full"})
		}, 201, 2},
		{"the first peer hangs", func(c *trio) {
			c.nodes[0].backend.failWith(noQuorum())
			c.nodes[1].backend.slow.Store(int64(time.Hour))
		}, 201, 2},
		{"this node hangs", func(c *trio) { c.nodes[0].backend.slow.Store(int64(time.Hour)) }, 201, 1},
		{"no node can", func(c *trio) {
			for _, n := range c.nodes {
				n.backend.failWith(noQuorum())
			}
		}, 503, -1},
		{"all others are down", func(c *trio) {
			c.nodes[0].backend.failWith(noQuorum())
			c.down["n1"].Store(true)
			c.down["n2"].Store(true)
		}, 503, -1},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := newTrio(t, nil)
			row.arrange(c)
			r := c.write(t)
			r.header = http.Header{headerRequestID: {"mine"}}
			got := c.ask(r)
			require.Equal(t, row.status, got.Code, "%s", got.Body)
			require.Equal(t, "mine", got.Header().Get(headerRequestID))
			for i, n := range c.nodes {
				n.backend.failWith(nil)
				held := n.do(request{method: "GET", path: "/v1/assertions/" + claim(nil).ID().String(), key: n.raw[keys.ReadOnly]}).Code == 200
				require.Equal(t, i == row.by, held, "node %d", i)
			}
			if row.status == 503 {
				require.NotEmpty(t, got.Header().Get("Retry-After"))
				problemOf(t, got)
			}
		})
	}
}

// A refusal is an answer: it is not retried elsewhere.
func TestGatewayDoesNotRetryRefusals(t *testing.T) {
	c := newTrio(t, nil)
	for _, row := range []struct {
		change func(*request)
		status int
	}{
		{func(r *request) { r.key = "" }, 401},
		{func(r *request) { r.key = c.nodes[0].raw[keys.ReadOnly] }, 403},
		{func(r *request) { r.body = []byte("{}") }, 400},
		{func(r *request) { r.media = "text/plain" }, 415},
		{func(r *request) { r.path = "/v1/nothing" }, 404},
		{func(r *request) { r.method = "GET" }, 405},
	} {
		r := c.write(t)
		row.change(&r)
		require.Equal(t, row.status, c.ask(r).Code)
	}
	require.Zero(t, c.dials.Load())
	// The same holds when another node answers.
	c.nodes[0].backend.failWith(noQuorum())
	r := c.write(t)
	r.key = ""
	got := c.ask(r)
	require.Equal(t, codeKeyMissing, problemOf(t, got).Code)
	require.NotEmpty(t, got.Header().Get("Www-Authenticate"))
	require.EqualValues(t, 0, c.dials.Load(), "a key that is missing is missing everywhere")
}

// A mint or a rotation is never repeated, because the first answer holds the
// key.
func TestGatewayNeverRepeatsAMint(t *testing.T) {
	hash := strings.Repeat("ab", 32)
	for _, row := range []struct {
		name, path, body string
		repeats          bool
	}{
		{"mint", "/v1/admin/api-keys", `{"project":"beta","role":"read_only"}`, false},
		{"register", "/v1/admin/api-keys", `{"project":"beta","role":"read_only","key_hash":"` + hash + `"}`, true},
		{"rotate", "/v1/admin/api-keys/" + unknownHash + "/rotate", `{}`, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := newTrio(t, nil)
			holdKey(func(*keys.Key) {})(c.nodes[0].world)
			// The first node's table accepts no change; the others' tables do.
			broken := newTable()
			broken.keys = c.nodes[0].table.keys
			broken.leaderGone.Store(true)
			c.nodes[0].world.api.services.Store(&services{c.nodes[0].backend, broken})
			r := request{method: "POST", path: row.path, key: c.nodes[0].raw[keys.Admin], media: js, body: []byte(row.body)}
			got := c.ask(r)
			if row.repeats {
				require.Equal(t, http.StatusCreated, got.Code, "%s", got.Body)
				return
			}
			require.Equal(t, codeKeysUnavailable, problemOf(t, got).Code)
			require.Zero(t, c.dials.Load())

			// A node that did not begin may forward the request once: after a peer that
			// takes it and loses the answer, no other peer is asked.
			c.nodes[0].backend.failWith(noQuorum())
			cut := &cutOff{Listener: nil}
			c.addrs["n1:18180"] = cut.listen(t)
			got = c.ask(r)
			require.Equal(t, codeNoNode, problemOf(t, got).Code)
			require.EqualValues(t, 1, c.dials.Load())
			require.Contains(t, cut.seen(), row.body)
		})
	}
}

// cutOff accepts a request and closes the connection without an answer.
type cutOff struct {
	net.Listener
	text chan string
}

func (c *cutOff) listen(t testing.TB) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	c.Listener, c.text = l, make(chan string, 8)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			req := make([]byte, 4096)
			n, _ := conn.Read(req)
			c.text <- string(req[:n])
			_ = conn.Close()
		}
	}()
	return l.Addr().String()
}

func (c *cutOff) seen() string { return <-c.text }

// A record that a peer may have stored before it disappeared is sent to the
// next one.
func TestGatewayRepeatsRecordsAfterALostAnswer(t *testing.T) {
	c := newTrio(t, nil)
	c.nodes[0].backend.failWith(noQuorum())
	c.addrs["n1:18180"] = (&cutOff{}).listen(t)
	require.Equal(t, http.StatusCreated, c.ask(c.write(t)).Code)
}

// Two gateways that are each other's peers do not send a request in circles.
func TestGatewayLoop(t *testing.T) {
	c := newTrio(t, nil)
	for _, n := range c.nodes {
		n.backend.failWith(noQuorum())
	}
	for i, n := range []string{"n0", "n1", "n2"} {
		c.addrs[n+":18180"] = c.nodes[i].gateway
	}
	got := c.ask(c.write(t))
	require.Equal(t, cluster.CodeNoQuorum, problemOf(t, got).Code)
	require.LessOrEqual(t, c.dials.Load(), int64(2))
}

// The caller's deadline bounds everything that the gateway tries.
func TestGatewayKeepsTheDeadline(t *testing.T) {
	c := newTrio(t, nil)
	left := make(chan time.Duration, len(c.nodes))
	for _, n := range c.nodes {
		n.backend.slow.Store(int64(time.Hour))
		n.backend.left = left
	}
	r := c.write(t)
	r.header = http.Header{headerTimeout: {"0.3"}}
	got := c.ask(r)
	require.Equal(t, 503, got.Code)
	require.NotEmpty(t, left)
	// The nodes wait in turn, so their shares add up.
	sum := time.Duration(0)
	for range len(left) {
		share := <-left
		require.Less(t, share, 300*time.Millisecond)
		sum += share
	}
	require.LessOrEqual(t, sum, 305*time.Millisecond, "shares travel in whole milliseconds")
}

// With TLS on, the gateway reaches its peers by TLS.
func TestGatewayOverTLS(t *testing.T) {
	certs, err := loadPair(t, t.TempDir(), "db.example", 3)
	require.NoError(t, err)
	c := newTrio(t, certs)
	c.nodes[0].backend.failWith(noQuorum())
	require.Equal(t, http.StatusCreated, c.ask(c.write(t)).Code)
}

// Routes about one node are answered by that node, also through the gateway.
func TestGatewayAnswersForItsOwnHealth(t *testing.T) {
	c := newTrio(t, nil)
	c.nodes[0].backend.failWith(noQuorum())
	require.Equal(t, 503, c.ask(request{method: "GET", path: "/v1/health/ready"}).Code)
	require.Equal(t, 200, c.ask(request{method: "GET", path: "/v1/health/live"}).Code)
	require.Equal(t, 200, c.ask(request{method: "GET", path: "/metrics"}).Code)
	require.Zero(t, c.dials.Load())
}

// Connections to peers are reused, and no request fails because the peer has
// closed an idle one.
func TestGatewayKeepsConnections(t *testing.T) {
	c := newTrio(t, nil)
	c.nodes[0].backend.failWith(noQuorum())
	for range 20 {
		require.Less(t, c.ask(c.write(t)).Code, 300)
	}
	require.EqualValues(t, 1, c.dials.Load())
	query := request{method: "GET", path: "/v1/query?subject=code://go/example/tls", key: c.nodes[0].raw[keys.ReadOnly]}
	got := c.ask(query)
	require.Equal(t, 200, got.Code)
	require.Contains(t, got.Body.String(), claim(nil).ID().String())
	resp, err := http.Get("http://" + c.nodes[0].gateway + "/v1/health/live")
	require.NoError(t, err)
	_, _ = io.Copy(io.Discard, resp.Body)
	require.NoError(t, resp.Body.Close())
}
