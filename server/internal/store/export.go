package store

import (
	"errors"
	"fmt"

	"github.com/stemedb/stemedb/server/internal/wal"
)

// errExported ends a scan at the end of the exported part.
var errExported = errors.New("exported")

// Export calls fn for the records of the log from a position on and below to, in
// order, until about limitBytes of payload have been read; next is the position to
// continue at. The payload is valid during the call only. Cursors and resets are left
// out, and so are parts of the log that were found damaged or lost: on a store that is
// whole, and has found no other loss when Export returns, the records of these parts
// are elsewhere in the log or were given up. Errors: wal.ErrNoEntry if from or to
// is no position of the log; that of fn.
func (s *Store) Export(from, to wal.Position, limitBytes int, fn func(kind Kind, payload []byte) error) (next wal.Position, err error) {
	if end := s.log.End(); from > to || to > end {
		return from, fmt.Errorf("export the log from %v to %v, which ends at %v: %w", from, to, end, wal.ErrNoEntry)
	}
	next, err = s.scanRecords(from, limitBytes, func(pos wal.Position, kind Kind, _ Key, payload []byte) error {
		switch {
		case pos >= to:
			return errExported
		case s.log.Damaged(pos):
			return nil
		}
		return fn(kind, payload)
	})
	var gap *wal.Gap
	if errors.Is(err, errExported) || errors.As(err, &gap) {
		return min(next, to), nil
	}
	if err != nil {
		return next, fmt.Errorf("export the log from %v: %w", from, err)
	}
	return min(next, to), nil
}
