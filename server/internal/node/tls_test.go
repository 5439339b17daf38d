package node_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
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

// TestGatewayOverTLS: with the API on TLS, the gateway of a node whose disk
// failed still reaches the others.
func TestGatewayOverTLS(t *testing.T) {
	certPath, keyPath := selfSigned(t, "db.example")
	synctest.Test(t, func(t *testing.T) {
		names := []string{"a", "b", "c"}
		world := memnet.New(1)
		caller := world.Host("caller").Start()
		client := &http.Client{Transport: &http.Transport{
			DialTLSContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
				conn, err := caller.Dial(ctx, addr)
				if err != nil {
					return nil, err
				}
				return tls.Client(conn, &tls.Config{InsecureSkipVerify: true}), nil // a test
			},
		}}
		disks := map[string]*memfs.Disk{}
		var nodes []*node.Node
		for i, name := range names {
			disks[name] = memfs.New(uint64(i + 1))
			n, err := node.Start(t.Context(), &config.Config{
				BindAddr: ":18180", GatewayAddr: ":18181", ReplicationAddr: ":18182", GossipAddr: ":18183",
				WALDir: "/wal", DBDir: "/db", NodeName: name, AdvertiseAddr: name,
				ClusterJoin: names, ClusterSecrets: []config.Secret{"0123456789abcdef0123456789abcdef"},
				TLSCertPath: certPath, TLSKeyPath: keyPath,
			}, node.Environment{
				FS: disks[name], Network: world.Host(name).Start(),
				RaftStorage: func(string, string) (control.RaftStorage, error) { return raftmem.New().Open(), nil },
				Tuning:      node.Tuning{SegmentSize: 256 << 10},
			})
			require.NoError(t, err)
			nodes = append(nodes, n)
		}
		for _, n := range nodes {
			for range 600 {
				if n.Ready() == nil {
					break
				}
				time.Sleep(100 * time.Millisecond)
			}
			require.NoError(t, n.Ready())
		}
		assert := func(at string, seq uint64) int {
			claim := &record.Assertion{Content: record.Content{
				Subject: "code://go/x", Predicate: "version", Object: record.Text("v1"), Confidence: 1,
				SourceClass: record.Expert, Timestamp: seq,
			}}
			claim.Sign(ed25519.NewKeyFromSeed(make([]byte, 32)))
			body, err := json.Marshal(claim)
			require.NoError(t, err)
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+at+"/v1/assert", bytes.NewReader(body))
			require.NoError(t, err)
			req.Header.Set("Content-Type", "application/json")
			resp, err := client.Do(req)
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			return resp.StatusCode
		}
		require.Equal(t, http.StatusCreated, assert("a:18181", 1))
		disks["a"].Fail(memfs.OpSync, "wal", 0, -1, syscall.EIO)
		_ = assert("a:18180", 2)
		// The other two members may acknowledge that write before a's own sync
		// has failed, so wait until it has.
		synctest.Wait()
		require.Equal(t, http.StatusServiceUnavailable, assert("a:18180", 3), "the API answers for its own node")
		require.Equal(t, http.StatusCreated, assert("a:18181", 4), "the gateway finds another one")

		for _, n := range nodes {
			_ = n.Shutdown(t.Context()) // returns the log's failure
		}
		client.CloseIdleConnections()
		time.Sleep(40 * time.Second) // memberlist's probes, goleveldb's pool
	})
}

// selfSigned writes a certificate for a name and its key.
func selfSigned(t *testing.T, name string) (certPath, keyPath string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().Add(time.Hour), // a bubble's clock starts in 2000
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	dir := t.TempDir()
	certPath, keyPath = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	require.NoError(t, os.WriteFile(certPath, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	require.NoError(t, os.WriteFile(keyPath, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600))
	return certPath, keyPath
}
