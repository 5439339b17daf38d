// Package node assembles one server from its parts: the store on two volumes,
// the control table, liveness, replication, the API and the gateway.
//
// A node takes only its files, its network, its clock and its Raft storage from
// outside (see Environment) and keeps no package state, so that several nodes
// can run in one process, and whole clusters under virtual time (package sim).
//
// The order of a start is visible from outside: the API answers from the first
// moment on, its startup path shows the progress of the log's replay, and every
// other route answers "starting" until the node has its parts.
package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/stemedb/stemedb/server/internal/api"
	"github.com/stemedb/stemedb/server/internal/clock"
	"github.com/stemedb/stemedb/server/internal/cluster"
	"github.com/stemedb/stemedb/server/internal/config"
	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/gossip"
	"github.com/stemedb/stemedb/server/internal/network"
	"github.com/stemedb/stemedb/server/internal/peertls"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/vfs"
)

// Environment is everything that a node takes from outside. The zero value is
// this machine: its files, its network, its clock, Raft's log in the WAL folder.
type Environment struct {
	FS      vfs.FS
	Network network.Network
	Clock   clock.Clock
	// RaftStorage opens Raft's log, votes and snapshots of one incarnation, and
	// opens them again after a failure.
	RaftStorage func(walDir, incarnation string) (control.RaftStorage, error)
	Rand        io.Reader
	Logger      *slog.Logger
	Version     string
	Tuning      Tuning
}

// Tuning holds sizes and intervals that have good defaults and that tests
// reduce. Zero values mean the defaults of the packages.
type Tuning struct {
	SegmentSize    int64
	MarkerInterval time.Duration
	// IndexBuffer is the size in bytes of the index's memtable; see store.Options.WriteBuffer.
	IndexBuffer int
	Control     control.Timings
	Cluster     cluster.Timings
	Limits      cluster.Limits
	GossipJoin  time.Duration
	// StopWithin bounds each step of a shutdown after the grace; 10 s when 0.
	StopWithin time.Duration
}

func (e Environment) withDefaults() Environment {
	if e.FS == nil {
		e.FS = vfs.OS()
	}
	if e.Network == nil {
		e.Network = network.OS()
	}
	if e.Clock == nil {
		e.Clock = clock.Wall()
	}
	if e.RaftStorage == nil {
		e.RaftStorage = raftInWALFolder
	}
	if e.Logger == nil {
		e.Logger = slog.New(slog.DiscardHandler)
	}
	if e.Tuning.StopWithin == 0 {
		e.Tuning.StopWithin = 10 * time.Second
	}
	return e
}

// Node is one running server.
type Node struct {
	cfg      *config.Config
	env      Environment
	log      *slog.Logger
	registry *prometheus.Registry
	api      *api.API
	serving  *api.Serving
	certs    *api.Certificates

	// ctx ends when the node must stop immediately; workers are all goroutines
	// that the node owns.
	ctx     context.Context
	stop    context.CancelCauseFunc
	workers sync.WaitGroup
	// cluster's own context, so that streams are flushed before the rest ends.
	replicate     context.Context
	stopReplicate context.CancelFunc
	replicating   sync.WaitGroup

	booted chan struct{} // closed when the start is over, successful or not
	// rootKey is closed once the root key works or is known never to work.
	rootKey chan struct{}
	parts   parts // set before booted is closed
}

// parts are made by a start, in this order.
type parts struct {
	store    *store.Store
	peers    *peertls.Transport
	port     *peertls.Listener
	control  *control.Control
	grpc     *grpc.Server
	gossip   *gossip.Gossip
	cluster  *cluster.Cluster
	backend  *backend
	debug    *http.Server
	attached bool
}

// ErrStopped is the cause of a node's end after a request to stop.
var ErrStopped = errors.New("the node was stopped")

// ErrStartAgain is in the cause of a node's end when another start, in the same
// process or a new one, may resolve it.
var ErrStartAgain = errors.New("the node has to be restarted")

// Start opens the listeners and begins to start the node. It returns as soon as
// the API answers; Started and Done report the rest. After an error nothing is
// left open.
func Start(ctx context.Context, cfg *config.Config, env Environment) (_ *Node, err error) {
	env = env.withDefaults()
	n := &Node{cfg: cfg, env: env, log: env.Logger.With("node", cfg.NodeName), registry: newRegistry(), booted: make(chan struct{}), rootKey: make(chan struct{})}
	n.env.Network = network.Watched(env.Network, newAcceptErrors(cfg, n.log, n.registry).failed)
	n.ctx, n.stop = context.WithCancelCause(context.WithoutCancel(ctx))
	n.replicate, n.stopReplicate = context.WithCancel(n.ctx)
	defer func() {
		if err != nil {
			n.stop(err)
		}
	}()
	if n.api, err = api.New(api.Options{
		Node: cfg.NodeName, Version: env.Version, Auth: cfg.AuthEnabled, AllowedOrigins: cfg.AllowedOrigins,
		Logger: n.log, Registerer: n.registry, Gatherer: n.registry, Dial: n.dialAPI,
	}); err != nil {
		return nil, err
	}
	if err := n.listen(ctx); err != nil {
		return nil, err
	}
	n.workers.Go(func() {
		defer close(n.booted)
		if err := n.boot(); err != nil {
			n.log.Error("the node cannot start", "error", err)
			n.stop(fmt.Errorf("start the node: %w", err))
		}
	})
	return n, nil
}

// listen opens the API, the gateway and the debug listener.
func (n *Node) listen(ctx context.Context) (err error) {
	var open []net.Listener
	defer func() {
		if err != nil {
			for _, l := range open {
				_ = l.Close()
			}
		}
	}()
	for _, addr := range []string{n.cfg.BindAddr, n.cfg.GatewayAddr} {
		l, err := n.env.Network.Listen(ctx, addr)
		if err != nil {
			return fmt.Errorf("listen on %s: %w (choose another address or end the process that holds it)", addr, err)
		}
		open = append(open, l)
	}
	if n.cfg.TLS() {
		if n.certs, err = api.LoadCertificates(n.cfg.TLSCertPath, n.cfg.TLSKeyPath, n.env.Clock, n.log); err != nil {
			return err
		}
		n.workers.Go(func() { n.certs.Watch(n.ctx) })
	}
	if n.cfg.DebugAddr != "" {
		l, err := n.env.Network.Listen(ctx, n.cfg.DebugAddr)
		if err != nil {
			return fmt.Errorf("listen on %s for profiles: %w", n.cfg.DebugAddr, err)
		}
		n.parts.debug = debugServer()
		n.workers.Go(func() { _ = n.parts.debug.Serve(l) })
	}
	n.serving = n.api.Serve(open[0], open[1], n.certs)
	n.log.Info("listening", "api", open[0].Addr().String(), "gateway", open[1].Addr().String(), "tls", n.cfg.TLS(), "auth", n.cfg.AuthEnabled)
	n.workers.Go(func() {
		select {
		case <-n.ctx.Done():
		case err := <-n.serving.Failed():
			n.stop(err)
		}
	})
	return nil
}

// Started is closed when the start is over: the node then has all its parts, or
// Err says why it has not. It may still be forming, joining or catching up.
func (n *Node) Started() <-chan struct{} { return n.booted }

// Done is closed when the node stops or has to stop; Err then says why.
func (n *Node) Done() <-chan struct{} { return n.ctx.Done() }

// Err is why the node stops: nil while it runs, ErrStopped after Shutdown.
func (n *Node) Err() error {
	if n.ctx.Err() == nil {
		return nil
	}
	return context.Cause(n.ctx)
}

// API is the node's API; it answers from the start.
func (n *Node) API() *api.API { return n.api }

// Cluster, Store and Control are the node's parts, valid after Started when
// Err is nil.
func (n *Node) Cluster() *cluster.Cluster { return n.parts.cluster }
func (n *Node) Store() *store.Store       { return n.parts.store }
func (n *Node) Control() *control.Control { return n.parts.control }

// Ready returns why the node cannot serve, nil when it can.
func (n *Node) Ready() error {
	select {
	case <-n.booted:
	default:
		return errors.New("the node is starting")
	}
	if n.ctx.Err() != nil {
		return context.Cause(n.ctx)
	}
	if n.api.Draining() {
		return errors.New("the node is shutting down")
	}
	return n.parts.backend.Ready()
}

func raftInWALFolder(walDir, _ string) (control.RaftStorage, error) {
	dir := walDir + string(os.PathSeparator) + "control"
	return control.OpenStorage(dir)
}
