package memnet

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
)

// stream is one direction of a connection. Its reader pulls: a chunk can be
// read once it is due and no cut delays it.
type stream struct {
	from, to *Host
	chunks   []chunk
	size     int       // bytes in chunks
	last     time.Time // when the newest chunk is due; nothing overtakes it
	wake     signal    // something changed, for reader and writer
}

// chunk is some bytes, or the end of the stream when end is set.
type chunk struct {
	data []byte
	due  time.Time
	end  error
}

func (s *stream) push(n *Net, c chunk) {
	due := time.Now().Add(n.drawDelay(s.from, s.to))
	if due.Before(s.last) {
		due = s.last
	}
	s.last, c.due = due, due
	s.chunks = append(s.chunks, c)
	s.size += len(c.data)
	s.wake.broadcast()
}

// end makes the reader see the error after the bytes that are already there. An
// earlier end takes precedence.
func (s *stream) end(err error) {
	if k := len(s.chunks); k > 0 && s.chunks[k-1].end != nil {
		return
	}
	s.push(s.from.net, chunk{end: err})
}

// head returns the first chunk if it has arrived, or when to look again.
func (s *stream) head(n *Net, now time.Time) (c *chunk, again time.Time) {
	if len(s.chunks) == 0 {
		return nil, time.Time{}
	}
	c = &s.chunks[0]
	if since, cut := n.cutSince(s.from, s.to); cut && !c.due.Before(since) {
		return nil, time.Time{} // the end of the cut wakes the reader
	}
	if c.due.After(now) {
		return nil, c.due
	}
	return c, time.Time{}
}

// ended reports whether the end of the stream has arrived, or will never arrive. A
// writer of the other direction learns from that, and no earlier than its reader,
// that the other side is closed.
func (s *stream) ended(now time.Time) bool {
	k := len(s.chunks)
	return k == 0 || s.chunks[k-1].end == nil || !s.chunks[k-1].due.After(now)
}

// conn is one end of a connection.
type conn struct {
	net           *Net
	seq           uint64
	proc          *Proc
	peer          *conn
	local, remote addr
	in, out       *stream
	readBy        time.Time
	writeBy       time.Time
	closed        bool
	err           error // why it is closed
}

// fail closes this end without notifying the other.
func (c *conn) fail(err error) {
	if c.closed {
		return
	}
	c.closed, c.err = true, err
	c.in.wake.broadcast()
	c.out.wake.broadcast()
	if c.peer.closed {
		delete(c.net.conns, c)
		delete(c.net.conns, c.peer)
	}
}

// breakIfDue breaks a connection that has been cut for too long. It returns
// when the connection breaks.
func (c *conn) breakIfDue() (at time.Time) {
	if since, cut := c.net.cutSince(c.proc.host, c.peer.proc.host); cut {
		at = earliest(at, since.Add(breakAfter))
	}
	if since, cut := c.net.cutSince(c.peer.proc.host, c.proc.host); cut {
		at = earliest(at, since.Add(breakAfter))
	}
	if !at.IsZero() && !at.After(time.Now()) {
		c.fail(syscall.ETIMEDOUT)
	}
	return at
}

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	for {
		count, ch, until, err := c.tryRead(p)
		if ch == nil {
			if err != nil && !errors.Is(err, io.EOF) {
				err = &net.OpError{Op: "read", Net: "tcp", Source: c.local, Addr: c.remote, Err: err}
			}
			return count, err
		}
		await(ch, until)
	}
}

// tryRead reads the bytes that have arrived, or returns the channel and the
// time to wait for.
func (c *conn) tryRead(p []byte) (count int, wait <-chan struct{}, until time.Time, err error) {
	n := c.net
	n.mu.Lock()
	defer n.mu.Unlock()
	breaks := c.breakIfDue()
	now := time.Now()
	if c.closed {
		return 0, nil, until, c.err
	}
	if !c.readBy.IsZero() && !c.readBy.After(now) {
		return 0, nil, until, os.ErrDeadlineExceeded
	}
	head, again := c.in.head(n, now)
	switch {
	case head == nil:
		return 0, c.in.wake.wait(), earliest(earliest(again, c.readBy), breaks), nil
	case errors.Is(head.end, io.EOF):
		return 0, nil, until, io.EOF
	case head.end != nil:
		c.fail(head.end)
		return 0, nil, until, head.end
	}
	for head != nil && head.end == nil && count < len(p) {
		k := copy(p[count:], head.data)
		count += k
		head.data = head.data[k:]
		c.in.size -= k
		if len(head.data) > 0 {
			break
		}
		c.in.chunks = c.in.chunks[1:]
		head, _ = c.in.head(n, now)
	}
	c.in.wake.broadcast() // the writer has room again
	return count, nil, until, nil
}

// Write implements net.Conn. It waits while the window is full.
func (c *conn) Write(p []byte) (int, error) {
	written := 0
	for {
		count, ch, until, err := c.tryWrite(p[written:])
		written += count
		if err != nil {
			return written, &net.OpError{Op: "write", Net: "tcp", Source: c.local, Addr: c.remote, Err: err}
		}
		if written == len(p) {
			return written, nil
		}
		if ch != nil {
			await(ch, until)
		}
	}
}

func (c *conn) tryWrite(p []byte) (count int, wait <-chan struct{}, until time.Time, err error) {
	n := c.net
	n.mu.Lock()
	defer n.mu.Unlock()
	breaks := c.breakIfDue()
	now := time.Now()
	switch {
	case c.closed:
		return 0, nil, until, c.err
	case !c.writeBy.IsZero() && !c.writeBy.After(now):
		return 0, nil, until, os.ErrDeadlineExceeded
	case c.peer.closed && !c.cut():
		if c.in.ended(now) {
			return 0, nil, until, syscall.EPIPE
		}
		return len(p), nil, until, nil // they arrive nowhere
	}
	room := window - c.out.size
	if room <= 0 && len(p) > 0 {
		return 0, c.out.wake.wait(), earliest(c.writeBy, breaks), nil
	}
	if count = min(room, len(p)); count > 0 {
		c.out.push(n, chunk{data: append([]byte(nil), p[:count]...)})
	}
	return count, nil, until, nil
}

func (c *conn) cut() bool {
	_, there := c.net.cutSince(c.proc.host, c.peer.proc.host)
	_, back := c.net.cutSince(c.peer.proc.host, c.proc.host)
	return there || back
}

// Close implements net.Conn. Bytes already written still arrive.
func (c *conn) Close() error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.out.end(io.EOF)
	c.fail(net.ErrClosed)
	return nil
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) SetDeadline(t time.Time) error {
	return c.setDeadline(func() { c.readBy, c.writeBy = t, t })
}

func (c *conn) SetReadDeadline(t time.Time) error {
	return c.setDeadline(func() { c.readBy = t })
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	return c.setDeadline(func() { c.writeBy = t })
}

func (c *conn) setDeadline(set func()) error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	set()
	c.in.wake.broadcast()
	c.out.wake.broadcast()
	return nil
}

// listener accepts connections at one port of a process.
type listener struct {
	proc   *Proc
	port   uint16
	queue  []*conn
	wake   signal
	closed bool
}

// Listen implements network.Network. It ignores the host of the address: a
// listener accepts connections to every address of its host.
func (p *Proc) Listen(_ context.Context, address string) (net.Listener, error) {
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
	port, err := p.port(wanted, func(port uint16) bool { return p.listeners[port] != nil })
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Err: err}
	}
	l := &listener{proc: p, port: port}
	p.listeners[port] = l
	n.changed.broadcast()
	return l, nil
}

func (l *listener) Accept() (net.Conn, error) {
	n := l.proc.host.net
	for {
		n.mu.Lock()
		if l.closed {
			n.mu.Unlock()
			return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
		}
		if len(l.queue) > 0 {
			c := l.queue[0]
			l.queue = l.queue[1:]
			n.mu.Unlock()
			return c, nil
		}
		ch := l.wake.wait()
		n.mu.Unlock()
		<-ch
	}
}

// Close refuses connections from now on and resets those not accepted yet.
func (l *listener) Close() error {
	n := l.proc.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if l.closed {
		return net.ErrClosed
	}
	l.close()
	return nil
}

func (l *listener) close() {
	l.closed = true
	if l.proc.listeners[l.port] == l {
		delete(l.proc.listeners, l.port)
	}
	for _, c := range l.queue {
		c.out.end(syscall.ECONNRESET)
		c.fail(net.ErrClosed)
	}
	l.queue = nil
	l.wake.broadcast()
}

func (l *listener) Addr() net.Addr {
	return addr{"tcp", netip.AddrPortFrom(l.proc.host.ip, l.port)}
}

// Dial implements network.Network. When the link is cut, the host has no power
// or no host has the address, it waits as long as ctx allows, 130 s at most.
func (p *Proc) Dial(ctx context.Context, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c, err := p.dial(ctx, address)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
	}
	return c, nil
}

func (p *Proc) dial(ctx context.Context, address string) (net.Conn, error) {
	name, port, err := split(address)
	if err != nil {
		return nil, err
	}
	n := p.host.net
	shaken := false // the first two messages have been exchanged
	for {
		n.mu.Lock()
		if p.killed {
			n.mu.Unlock()
			return nil, net.ErrClosed
		}
		targets := n.resolve(p.host, name)
		if _, err := netip.ParseAddr(name); err != nil && len(targets) == 0 {
			n.mu.Unlock()
			return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
		}
		var target *Host
		reachable := false
		if len(targets) > 0 {
			target = targets[n.rng.IntN(len(targets))]
			_, there := n.cutSince(p.host, target)
			_, back := n.cutSince(target, p.host)
			reachable = !there && !back
		}
		if !reachable {
			ch := n.changed.wait()
			n.mu.Unlock()
			shaken = false
			if err := p.pause(ctx, ch, 0); err != nil {
				return nil, err
			}
			continue
		}
		if !shaken {
			wait := n.drawDelay(p.host, target) + n.drawDelay(target, p.host)
			n.mu.Unlock()
			if err := p.pause(ctx, nil, wait); err != nil {
				return nil, err
			}
			shaken = true
			continue
		}
		c, err := p.connect(target, port)
		n.mu.Unlock()
		if c != nil || err != nil {
			return c, err
		}
		if err := p.pause(ctx, nil, time.Second); err != nil { // the backlog is full
			return nil, err
		}
	}
}

// pause waits for ch, or for the given time when ch is nil.
func (p *Proc) pause(ctx context.Context, ch <-chan struct{}, d time.Duration) error {
	if ch == nil {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			return nil
		case <-p.dead:
			return net.ErrClosed
		case <-ctx.Done():
			return timedOut(ctx)
		}
	}
	select {
	case <-ch:
		return nil
	case <-p.dead:
		return net.ErrClosed
	case <-ctx.Done():
		return timedOut(ctx)
	}
}

func timedOut(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return os.ErrDeadlineExceeded
	}
	return ctx.Err()
}

// connect makes the two ends; nil without an error means that the backlog is
// full.
func (p *Proc) connect(target *Host, port uint16) (net.Conn, error) {
	n := p.host.net
	if target.proc == nil || target.proc.listeners[port] == nil {
		return nil, syscall.ECONNREFUSED
	}
	l := target.proc.listeners[port]
	if len(l.queue) >= backlog {
		return nil, nil
	}
	p.nextPort = max(p.nextPort+1, 32768)
	near := addr{"tcp", netip.AddrPortFrom(p.host.ip, p.nextPort)}
	far := addr{"tcp", netip.AddrPortFrom(target.ip, port)}
	there := &stream{from: p.host, to: target}
	back := &stream{from: target, to: p.host}
	a := &conn{net: n, proc: p, local: near, remote: far, in: back, out: there}
	b := &conn{net: n, proc: target.proc, local: far, remote: near, in: there, out: back}
	a.peer, b.peer = b, a
	n.nextConn += 2
	a.seq, b.seq = n.nextConn, n.nextConn+1
	n.conns[a], n.conns[b] = struct{}{}, struct{}{}
	l.queue = append(l.queue, b)
	l.wake.broadcast()
	return a, nil
}
