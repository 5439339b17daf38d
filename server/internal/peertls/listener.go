package peertls

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/stemedb/stemedb/internal/sleep"
)

// maxHandshakes is the number of concurrent handshakes. More connections wait
// in the kernel's queue.
const maxHandshakes = 128

// Listener is the peer port: one address, one listener for each protocol.
type Listener struct {
	t    *Transport
	raw  net.Listener
	grpc *protoListener
	raft *protoListener

	ctx     context.Context // ends when the port is closed
	stop    context.CancelFunc
	workers sync.WaitGroup
}

// Listen opens the peer port. The caller must call Close; closing one of its
// two listeners only refuses that protocol.
func (t *Transport) Listen(ctx context.Context, addr string) (*Listener, error) {
	raw, err := t.cfg.Network.Listen(ctx, addr)
	if err != nil {
		return nil, err
	}
	l := &Listener{t: t, raw: raw}
	l.ctx, l.stop = context.WithCancel(context.Background())
	l.grpc = newProtoListener(raw.Addr())
	l.raft = newProtoListener(raw.Addr())
	l.workers.Go(l.accept)
	return l, nil
}

// GRPC accepts the connections for gRPC. They are already encrypted: the gRPC
// server uses no transport credentials.
func (l *Listener) GRPC() net.Listener { return l.grpc }

// Raft accepts the connections for Raft.
func (l *Listener) Raft() net.Listener { return l.raft }

// Addr is the address of the port.
func (l *Listener) Addr() net.Addr { return l.raw.Addr() }

// Close closes the port and waits for handshakes under way. Accepted
// connections belong to the code that accepted them.
func (l *Listener) Close() error {
	l.stop()
	err := l.raw.Close()
	l.grpc.end()
	l.raft.end()
	l.workers.Wait()
	return err
}

func (l *Listener) accept() {
	slots := make(chan struct{}, maxHandshakes)
	for {
		conn, err := l.raw.Accept()
		if err != nil {
			if l.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			// Most likely the process has no file descriptors left, which passes. The
			// network that the node gives to its parts reports it.
			if !sleep.For(l.ctx, 100*time.Millisecond) {
				return
			}
			continue
		}
		select {
		case slots <- struct{}{}:
		case <-l.ctx.Done():
			conn.Close()
			return
		}
		l.workers.Go(func() {
			defer func() { <-slots }()
			l.handshake(conn)
		})
	}
}

func (l *Listener) handshake(raw net.Conn) {
	ctx, cancel := context.WithTimeout(l.ctx, l.t.cfg.HandshakeTimeout)
	defer cancel()
	conn, err := l.greet(ctx, raw)
	if err != nil {
		raw.Close()
		if l.ctx.Err() == nil {
			l.t.metrics.refused.Inc()
			l.t.log.Debug("peer port refused a connection", "from", raw.RemoteAddr(), "error", err)
		}
		return
	}
	var to *protoListener
	switch conn.ConnectionState().NegotiatedProtocol {
	case ProtoGRPC:
		to = l.grpc
	case ProtoRaft:
		to = l.raft
	default:
		raw.Close()
		l.t.metrics.refused.Inc()
		return
	}
	select {
	case to.queue <- conn:
	case <-to.done:
		raw.Close()
	case <-ctx.Done(): // no Accept is waiting: the owner is starting or stuck
		raw.Close()
	}
}

func (l *Listener) greet(ctx context.Context, raw net.Conn) (*tls.Conn, error) {
	conn := tls.Server(raw, l.t.serverConfig())
	return conn, conn.HandshakeContext(ctx)
}

// protoListener hands out connections whose handshake is done.
type protoListener struct {
	addr  net.Addr
	queue chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newProtoListener(addr net.Addr) *protoListener {
	return &protoListener{addr: addr, queue: make(chan net.Conn), done: make(chan struct{})}
}

func (p *protoListener) Accept() (net.Conn, error) {
	select {
	case <-p.done:
		return nil, net.ErrClosed
	default:
	}
	select {
	case conn := <-p.queue:
		return conn, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *protoListener) Close() error {
	p.end()
	return nil
}

func (p *protoListener) end() { p.once.Do(func() { close(p.done) }) }

func (p *protoListener) Addr() net.Addr { return p.addr }
