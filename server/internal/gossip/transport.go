package gossip

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/stemedb/stemedb/internal/sleep"
	"github.com/stemedb/stemedb/server/internal/network"
)

// maxPacket is the largest datagram that is read; memberlist sends at most 1400
// bytes at a time.
const maxPacket = 64 << 10

// transport carries memberlist over a network.Network. A packet that is not
// read in time is dropped, so that neither a dead peer nor one that floods
// blocks anything.
type transport struct {
	net     network.Network
	ip      netip.Addr // set before memberlist starts
	port    uint16
	ln      net.Listener
	pc      net.PacketConn
	packets chan *memberlist.Packet
	streams chan net.Conn
	dropped prometheus.Counter
	ctx     context.Context // ends with Shutdown
	stop    context.CancelFunc
	workers sync.WaitGroup

	mu    sync.Mutex // guards conns
	conns map[net.Conn]struct{}
}

func newTransport(n network.Network, bind string, dropped prometheus.Counter) (*transport, error) {
	ctx, stop := context.WithCancel(context.Background())
	t := &transport{
		net: n, packets: make(chan *memberlist.Packet, 256), streams: make(chan net.Conn), dropped: dropped,
		ctx: ctx, stop: stop, conns: map[net.Conn]struct{}{},
	}
	var err error
	if t.ln, err = n.Listen(ctx, bind); err != nil {
		stop()
		return nil, fmt.Errorf("listen for streams: %w", err)
	}
	// The same port for packets, also when the system chose it.
	at, err := netip.ParseAddrPort(t.ln.Addr().String())
	if err == nil {
		t.port = at.Port()
		host, _, _ := net.SplitHostPort(bind)
		t.pc, err = n.ListenPacket(ctx, net.JoinHostPort(host, fmt.Sprint(t.port)))
	}
	if err != nil {
		stop()
		t.ln.Close()
		return nil, fmt.Errorf("listen for packets: %w", err)
	}
	t.workers.Go(t.readPackets)
	t.workers.Go(t.acceptStreams)
	return t, nil
}

func (t *transport) readPackets() {
	buf := make([]byte, maxPacket)
	for {
		n, from, err := t.pc.ReadFrom(buf)
		if t.ctx.Err() != nil {
			return
		}
		if err != nil {
			if !t.pause() {
				return
			}
			continue
		}
		p := &memberlist.Packet{Buf: append([]byte(nil), buf[:n]...), From: from, Timestamp: time.Now()}
		select {
		case t.packets <- p:
		default:
			t.dropped.Inc()
		}
	}
}

func (t *transport) acceptStreams() {
	for {
		conn, err := t.ln.Accept()
		if t.ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return
		}
		if err != nil {
			if !t.pause() {
				return
			}
			continue
		}
		select {
		case t.streams <- t.keep(conn):
		case <-t.ctx.Done():
			conn.Close()
			return
		}
	}
}

// pause keeps a repeated error from using a whole core.
func (t *transport) pause() bool {
	return sleep.For(t.ctx, 100*time.Millisecond)
}

// keep tracks a connection until it is closed, so that Shutdown can close it.
func (t *transport) keep(conn net.Conn) net.Conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.conns[conn] = struct{}{}
	return &kept{Conn: conn, t: t}
}

type kept struct {
	net.Conn
	t *transport
}

func (k *kept) Close() error {
	k.t.mu.Lock()
	delete(k.t.conns, k.Conn)
	k.t.mu.Unlock()
	return k.Conn.Close()
}

// FinalAdvertiseAddr implements memberlist.Transport.
func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return net.IP(t.ip.AsSlice()), int(t.port), nil
}

// WriteTo implements memberlist.Transport.
func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return time.Time{}, fmt.Errorf("address of a gossip peer: %w", err)
	}
	_, err = t.pc.WriteTo(b, net.UDPAddrFromAddrPort(to))
	return time.Now(), err
}

// PacketCh implements memberlist.Transport.
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// DialTimeout implements memberlist.Transport.
func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(t.ctx, timeout)
	defer cancel()
	conn, err := t.net.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	return t.keep(conn), nil
}

// StreamCh implements memberlist.Transport.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// Shutdown implements memberlist.Transport.
func (t *transport) Shutdown() error {
	t.close()
	return nil
}

// close waits for the transport's goroutines. Connections in use end with an
// error. It is idempotent.
func (t *transport) close() {
	t.stop()
	t.ln.Close()
	t.pc.Close()
	t.mu.Lock()
	open := make([]net.Conn, 0, len(t.conns))
	for conn := range t.conns {
		open = append(open, conn)
	}
	t.mu.Unlock()
	for _, conn := range open {
		conn.Close()
	}
	t.workers.Wait()
}
