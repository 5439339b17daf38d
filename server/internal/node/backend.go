package node

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/pprof"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/stemedb/stemedb/server/internal/api"
	"github.com/stemedb/stemedb/server/internal/cluster"
	"github.com/stemedb/stemedb/server/internal/gossip"
)

// backend is the API's view of the cluster, with liveness and with the peers
// that a gateway may choose from.
type backend struct {
	*cluster.Cluster
	node   *Node
	gossip atomic.Pointer[gossip.Gossip]
}

func (b *backend) setGossip(g *gossip.Gossip) { b.gossip.Store(g) }

// Alive reports whether a member is alive. Before gossip runs, every member
// counts as alive.
func (b *backend) Alive(name string) bool {
	g := b.gossip.Load()
	return g == nil || g.Alive(name)
}

// Ready says why the node cannot serve: a reason of the cluster, or that the
// root key is not registered yet, because a caller that waits for a ready node
// then uses that key.
func (b *backend) Ready() error {
	if err := b.Cluster.Ready(); err != nil {
		return err
	}
	select {
	case <-b.node.rootKey:
		return nil
	default:
		return &cluster.UnavailableError{
			Code: cluster.CodeUnconfirmed, Message: "the root key is not registered yet", RetryAfter: time.Second,
		}
	}
}

// AcceptLoss and CancelChange call the control table.
func (b *backend) AcceptLoss(ctx context.Context, member string) error {
	return b.node.parts.control.AcceptLoss(ctx, member)
}

func (b *backend) CancelChange(ctx context.Context, change uint64) error {
	return b.node.parts.control.CancelChange(ctx, change)
}

// Status is the cluster's status with the readiness of the whole node.
func (b *backend) Status() cluster.Status {
	s := b.Cluster.Status()
	if err := b.Ready(); err != nil {
		s.Ready, s.Reason = false, err.Error()
	}
	return s
}

// Peers lists the other members, the likeliest to serve first.
func (b *backend) Peers() []api.Peer {
	heard := map[string]gossip.Node{}
	if g := b.gossip.Load(); g != nil {
		for _, m := range g.Members() {
			heard[m.Name] = m
		}
	}
	var peers []api.Peer
	for _, m := range b.node.parts.control.State().Current() {
		if m.Name != b.node.cfg.NodeName {
			// A first member's address is in the control table only after that member
			// has announced it; gossip knows it earlier.
			h := heard[m.Name]
			peers = append(peers, api.Peer{
				Name: m.Name, APIAddr: cmp.Or(m.APIAddr, h.APIAddr), PeerAddr: m.PeerAddr,
				Alive: b.Alive(m.Name), Ready: h.Ready && h.State == gossip.Alive,
			})
		}
	}
	rank := func(p api.Peer) int {
		switch {
		case p.Ready:
			return 0
		case p.Alive:
			return 1
		}
		return 2
	}
	slices.SortStableFunc(peers, func(x, y api.Peer) int { return cmp.Compare(rank(x), rank(y)) })
	return peers
}

// dialAPI connects the gateway to another member's API; the API itself adds TLS.
func (n *Node) dialAPI(ctx context.Context, p api.Peer) (net.Conn, error) {
	select {
	case <-n.booted:
	default:
		return nil, errors.New("the node is starting")
	}
	return n.env.Network.Dial(ctx, p.APIAddr)
}

// newRegistry holds the node's metrics and those of the process.
func newRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// debugServer serves profiles. It is off by default.
func debugServer() *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
}

func hostOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	return host
}

// withPort gives each host that has no port the one of the listen address.
func withPort(hosts []string, listen string) []string {
	_, port, _ := net.SplitHostPort(listen)
	out := make([]string, len(hosts))
	for i, h := range hosts {
		out[i] = h
		if _, _, err := net.SplitHostPort(h); err != nil {
			out[i] = net.JoinHostPort(h, port)
		}
	}
	return out
}

func unique(in []string) []string {
	slices.Sort(in)
	return slices.Compact(in)
}
