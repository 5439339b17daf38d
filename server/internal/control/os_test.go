package control_test

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/keys"
	"github.com/stemedb/stemedb/server/internal/network"
	"github.com/stemedb/stemedb/server/internal/peertls"
)

// Three nodes on real sockets with real files, restarted once.
func TestRealSocketsAndFiles(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	dir := t.TempDir()
	addrs := map[string]string{}
	var join []string
	for _, name := range []string{"a", "b", "c"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		addrs[name] = l.Addr().String()
		join = append(join, l.Addr().String())
		l.Close()
	}
	var id string
	for round := range 2 {
		running := map[string]*control.Control{}
		var stop []func()
		for name, addr := range addrs {
			peers, err := peertls.New(peertls.Config{Network: network.OS(), Name: name, Secrets: []string{secretA}})
			require.NoError(t, err)
			listener, err := peers.Listen(t.Context(), addr)
			require.NoError(t, err)
			c, err := control.New(control.Config{
				Name: name, Incarnation: "1", ClusterID: id, PeerAddr: addr, APIAddr: name + ":1", Join: join,
				Storage: func() (control.RaftStorage, error) { return control.OpenStorage(filepath.Join(dir, name)) },
				Peers:   peers, RaftListener: listener.Raft(), Data: &data{empty: true}, Registerer: prometheus.NewRegistry(),
			})
			require.NoError(t, err)
			server := grpc.NewServer(append(peers.ServerOptions(), grpc.UnaryInterceptor(c.UnaryServer()))...)
			c.Register(server)
			served := make(chan error, 1)
			go func() { served <- server.Serve(listener.GRPC()) }()
			require.NoError(t, c.Start(t.Context()))
			running[name] = c
			stop = append(stop, func() {
				require.NoError(t, c.Close(context.Background()))
				server.Stop()
				listener.Close()
				peers.Close()
				<-served
			})
		}
		for name, c := range running {
			require.Eventually(t, func() bool {
				ok, _ := c.Confirmed()
				return ok && len(c.State().Members) == 3
			}, 30*time.Second, 50*time.Millisecond, "%s: %s", name, c.Phase())
			k := keys.Key{Hash: keys.HashOf(fmt.Sprint(name, round)), Project: "p", Role: keys.Admin, Enabled: true}
			_, created, err := c.CreateKey(t.Context(), k)
			require.NoError(t, err)
			require.True(t, created)
		}
		require.Len(t, running["a"].State().Members, 3)
		if id == "" {
			id = running["a"].State().ClusterID
		}
		require.Equal(t, id, running["b"].State().ClusterID)
		_, found, err := running["c"].LookupAtLeader(t.Context(), keys.HashOf("a0"))
		require.NoError(t, err)
		require.True(t, found)
		for _, f := range stop {
			f()
		}
	}
	_, err := control.OpenStorage(filepath.Join(dir, "a", "control.db"))
	require.Error(t, err)
}
