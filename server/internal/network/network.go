// Package network is a node's only access to other machines: it listens, dials,
// sends packets and looks up names through one small interface.
//
// A node is given its Network from outside. In a real process that is OS; in
// tests it is package memnet, where the test controls hosts, cuts, delays and
// losses, and time may be virtual. Code below server/ therefore never calls the
// dial and listen functions of package net.
package network

import (
	"context"
	"net"
	"time"
)

// Network is one node's access to the network. All methods are safe for
// concurrent use. Addresses are "host:port", the host a DNS name or an IP
// address; an empty host means every address of this node.
type Network interface {
	// Listen accepts stream connections on addr until the listener is closed.
	Listen(ctx context.Context, addr string) (net.Listener, error)
	// Dial opens a stream connection. It returns when ctx ends at the latest.
	// Callers give ctx a deadline, since a dead peer may never answer.
	Dial(ctx context.Context, addr string) (net.Conn, error)
	// ListenPacket sends and receives datagrams on addr. Datagrams are lost,
	// reordered and never waited for.
	ListenPacket(ctx context.Context, addr string) (net.PacketConn, error)
	// LookupHost returns the IP addresses of a name now. An IP address resolves to
	// itself. Answers are not cached: addresses of pods change.
	LookupHost(ctx context.Context, name string) ([]string, error)
}

// OS returns the network of this machine.
func OS() Network { return osNetwork{} }

// keepAlive detects within a minute that a peer vanished without closing its
// connections (a node that lost power), even on an idle connection.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 6}

type osNetwork struct{}

func (osNetwork) Listen(ctx context.Context, addr string) (net.Listener, error) {
	lc := net.ListenConfig{KeepAliveConfig: keepAlive}
	return lc.Listen(ctx, "tcp", addr)
}

func (osNetwork) Dial(ctx context.Context, addr string) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: keepAlive}
	return d.DialContext(ctx, "tcp", addr)
}

func (osNetwork) ListenPacket(ctx context.Context, addr string) (net.PacketConn, error) {
	var lc net.ListenConfig
	return lc.ListenPacket(ctx, "udp", addr)
}

func (osNetwork) LookupHost(ctx context.Context, name string) ([]string, error) {
	return net.DefaultResolver.LookupHost(ctx, name)
}
