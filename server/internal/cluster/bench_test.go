package cluster

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/network/memnet"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/vfs"
)

// benchWorld is a cluster on real disks and a network in memory.
func benchWorld(b *testing.B, names ...string) *world {
	b.Helper()
	w := &world{t: b, net: memnet.New(1), nodes: map[string]*node{}, state: stateOf("")}
	// More callers than the machine can serve wait for longer here.
	w.tune = func(c *Config) { c.Timings.WriteWait = time.Minute }
	dir := b.TempDir()
	for _, name := range names {
		w.nodes[name] = &node{w: w, name: name, host: w.net.Host(name)}
	}
	b.Cleanup(func() {
		for _, n := range w.nodes {
			n.shutdown()
		}
	})
	for _, n := range w.nodes {
		w.opts = func(o *store.Options) {
			o.FS, o.WALDir, o.DBDir = vfs.OS(), dir+"/"+n.name+"/wal", dir+"/"+n.name+"/db"
			o.SegmentSize, o.WriteBuffer, o.CacheBytes = 64<<20, 16<<20, 32<<20
		}
		n.start()
	}
	w.setMembers(names...)
	w.awaitConnected()
	return w
}

// signed returns n different assertions of a hundred agents.
func signed(b *testing.B, n int) []*record.Assertion {
	b.Helper()
	agents := make([]ed25519.PrivateKey, 100)
	for i := range agents {
		_, priv, err := ed25519.GenerateKey(rand.Reader)
		require.NoError(b, err)
		agents[i] = priv
	}
	as := make([]*record.Assertion, n)
	var wg sync.WaitGroup
	for part := range 2 {
		wg.Go(func() {
			for i := part; i < n; i += 2 {
				a := &record.Assertion{Content: record.Content{
					Subject: fmt.Sprintf("code://go/example.com/module%d/package/tls/cert_verification", i%5000), Predicate: "verification",
					Object: record.Text(fmt.Sprintf("file main.go, line %d: verification is off", i)), Confidence: 0.9,
					SourceClass: record.Observational, Lifecycle: record.Proposed, Timestamp: uint64(i),
				}}
				a.Sign(agents[i%100])
				as[i] = a
			}
		})
	}
	wg.Wait()
	return as
}

func benchmarkWrites(b *testing.B, nodes []string, callers, batch int) {
	b.Helper()
	w := benchWorld(b, nodes...)
	as := signed(b, b.N*batch)
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	for caller := range callers {
		n := w.nodes[nodes[caller%len(nodes)]]
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= b.N {
					return
				}
				for _, r := range n.cluster.Assert(context.Background(), "p", as[i*batch:(i+1)*batch]) {
					if r.Err != nil {
						b.Error(r.Err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N*batch)/b.Elapsed().Seconds(), "records/s")
}

func BenchmarkWrite(b *testing.B) {
	for _, nodes := range [][]string{{"a"}, {"a", "b", "c"}} {
		for _, shape := range []struct{ callers, batch int }{{1, 1}, {16, 1}, {256, 1}, {256, 100}} {
			b.Run(fmt.Sprintf("nodes=%d/callers=%d/batch=%d", len(nodes), shape.callers, shape.batch), func(b *testing.B) {
				benchmarkWrites(b, nodes, shape.callers, shape.batch)
			})
		}
	}
}
