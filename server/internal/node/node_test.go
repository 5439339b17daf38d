package node_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
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

// alone is a single machine in virtual time.
type alone struct {
	t    *testing.T
	net  *memnet.Net
	disk *memfs.Disk
	raft *raftmem.Disk
	node *node.Node
	http *http.Client
}

func newAlone(t *testing.T) *alone {
	t.Helper()
	a := &alone{t: t, net: memnet.New(1), disk: memfs.New(1), raft: raftmem.New()}
	caller := a.net.Host("caller").Start()
	a.http = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) { return caller.Dial(ctx, addr) },
	}}
	return a
}

func (a *alone) start() {
	cfg := &config.Config{
		BindAddr: ":18180", GatewayAddr: ":18181", ReplicationAddr: ":18182", GossipAddr: ":18183",
		WALDir: "/wal", DBDir: "/db", NodeName: "alone", AdvertiseAddr: "alone",
		AuthEnabled: true, RootAPIKey: rootKey, ShutdownGrace: time.Second,
	}
	n, err := node.Start(a.t.Context(), cfg, node.Environment{
		FS: a.disk, Network: a.net.Host("alone").Start(),
		RaftStorage: func(string, string) (control.RaftStorage, error) { return a.raft.Open(), nil },
		Tuning:      node.Tuning{SegmentSize: 256 << 10},
	})
	require.NoError(a.t, err)
	a.node = n
	began := time.Now()
	for range 60_000 {
		if err = n.Ready(); err == nil {
			// It does not wait: there are no other members.
			require.Less(a.t, time.Since(began), time.Second)
			return
		}
		time.Sleep(time.Millisecond)
	}
	require.NoError(a.t, err)
}

func (a *alone) call(method, path, key string, body []byte) (int, []byte) {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.t.Context(), method, "http://alone:18181"+path, bytes.NewReader(body))
	require.NoError(a.t, err)
	req.Header.Set("X-API-Key", key)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := a.http.Do(req)
	require.NoError(a.t, err)
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	require.NoError(a.t, err)
	return resp.StatusCode, out
}

// TestSingleNode: a single node starts, registers the root key, mints a key,
// keeps a claim over a graceful stop and over a loss of power, and leaves no
// goroutine behind (the bubble would not end).
func TestSingleNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAlone(t)
		a.start()
		var minted struct{ Key string }
		status, body := a.call(http.MethodPost, "/v1/admin/api-keys", rootKey, []byte(`{"project":"p","role":"write_agent","label":"test"}`))
		require.Equal(t, http.StatusCreated, status, "a ready node takes the root key: %s", body)
		require.NoError(t, json.Unmarshal(body, &minted))

		claim := &record.Assertion{Content: record.Content{
			Subject: "code://go/x", Predicate: "version", Object: record.Text("v1"), Confidence: 1,
			SourceClass: record.Expert, Timestamp: uint64(time.Now().Unix()),
		}}
		claim.Sign(ed25519.NewKeyFromSeed(make([]byte, 32)))
		body, err := json.Marshal(claim)
		require.NoError(t, err)
		var answer []byte
		status, answer = a.call(http.MethodPost, "/v1/assert", minted.Key, body)
		require.Equal(t, http.StatusCreated, status, "%s", answer)
		status, answer = a.call(http.MethodPost, "/v1/assert", minted.Key, body)
		require.Equal(t, http.StatusOK, status, "%s", answer)
		require.Contains(t, string(answer), `"exists"`)
		held := func() {
			t.Helper()
			status, answer := a.call(http.MethodGet, "/v1/assertions/"+claim.ID().String(), minted.Key, nil)
			require.Equal(t, http.StatusOK, status, "%s", answer)
			status, answer = a.call(http.MethodGet, "/v1/query?subject=code://go/x&predicate=version&lens=recency", minted.Key, nil)
			require.Equal(t, http.StatusOK, status, "%s", answer)
			require.Contains(t, string(answer), claim.ID().String())
		}
		held()

		require.NoError(t, a.node.Shutdown(t.Context()))
		a.disk.Crash(memfs.KillProcess)
		a.start()
		held()

		a.net.Host("alone").Start() // ends the old process
		a.disk.Crash(memfs.LoseAll)
		a.node.Kill()
		a.start()
		held()
		require.NoError(t, a.node.Shutdown(t.Context()))
		a.http.CloseIdleConnections()
		time.Sleep(2 * time.Second) // goleveldb takes a second to drain its pool
	})
}
