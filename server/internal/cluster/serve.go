package cluster

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/stemedb/stemedb/internal/sleep"
	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/cluster/peerpb"
	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// service answers the other members. Package control has already checked that a
// call is addressed to this incarnation and cluster, and that its caller is up to
// date.
type service struct {
	peerpb.UnimplementedPeerServer
	c *Cluster
}

// Pull lists the records in this node's log, one answer for each request.
func (s *service) Pull(stream peerpb.Peer_PullServer) error {
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case <-s.c.closing:
			return status.Error(codes.Unavailable, "the node is shutting down")
		default:
		}
		res, err := s.pull(stream.Context(), req)
		if err != nil {
			return err
		}
		if err := stream.Send(res); err != nil {
			return err
		}
	}
}

func (s *service) pull(ctx context.Context, req *peerpb.PullRequest) (*peerpb.PullResponse, error) {
	from := wal.Position(req.From)
	if err := s.c.hearWitness(req); err != nil {
		return nil, err
	}
	if end := s.c.store.End(); from > end {
		return nil, status.Errorf(codes.OutOfRange, "position %v is behind the end of this log, %v", from, end)
	}
	if err := s.awaitTail(ctx, from, time.Duration(req.WaitMs)*time.Millisecond); err != nil {
		return nil, err
	}
	limit := min(max(int(req.LimitBytes), 1), s.c.limits.PullBytes)
	before := lossOf(s.c.store)
	keys, next, gaps, err := s.c.store.ScanKeys(from, limit)
	if errors.Is(err, wal.ErrNoEntry) { // an error of the caller or of its disk
		return nil, status.Errorf(codes.OutOfRange, "no record begins at position %v of this log", from)
	}
	if err != nil {
		return nil, status.Errorf(codes.Internal, "reading the log from %v: %v", from, err)
	}
	// whole means that the records that the scan skipped have been rewritten before
	// end. The state must not have changed during the scan, because a disk may also
	// recover skipped records.
	whole := before.whole && lossOf(s.c.store) == before
	end, opening := s.c.store.End(), s.c.store.Opening()
	if opening == (wal.Opening{}) {
		return nil, status.Error(codes.Unavailable, "this node's volumes were restored to an older state; its process is about to end")
	}
	res := &peerpb.PullResponse{
		OpeningNumber: opening.Number, OpeningId: opening.ID,
		Next: uint64(next), End: uint64(end), BehindBytes: uint64(logBytes(next, end)),
		Gaps: uint32(gaps), Whole: whole,
		Positions: make([]uint64, 0, len(keys)), Sizes: make([]uint32, 0, len(keys)),
	}
	res.Keys = make([]byte, 0, 96*len(keys))
	for i := range keys {
		if !keys[i].Key.Kind.Record() {
			continue
		}
		if res.Keys, err = appendKeys(res.Keys, keys[i].Key); err != nil {
			return nil, status.Errorf(codes.Internal, "at %v: %v", keys[i].Position, err)
		}
		res.Positions = append(res.Positions, uint64(keys[i].Position))
		res.Sizes = append(res.Sizes, uint32(keys[i].Bytes))
	}
	return res, nil
}

// tailBytes is the distance from the end of the log below which a puller follows
// the tail instead of catching up.
const tailBytes = 256 << 10

// awaitTail waits until the log grows beyond from, and a little longer, so that
// records of a busy log are sent in batches.
func (s *service) awaitTail(ctx context.Context, from wal.Position, wait time.Duration) error {
	if end := s.c.store.End(); wait <= 0 || logBytes(from, end) > tailBytes {
		return nil
	}
	timer := time.NewTimer(min(wait, s.c.timings.PullWait))
	defer timer.Stop()
	for {
		moved := s.c.store.Watch()
		if s.c.store.End() > from {
			sleep.For(ctx, s.c.timings.TailLinger)
			return ctx.Err()
		}
		select {
		case <-moved:
		case <-timer.C:
			return nil
		case <-s.c.closing:
			return status.Error(codes.Unavailable, "the node is shutting down")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// fetchBytes bounds an answer of Fetch, except for its last record.
const fetchBytes = 1 << 20

// Fetch returns records. It omits those that are not held or cannot be read: the
// caller tries other members.
func (s *service) Fetch(ctx context.Context, req *peerpb.FetchRequest) (*peerpb.FetchResponse, error) {
	keys, err := parseKeys(req.Keys)
	if err != nil || len(req.Positions) > 0 && len(req.Positions) != len(keys) {
		s.c.metrics.malformed.Inc()
		return nil, status.Errorf(codes.InvalidArgument, "%d positions for %d keys: %v", len(req.Positions), len(keys), err)
	}
	res := &peerpb.FetchResponse{}
	for i, k := range keys {
		if len(res.Items) >= fetchBytes || ctx.Err() != nil {
			break
		}
		res.LookedAt++
		var at wal.Position
		if len(req.Positions) > 0 {
			at = wal.Position(req.Positions[i])
		}
		it, err := s.readItem(k, at)
		if err != nil {
			if mayPass(err) {
				res.Unread++
			}
			if !errors.Is(err, store.ErrNotFound) {
				s.c.log.Warn("a record requested by a peer cannot be read", "key", k.String(), "error", err)
			}
			continue
		}
		res.Items = store.AppendRecord(res.Items, it.Kind, it.Payload)
	}
	return res, ctx.Err()
}

// mayPass reports whether a record that cannot be read now may be readable later: the
// storage failed, or the disk refused to read it. Other damage is permanent.
func mayPass(err error) bool {
	var refused *wal.DamageError
	if errors.As(err, &refused) {
		return refused.Range.Unread
	}
	var damage *store.DamageError
	return !errors.Is(err, store.ErrNotFound) && !errors.As(err, &damage)
}

// readItem reads a record at its position in the log if that is known, otherwise
// (or if another record is there) through the index.
func (s *service) readItem(k store.Key, at wal.Position) (store.Item, error) {
	if at > 0 {
		if it, err := s.c.store.ReadAt(at); err == nil && it.Key == k {
			return it, nil
		}
	}
	return s.c.store.Read(k)
}

func setRequest(set *store.Set) *peerpb.SetRequest {
	req := &peerpb.SetRequest{Project: set.Project, Subject: set.Subject, Predicate: set.Predicate}
	if set.ID != nil {
		req.Id = set.ID[:]
	}
	return req
}

func parseSet(req *peerpb.SetRequest) (set store.Set, err error) {
	set = store.Set{Project: req.Project, Subject: req.Subject, Predicate: req.Predicate}
	switch len(req.Id) {
	case 0:
	case 32:
		set.ID = (*record.Hash)(req.Id)
	default:
		err = status.Errorf(codes.InvalidArgument, "an id of %d bytes", len(req.Id))
	}
	return set, err
}

// countsInReads returns an error unless this node may answer as a whole member.
// The control table may still list this node as whole when its store has just
// found a loss.
func (s *service) countsInReads(ctx context.Context) error {
	if !s.c.store.Whole() && s.c.Incomplete() == "" {
		return status.Error(codes.FailedPrecondition, "this member lost records and is not whole")
	}
	if waits := s.c.unvouched(s.c.control.State()); waits != "" {
		return status.Error(codes.FailedPrecondition, "this member has just started and waits for "+waits+" to compare their witnesses with its log")
	}
	if caller := control.CallerID(ctx); caller != "" && !s.c.compared(caller) {
		return status.Error(codes.FailedPrecondition, "this member has restarted, and the caller has not yet compared its witness with this member's log")
	}
	return nil
}

// SetDigest describes a set that this node holds, unless the caller goes away.
func (s *service) SetDigest(ctx context.Context, req *peerpb.SetRequest) (*peerpb.SetDigestResponse, error) {
	if err := s.countsInReads(ctx); err != nil {
		return nil, err
	}
	set, err := parseSet(req)
	if err != nil {
		return nil, err
	}
	d, err := s.c.store.SetDigest(ctx, set)
	if err != nil {
		return nil, setStatus(ctx, err)
	}
	if err := s.c.control.CheckCaller(ctx); err != nil {
		return nil, err
	}
	return &peerpb.SetDigestResponse{Digest: d.Sum[:], Count: d.Count}, nil
}

// placesPerMessage bounds a message of places, in bytes, except for the last
// place.
const placesPerMessage = 128 << 10

// SetKeys lists a set that this node holds, as fast as the caller reads it.
func (s *service) SetKeys(req *peerpb.SetRequest, stream peerpb.Peer_SetKeysServer) error {
	if err := s.countsInReads(stream.Context()); err != nil {
		return err
	}
	set, err := parseSet(req)
	if err != nil {
		return err
	}
	var places []byte
	for k, err := range s.c.store.SetKeys(stream.Context(), set) {
		if err != nil {
			return setStatus(stream.Context(), err)
		}
		if places = appendPlace(places, k.Place); len(places) < placesPerMessage {
			continue
		}
		if err := stream.Send(&peerpb.SetKeysResponse{Places: places}); err != nil {
			return err
		}
		places = make([]byte, 0, placesPerMessage+1024) // Send may still be reading the other buffer
	}
	if len(places) > 0 {
		if err := stream.Send(&peerpb.SetKeysResponse{Places: places}); err != nil {
			return err
		}
	}
	return s.c.control.CheckCaller(stream.Context())
}

func setStatus(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return status.FromContextError(ctx.Err()).Err()
	}
	return storageStatus(err)
}

// keysPerMessage keeps a message of keys below half a MiB.
const keysPerMessage = 2048

func sendKeys(keys []store.Key, send func(*peerpb.SetKeysResponse) error) error {
	for start := 0; start < len(keys); start += keysPerMessage {
		b, err := appendKeys(nil, keys[start:min(start+keysPerMessage, len(keys))]...)
		if err != nil {
			return status.Error(codes.Internal, err.Error())
		}
		if err := send(&peerpb.SetKeysResponse{Keys: b}); err != nil {
			return err
		}
	}
	return nil
}

// maxSubjects bounds one page of subjects.
const maxSubjects = 10_000

// Subjects lists the names that this node holds.
func (s *service) Subjects(ctx context.Context, req *peerpb.SubjectsRequest) (*peerpb.SubjectsResponse, error) {
	if err := s.countsInReads(ctx); err != nil {
		return nil, err
	}
	limit := min(max(int(req.Limit), 1), maxSubjects)
	subjects, err := s.c.store.Subjects(req.Project, req.Prefix, req.After, limit)
	if err != nil {
		return nil, storageStatus(err)
	}
	if err := s.c.control.CheckCaller(ctx); err != nil {
		return nil, err
	}
	return &peerpb.SubjectsResponse{Subjects: subjects}, nil
}

// Buckets returns the digests of the buckets below a prefix of ids.
func (s *service) Buckets(ctx context.Context, req *peerpb.BucketsRequest) (*peerpb.BucketsResponse, error) {
	if len(req.Prefix) > maxPrefix {
		return nil, status.Errorf(codes.InvalidArgument, "a prefix of %d bytes", len(req.Prefix))
	}
	digests, err := s.c.store.BucketDigests(ctx, req.Prefix)
	if err != nil {
		return nil, storageStatus(err)
	}
	res := &peerpb.BucketsResponse{Digests: make([]byte, 0, 256*32), Counts: make([]uint64, 0, 256)}
	for i := range digests {
		res.Digests = append(res.Digests, digests[i].Sum[:]...)
		res.Counts = append(res.Counts, digests[i].Count)
	}
	return res, nil
}

// BucketKeys lists the records of one bucket.
func (s *service) BucketKeys(req *peerpb.BucketKeysRequest, stream peerpb.Peer_BucketKeysServer) error {
	if len(req.Prefix) == 0 || len(req.Prefix) > maxPrefix {
		return status.Errorf(codes.InvalidArgument, "a prefix of %d bytes", len(req.Prefix))
	}
	keys, _, err := s.c.store.BucketKeys(stream.Context(), req.Prefix, bucketLimit)
	if err != nil {
		return storageStatus(err)
	}
	return sendKeys(keys, stream.Send)
}
