package node

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"

	"github.com/stemedb/stemedb/server/internal/api"
	"github.com/stemedb/stemedb/server/internal/cluster"
	"github.com/stemedb/stemedb/server/internal/config"
	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/gossip"
	"github.com/stemedb/stemedb/server/internal/keys"
	"github.com/stemedb/stemedb/server/internal/peertls"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/vfs"
)

// boot assembles the parts. Parts made before an error are released when the
// node ends.
func (n *Node) boot() error {
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"open the store", n.openStore},
		{"open the peer port", n.openPeers},
		{"join the control table", n.startControl},
		{"start liveness", n.startGossip},
		{"start replication", n.startCluster},
	} {
		began := time.Now()
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		n.log.Debug("started", "step", step.name, "took", time.Since(began))
	}
	n.parts.attached = true
	n.api.Attach(n.parts.backend, n.parts.control)
	n.workers.Go(n.watchStore)
	n.workers.Go(n.bindVolumes)
	n.workers.Go(n.tellReadiness)
	if n.cfg.AuthEnabled && n.cfg.RootAPIKey != "" {
		n.workers.Go(func() {
			n.seedRootKey()
			close(n.rootKey)
		})
	} else {
		close(n.rootKey)
	}
	return nil
}

func (n *Node) openStore() (err error) {
	n.parts.store, err = store.Open(n.ctx, store.Options{
		FS: n.env.FS, WALDir: n.cfg.WALDir, DBDir: n.cfg.DBDir, NodeName: n.cfg.NodeName, Members: n.members(),
		SegmentSize: n.env.Tuning.SegmentSize, MarkerInterval: n.env.Tuning.MarkerInterval,
		WriteBuffer: n.env.Tuning.IndexBuffer,
		Rand:        n.env.Rand, Logger: n.log, Registerer: n.registry,
		Progress: func(p store.Progress) {
			phase := "replaying the log"
			if p.Rebuild {
				phase = "rebuilding the index"
			}
			n.api.SetProgress(api.Progress{Phase: phase, Rebuild: p.Rebuild, Done: p.Done, Total: p.Total})
		},
	})
	return err
}

func (n *Node) openPeers() (err error) {
	secrets, err := n.secrets()
	if err != nil {
		return err
	}
	n.parts.peers, err = peertls.New(peertls.Config{
		Network: n.env.Network, Name: n.cfg.NodeName, Secrets: secrets,
		CertFile: n.cfg.PeerTLSCertPath, KeyFile: n.cfg.PeerTLSKeyPath, CAFile: n.cfg.PeerTLSCAPath,
		Clock: n.env.Clock, Logger: n.log, Registerer: n.registry,
	})
	if err != nil {
		return err
	}
	n.parts.port, err = n.parts.peers.Listen(n.ctx, n.cfg.ReplicationAddr)
	return err
}

// secrets are the cluster's secrets. A single node draws a random one, because
// it is not shared.
func (n *Node) secrets() ([]string, error) {
	if len(n.cfg.ClusterSecrets) == 0 {
		var random [32]byte
		source := n.env.Rand
		if source == nil {
			source = rand.Reader
		}
		if _, err := source.Read(random[:]); err != nil {
			return nil, fmt.Errorf("draw a secret: %w", err)
		}
		return []string{hex.EncodeToString(random[:])}, nil
	}
	out := make([]string, len(n.cfg.ClusterSecrets))
	for i, s := range n.cfg.ClusterSecrets {
		out[i] = s.Reveal()
	}
	return out, nil
}

func (n *Node) startControl() (err error) {
	identity := n.parts.store.Identity()
	storage := func() (control.RaftStorage, error) {
		s, err := n.env.RaftStorage(n.cfg.WALDir, identity.Incarnation)
		var damage *control.DamagedError
		if errors.As(err, &damage) && damage.Members == 0 {
			damage.Members = n.members()
		}
		return s, err
	}
	progress := cluster.NewProgress(n.parts.store)
	n.parts.control, err = control.New(control.Config{
		Name: n.cfg.NodeName, Incarnation: identity.Incarnation, ClusterID: identity.Cluster, Shared: identity.Shared,
		PeerAddr: n.advertise(n.cfg.ReplicationAddr), APIAddr: n.advertise(n.cfg.BindAddr),
		GossipAddr: n.advertise(n.cfg.GossipAddr), Join: n.join(),
		Storage: storage, Peers: n.parts.peers, RaftListener: n.parts.port.Raft(), Data: progress,
		Clock:  n.env.Clock,
		Logger: n.log, Registerer: n.registry, Timings: n.env.Tuning.Control,
	})
	if err != nil {
		return err
	}
	n.parts.backend = &backend{node: n}
	n.parts.cluster, err = cluster.New(cluster.Config{
		Store: n.parts.store, Control: n.parts.control, Progress: progress, Liveness: n.parts.backend,
		SkipSignatures: n.cfg.UnsafeSkipSignatures,
		Logger:         n.log, Registerer: n.registry, Timings: n.env.Tuning.Cluster, Limits: n.env.Tuning.Limits,
	})
	if err != nil {
		return err
	}
	n.parts.backend.Cluster = n.parts.cluster
	n.parts.grpc = grpc.NewServer(append(n.parts.peers.ServerOptions(),
		grpc.UnaryInterceptor(n.parts.control.UnaryServer()), grpc.StreamInterceptor(n.parts.control.StreamServer()))...)
	n.parts.control.Register(n.parts.grpc)
	n.parts.cluster.Register(n.parts.grpc)
	n.workers.Go(func() {
		if err := n.parts.grpc.Serve(n.parts.port.GRPC()); err != nil && n.ctx.Err() == nil {
			n.stop(fmt.Errorf("serve peers: %w", err))
		}
	})
	return n.parts.control.Start(n.ctx)
}

func (n *Node) startGossip() (err error) {
	secrets, err := n.secrets()
	if err != nil {
		return err
	}
	n.parts.gossip, err = gossip.Start(gossip.Config{
		Network: n.env.Network, Name: n.cfg.NodeName, Incarnation: n.parts.store.Identity().Incarnation,
		APIAddr: n.advertise(n.cfg.BindAddr), BindAddr: n.cfg.GossipAddr, AdvertiseHost: n.cfg.AdvertiseAddr,
		Peers: n.gossipPeers, Secrets: secrets, JoinEvery: n.env.Tuning.GossipJoin,
		Logger: n.log, Registerer: n.registry,
	})
	if err == nil {
		n.parts.backend.setGossip(n.parts.gossip)
	}
	return err
}

func (n *Node) startCluster() error {
	n.replicating.Go(func() {
		if err := n.parts.cluster.Run(n.replicate); err != nil && n.replicate.Err() == nil {
			n.stop(fmt.Errorf("replicate: %w: %w", err, ErrStartAgain))
		}
	})
	return nil
}

// advertise is the address at which others reach a listener of this node.
func (n *Node) advertise(listen string) string {
	_, port, err := net.SplitHostPort(listen)
	if err != nil {
		return listen // checked when the configuration was read
	}
	return net.JoinHostPort(n.cfg.AdvertiseAddr, port)
}

// join is the list of first members with the peer port filled in.
func (n *Node) join() []string {
	return withPort(n.cfg.ClusterJoin, n.cfg.ReplicationAddr)
}

// members is the number of members according to the configuration.
func (n *Node) members() int {
	return control.Expected(n.join(), n.cfg.NodeName, n.advertise(n.cfg.ReplicationAddr))
}

// gossipPeers lists possible peers: the first members and the current ones.
func (n *Node) gossipPeers() []string {
	var hosts []string
	for _, addr := range n.cfg.ClusterJoin {
		hosts = append(hosts, hostOf(addr))
	}
	for _, m := range n.parts.control.State().Everyone() {
		// Members on one host have different ports and announce them in their hello.
		addr, known := n.parts.control.GossipAddr(m.ID())
		if !known {
			addr = hostOf(m.PeerAddr)
		}
		hosts = append(hosts, addr)
	}
	return withPort(unique(hosts), n.cfg.GossipAddr)
}

// watchStore ends the node when its index fails, because a start rebuilds it.
func (n *Node) watchStore() {
	select {
	case <-n.ctx.Done():
	case <-n.parts.store.Failed():
		n.stop(fmt.Errorf("the index failed, and a start rebuilds it: %w: %w", n.parts.store.Health().Err, ErrStartAgain))
	}
}

// bindEvery is the pause between two attempts to write to a full volume.
const bindEvery = 30 * time.Second

// bindVolumes writes the cluster's id to the volumes as soon as it exists, so
// that they are never taken for another cluster's. It also records as soon as
// the cluster has other members, so that a node that lost its WAL volume does
// not found a second cluster on them.
func (n *Node) bindVolumes() {
	for {
		changed := n.parts.control.Watch()
		state := n.parts.control.State()
		shared := len(state.Members) > 1
		if id := state.ClusterID; id != "" {
			if err := n.parts.store.SetClusterID(id); err != nil {
				n.stop(fmt.Errorf("bind the volumes to cluster %s: %w", id, err))
				return
			}
		}
		var again <-chan time.Time
		if shared {
			err := n.parts.store.SetShared()
			if !vfs.IsNoSpace(err) {
				if err != nil {
					n.stop(err)
				}
				return
			}
			n.log.Warn("a volume is full; retrying until there is space", "error", err)
			again = time.After(bindEvery)
		}
		select {
		case <-n.ctx.Done():
			return
		case <-changed:
		case <-again:
		}
	}
}

// readinessEvery is the interval at which this node announces whether it can
// serve.
const readinessEvery = 250 * time.Millisecond

// tellReadiness gossips whether this node can serve, so that other gateways
// choose it or avoid it.
func (n *Node) tellReadiness() {
	tick := time.NewTicker(readinessEvery)
	defer tick.Stop()
	was := errors.New("starting").Error()
	for {
		now := ""
		if err := n.Ready(); err != nil {
			now = err.Error()
		}
		n.parts.gossip.SetReady(now == "")
		if now != was {
			if now == "" {
				n.log.Info("ready")
			} else {
				n.log.Info("not ready", "reason", now)
			}
			was = now
		}
		select {
		case <-n.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// seedRootKey registers the root key once the cluster has formed. A root key
// that was revoked, or is registered with other fields, is not a reason to
// stop: the other keys work.
func (n *Node) seedRootKey() {
	for n.ctx.Err() == nil {
		revoked, err := n.parts.control.EnsureRootKey(n.ctx, keys.HashOf(n.cfg.RootAPIKey.Reveal()))
		switch {
		case err == nil && revoked:
			n.log.Error("the root key was revoked and stays revoked; give another one in " + config.Prefix + "ROOT_API_KEY")
			return
		case err == nil:
			n.log.Info("the root key is registered")
			return
		case errors.Is(err, keys.ErrExists):
			n.log.Error("the root key is registered already with another project or role; give another one in "+config.Prefix+"ROOT_API_KEY", "error", err)
			return
		}
		n.log.Warn("the root key is not registered yet", "error", err)
		select {
		case <-n.ctx.Done():
		case <-time.After(time.Second):
		}
	}
}
