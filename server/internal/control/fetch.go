package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/stemedb/stemedb/server/internal/control/controlpb"
)

// A member whose log is damaged, or whose table differs from the majority's, must
// not simply drop its log: the leader may have counted its acknowledgement of an
// entry. It first fetches a snapshot from the leader and only then drops its log.
//
// Proof that nothing is lost. The member's Raft is down from before the question
// until the snapshot is stored; its term and vote are kept. The leader L of term
// T answers after a barrier that it appended after the question arrived and that
// a majority acknowledged in T, with a snapshot at s that is not older than the
// barrier.
//   - An entry that the member acknowledged to L is in L's log before the
//     barrier, so it is at or before s.
//   - An entry that it acknowledged to a leader of an earlier term and that was
//     committed is in L's log before L's first entry, so at or before s. One that
//     was not committed never will be because of the member's acknowledgement: a
//     later leader has to hold the barrier, so its log continues L's.
//   - It acknowledged nothing to a leader of a later term T′: that leader was
//     elected by a majority before the question, and a member that voted in T′
//     cannot have acknowledged the barrier in T afterwards; two majorities
//     overlap.
//
// So s covers every acknowledgement that counts, and as a voter the member holds
// at least as much as before. Its term rises to T, in which it has voted only by
// its stored vote, which is kept. A crash between storing the snapshot and
// dropping the log leaves a longer log than needed: the next start inspects it.

// chunkSize keeps messages well below gRPC's limit.
const chunkSize = 256 << 10

// Table implements controlpb.ControlServer.
func (s *service) Table(_ *controlpb.TableRequest, stream grpc.ServerStreamingServer[controlpb.TableChunk]) error {
	snapshot, err := s.c.snapshotAsLeader()
	if err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	for rest := snapshot.Data; ; {
		n := min(len(rest), chunkSize)
		snapshot.Data, rest = rest[:n], rest[n:]
		if err := stream.Send(snapshot); err != nil {
			return err
		}
		if len(rest) == 0 {
			return nil
		}
		snapshot = &controlpb.TableChunk{}
	}
}

// snapshotAsLeader takes the snapshot of the proof above.
func (c *Control) snapshotAsLeader() (*controlpb.TableChunk, error) {
	term := c.readyTerm.Load()
	if !c.leading() {
		return nil, errors.New("this node does not lead the control table")
	}
	if err := c.Err(); err != nil {
		return nil, fmt.Errorf("the leader does not trust its copy: %w", err)
	}
	if c.jury.undecided() {
		return nil, errUndecided
	}
	r := c.raft.Load()
	if err := r.Barrier(c.cfg.Timings.CallTimeout).Error(); err != nil {
		return nil, fmt.Errorf("commit a barrier: %w", err)
	}
	if r.CurrentTerm() != term {
		return nil, ErrNoLeader
	}
	// The state machine has applied the barrier, so its snapshot is newer.
	future := r.Snapshot()
	if err := future.Error(); err != nil {
		return nil, fmt.Errorf("take a snapshot: %w", err)
	}
	meta, reader, err := future.Open()
	if err != nil {
		return nil, fmt.Errorf("read the snapshot: %w", err)
	}
	data, err := io.ReadAll(reader)
	if err = errors.Join(err, reader.Close()); err != nil {
		return nil, fmt.Errorf("read the snapshot: %w", err)
	}
	entries, err := c.readEntries(func(yield func(uint64) bool) {
		for i := max(meta.Index, trailingEntries) - trailingEntries + 1; i <= meta.Index && yield(i); i++ {
		}
	})
	if err != nil {
		return nil, err
	}
	return &controlpb.TableChunk{
		Trailing: consecutive(entries, meta.Index),
		Index:    meta.Index, Term: meta.Term, CurrentTerm: term, Data: data,
		Configuration: raft.EncodeConfiguration(meta.Configuration), ConfigurationIndex: meta.ConfigurationIndex,
	}, nil
}

// trailingEntries is the number of entries sent with a snapshot: Raft's leader
// steps back by one entry when a follower refuses entries, and would find no
// common entry if the follower's log began at its snapshot.
const trailingEntries = 256

// consecutive returns the longest run of entries without a gap that ends at last.
func consecutive(entries []*controlpb.LogEntry, last uint64) []*controlpb.LogEntry {
	for i := len(entries) - 1; i >= 0; i-- {
		if entries[i].Index != last {
			return entries[i+1:]
		}
		last--
	}
	return entries
}

// fetchTable asks every known member for the leader's snapshot and stores it in
// place of the log. The storage has been inspected: its term and vote are
// readable.
func (c *Control) fetchTable(storage sealed) error {
	cluster := c.clusterID()
	ctx, cancel := context.WithTimeout(c.ctx, 4*c.cfg.Timings.CallTimeout)
	defer cancel()
	others := c.others(ctx, cluster)
	if len(others) == 0 {
		return fmt.Errorf("no other member answers: %s", noTable(c.members()))
	}
	var errs []error
	for id, addr := range others {
		snapshot, err := c.tableFrom(ctx, id, addr)
		if err == nil {
			err = c.replaceLog(storage, snapshot, cluster)
		}
		if err == nil {
			c.log.Info("fetched the control table", "from", id, "index", snapshot.Index)
			return nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", id, err))
	}
	return fmt.Errorf("no member returned its table: %w", errors.Join(errs...))
}

// clusterID is the cluster of the table, or of the volumes while there is no
// table.
func (c *Control) clusterID() string { return cmp.Or(c.State().ClusterID, c.cfg.ClusterID) }

// others returns the addresses of members by id: those of this node's table, and
// the nodes on the join list that have a table, unless it is known to be another
// cluster's.
func (c *Control) others(ctx context.Context, cluster string) map[string]string {
	known := map[string]string{}
	for _, m := range c.State().Everyone() {
		known[m.ID()] = m.PeerAddr
	}
	for _, a := range c.askAll(ctx) {
		if a.hello != nil && a.hello.HasState && (a.hello.ClusterId == "" || cluster == "" || a.hello.ClusterId == cluster) {
			known[MemberID(a.hello.Name, a.hello.Incarnation)] = a.hello.PeerAddr
		}
	}
	delete(known, c.id)
	return known
}

func (c *Control) tableFrom(ctx context.Context, id, addr string) (*controlpb.TableChunk, error) {
	conn, err := c.connTo(id, addr)
	if err != nil {
		return nil, err
	}
	stream, err := controlpb.NewControlClient(conn).Table(ctx, &controlpb.TableRequest{})
	if err != nil {
		return nil, err
	}
	whole, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	for {
		next, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return whole, nil
		}
		if err != nil {
			return nil, err
		}
		whole.Data = append(whole.Data, next.Data...)
	}
}

// replaceLog stores the snapshot and then replaces the log.
func (c *Control) replaceLog(storage sealed, s *controlpb.TableChunk, cluster string) error {
	state, err := decodeSnapshot(s.Data)
	if err != nil {
		return err
	}
	if cluster != "" && state.ClusterID != cluster {
		return fmt.Errorf("its table belongs to cluster %s", state.ClusterID)
	}
	servers := raft.DecodeConfiguration(s.Configuration)
	if !hasServer(servers, c.id) {
		return fmt.Errorf("%s is no longer a member: empty both volumes of this node, so that it joins as a new one", c.id)
	}
	stable := storage.Stable()
	if s.CurrentTerm > storedNumber(stable, "CurrentTerm") {
		if err := stable.SetUint64([]byte("CurrentTerm"), s.CurrentTerm); err != nil {
			return fmt.Errorf("write the term: %w", err)
		}
	}
	_, encoder := raft.NewInmemTransport("") // snapshot stores encode addresses with it
	sink, err := storage.Snapshots().Create(raft.SnapshotVersionMax, s.Index, s.Term, servers, s.ConfigurationIndex, encoder)
	if err != nil {
		return fmt.Errorf("store the leader's snapshot: %w", err)
	}
	if _, err = sink.Write(s.Data); err != nil {
		return errors.Join(fmt.Errorf("store the leader's snapshot: %w", err), sink.Cancel())
	}
	if err := sink.Close(); err != nil {
		return fmt.Errorf("store the leader's snapshot: %w", err)
	}
	logs := storage.Logs()
	first, err := logs.FirstIndex()
	if err != nil {
		return err
	}
	last, err := logs.LastIndex()
	if err != nil {
		return err
	}
	if last > 0 {
		if err := logs.DeleteRange(first, last); err != nil {
			return err
		}
	}
	var trailing []*raft.Log
	for _, e := range s.Trailing {
		trailing = append(trailing, logOf(e))
	}
	return logs.StoreLogs(trailing)
}

func hasServer(servers raft.Configuration, id string) bool {
	for _, s := range servers.Servers {
		if string(s.ID) == id {
			return true
		}
	}
	return false
}
