// Package memnet is a network inside one process, for tests: named hosts with
// addresses, stream connections and datagrams, cuts, delays and losses.
//
// It behaves like TCP, UDP and DNS where a distributed system would notice: a
// connection carries bytes in order or breaks; bytes sent into a cut arrive
// after it heals unless the connection times out; a killed process resets its
// connections, while a host without power leaves them hanging; a dial to an
// unreachable address takes as long as its caller allows; datagrams are
// dropped, never waited for.
//
// The package has no goroutines and no sockets; all waiting is on channels and
// timers. So whole clusters run on it under testing/synctest in virtual time,
// and nothing waits forever for a dead peer. Delays and losses are drawn from a
// seed.
package memnet

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"
)

const (
	// window is how many bytes may be under way or unread in one direction
	// before a writer waits.
	window = 256 << 10
	// backlog is how many connections wait to be accepted; datagrams is how
	// many datagrams wait to be read before more are dropped.
	backlog   = 128
	datagrams = 1024
	// dialTimeout bounds a dial whose caller set no deadline.
	dialTimeout = 130 * time.Second
	// breakAfter is how long a connection survives a cut: about the time that
	// package network's keep-alives take to notice it.
	breakAfter = 45 * time.Second
)

// Net is a network of hosts. The zero value is not usable; see New.
type Net struct {
	mu       sync.Mutex // guards all state of this package; never held while waiting
	rng      *rand.Rand
	hosts    map[string]*Host
	byIP     map[netip.Addr]*Host
	aliases  map[string][]string
	cuts     map[link]time.Time // since when
	delays   map[link]delay
	delay    delay
	loss     float64
	nextIP   uint32
	changed  signal             // cuts and hosts
	conns    map[*conn]struct{} // with an open end
	nextConn uint64
}

// link is one direction between two hosts, by name.
type link struct{ from, to string }

type delay struct{ min, max time.Duration }

// New makes an empty network without delay or loss. Random draws come from the
// seed.
func New(seed uint64) *Net {
	return &Net{
		rng:     rand.New(rand.NewPCG(seed, 0x6d656d6e6574)),
		hosts:   map[string]*Host{},
		byIP:    map[netip.Addr]*Host{},
		aliases: map[string][]string{},
		cuts:    map[link]time.Time{},
		delays:  map[link]delay{},
		conns:   map[*conn]struct{}{},
	}
}

// Host returns the host of that name and creates it if necessary. Its name
// resolves from its first Start on.
func (n *Net) Host(name string) *Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.hosts[name]
	if h == nil {
		h = &Host{net: n, name: name}
		n.hosts[name] = h
		n.assignIP(h)
	}
	return h
}

// Alias makes name resolve to the addresses of the hosts, as a headless Service
// does for its pods.
func (n *Net) Alias(name string, hosts ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.aliases[name] = hosts
}

// SetDelay draws the delay of every message between different hosts from
// [least, most].
func (n *Net) SetDelay(least, most time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delay = delay{least, most}
}

// SetDelayBetween overrides SetDelay for messages from one host to another.
func (n *Net) SetDelayBetween(from, to string, least, most time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delays[link{from, to}] = delay{least, most}
}

// SetLoss drops that share (0..1) of the datagrams between different hosts.
// Streams are not affected, because TCP retransmits.
func (n *Net) SetLoss(share float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss = share
}

// Cut stops all traffic between the two hosts, in both directions.
func (n *Net) Cut(a, b string) { n.CutOneWay(a, b); n.CutOneWay(b, a) }

// CutOneWay stops all traffic from one host to the other. Opening a stream
// needs both directions; data still flows in the remaining direction until the
// connection breaks for lack of acknowledgements.
func (n *Net) CutOneWay(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := link{from, to}
	if _, cut := n.cuts[l]; cut || from == to {
		return
	}
	n.cuts[l] = time.Now()
	n.disturb()
}

// Isolate cuts a host off from all others.
func (n *Net) Isolate(name string) {
	for _, other := range n.Names() {
		n.Cut(name, other)
	}
}

// Heal undoes the cuts between the two hosts.
func (n *Net) Heal(a, b string) { n.heal(link{a, b}, link{b, a}) }

// Rejoin undoes all cuts of a host.
func (n *Net) Rejoin(name string) {
	for _, other := range n.Names() {
		n.Heal(name, other)
	}
}

// HealAll undoes all cuts.
func (n *Net) HealAll() {
	n.mu.Lock()
	var all []link
	for l := range n.cuts {
		all = append(all, l)
	}
	n.mu.Unlock()
	n.heal(all...)
}

// Names lists the hosts in order.
func (n *Net) Names() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	names := make([]string, 0, len(n.hosts))
	for name := range n.hosts {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (n *Net) heal(links ...link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.breakOld()
	for _, l := range links {
		delete(n.cuts, l)
	}
	n.disturb()
}

// breakOld breaks the connections that were cut for too long, even those that
// nobody used in the meantime. It is called before a cut ends.
func (n *Net) breakOld() {
	for c := range n.conns {
		c.breakIfDue()
	}
}

// disturb wakes all waiters, so that they check the network again.
func (n *Net) disturb() {
	n.changed.broadcast()
	for c := range n.conns {
		c.in.wake.broadcast()
		c.out.wake.broadcast()
	}
}

// cutSince returns the time since which the link from one host to the other is
// cut.
func (n *Net) cutSince(from, to *Host) (time.Time, bool) {
	if from == to {
		return time.Time{}, false
	}
	since, cut := n.cuts[link{from.name, to.name}]
	for _, h := range []*Host{from, to} {
		if h.off && (!cut || h.offSince.Before(since)) {
			since, cut = h.offSince, true
		}
	}
	return since, cut
}

func (n *Net) drawDelay(from, to *Host) time.Duration {
	if from == to {
		return 0
	}
	d, ok := n.delays[link{from.name, to.name}]
	if !ok {
		d = n.delay
	}
	if d.max <= d.min {
		return d.min
	}
	return d.min + time.Duration(n.rng.Int64N(int64(d.max-d.min)+1))
}

func (n *Net) assignIP(h *Host) {
	if h.ip.IsValid() {
		delete(n.byIP, h.ip)
	}
	n.nextIP++
	h.ip = netip.AddrFrom4([4]byte{10, byte(n.nextIP >> 16), byte(n.nextIP >> 8), byte(n.nextIP)})
	n.byIP[h.ip] = h
}

// resolve finds the hosts behind a name or an address, as seen from a host.
func (n *Net) resolve(from *Host, name string) []*Host {
	if name == "" || name == "localhost" {
		return []*Host{from}
	}
	if ip, err := netip.ParseAddr(name); err == nil {
		if ip = ip.Unmap(); ip.IsLoopback() || ip.IsUnspecified() {
			return []*Host{from}
		}
		if h := n.byIP[ip]; h != nil {
			return []*Host{h}
		}
		return nil
	}
	var found []*Host
	for _, one := range append([]string{name}, n.aliases[name]...) {
		if h := n.hosts[one]; h != nil && h.started {
			found = append(found, h)
		}
	}
	return found
}

// Host is a machine (or a pod): a name, an address and the running process.
type Host struct {
	net      *Net
	name     string
	ip       netip.Addr
	started  bool // at least once: its name resolves
	proc     *Proc
	off      bool // no power
	offSince time.Time
}

// Name is the host's name.
func (h *Host) Name() string { return h.name }

// IP is the host's address now.
func (h *Host) IP() string {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	return h.ip.String()
}

// Move gives the host another address, as happens to a recreated pod. Its
// process is killed.
func (h *Host) Move() {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.end()
	h.net.assignIP(h)
}

// Exchange swaps the addresses of two hosts, as happens when addresses are
// reused. Their processes are killed.
func (h *Host) Exchange(with *Host) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.end()
	with.end()
	h.ip, with.ip = with.ip, h.ip
	h.net.byIP[h.ip], h.net.byIP[with.ip] = h, with
}

// end kills the running process, if there is one.
func (h *Host) end() {
	if h.proc != nil {
		h.proc.kill()
		h.proc.resetPeers()
	}
}

// Start returns the network for a new process on the host. A process that still
// runs is killed. A host without power is powered on, which resets the
// connections of its previous process.
func (h *Host) Start() *Proc {
	n := h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if h.off {
		n.breakOld()
		h.off = false
	}
	h.end()
	h.proc = &Proc{host: h, listeners: map[uint16]*listener{}, packets: map[uint16]*packetConn{}, nextPort: 32768, dead: make(chan struct{})}
	h.started = true
	n.disturb()
	return h.proc
}

// Proc is a process on a host. It implements network.Network.
type Proc struct {
	host      *Host
	listeners map[uint16]*listener
	packets   map[uint16]*packetConn
	nextPort  uint16
	killed    bool
	dead      chan struct{} // closed when killed
}

// Kill ends the process like SIGKILL: peers see its connections reset, and
// every further call of the old process fails.
func (p *Proc) Kill() {
	p.host.net.mu.Lock()
	defer p.host.net.mu.Unlock()
	p.kill()
	p.resetPeers()
}

// PowerOff ends the process and its host silently: peers notice only by
// timeouts.
func (p *Proc) PowerOff() {
	n := p.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if p.host.proc == p && !p.host.off {
		p.host.off, p.host.offSince = true, time.Now()
	}
	p.kill()
	n.disturb()
}

func (p *Proc) kill() {
	if p == nil || p.killed {
		return
	}
	p.killed = true
	close(p.dead)
	for _, l := range p.listeners {
		l.close()
	}
	for _, c := range p.packets {
		c.close()
	}
	for c := range p.host.net.conns {
		if c.proc == p {
			c.fail(net.ErrClosed)
		}
	}
}

// resetPeers resets the other ends of a dead process's connections.
func (p *Proc) resetPeers() {
	var survivors []*conn
	for c := range p.host.net.conns {
		if c.peer.proc == p && c.peer.closed {
			survivors = append(survivors, c)
		}
	}
	// In order, since each draws a delay.
	slices.SortFunc(survivors, func(a, b *conn) int { return cmp.Compare(a.seq, b.seq) })
	for _, c := range survivors {
		c.in.end(syscall.ECONNRESET)
	}
}

// Addr names an address of this network.
type addr struct {
	network string
	ap      netip.AddrPort
}

func (a addr) Network() string { return a.network }
func (a addr) String() string  { return a.ap.String() }

func (p *Proc) port(wanted uint16, taken func(uint16) bool) (uint16, error) {
	if wanted != 0 {
		if taken(wanted) {
			return 0, syscall.EADDRINUSE
		}
		return wanted, nil
	}
	for range 1 << 15 {
		p.nextPort++
		if p.nextPort < 32768 {
			p.nextPort = 32768
		}
		if !taken(p.nextPort) {
			return p.nextPort, nil
		}
	}
	return 0, syscall.EADDRNOTAVAIL
}

// LookupHost implements network.Network. It sends no message, so cuts do not
// affect it.
func (p *Proc) LookupHost(ctx context.Context, name string) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	n := p.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if p.killed {
		return nil, net.ErrClosed
	}
	if ip, err := netip.ParseAddr(name); err == nil {
		return []string{ip.String()}, nil
	}
	var ips []string
	for _, h := range n.resolve(p.host, name) {
		ips = append(ips, h.ip.String())
	}
	if len(ips) == 0 {
		return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	return ips, nil
}

func split(address string) (string, uint16, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, err
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("port of %q: %w", address, err)
	}
	return host, uint16(number), nil
}

// signal wakes all its waiters. Its methods are called with Net.mu held.
type signal struct{ ch chan struct{} }

func (s *signal) wait() <-chan struct{} {
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

func (s *signal) broadcast() {
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}

// await waits for the channel or the time, whichever is first. The zero time
// means never.
func await(ch <-chan struct{}, until time.Time) {
	if until.IsZero() {
		<-ch
		return
	}
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-ch:
	case <-timer.C:
	}
}

// earliest returns the earlier of two times. Zero means never.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}
