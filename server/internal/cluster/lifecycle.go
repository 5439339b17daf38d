package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc"

	"github.com/stemedb/stemedb/server/internal/cluster/peerpb"
	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/store"
)

// Cluster is this node's part of the cluster. Its methods are safe for concurrent
// use.
type Cluster struct {
	store          Store
	control        Control
	progress       *Progress
	liveness       Liveness
	log            *slog.Logger
	timings        Timings
	limits         Limits
	metrics        *metrics
	skipSignatures bool

	// id identifies this node's incarnation; see control.Member.
	id          string
	name        string
	signatures  *signatureCheck
	recent      *recentKeys
	inFlight    inFlight
	writeMemory *semaphore.Weighted // for writes in flight
	fetching    beingFetched
	repairs     singleflight.Group
	turn        atomic.Uint32 // spreads reads over the peers
	// linked is the start of the current uninterrupted link to the others; nil while
	// there is none.
	linked atomic.Pointer[time.Time]
	// caughtUp stays true once this node has caught up after its start.
	caughtUp atomic.Bool
	// refilling: a loss was found, and records that the index lists may be missing.
	refilling atomic.Bool
	// lostKeys are the damaged records that the last search found on no member.
	lostKeys atomic.Pointer[[]store.Key]

	// closing is closed when Run begins to stop.
	closing chan struct{}
	vouches vouches

	mu sync.Mutex
	// links are this node's streams to the other members, by member id.
	links map[string]*link
	peers []*peer // the peers of links; never modified in place
	// stopped reports that no more work for peers starts; serving counts the running work.
	stopped bool
	serving sync.WaitGroup
}

var (
	_ Store        = (*store.Store)(nil)
	_ Control      = (*control.Control)(nil)
	_ control.Data = (*Progress)(nil)
)

// link holds the tasks that this node runs for one other member.
type link struct {
	peer   *peer
	puller *puller
	addr   string
	stop   context.CancelFunc
}

// New returns a Cluster that does nothing until Run.
func New(cfg Config) (*Cluster, error) {
	if cfg.Store == nil || cfg.Control == nil || cfg.Progress == nil {
		return nil, errors.New("cluster: Store, Control and Progress are required")
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, fmt.Errorf("cluster: register metrics: %w", err)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	identity := cfg.Store.Identity()
	limits := cfg.Limits.withDefaults()
	c := &Cluster{
		store: cfg.Store, control: cfg.Control, progress: cfg.Progress, liveness: cfg.Liveness,
		log: cfg.Logger, timings: cfg.Timings.withDefaults(), limits: limits, metrics: m,
		skipSignatures: cfg.SkipSignatures,
		id:             control.MemberID(identity.Node, identity.Incarnation),
		name:           identity.Node,
		signatures:     newSignatureCheck(limits.CachedKeys, limits.VerifyGroup),
		recent:         newRecentKeys(64 << 10),
		writeMemory:    semaphore.NewWeighted(limits.InFlightBytes),
		inFlight:       inFlight{writes: map[*write]struct{}{}},
		fetching:       beingFetched{by: map[store.Key]*fetchClaim{}},
		closing:        make(chan struct{}),
		links:          map[string]*link{},
	}
	if cfg.Registerer != nil {
		if err := cfg.Registerer.Register(reasonMetric{c}); err != nil {
			return nil, fmt.Errorf("cluster: register metrics: %w", err)
		}
	}
	return c, nil
}

// Register adds the peer service to the node's gRPC server.
func (c *Cluster) Register(s grpc.ServiceRegistrar) {
	peerpb.RegisterPeerServer(s, &service{c: c})
}

// Run replicates, catches up and scrubs until ctx ends, and returns when all of
// that has stopped; it is called once. Pending requests then fail with
// CodeClosed. An error means that the process has to be restarted.
func (c *Cluster) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var work sync.WaitGroup
	for range verifiers {
		work.Go(func() { c.signatures.run(ctx) })
	}
	work.Go(func() { c.watchLosses(ctx) })
	work.Go(func() { c.scrub(ctx) })
	work.Go(func() { c.verifyLog(ctx) })
	var links sync.WaitGroup
	var fatal error
	for {
		changed := c.control.Watch()
		c.follow(ctx, &links, c.control.State())
		select {
		case <-changed:
			continue
		case fatal = <-c.progress.fatal:
			cancel()
		case <-ctx.Done():
		}
		break
	}
	close(c.closing)
	c.mu.Lock()
	c.stopped = true
	c.mu.Unlock()
	links.Wait()
	work.Wait()
	c.serving.Wait()
	return fatal
}

// goServe runs fn for a peer's stream unless the node is stopping; Run waits for
// fn.
func (c *Cluster) goServe(fn func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return false
	}
	c.serving.Go(fn)
	return true
}

// follow adjusts the links to the state's members and reevaluates the writes in
// flight.
func (c *Cluster) follow(ctx context.Context, links *sync.WaitGroup, state *control.State) {
	if state.Formed() {
		c.store.SetDigestKey(state.DigestKey)
	}
	added := c.link(ctx, links, state)
	writes := c.inFlight.all()
	for _, w := range writes {
		c.offer(w, added)
		w.judge(c.control.State)
	}
	c.metrics.whole.Set(0)
	if c.wholeNow(state) == nil {
		c.metrics.whole.Set(1)
	}
}

func (c *Cluster) link(ctx context.Context, links *sync.WaitGroup, state *control.State) (added []*peer) {
	wanted := map[string]control.Member{}
	// Until this node may decide, its volumes may turn out to be restored to an
	// older state, so nothing may be added to its log. It refuses its peers' pulls
	// until then, so its wait for them begins here.
	_, member := state.MemberByID(c.id)
	if !member || c.control.MayDecide() != nil {
		c.linked.Store(nil)
	} else {
		now := time.Now()
		c.linked.CompareAndSwap(nil, &now)
		for _, m := range state.Everyone() {
			if m.ID() != c.id {
				wanted[m.ID()] = m
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, l := range c.links {
		if m, ok := wanted[id]; !ok || m.PeerAddr != l.addr {
			l.stop()
			delete(c.links, id)
		}
	}
	for id, m := range wanted {
		if c.links[id] != nil {
			continue
		}
		linkCtx, stop := context.WithCancel(ctx)
		l := &link{peer: newPeer(c, m), puller: newPuller(c, m), addr: m.PeerAddr, stop: stop}
		links.Go(func() { l.peer.run(linkCtx) })
		links.Go(func() { l.puller.run(linkCtx) })
		c.links[id] = l
		added = append(added, l.peer)
	}
	peers := make([]*peer, 0, len(c.links))
	for _, l := range c.links {
		peers = append(peers, l.peer)
	}
	c.peers = peers
	return added
}

func (c *Cluster) currentPeers() []*peer {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.peers
}

func (c *Cluster) linkTo(id string) (*link, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l, ok := c.links[id]
	return l, ok
}

func (c *Cluster) generation() uint64 { return c.control.State().Generation }

// refresh updates the control table when a peer reported this node's copy as
// stale; true means that an immediate retry makes sense.
func (c *Cluster) refresh(ctx context.Context, err error) bool {
	generation, stale := control.StaleGeneration(err)
	if !stale {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, c.timings.ReadWait)
	defer cancel()
	return c.control.WaitGeneration(ctx, generation) == nil
}

func (c *Cluster) alive(name string) bool {
	return c.liveness == nil || c.liveness.Alive(name)
}
