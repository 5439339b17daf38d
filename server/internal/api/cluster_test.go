package api_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/config"
	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/control/raftmem"
	"github.com/stemedb/stemedb/server/internal/network/memnet"
	"github.com/stemedb/stemedb/server/internal/node"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

const rootKey = "steme_test_0123456789abcdef0123456789abcdef0123456789abcdef"

// three is a cluster of real nodes with auth on, in virtual time.
type three struct {
	t     *testing.T
	net   *memnet.Net
	nodes []*node.Node
	disks []*memfs.Disk
	http  *http.Client
}

func startThree(t *testing.T, tune ...func(*node.Tuning)) *three {
	t.Helper()
	tuning := node.Tuning{SegmentSize: 256 << 10}
	for _, f := range tune {
		f(&tuning)
	}
	c := &three{t: t, net: memnet.New(7)}
	c.net.SetDelay(100*time.Microsecond, time.Millisecond)
	caller := c.net.Host("caller").Start()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) { return caller.Dial(ctx, addr) }}
	c.http = &http.Client{Transport: transport}
	names := []string{"n0", "n1", "n2"}
	for i, name := range names {
		disk, raft := memfs.New(uint64(i+1)), raftmem.New()
		n, err := node.Start(t.Context(), &config.Config{
			BindAddr: ":18180", GatewayAddr: ":18181", ReplicationAddr: ":18182", GossipAddr: ":18183",
			WALDir: "/wal", DBDir: "/db", NodeName: name, AdvertiseAddr: name, ClusterJoin: names,
			ClusterSecrets: []config.Secret{"a secret that the members of this test share"},
			AuthEnabled:    true, RootAPIKey: rootKey, ShutdownGrace: 2 * time.Second,
		}, node.Environment{
			FS: disk, Network: c.net.Host(name).Start(),
			RaftStorage: func(string, string) (control.RaftStorage, error) { return raft.Open(), nil },
			Tuning:      tuning,
		})
		require.NoError(t, err)
		c.nodes, c.disks = append(c.nodes, n), append(c.disks, disk)
	}
	t.Cleanup(func() {
		c.net.HealAll()
		transport.CloseIdleConnections()
		for _, n := range c.nodes {
			n.Kill()
		}
		time.Sleep(time.Minute) // the last goroutines of goleveldb and memberlist end later
	})
	for i := range names {
		c.eventually(func() bool { return c.nodes[i].Ready() == nil })
	}
	c.eventually(func() bool {
		status, _ := c.call("n0:18181", "GET", "/v1/whoami", rootKey, nil)
		return status == 200
	})
	c.eventually(func() bool { // in a new cluster the members announce their addresses one by one
		for _, m := range c.nodes[0].Control().State().Members {
			if m.APIAddr == "" {
				return false
			}
		}
		return true
	})
	return c
}

func (c *three) eventually(cond func() bool) {
	c.t.Helper()
	for range 1200 {
		if cond() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	c.t.Fatal("it did not come to that within two minutes")
}

func (c *three) call(addr, method, path, key string, body any) (int, map[string]any) {
	c.t.Helper()
	status, answer, err := c.try(addr, method, path, key, body)
	require.NoError(c.t, err)
	return status, answer
}

func (c *three) try(addr, method, path, key string, body any) (int, map[string]any, error) {
	var text []byte
	if body != nil {
		var err error
		text, err = json.Marshal(body)
		require.NoError(c.t, err)
	}
	req, err := http.NewRequestWithContext(c.t.Context(), method, "http://"+addr+path, bytes.NewReader(text))
	require.NoError(c.t, err)
	req.Header.Set("X-API-Key", key)
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	answer := map[string]any{}
	if err == nil && len(out) > 0 {
		err = json.Unmarshal(out, &answer)
	}
	return resp.StatusCode, answer, err
}

func numbered(n int) *record.Assertion {
	a := &record.Assertion{Content: record.Content{
		Subject: "code://go/example", Predicate: "number", Object: record.Number(float64(n)),
		Confidence: 1, SourceClass: record.Observational, Timestamp: 900_000_000 + uint64(n), // virtual time begins in 2000
	}}
	a.Sign(agentOf(n))
	return a
}

func agentOf(n int) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{byte(n)}, ed25519.SeedSize))
}

// A key made through one gateway works through every node, and a revoked one
// through none, cut off or not.
func TestKeysInACluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startThree(t)
		status, made := c.call("n1:18181", "POST", "/v1/admin/api-keys", rootKey, map[string]any{"project": "beta", "role": "write_agent"})
		require.Equal(t, 201, status, "%v", made)
		key := made["key"].(string)
		for i := range 3 {
			status, who := c.call(fmt.Sprintf("n%d:18180", i), "GET", "/v1/whoami", key, nil)
			require.Equal(t, 200, status, "a new key works immediately, everywhere: %v", who)
			require.Equal(t, "beta", who["project"])
		}
		c.net.Isolate("n2")
		caller := func() { c.net.Heal("caller", "n2") } // callers still reach it
		caller()
		status, _ = c.call("n0:18181", "DELETE", "/v1/admin/api-keys/"+made["hash"].(string), rootKey, nil)
		require.Equal(t, 204, status)
		revoked := time.Now()
		for i := range 2 {
			c.eventually(func() bool {
				status, _ := c.call(fmt.Sprintf("n%d:18180", i), "GET", "/v1/whoami", key, nil)
				return status == 401
			})
		}
		c.eventually(func() bool {
			status, answer := c.call("n2:18180", "GET", "/v1/whoami", key, nil)
			if status == 503 {
				require.Equal(t, "keys_unconfirmed", answer["code"])
			}
			return status != 200
		})
		require.LessOrEqual(t, time.Since(revoked), 30*time.Second+time.Second, "no revoked key works 30 s later")
		status, reduced := c.call("n2:18180", "GET", "/v1/cluster/status", rootKey, nil)
		require.Equal(t, 200, status)
		require.Equal(t, "reduced", reduced["detail"])
		c.net.Rejoin("n2")
		c.eventually(func() bool {
			status, _ := c.call("n2:18180", "GET", "/v1/whoami", key, nil)
			return status == 401
		})
	})
}

// A gateway whose own node cannot serve finds another one that can, for writes,
// reads and registrations by hash.
func TestGatewayInACluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startThree(t)
		status, answer := c.call("n0:18181", "POST", "/v1/assert", rootKey, numbered(1))
		require.Equal(t, 201, status, "%v", answer)
		// n0's log fails: it serves only reads of the records that it holds; its
		// gateway serves everything.
		c.disks[0].Fail(memfs.OpWrite, "wal", 0, 1_000_000, io.ErrShortWrite)
		status, answer = c.call("n0:18181", "POST", "/v1/assert", rootKey, numbered(2))
		require.Contains(t, []int{200, 201}, status, "%v", answer)
		c.eventually(func() bool { return c.nodes[0].Ready() != nil })
		status, answer = c.call("n0:18180", "GET", "/v1/assertions/"+numbered(1).ID().String()+"?consistency=local", rootKey, nil)
		require.Equal(t, 200, status, "%v", answer)
		for n := 3; n < 20; n++ {
			status, answer = c.call("n0:18181", "POST", "/v1/assert", rootKey, numbered(n))
			require.Equal(t, 201, status, "%v", answer)
			status, answer = c.call("n0:18181", "GET", "/v1/assertions/"+numbered(n).ID().String(), rootKey, nil)
			require.Equal(t, 200, status, "%v", answer)
		}
		register := map[string]any{"project": "beta", "role": "read_only", "key_hash": numbered(1).ID()}
		status, answer = c.call("n0:18181", "POST", "/v1/admin/api-keys", rootKey, register)
		require.Contains(t, []int{200, 201}, status, "%v", answer)
		status, answer = c.call("n0:18180", "GET", "/v1/health/ready", "", nil)
		require.Equal(t, 503, status)
		require.Equal(t, "storage_failed", answer["code"])
		status, answer = c.call("n0:18180", "POST", "/v1/assert", rootKey, numbered(2001))
		require.Equal(t, 503, status)
		require.Equal(t, "storage_failed", answer["code"])
	})
}

// Nodes stop one after another while a caller goes through the gateways that
// are ready: no request fails.
func TestRollingShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startThree(t)
		stop := make(chan struct{})
		done := make(chan error, 1)
		count := 0
		go func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					done <- nil
					return
				default:
				}
				addr := ""
				for i, node := range c.nodes {
					if node.Ready() == nil {
						addr = fmt.Sprintf("n%d:18181", i)
						break
					}
				}
				status, answer, err := c.try(addr, "POST", "/v1/assert", rootKey, numbered(n%200))
				if err != nil || status > 201 {
					done <- fmt.Errorf("request %d to %s: %d %v %w", n, addr, status, answer, err)
					return
				}
				count++
				time.Sleep(5 * time.Millisecond)
			}
		}()
		time.Sleep(time.Second)
		require.NoError(t, c.nodes[0].Shutdown(t.Context()))
		time.Sleep(time.Second)
		close(stop)
		require.NoError(t, <-done)
		require.Greater(t, count, 100)
	})
}

// A disk that is nearly full is reported as such, and reads go on.
func TestFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net1, disk, raft := memnet.New(1), memfs.New(1), raftmem.New()
		n, err := node.Start(t.Context(), &config.Config{
			BindAddr: ":18180", GatewayAddr: ":18181", ReplicationAddr: ":18182", GossipAddr: ":18183",
			WALDir: "/wal", DBDir: "/db", NodeName: "n0", AdvertiseAddr: "n0",
		}, node.Environment{
			FS: disk, Network: net1.Host("n0").Start(), Tuning: node.Tuning{SegmentSize: 256 << 10},
			RaftStorage: func(string, string) (control.RaftStorage, error) { return raft.Open(), nil },
		})
		require.NoError(t, err)
		defer func() {
			n.Kill()
			time.Sleep(time.Minute)
		}()
		caller := net1.Host("caller").Start()
		transport := &http.Transport{DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) { return caller.Dial(ctx, addr) }}
		defer transport.CloseIdleConnections()
		c := &three{t: t, net: net1, http: &http.Client{Transport: transport}}
		c.eventually(func() bool { return n.Ready() == nil })
		status, answer := c.call("n0:18180", "POST", "/v1/assert", "", numbered(1))
		require.Equal(t, 201, status, "%v", answer)
		disk.SetCapacity("/wal", 64<<10)
		written := 1
		for range 2000 {
			written++
			if status, answer = c.call("n0:18181", "POST", "/v1/assert", "", numbered(written)); status != 201 {
				break
			}
		}
		require.Equal(t, 507, status, "%v", answer)
		require.Equal(t, "read_only", answer["code"])
		require.NotContains(t, answer["remedy"], "another", "there is no other member")
		status, _ = c.call("n0:18180", "GET", "/v1/assertions/"+numbered(1).ID().String(), "", nil)
		require.Equal(t, 200, status, "existing records can be read")
		disk.SetCapacity("/wal", 1<<40)
		c.eventually(func() bool {
			status, _ = c.call("n0:18180", "POST", "/v1/assert", "", numbered(written))
			return status == 201 || status == 200
		})
	})
}
