package control

import (
	"cmp"
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/raft"
)

// inspection is the result of reading all of Raft's storage before Raft does:
// Raft panics on unreadable data.
type inspection struct {
	snapshot uint64   // index of the newest intact snapshot
	hidden   []string // ids of damaged snapshots
	lost     uint64   // index of the newest damaged snapshot that is newer than that
	first    uint64   // of the log
	cut      uint64   // the newest damaged entry that the snapshot covers
	// damage is set when the table cannot be built from this storage alone: an entry
	// that no intact snapshot covers is damaged or missing.
	damage error
	bad    []uint64 // the entries in question
	// thin: the log begins so near the snapshot that a leader that steps back soon
	// finds no common entry.
	thin bool
}

// inspect returns an error when the storage cannot be read at all, when the term
// or the vote is damaged, or when a snapshot needs a newer release.
func inspect(storage sealed) (found inspection, err error) {
	if err := checkVote(storage); err != nil {
		return found, err
	}
	if err := found.lookAtSnapshots(storage.Snapshots()); err != nil {
		return found, err
	}
	return found, found.lookAtLog(storage.Logs())
}

func checkVote(storage sealed) error {
	for _, key := range []string{"CurrentTerm", "LastVoteTerm", "LastVoteCand"} {
		if _, err := storage.Stable().Get([]byte(key)); errors.Is(err, errDamaged) {
			return voteDamaged(err, storage.members())
		}
	}
	return nil
}

func (f *inspection) lookAtSnapshots(snapshots raft.SnapshotStore) error {
	all, err := snapshots.List()
	if err != nil {
		return fmt.Errorf("list the control table's snapshots: %w", err)
	}
	for _, meta := range all {
		err := trySnapshot(snapshots, meta.ID)
		switch {
		case errors.Is(err, ErrTooOld):
			return err
		case err != nil:
			f.hidden = append(f.hidden, meta.ID)
			if f.snapshot == 0 && f.damage == nil {
				f.lost, f.damage = meta.Index, err // unless the log covers it
			}
		case f.snapshot == 0:
			f.snapshot = meta.Index
		}
	}
	return nil
}

func trySnapshot(snapshots raft.SnapshotStore, id string) error {
	_, r, err := snapshots.Open(id)
	if err != nil {
		return err
	}
	b, err := io.ReadAll(r)
	if err = errors.Join(err, r.Close()); err != nil {
		return err
	}
	_, err = decodeSnapshot(b)
	return err
}

// leastOverlap is the number of entries before the snapshot that a log should
// have.
const leastOverlap = 16

func (f *inspection) lookAtLog(logs raft.LogStore) error {
	first, err := logs.FirstIndex()
	if err != nil {
		return fmt.Errorf("read the control table's log: %w", err)
	}
	last, err := logs.LastIndex()
	if err != nil {
		return fmt.Errorf("read the control table's log: %w", err)
	}
	f.first = first
	if f.lost > last {
		return nil // the log ends before the damaged snapshot, whose content is lost
	}
	f.damage = nil
	f.thin = f.snapshot > 0 && last > 0 && first > 1 && first+leastOverlap > f.snapshot
	for i := max(1, min(first, f.snapshot+1)); i <= last; i++ {
		var e raft.Log
		err := logs.GetLog(i, &e)
		switch {
		case err == nil || i <= f.snapshot && errors.Is(err, raft.ErrLogNotFound):
			// Entries that a snapshot from the leader replaced may be missing.
		case i <= f.snapshot:
			f.cut = i
		default:
			f.bad = append(f.bad, i)
			if errors.Is(err, raft.ErrLogNotFound) {
				err = fmt.Errorf("entry %d of the log is missing", i)
			}
			f.damage = cmp.Or(f.damage, err)
		}
	}
	return nil
}
