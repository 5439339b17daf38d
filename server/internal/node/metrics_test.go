package node_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/config"
	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/control/raftmem"
	"github.com/stemedb/stemedb/server/internal/network/memnet"
	"github.com/stemedb/stemedb/server/internal/node"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

var update = flag.Bool("update", false, "write docs/metrics.md instead of comparing it")

const metricsPage = "../../../docs/metrics.md"

// docs/metrics.md lists the registry of a running member, so it cannot drift:
// names, types, labels and help come from the code.
func TestTheMetricsPageIsTheRegistrys(t *testing.T) {
	var rows []string
	synctest.Test(t, func(t *testing.T) { rows = metricRows(t) })
	page, err := os.ReadFile(metricsPage)
	require.NoError(t, err)
	begin, end := "<!-- Written by `make generate`. -->\n", "<!-- End of the table. -->"
	before, rest, ok := strings.Cut(string(page), begin)
	require.True(t, ok, "the page has no place for the table")
	_, after, ok := strings.Cut(rest, end)
	require.True(t, ok, "the page has no end of the table")
	want := before + begin + "| metric | type | labels | meaning |\n|---|---|---|---|\n" + strings.Join(rows, "\n") + "\n" + end + after
	if *update {
		require.NoError(t, os.WriteFile(metricsPage, []byte(want), 0o644))
		return
	}
	require.Equal(t, want, string(page), "run: make generate")
}

// metricRows describes every metric of this program that a member of a cluster
// has, sorted by name.
func metricRows(t *testing.T) (rows []string) {
	t.Helper()
	pair := newPair(t)
	defer pair.stop()
	kinds := map[string]string{}
	registry := pair.nodes[0].Registry()
	families, err := registry.Gather()
	require.NoError(t, err)
	for _, f := range families {
		kinds[f.GetName()] = strings.ToLower(f.GetType().String())
	}
	described := make(chan *prometheus.Desc)
	go func() {
		defer close(described)
		registry.Describe(described)
	}()
	fields := regexp.MustCompile(`^Desc{fqName: "([^"]+)", help: ("(?:[^"\\]|\\.)*"), .*variableLabels: {(.*)}}$`)
	for d := range described {
		m := fields.FindStringSubmatch(d.String())
		require.NotNil(t, m, d.String())
		name, help, labels := m[1], strings.Trim(m[2], `"`), m[3]
		if !strings.HasPrefix(name, "stemedb_") {
			continue // Go's and the process's own
		}
		kind := kinds[name]
		if kind == "" { // it has labels and no series yet
			require.True(t, strings.HasSuffix(name, "_total"), "%s: let the pair of this test have a series of it, so that its type is known", name)
			kind = "counter"
		}
		if labels != "" {
			labels = "`" + strings.ReplaceAll(labels, ",", "`, `") + "`"
		}
		rows = append(rows, fmt.Sprintf("| `%s` | %s | %s | %s |", name, kind, labels, strings.ReplaceAll(help, "|", `\|`)))
	}
	slices.Sort(rows)
	return rows
}

// pair is a cluster of two in virtual time that has served a write and a query,
// so that metrics about peers have series.
type pair struct {
	t     *testing.T
	nodes []*node.Node
	http  *http.Client
}

func newPair(t *testing.T) *pair {
	t.Helper()
	netw := memnet.New(1)
	caller := netw.Host("caller").Start()
	p := &pair{t: t, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) { return caller.Dial(ctx, addr) },
	}}}
	names := []string{"n0", "n1"}
	for i, name := range names {
		raft := raftmem.New()
		n, err := node.Start(t.Context(), &config.Config{
			BindAddr: ":18180", GatewayAddr: ":18181", ReplicationAddr: ":18182", GossipAddr: ":18183",
			WALDir: "/wal", DBDir: "/db", NodeName: name, AdvertiseAddr: name,
			ClusterJoin: names, ClusterSecrets: []config.Secret{"a secret that both nodes of the pair share"},
		}, node.Environment{
			FS: memfs.New(uint64(i)), Network: netw.Host(name).Start(),
			RaftStorage: func(string, string) (control.RaftStorage, error) { return raft.Open(), nil },
			Tuning:      node.Tuning{SegmentSize: 256 << 10},
		})
		require.NoError(t, err)
		p.nodes = append(p.nodes, n)
	}
	for range 600 {
		if p.nodes[0].Ready() == nil && p.nodes[1].Ready() == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	claim := &record.Assertion{Content: record.Content{
		Subject: "s", Predicate: "p", Object: record.Text("v"), Confidence: 1, SourceClass: record.Expert, Timestamp: uint64(time.Now().Unix()),
	}}
	claim.Sign(ed25519.NewKeyFromSeed(make([]byte, 32)))
	body, err := json.Marshal(claim)
	require.NoError(t, err)
	p.call(http.MethodPost, "/v1/assert", body, http.StatusCreated)
	p.call(http.MethodGet, "/v1/query?subject=s&lens=recency", nil, http.StatusOK)
	return p
}

func (p *pair) call(method, path string, body []byte, status int) {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.t.Context(), method, "http://n0:18181"+path, bytes.NewReader(body))
	require.NoError(p.t, err)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := p.http.Do(req)
	require.NoError(p.t, err)
	require.NoError(p.t, resp.Body.Close())
	require.Equal(p.t, status, resp.StatusCode)
}

func (p *pair) stop() {
	for _, n := range p.nodes {
		require.NoError(p.t, n.Shutdown(context.Background()))
	}
	p.http.CloseIdleConnections()
	time.Sleep(30 * time.Second) // memberlist's probes and goleveldb's pools end by themselves
}

// A reader finds where a metric is counted by searching for its name, and learns from
// the help texts how metrics differ.
func TestEveryMetricIsNamedInFullAndDescribedOnce(t *testing.T) {
	page, err := os.ReadFile(metricsPage)
	require.NoError(t, err)
	var source strings.Builder
	require.NoError(t, filepath.WalkDir("..", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		source.Write(text)
		return err
	}))
	described := map[string]string{}
	rows := regexp.MustCompile("(?m)^\\| `(stemedb_\\w+)` \\|.*\\| (.+) \\|$").FindAllStringSubmatch(string(page), -1)
	require.NotEmpty(t, rows)
	for _, row := range rows {
		name, help := row[1], row[2]
		require.Contains(t, source.String(), `"`+name+`"`, "the name is not one literal in the code")
		require.NotContains(t, described, help, "%s has the same help text", name)
		described[help] = name
	}
}
