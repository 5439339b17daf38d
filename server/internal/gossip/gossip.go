// Package gossip reports which nodes are alive. Membership is decided by the
// control table. It runs SWIM (hashicorp/memberlist) over a network.Network,
// encrypted with keys derived from the cluster secret.
//
// Promised: a dead node is detected within seconds; a node that comes back is
// detected at any address and with any clock; the nodes of a cluster that was
// down completely find each other again. No call blocks on a dead peer.
package gossip

import (
	"cmp"
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log" //nolint:depguard // the type of memberlist.Config.Logger
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/hashicorp/memberlist"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stemedb/stemedb/internal/sleep"
	"github.com/stemedb/stemedb/server/internal/network"
)

// Config describes this node and the possible addresses of the others.
type Config struct {
	Network network.Network
	// Name and Incarnation identify this node; APIAddr is announced to the others.
	Name, Incarnation, APIAddr string
	// BindAddr is host:port for TCP and UDP, such as ":18183".
	BindAddr string
	// AdvertiseHost is the name or IP address under which others reach this
	// node; it is looked up when gossip starts.
	AdvertiseHost string
	// Peers lists host:port of possible nodes. It is called, and its names are
	// looked up, for each attempt, because addresses change.
	Peers func() []string
	// Secrets are the cluster secrets. The first one encrypts.
	Secrets []string
	// JoinEvery is the interval between attempts to contact nodes that are not
	// alive, 5 s when 0.
	JoinEvery  time.Duration
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
}

// probeInterval is the interval between probes of one other node.
const probeInterval = time.Second

// Gossip is a running participant. Its methods are safe for concurrent use.
type Gossip struct {
	cfg   Config
	log   *slog.Logger
	start string // this start of the process: memberlist's name of it

	ready   chan struct{} // signalled when self has changed
	ctx     context.Context
	stop    context.CancelFunc
	hurry   chan struct{} // closed when Close should stop waiting
	once    sync.Once     // closes hurry
	workers sync.WaitGroup
	metrics []prometheus.Collector
	dropped prometheus.Counter

	mu     sync.Mutex // guards the fields below; never held across a wait
	self   meta
	starts starts
	heard  uint64 // the highest seen.heard
}

// meta is a node's announcement about itself: 512 bytes at most.
type meta struct {
	Name        string `cbor:"1,keyasint"`
	Incarnation string `cbor:"2,keyasint"`
	APIAddr     string `cbor:"3,keyasint"`
	Ready       bool   `cbor:"4,keyasint"`
	Leaving     bool   `cbor:"5,keyasint"`
}

// Start begins to gossip. It returns immediately; nodes are found in the
// background. The caller must call Close.
func Start(cfg Config) (*Gossip, error) {
	if cfg.Name == "" || cfg.Incarnation == "" || len(cfg.Secrets) == 0 || cfg.Network == nil {
		return nil, errors.New("gossip: name, incarnation, secret and network are needed")
	}
	cfg.JoinEvery = cmp.Or(cfg.JoinEvery, 5*time.Second)
	g := &Gossip{cfg: cfg, log: cfg.Logger, start: nameStart(cfg.Name), ready: make(chan struct{}, 1), hurry: make(chan struct{}), starts: starts{}}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	g.self = meta{Name: cfg.Name, Incarnation: cfg.Incarnation, APIAddr: cfg.APIAddr}
	if b, err := cbor.Marshal(g.self); err != nil || len(b) > memberlist.MetaMaxSize {
		return nil, fmt.Errorf("gossip: name, incarnation and API address are %d bytes together, at most %d fit (%w)", len(b), memberlist.MetaMaxSize, err)
	}
	g.note(g.start, g.self, "", Alive)
	keyring, err := keyring(cfg.Secrets)
	if err != nil {
		return nil, err
	}
	if err := g.register(); err != nil {
		return nil, err
	}
	transport, err := newTransport(cfg.Network, cfg.BindAddr, g.dropped)
	if err != nil {
		g.unregister()
		return nil, fmt.Errorf("gossip on %s: %w", cfg.BindAddr, err)
	}
	g.ctx, g.stop = context.WithCancel(context.Background())
	g.workers.Go(func() { g.run(transport, keyring) })
	return g, nil
}

// keyring derives a key from each secret: HKDF-SHA256 to an AES-256 key. The
// first encrypts, all decrypt.
func keyring(secrets []string) (*memberlist.Keyring, error) {
	var derived [][]byte
	for _, secret := range secrets {
		key, err := hkdf.Key(sha256.New, []byte(secret), nil, "stemedb gossip v1", 32)
		if err != nil {
			return nil, fmt.Errorf("derive the gossip key: %w", err)
		}
		derived = append(derived, key)
	}
	return memberlist.NewKeyring(derived, derived[0])
}

// run waits until this node's address is known, then contacts peers that are
// not alive until the participant is closed.
func (g *Gossip) run(t *transport, keys *memberlist.Keyring) {
	defer t.close()
	ip, ok := g.ownAddress()
	if !ok {
		return
	}
	t.ip = ip
	list, err := memberlist.Create(g.config(t, keys))
	if err != nil {
		g.log.Error("gossip cannot start; this node sees no node as alive", "error", err)
		return
	}
	for {
		g.join(list, t)
		timer := time.NewTimer(g.cfg.JoinEvery)
		select {
		case <-timer.C:
		case <-g.ready:
			g.announce(list)
		case <-g.ctx.Done():
			timer.Stop()
			g.leave(list)
			return
		}
		timer.Stop()
	}
}

func (g *Gossip) config(t *transport, keys *memberlist.Keyring) *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = g.start
	c.Transport = t
	c.BindPort, c.AdvertisePort = int(t.port), int(t.port)
	c.ProbeInterval = probeInterval
	c.TCPTimeout = 3 * time.Second
	c.Keyring = keys
	c.Delegate = delegate{g}
	c.Events = events{g}
	c.Logger = log.New(logWriter{g.log}, "", 0)
	return c
}

// ownAddress looks up this node's name until it resolves.
func (g *Gossip) ownAddress() (netip.Addr, bool) {
	for try := 0; ; try++ {
		ctx, cancel := context.WithTimeout(g.ctx, 3*time.Second)
		ips, err := g.cfg.Network.LookupHost(ctx, g.cfg.AdvertiseHost)
		cancel()
		if ip, ok := pick(ips); ok {
			return ip, true
		}
		if try == 10 {
			g.log.Warn("gossip waits for this node's own name to resolve", "name", g.cfg.AdvertiseHost, "error", err)
		}
		if !sleep.For(g.ctx, time.Second) {
			return netip.Addr{}, false
		}
	}
}

// pick prefers IPv4: where there are both, every member is reachable by IPv4.
func pick(ips []string) (best netip.Addr, ok bool) {
	for _, text := range ips {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			continue
		}
		if ip = ip.Unmap(); !ok || (ip.Is4() && !best.Is4()) {
			best, ok = ip, true
		}
	}
	return best, ok
}

// join contacts every listed peer that is not known to be alive.
func (g *Gossip) join(list *memberlist.Memberlist, t *transport) {
	var peers []string
	if g.cfg.Peers != nil {
		peers = g.cfg.Peers()
	}
	own := net.JoinHostPort(t.ip.String(), strconv.Itoa(int(t.port)))
	for _, peer := range peers {
		host, port, err := net.SplitHostPort(peer)
		if err != nil {
			g.log.Warn("gossip peer is not host:port", "peer", peer, "error", err)
			continue
		}
		ctx, cancel := context.WithTimeout(g.ctx, 3*time.Second)
		ips, err := g.cfg.Network.LookupHost(ctx, host)
		cancel()
		if err != nil {
			g.log.Debug("gossip peer does not resolve", "peer", peer, "error", err)
			continue
		}
		for _, ip := range ips {
			addr := net.JoinHostPort(ip, port)
			if addr == own || g.knows(addr) || g.ctx.Err() != nil {
				continue
			}
			if _, err := list.Join([]string{addr}); err != nil {
				g.log.Debug("gossip peer does not answer", "peer", peer, "address", addr, "error", err)
			}
		}
	}
}

// announce spreads this node's current state.
func (g *Gossip) announce(list *memberlist.Memberlist) {
	if err := list.UpdateNode(time.Second); err != nil {
		g.log.Debug("gossip has not spread this node's state yet", "error", err)
	}
}

// leave announces that this node leaves.
func (g *Gossip) leave(list *memberlist.Memberlist) {
	g.mu.Lock()
	g.self.Leaving, g.self.Ready = true, false
	g.mu.Unlock()
	g.announce(list)
	if err := list.Leave(time.Second); err != nil {
		g.log.Debug("gossip could not say goodbye", "error", err)
	}
	score := list.GetHealthScore()
	if err := list.Shutdown(); err != nil {
		g.log.Debug("gossip did not shut down cleanly", "error", err)
	}
	g.outlast(score)
}

// outlast waits until none of memberlist's probes can be under way. memberlist
// cannot wait for them; each ends by its own timer, which grows as the node's
// health score worsens.
func (g *Gossip) outlast(score int) {
	if len(g.Members()) < 2 {
		return
	}
	timer := time.NewTimer(time.Duration(min(score+2, 8)) * probeInterval)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-g.hurry:
	}
}

// Close says goodbye and stops. It waits for memberlist's work in progress,
// which takes some seconds, or until ctx ends.
func (g *Gossip) Close(ctx context.Context) error {
	g.stop()
	release := context.AfterFunc(ctx, func() { g.once.Do(func() { close(g.hurry) }) })
	defer release()
	g.workers.Wait()
	g.unregister()
	return nil
}

// SetReady announces whether this node can serve.
func (g *Gossip) SetReady(ready bool) {
	g.mu.Lock()
	same := g.self.Ready == ready
	g.self.Ready = ready
	self := g.self
	g.mu.Unlock()
	if same {
		return
	}
	g.note(g.start, self, "", Alive)
	sleep.Wake(g.ready)
}

// events receives memberlist's reports. memberlist calls it with its locks
// held, so it never waits.
type events struct{ g *Gossip }

func (e events) NotifyJoin(n *memberlist.Node)   { e.take(n, Alive) }
func (e events) NotifyUpdate(n *memberlist.Node) { e.take(n, Alive) }
func (e events) NotifyLeave(n *memberlist.Node)  { e.take(n, Dead) }

func (e events) take(n *memberlist.Node, state State) {
	var m meta
	if err := cbor.Unmarshal(n.Meta, &m); err != nil || m.Name == "" {
		e.g.log.Warn("gossip heard of a node whose announcement cannot be decoded", "member", n.Name, "error", err)
		return
	}
	if m.Leaving && state == Dead {
		state = Left
	}
	e.g.note(n.Name, m, n.Address(), state)
}

// delegate gives memberlist this node's announcement.
type delegate struct{ g *Gossip }

func (d delegate) NodeMeta(int) []byte {
	d.g.mu.Lock()
	self := d.g.self
	d.g.mu.Unlock()
	b, err := cbor.Marshal(self)
	if err != nil {
		d.g.log.Error("gossip cannot encode this node's state", "error", err)
	}
	return b
}

func (delegate) NotifyMsg([]byte)                {}
func (delegate) GetBroadcasts(int, int) [][]byte { return nil }
func (delegate) LocalState(bool) []byte          { return nil }
func (delegate) MergeRemoteState([]byte, bool)   {}

// logWriter logs memberlist's lines, which begin with a level in brackets, at
// debug level: memberlist warns only of dead peers, which is reported
// elsewhere.
type logWriter struct{ log *slog.Logger }

var _ io.Writer = logWriter{}

func (w logWriter) Write(line []byte) (int, error) {
	w.log.Debug(string(line[:max(0, len(line)-1)]), "part", "memberlist")
	return len(line), nil
}

func (g *Gossip) register() error {
	g.dropped = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "stemedb_gossip_dropped_packets_total",
		Help: "Gossip packets dropped because they arrived faster than they were handled.",
	})
	alive := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "stemedb_gossip_alive_nodes",
		Help: "Nodes that this node believes to be alive, itself included.",
	}, func() float64 {
		count := 0
		for _, n := range g.Members() {
			if n.State == Alive {
				count++
			}
		}
		return float64(count)
	})
	g.metrics = []prometheus.Collector{g.dropped, alive}
	if g.cfg.Registerer == nil {
		return nil
	}
	var errs []error
	for _, m := range g.metrics {
		errs = append(errs, g.cfg.Registerer.Register(m))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("register the metrics of gossip: %w", err)
	}
	return nil
}

func (g *Gossip) unregister() {
	if g.cfg.Registerer == nil {
		return
	}
	for _, m := range g.metrics {
		g.cfg.Registerer.Unregister(m)
	}
}
