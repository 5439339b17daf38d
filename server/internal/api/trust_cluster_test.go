package api_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/cluster"
	"github.com/stemedb/stemedb/server/internal/node"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// sent is one request with a slow body, and the time of its answer.
type sent struct {
	path   string
	status int
	code   any
	at     time.Time
}

// sendSlowly sends a body whose last part comes after the pause, with the
// longest timeout that a caller may set.
func (c *three) sendSlowly(addr, path, key string, body any, pause time.Duration) sent {
	text, err := json.Marshal(body)
	require.NoError(c.t, err)
	r, w := io.Pipe()
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodPost, "http://"+addr+path, r)
	require.NoError(c.t, err)
	req.Header.Set("X-API-Key", key)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Request-Timeout", "60")
	go func() {
		_, _ = w.Write(text[:1])
		time.Sleep(pause)
		_, _ = w.Write(text[1:])
		w.Close()
	}()
	resp, err := c.http.Do(req)
	require.NoError(c.t, err)
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	require.NoError(c.t, err)
	answer := map[string]any{}
	require.NoError(c.t, json.Unmarshal(out, &answer), "%s", out)
	return sent{path, resp.StatusCode, answer["code"], time.Now()}
}

// leaderAnd names the leader of the control table and another node.
func (c *three) leaderAnd() (leader, other string) {
	for i, n := range c.nodes {
		if name := fmt.Sprintf("n%d", i); n.Control().IsLeader() {
			leader = name
		} else {
			other = name
		}
	}
	return leader, other
}

// mint makes a key through the leader and waits until the node knows it.
func (c *three) mint(role, at string) (key, hash string) {
	status, made := c.call("n0:18181", "POST", "/v1/admin/api-keys", rootKey, map[string]any{"project": "beta", "role": role})
	require.Equal(c.t, 201, status, "%v", made)
	status, _ = c.call(at+":18180", "GET", "/v1/whoami", made["key"].(string), nil)
	require.Equal(c.t, 200, status)
	return made["key"].(string), made["hash"].(string)
}

func (c *three) revoke(leader, hash string) time.Time {
	status, answer := c.call(leader+":18180", "DELETE", "/v1/admin/api-keys/"+hash, rootKey, nil)
	require.Equal(c.t, 204, status, "%v", answer)
	return time.Now()
}

// held returns the nodes that hold an assertion.
func (c *three) held(id record.Hash) (names []string) {
	for i, n := range c.nodes {
		if _, err := n.Store().Assertion("beta", id); err == nil {
			names = append(names, fmt.Sprintf("n%d", i))
		}
	}
	return names
}

// A body that takes the longest allowed time, begun while the key was still
// valid or on a cut-off node that could not know of the revocation, makes
// nothing durable 30 s after the revocation: not through the API, not through a
// gateway, on no route.
func TestRevokedKeyInASlowBody(t *testing.T) {
	for _, cut := range []bool{false, true} {
		t.Run(fmt.Sprint("cut from the leader ", cut), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := startThree(t)
				leader, other := c.leaderAnd()
				writer, writerHash := c.mint("write_agent", other)
				admin, adminHash := c.mint("admin", other)
				vote := &record.Vote{Assertion: numbered(1).ID(), Weight: 1, Timestamp: 900_000_000}
				record.SignVote(agentOf(1), vote)
				if cut {
					c.net.Cut(leader, other)
				}
				var wait sync.WaitGroup
				answers := make(chan sent, 16)
				send := func() {
					for i, port := range []string{":18180", ":18181"} {
						for path, body := range map[string]any{
							"/v1/assert":       numbered(10 + i),
							"/v1/assert/batch": []*record.Assertion{numbered(20 + i)},
							"/v1/vote":         vote,
						} {
							wait.Go(func() { answers <- c.sendSlowly(other+port, path, writer, body, 29*time.Second) })
						}
						wait.Go(func() {
							answers <- c.sendSlowly(other+port, "/v1/admin/api-keys", admin, map[string]any{"project": "gamma", "role": "admin"}, 29*time.Second)
						})
					}
				}
				if !cut {
					send()
					time.Sleep(100 * time.Millisecond)
				}
				c.revoke(leader, writerHash)
				revoked := c.revoke(leader, adminHash)
				if cut {
					time.Sleep(20 * time.Second)
					send()
				}
				wait.Wait()
				close(answers)
				for a := range answers {
					require.Greater(t, a.at.Sub(revoked), 28*time.Second)
					if cut {
						require.Contains(t, []any{"keys_unconfirmed", "key_revoked"}, a.code, "%+v", a)
					} else {
						require.Equal(t, "key_revoked", a.code, "%+v", a)
					}
				}
				for _, n := range []int{10, 11, 20, 21} {
					require.Empty(t, c.held(numbered(n).ID()))
				}
				for _, k := range c.nodes[0].Control().ListKeys() {
					require.NotEqual(t, "gamma", k.Project)
				}
			})
		})
	}
}

// A write that waits for its turn while its key is revoked is not made when the
// turn comes.
func TestRevokedKeyWaitsForItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startThree(t, func(tune *node.Tuning) { tune.Limits = cluster.Limits{InFlightBytes: 1} })
		leader, other := c.leaderAnd()
		key, hash := c.mint("write_agent", other)
		for _, d := range c.disks {
			d.SetLatency(func(op memfs.Op) time.Duration {
				if op.Kind == memfs.OpSync && strings.HasPrefix(op.Name, "/wal") {
					return 4 * time.Second
				}
				return 0
			})
		}
		var wait sync.WaitGroup
		first := make(chan sent, 1)
		wait.Go(func() { first <- c.sendSlowly(other+":18180", "/v1/assert", rootKey, numbered(1), 0) })
		time.Sleep(100 * time.Millisecond)
		second := make(chan sent, 1)
		wait.Go(func() { second <- c.sendSlowly(other+":18180", "/v1/assert", key, numbered(2), 0) })
		time.Sleep(100 * time.Millisecond)
		c.revoke(leader, hash)
		time.Sleep(100 * time.Millisecond) // the revocation reaches the others
		wait.Wait()
		require.Equal(t, 201, (<-first).status)
		require.Equal(t, "key_revoked", (<-second).code)
		time.Sleep(time.Minute)
		require.Empty(t, c.held(numbered(2).ID()))
	})
}
