package node_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/config"
	"github.com/stemedb/stemedb/server/internal/node"
)

// freePorts returns ports of this machine that are free for TCP and UDP. They
// are below the range from which the kernel takes the ports of connections, so
// that none of them is taken before a listener uses it.
func freePorts(t *testing.T, count int) (ports []int) {
	t.Helper()
	for port := 20_000 + rand.IntN(8_000); port < 32_000 && len(ports) < count; port++ {
		tcp, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", port))
		if err != nil {
			continue
		}
		udp, err := net.ListenPacket("udp", fmt.Sprint("127.0.0.1:", port))
		require.NoError(t, tcp.Close())
		if err != nil {
			continue
		}
		require.NoError(t, udp.Close())
		ports = append(ports, port)
	}
	require.Len(t, ports, count)
	return ports
}

// Members on one host need different ports, for gossip too. They still find each
// other, even after a restart of all of them.
func TestMembersOnOneHostWithDifferentPortsSeeEachOtherAlive(t *testing.T) {
	dir := t.TempDir()
	ports := freePorts(t, 12)
	addr := func() string {
		port := ports[0]
		ports = ports[1:]
		return fmt.Sprint("127.0.0.1:", port)
	}
	var configs []*config.Config
	var join []string
	for i := range 3 {
		name := fmt.Sprint("n", i)
		cfg := &config.Config{
			BindAddr: addr(), GatewayAddr: addr(), ReplicationAddr: addr(), GossipAddr: addr(),
			WALDir: filepath.Join(dir, name, "wal"), DBDir: filepath.Join(dir, name, "db"),
			NodeName: name, AdvertiseAddr: "127.0.0.1", ShutdownGrace: time.Millisecond,
			ClusterSecrets: []config.Secret{"a secret that the three nodes of this test share"},
		}
		configs, join = append(configs, cfg), append(join, cfg.ReplicationAddr)
	}
	for round := range 2 {
		var nodes []*node.Node
		for _, cfg := range configs {
			cfg.ClusterJoin = join
			n, err := node.Start(t.Context(), cfg, node.Environment{Tuning: node.Tuning{GossipJoin: 200 * time.Millisecond, StopWithin: time.Second}})
			require.NoError(t, err)
			nodes = append(nodes, n)
		}
		allAlive := func() error {
			for _, n := range nodes {
				if err := n.Ready(); err != nil {
					return err
				}
				for _, m := range n.Cluster().Status().Members {
					if !m.Alive {
						return fmt.Errorf("%s takes %s for dead", n.Cluster().Status().Node, m.Name)
					}
				}
			}
			return nil
		}
		var err error
		for range 300 {
			if err = allAlive(); err == nil {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		require.NoError(t, err, "round %d", round)
		var stopping sync.WaitGroup
		for _, n := range nodes {
			stopping.Go(func() { assert.NoError(t, n.Shutdown(context.Background())) })
		}
		stopping.Wait()
	}
}
