package store

import (
	"context"
	"fmt"
	"slices"

	"github.com/stemedb/stemedb/server/internal/wal"
)

// If the index knows the damaged records, they can be repaired one by one, from
// any member that holds them, and then nothing was lost.

// DamagedKeys lists the records whose bytes were found damaged since the store
// was last whole, as far as the index points to them: rewritten records are not
// among them. all is false if the index cannot name all of them, because parts
// of the log are missing or were damaged before the index covered them. It
// reads the whole index, at Options.ScrubRate.
//
// A range that the disk refused to read and can read again is not damaged.
// ErrIndexLacks: a start is needed first.
func (s *Store) DamagedKeys(ctx context.Context) (keys []Key, all bool, err error) {
	if err := s.recheck(); err != nil {
		return nil, false, err
	}
	if all, err := s.mendable(); !all {
		return nil, false, err
	}
	keys, err = s.Unreadable(ctx)
	return keys, err == nil, err
}

// Unreadable lists the records that the index names and whose bytes were found
// damaged since the store was last whole, except in ranges that the disk refused to
// read and can read again. It reads the whole index, at Options.ScrubRate.
func (s *Store) Unreadable(ctx context.Context) (keys []Key, err error) {
	if err := s.recheck(); err != nil {
		return nil, err
	}
	_, damaged := s.log.Outstanding()
	if len(damaged) == 0 {
		return nil, nil
	}
	var bad error
	err = s.eachID(ctx, nil, func(k *Key, position []byte) bool {
		pos, err := readPosition(position)
		if err != nil {
			bad = fmt.Errorf("read the position of %v: %w", k, err)
			return false
		}
		if slices.ContainsFunc(damaged, func(r wal.Range) bool { return r.From <= pos && pos < r.To }) {
			keys = append(keys, *k)
		}
		return true
	})
	if err == nil && bad != nil {
		err = s.indexError("look for damaged records", bad)
	}
	return keys, err
}

// recheck calls wal.Log.Recheck. It returns ErrIndexLacks when the index does not cover
// a range that is readable again.
func (s *Store) recheck() error {
	if _, err := s.log.Recheck(); err != nil {
		return err
	}
	known, err := s.knownGaps()
	if err != nil {
		return err
	}
	if g, found := uncovered(append(s.log.Missing(), s.log.Damage()...), known); found {
		return fmt.Errorf("%w: %v", ErrIndexLacks, g)
	}
	return nil
}

// RebuildAtNextStart makes the next start rebuild the index, so that it names
// only readable records. It is the way to give records up as lost.
func (s *Store) RebuildAtNextStart() error { return s.noteRebuild() }

// Damaged reports whether the bytes at a position of the log were found damaged.
func (s *Store) Damaged(pos wal.Position) bool { return s.log.Damaged(pos) }

// mendable reports whether the index names every record that is missing.
func (s *Store) mendable() (bool, error) {
	lost, damaged := s.log.Outstanding()
	if len(lost) > 0 {
		return false, nil
	}
	unknown, err := s.knownGaps()
	if err != nil {
		return false, err
	}
	return !slices.ContainsFunc(damaged, func(r wal.Range) bool {
		return slices.ContainsFunc(unknown, func(u wal.Range) bool { return u.From < r.To && r.From < u.To })
	}), nil
}

// Outstanding lists the parts of the log that were found missing or damaged
// since the store was last whole.
func (s *Store) Outstanding() []wal.Range {
	lost, damaged := s.log.Outstanding()
	return append(lost, damaged...)
}

// NoteRollback records that the WAL volume is older than the log was; see
// wal.Log.NoteRollback. The process must then restart.
func (s *Store) NoteRollback(known wal.Position, why string) error {
	return s.log.NoteRollback(known, why)
}

// Opening is the latest opening of this node's log. CheckWitness compares the
// log with a peer's witness (wal.ErrRolledBack, wal.ErrForgotten).
func (s *Store) Opening() wal.Opening             { return s.log.Opening() }
func (s *Store) CheckWitness(w wal.Witness) error { return s.log.Check(w) }

// Lives, RolledBack and SetLife are those of the log.
func (s *Store) Lives() []string           { return s.log.Lives() }
func (s *Store) RolledBack() bool          { return s.log.RolledBack() }
func (s *Store) SetLife(life string) error { return s.log.SetLife(life) }

// intact reports whether the record of an index entry is not known to be
// damaged.
func (s *Store) intact(position []byte) bool {
	pos, err := readPosition(position)
	return err != nil || !s.log.Damaged(pos)
}
