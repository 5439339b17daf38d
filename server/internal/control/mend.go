package control

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/stemedb/stemedb/server/internal/control/controlpb"
)

// A damaged entry of the log is repaired from any other member that has the entry
// of the same index and term: in Raft that pair is unique, so it is the original
// entry. That keeps every promise and needs no leader, which two members could
// not elect while the log of one is damaged.

// mostEntries is the maximum number of entries in one request; a log with more
// damaged entries is replaced by the leader's table.
const mostEntries = 1024

// Entries implements controlpb.ControlServer.
func (s *service) Entries(_ context.Context, r *controlpb.EntriesRequest) (*controlpb.EntriesResponse, error) {
	if len(r.Index) > mostEntries {
		return nil, status.Errorf(codes.InvalidArgument, "%d entries were requested, the maximum is %d", len(r.Index), mostEntries)
	}
	entries, err := s.c.readEntries(slices.Values(r.Index))
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return &controlpb.EntriesResponse{ClusterId: s.c.clusterID(), Entries: entries}, nil
}

// readEntries returns the intact entries of this node's log among those
// requested.
func (c *Control) readEntries(indexes iter.Seq[uint64]) ([]*controlpb.LogEntry, error) {
	c.partMu.Lock()
	defer c.partMu.Unlock() // the storage stays open meanwhile
	if c.part == nil {
		return nil, errors.New("the control table's storage is not open")
	}
	var entries []*controlpb.LogEntry
	for index := range indexes {
		var e raft.Log
		if err := c.part.storage.sealed.Logs().GetLog(index, &e); err == nil {
			entries = append(entries, &controlpb.LogEntry{Index: e.Index, Term: e.Term, Type: uint32(e.Type), Data: e.Data})
		}
	}
	return entries, nil
}

func logOf(e *controlpb.LogEntry) *raft.Log {
	return &raft.Log{Index: e.Index, Term: e.Term, Type: raft.LogType(e.Type), Data: e.Data}
}

// mendEntries replaces the entries; entries that it has replaced stay replaced if
// it fails.
func (c *Control) mendEntries(storage sealed, bad []uint64) error {
	if len(bad) > mostEntries {
		return fmt.Errorf("%d entries are damaged", len(bad))
	}
	terms := map[uint64]uint64{}
	for _, index := range bad {
		if term, known := termAt(storage.sealedLogs(), index); known {
			terms[index] = term
		}
	}
	cluster := c.clusterID()
	if cluster == "" {
		return errors.New("this node's volumes do not name a cluster")
	}
	ctx, cancel := context.WithTimeout(c.ctx, 4*c.cfg.Timings.CallTimeout)
	defer cancel()
	var errs []error
	for id, addr := range c.others(ctx, cluster) {
		mended, err := c.mendFrom(ctx, id, addr, storage.Logs(), bad, terms)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", id, err))
		}
		if len(mended) > 0 {
			c.log.Info("repaired damaged entries of the control table's log", "from", id, "entries", mended)
		}
		bad = slices.DeleteFunc(slices.Clone(bad), func(i uint64) bool { return slices.Contains(mended, i) })
		if len(bad) == 0 {
			return nil
		}
	}
	return errors.Join(append(errs, fmt.Errorf("no other member has the entries %v", bad))...)
}

// termAt returns the term of a damaged or missing entry: its second copy, or that
// of the neighbouring entries if they agree, since terms never decrease.
func termAt(logs sealedLogs, index uint64) (term uint64, known bool) {
	if term, known = logs.termOf(index); known {
		return term, true
	}
	before, known := logs.termOf(index - 1)
	after, also := logs.termOf(index + 1)
	return before, known && also && before == after
}

func (c *Control) mendFrom(ctx context.Context, id, addr string, logs raft.LogStore, bad []uint64, terms map[uint64]uint64) (mended []uint64, err error) {
	conn, err := c.connTo(id, addr)
	if err != nil {
		return nil, err
	}
	answer, err := controlpb.NewControlClient(conn).Entries(ctx, &controlpb.EntriesRequest{Index: bad})
	if err != nil {
		return nil, err
	}
	if answer.ClusterId != c.clusterID() {
		return nil, fmt.Errorf("it belongs to cluster %q", answer.ClusterId)
	}
	for _, e := range answer.Entries {
		if term, known := terms[e.Index]; !known || term != e.Term || !slices.Contains(bad, e.Index) {
			continue
		}
		if err := logs.StoreLog(logOf(e)); err != nil {
			return mended, err
		}
		mended = append(mended, e.Index)
	}
	return mended, nil
}
