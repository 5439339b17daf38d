package control

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/stemedb/stemedb/server/internal/control/controlpb"
)

// Every call between members carries its target, the cluster, and the caller's
// generation.
const (
	metaTo         = "stemedb-to"
	metaFrom       = "stemedb-from"
	metaCluster    = "stemedb-cluster"
	metaGeneration = "stemedb-generation"
)

// Conn returns the pooled connection to a member. Calls on it carry the
// member's id, so that another incarnation at that address refuses them, and
// this node's generation at the time of the call (of a stream: of its start).
func (c *Control) Conn(m Member) (grpc.ClientConnInterface, error) {
	return c.connTo(m.ID(), m.PeerAddr)
}

func (c *Control) connTo(id, addr string) (grpc.ClientConnInterface, error) {
	cc, err := c.cfg.Peers.Conn(c.addresses.of(id, addr))
	if err != nil {
		return nil, err
	}
	return &memberConn{c: c, cc: cc, id: id}, nil
}

type memberConn struct {
	c  *Control
	cc *grpc.ClientConn
	id string
}

func (m *memberConn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	return m.cc.Invoke(m.outgoing(ctx), method, args, reply, opts...)
}

func (m *memberConn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return m.cc.NewStream(m.outgoing(ctx), desc, method, opts...)
}

func (m *memberConn) outgoing(ctx context.Context) context.Context {
	s := m.c.State()
	return metadata.AppendToOutgoingContext(ctx, metaTo, m.id, metaFrom, m.c.id,
		metaCluster, s.ClusterID, metaGeneration, strconv.FormatUint(s.Generation, 10))
}

// UnaryServer returns the check of every unary call that the node's gRPC server
// gets: see check.
func (c *Control) UnaryServer() grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		if err := c.check(ctx, info.FullMethod); err != nil {
			return nil, err
		}
		return next(ctx, req)
	}
}

// StreamServer is UnaryServer for streams. A stream outlives generations, so its
// messages carry generations too, for CheckGeneration.
func (c *Control) StreamServer() grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		if err := c.check(stream.Context(), info.FullMethod); err != nil {
			return err
		}
		return next(srv, stream)
	}
}

// check refuses a call for another incarnation or cluster, and one of an older
// generation. Calls of the control service need no generation, because it brings
// copies up to date; Hello and Join come from nodes without any state.
func (c *Control) check(ctx context.Context, method string) error {
	if method == controlpb.Control_Hello_FullMethodName || method == controlpb.Control_Join_FullMethodName {
		return nil
	}
	md, _ := metadata.FromIncomingContext(ctx)
	cluster := c.State().ClusterID
	if to, ok := one(md, metaTo); !ok || to != c.id {
		return wrongMember(c.id, cluster, fmt.Sprintf("the call is for member %q, but this is %s", to, c.id))
	}
	if theirs, _ := one(md, metaCluster); theirs != "" && cluster != "" && theirs != cluster {
		return wrongMember(c.id, cluster, fmt.Sprintf("the call is from cluster %s, but this is %s", theirs, cluster))
	}
	if strings.HasPrefix(method, "/"+controlpb.Control_ServiceDesc.ServiceName+"/") {
		return nil
	}
	return c.CheckCaller(ctx)
}

// CheckCaller is CheckGeneration with the caller's generation of the call in ctx.
// A handler whose answer counts in a quorum read checks again when the answer is
// complete: see the proof in change.go.
func (c *Control) CheckCaller(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	text, _ := one(md, metaGeneration)
	generation, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "the call's generation %q is not a number", text)
	}
	return c.CheckGeneration(generation)
}

func one(md metadata.MD, key string) (string, bool) {
	if v := md.Get(key); len(v) == 1 {
		return v[0], true
	}
	return "", false
}

// CallerID is the member id of the caller of the call in ctx.
func CallerID(ctx context.Context) string {
	md, _ := metadata.FromIncomingContext(ctx)
	id, _ := one(md, metaFrom)
	return id
}

// CheckGeneration refuses a caller whose generation is older than this node's,
// with an error that StaleGeneration recognises at the caller, and every caller
// while this node's generation may be older than before its restart (MayDecide).
func (c *Control) CheckGeneration(caller uint64) error {
	if err := c.MayDecide(); err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	own := c.State().Generation
	if caller >= own {
		return nil
	}
	st := status.Newf(codes.FailedPrecondition, "the caller's generation %d is older than %d", caller, own)
	if detailed, err := st.WithDetails(&controlpb.StaleGeneration{Generation: own}); err == nil {
		st = detailed
	}
	return st.Err()
}

// StaleGeneration reports whether a peer refused a call because of its old
// generation, and returns the peer's generation: wait for it (WaitGeneration) and
// retry.
func StaleGeneration(err error) (generation uint64, ok bool) {
	for _, d := range status.Convert(err).Details() {
		if s, is := d.(*controlpb.StaleGeneration); is {
			return s.Generation, true
		}
	}
	return 0, false
}

// WrongMember reports whether a peer refused a call because it is another
// incarnation, or belongs to another cluster, than the target.
func WrongMember(err error) bool {
	for _, d := range status.Convert(err).Details() {
		if _, is := d.(*controlpb.WrongMember); is {
			return true
		}
	}
	return false
}

func wrongMember(id, cluster, text string) error {
	st := status.New(codes.FailedPrecondition, text)
	if detailed, err := st.WithDetails(&controlpb.WrongMember{Id: id, ClusterId: cluster}); err == nil {
		st = detailed
	}
	return st.Err()
}
