package control

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/stemedb/stemedb/server/internal/control/controlpb"
)

// Register adds the control service to the node's gRPC server, which must use
// UnaryServer and StreamServer.
func (c *Control) Register(r grpc.ServiceRegistrar) {
	controlpb.RegisterControlServer(r, &service{c: c})
}

type service struct {
	controlpb.UnimplementedControlServer
	c *Control
}

// Hello implements controlpb.ControlServer.
func (s *service) Hello(_ context.Context, r *controlpb.HelloRequest) (*controlpb.HelloResponse, error) {
	c := s.c
	c.learnFrom(r)
	has, err := c.hasState()
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	state := c.State()
	return &controlpb.HelloResponse{
		Name: c.cfg.Name, Incarnation: c.cfg.Incarnation, ClusterId: state.ClusterID, HasState: has,
		VolumesEmpty: c.cfg.Data.Empty(), Generation: state.Generation,
		PeerAddr: c.cfg.PeerAddr, ApiAddr: c.cfg.APIAddr, GossipAddr: c.cfg.GossipAddr, Format: Format,
	}, nil
}

// Join implements controlpb.ControlServer. Any member accepts the request; the
// command is forwarded to the leader like any other.
func (s *service) Join(ctx context.Context, r *controlpb.JoinRequest) (*controlpb.JoinResponse, error) {
	c := s.c
	if r.Name == "" || r.Incarnation == "" || r.PeerAddr == "" {
		return nil, status.Error(codes.InvalidArgument, "a joining node needs a name, an incarnation and a peer address")
	}
	if !c.State().Formed() {
		return &controlpb.JoinResponse{Reason: errUnformed.Error()}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timings.CallTimeout)
	defer cancel()
	m := Member{Name: r.Name, Incarnation: r.Incarnation, PeerAddr: r.PeerAddr, APIAddr: r.ApiAddr}
	if _, err := c.propose(ctx, &admit{Member: m}); err != nil {
		return &controlpb.JoinResponse{Reason: err.Error(), ClusterId: c.State().ClusterID}, nil
	}
	return &controlpb.JoinResponse{Accepted: true, ClusterId: c.State().ClusterID}, nil
}

// Forward implements controlpb.ControlServer.
func (s *service) Forward(_ context.Context, r *controlpb.ForwardRequest) (*controlpb.ForwardResponse, error) {
	if !s.c.leading() {
		return nil, status.Error(codes.Unavailable, "this node does not lead the control table")
	}
	answer, index, err := s.c.commit(r.Command)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	b, err := marshal(answer)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &controlpb.ForwardResponse{Index: index, Result: b}, nil
}

// Confirm implements controlpb.ControlServer.
func (s *service) Confirm(ctx context.Context, r *controlpb.ConfirmRequest) (*controlpb.ConfirmResponse, error) {
	s.c.clocks.take(CallerID(ctx), s.c.readyTerm.Load(), r)
	var asker string
	at := dated{index: r.Index}
	if copy(at.digest[:], r.Digest) == len(at.digest) {
		asker = CallerID(ctx)
	}
	answer, err := s.c.confirmAsLeader(asker, at)
	if err != nil {
		code := codes.Internal
		if errors.Is(err, ErrNoLeader) {
			code = codes.Unavailable
		}
		return nil, status.Error(code, err.Error())
	}
	return answer, nil
}

// Progress implements controlpb.ControlServer.
func (s *service) Progress(context.Context, *controlpb.ProgressRequest) (*controlpb.ProgressResponse, error) {
	return s.c.progress(), nil
}
