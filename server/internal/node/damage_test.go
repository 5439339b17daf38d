package node_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/config"
	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/network/memnet"
	"github.com/stemedb/stemedb/server/internal/node"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// A node whose control table cannot be read ends with the advice for a cluster
// of its size. The size comes from a snapshot or, without one, from the
// configuration.
func TestDamagedControlTableEndsTheStart(t *testing.T) {
	for _, row := range []struct {
		join     []string
		snapshot int
		says     string
	}{
		{nil, 0, "nobody could refill them"},
		{[]string{"n0", "n1", "n2"}, 0, "the other 2 of the 3 members"},
		{nil, 5, "the other 4 of the 5 members"},
	} {
		synctest.Test(t, func(t *testing.T) {
			n, err := node.Start(t.Context(), &config.Config{
				BindAddr: ":18180", GatewayAddr: ":18181", ReplicationAddr: ":18182", GossipAddr: ":18183",
				WALDir: "/wal", DBDir: "/db", NodeName: "n0", AdvertiseAddr: "n0", ClusterJoin: row.join,
				ClusterSecrets: []config.Secret{"a secret that the members of this test share"},
			}, node.Environment{
				FS: memfs.New(1), Network: memnet.New(1).Host("n0").Start(), Tuning: node.Tuning{SegmentSize: 256 << 10},
				RaftStorage: func(string, string) (control.RaftStorage, error) {
					return nil, &control.DamagedError{Path: "/wal/control/control.db", Members: row.snapshot, Err: errors.New("invalid database")}
				},
			})
			require.NoError(t, err)
			<-n.Done()
			require.ErrorContains(t, n.Err(), "/wal/control/control.db")
			require.ErrorContains(t, n.Err(), row.says)
			n.Kill()
			time.Sleep(time.Minute) // the last goroutine of goleveldb ends later
		})
	}
}
