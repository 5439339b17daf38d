package memnet

import (
	"context"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"
)

// packetConn sends and receives datagrams at one port of a process.
type packetConn struct {
	proc   *Proc
	port   uint16
	queue  []datagram // ordered by due
	wake   signal
	readBy time.Time
	closed bool
}

type datagram struct {
	data []byte
	from addr
	due  time.Time
}

// ListenPacket implements network.Network.
func (p *Proc) ListenPacket(_ context.Context, address string) (net.PacketConn, error) {
	_, wanted, err := split(address)
	if err != nil {
		return nil, err
	}
	n := p.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if p.killed {
		return nil, net.ErrClosed
	}
	port, err := p.port(wanted, func(port uint16) bool { return p.packets[port] != nil })
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: "udp", Err: err}
	}
	c := &packetConn{proc: p, port: port}
	p.packets[port] = c
	return c, nil
}

// WriteTo sends a datagram and never waits. A datagram that cannot be delivered
// is lost silently, as on a wire.
func (c *packetConn) WriteTo(b []byte, to net.Addr) (int, error) {
	target, err := netip.ParseAddrPort(to.String())
	if err != nil {
		return 0, &net.OpError{Op: "write", Net: "udp", Err: err}
	}
	n := c.proc.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.closed {
		return 0, &net.OpError{Op: "write", Net: "udp", Err: net.ErrClosed}
	}
	from := c.proc.host
	hosts := n.resolve(from, target.Addr().String())
	if len(hosts) == 0 || hosts[0].proc == nil {
		return len(b), nil
	}
	host := hosts[0]
	if _, cut := n.cutSince(from, host); cut {
		return len(b), nil
	}
	if host != from && n.loss > 0 && n.rng.Float64() < n.loss {
		return len(b), nil
	}
	receiver := host.proc.packets[target.Port()]
	if receiver == nil || len(receiver.queue) >= datagrams {
		return len(b), nil
	}
	d := datagram{
		data: slices.Clone(b),
		from: addr{"udp", netip.AddrPortFrom(from.ip, c.port)},
		due:  time.Now().Add(n.drawDelay(from, host)),
	}
	at, _ := slices.BinarySearchFunc(receiver.queue, d.due, func(q datagram, due time.Time) int {
		if q.due.After(due) {
			return 1
		}
		return -1 // equal times keep their order
	})
	receiver.queue = slices.Insert(receiver.queue, at, d)
	receiver.wake.broadcast()
	return len(b), nil
}

// ReadFrom implements net.PacketConn. A datagram longer than b is truncated.
func (c *packetConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n := c.proc.host.net
	for {
		n.mu.Lock()
		now := time.Now()
		switch {
		case c.closed:
			n.mu.Unlock()
			return 0, nil, &net.OpError{Op: "read", Net: "udp", Err: net.ErrClosed}
		case !c.readBy.IsZero() && !c.readBy.After(now):
			n.mu.Unlock()
			return 0, nil, &net.OpError{Op: "read", Net: "udp", Err: os.ErrDeadlineExceeded}
		case len(c.queue) > 0 && !c.queue[0].due.After(now):
			d := c.queue[0]
			c.queue = c.queue[1:]
			n.mu.Unlock()
			return copy(b, d.data), d.from, nil
		}
		until := c.readBy
		if len(c.queue) > 0 {
			until = earliest(until, c.queue[0].due)
		}
		ch := c.wake.wait()
		n.mu.Unlock()
		await(ch, until)
	}
}

func (c *packetConn) Close() error {
	c.proc.host.net.mu.Lock()
	defer c.proc.host.net.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.close()
	return nil
}

func (c *packetConn) close() {
	c.closed, c.queue = true, nil
	if c.proc.packets[c.port] == c {
		delete(c.proc.packets, c.port)
	}
	c.wake.broadcast()
}

func (c *packetConn) LocalAddr() net.Addr {
	return addr{"udp", netip.AddrPortFrom(c.proc.host.ip, c.port)}
}

func (c *packetConn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

func (c *packetConn) SetReadDeadline(t time.Time) error {
	c.proc.host.net.mu.Lock()
	defer c.proc.host.net.mu.Unlock()
	c.readBy = t
	c.wake.broadcast()
	return nil
}

// SetWriteDeadline does nothing: writes do not wait.
func (c *packetConn) SetWriteDeadline(time.Time) error { return nil }
