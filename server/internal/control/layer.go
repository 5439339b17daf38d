package control

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/stemedb/stemedb/server/internal/peertls"
)

// streamLayer carries Raft over the peer port. The dialer first sends the id of
// its target and its own.
type streamLayer struct {
	peers   *peertls.Transport
	moved   *addresses
	ln      net.Listener
	id      string
	addr    string
	ctx     context.Context // ends with Close
	stop    context.CancelFunc
	workers sync.WaitGroup
	once    sync.Once

	mu    sync.Mutex // guards the fields below
	conns map[net.Conn]struct{}
	using *session // nil while no Raft runs
}

const (
	helloMagic   = "stemedb raft 1\n"
	helloTimeout = 5 * time.Second
	maxID        = 1024
)

func newStreamLayer(peers *peertls.Transport, ln net.Listener, id, addr string, moved *addresses) *streamLayer {
	l := &streamLayer{peers: peers, moved: moved, ln: ln, id: id, addr: addr, conns: map[net.Conn]struct{}{}}
	l.ctx, l.stop = context.WithCancel(context.Background())
	l.workers.Go(l.accept)
	return l
}

// Dial implements raft.StreamLayer.
func (l *streamLayer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	id, addr := splitRaftAddress(address)
	addr = l.moved.of(id, addr)
	ctx, cancel := context.WithTimeout(l.ctx, timeout)
	defer cancel()
	conn, err := l.peers.Dial(ctx, addr, peertls.ProtoRaft)
	if err != nil {
		return nil, err
	}
	hello := appendText(appendText([]byte(helloMagic), id), l.id)
	if err = conn.SetWriteDeadline(time.Now().Add(timeout)); err == nil {
		_, err = conn.Write(hello)
	}
	if err == nil {
		err = conn.SetWriteDeadline(time.Time{})
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("greet %s at %s: %w", id, addr, err)
	}
	return conn, nil
}

func appendText(b []byte, text string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(text))), text...)
}

func readText(r io.Reader) (string, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return "", err
	}
	n := binary.BigEndian.Uint16(size[:])
	if n > maxID {
		return "", fmt.Errorf("an id of %d bytes", n)
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return string(b), err
}

func (l *streamLayer) accept() {
	for {
		conn, err := l.ln.Accept()
		if err != nil {
			return // the peer port never reopens its listeners
		}
		if !l.keep(conn) {
			return
		}
		l.workers.Go(func() { l.greet(conn) })
	}
}

// keep registers a connection, so that Close can close it; Raft leaves the
// closing of accepted connections to the other side.
func (l *streamLayer) keep(conn net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx.Err() != nil {
		conn.Close()
		return false
	}
	l.conns[conn] = struct{}{}
	return true
}

func (l *streamLayer) forget(conn net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, conn)
}

func (l *streamLayer) greet(conn net.Conn) {
	if err := l.readHello(conn); err != nil {
		conn.Close()
		l.forget(conn)
		return
	}
	l.mu.Lock()
	s := l.using
	l.mu.Unlock()
	if s != nil {
		select {
		case s.queue <- &accepted{Conn: conn, layer: l}:
			return
		case <-s.ctx.Done():
		}
	}
	conn.Close()
	l.forget(conn)
}

func (l *streamLayer) readHello(conn net.Conn) error {
	if err := conn.SetReadDeadline(time.Now().Add(helloTimeout)); err != nil {
		return err
	}
	magic := make([]byte, len(helloMagic))
	if _, err := io.ReadFull(conn, magic); err != nil {
		return err
	}
	if string(magic) != helloMagic {
		return errors.New("not a Raft connection of this version")
	}
	to, err := readText(conn)
	if err != nil {
		return err
	}
	if to != l.id {
		return fmt.Errorf("the connection is for %s", to)
	}
	if _, err := readText(conn); err != nil {
		return err
	}
	return conn.SetReadDeadline(time.Time{})
}

// Close closes the listener and every accepted connection.
func (l *streamLayer) Close() (err error) {
	l.once.Do(func() {
		l.mu.Lock()
		l.stop()
		l.mu.Unlock()
		l.closeConns()
		err = l.ln.Close()
		l.workers.Wait()
	})
	return err
}

func (l *streamLayer) closeConns() {
	l.mu.Lock()
	open := slices.Collect(maps.Keys(l.conns))
	l.mu.Unlock()
	for _, conn := range open {
		conn.Close() // may wait briefly for its peer, so not under the lock
	}
}

// session is the layer for one instance of Raft; it implements raft.StreamLayer.
type session struct {
	*streamLayer
	queue chan net.Conn
	ctx   context.Context // ends with Close, or with the layer
	stop  context.CancelFunc
}

func (l *streamLayer) session() *session {
	s := &session{streamLayer: l, queue: make(chan net.Conn)}
	s.ctx, s.stop = context.WithCancel(l.ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.using = s
	return s
}

// Accept implements net.Listener.
func (s *session) Accept() (net.Conn, error) {
	select {
	case conn := <-s.queue:
		return conn, nil
	case <-s.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close ends the session; later connections are closed until there is another
// session.
func (s *session) Close() error {
	s.mu.Lock()
	if s.using == s {
		s.using = nil
	}
	s.mu.Unlock()
	s.stop()
	s.closeConns()
	return nil
}

// Addr is this node's address in Raft's messages.
func (l *streamLayer) Addr() net.Addr { return layerAddr(raftAddress(l.id, l.addr)) }

type layerAddr string

func (layerAddr) Network() string  { return "stemedb-raft" }
func (a layerAddr) String() string { return string(a) }

type accepted struct {
	net.Conn
	layer *streamLayer
}

func (a *accepted) Close() error {
	a.layer.forget(a.Conn)
	return a.Conn.Close()
}
