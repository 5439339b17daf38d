package network

import (
	"context"
	"errors"
	"net"
)

// Watched wraps n: whenever one of its listeners cannot accept a connection,
// usually because the process has no file descriptors left, failed is called
// with the listener's address. A closed listener is not a failure. failed must
// be safe for concurrent use.
func Watched(n Network, failed func(addr string, err error)) Network {
	return &watched{Network: n, failed: failed}
}

type watched struct {
	Network
	failed func(addr string, err error)
}

func (w *watched) Listen(ctx context.Context, addr string) (net.Listener, error) {
	l, err := w.Network.Listen(ctx, addr)
	if err != nil {
		return nil, err
	}
	return &watchedListener{Listener: l, failed: func(err error) { w.failed(addr, err) }}, nil
}

type watchedListener struct {
	net.Listener
	failed func(error)
}

func (l *watchedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil && !errors.Is(err, net.ErrClosed) {
		l.failed(err)
	}
	return conn, err
}
