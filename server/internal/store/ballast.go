package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// The index needs space to take in the log's tail, also on a volume that somebody
// filled to the last byte. So a file of no use keeps some space on the DB volume, and a
// start that finds too little gives it up. Without it the node comes up too, answers
// reads and refuses writes, but holds the tail in memory (room.go). It is made again
// when there is space.

const ballastName = "ballast"

// ballastSoon is when a start, which has its own files to write, makes the file.
const ballastSoon = 2 * time.Second

func (s *Store) ballast() string { return filepath.Join(s.opts.DBDir, ballastName) }

// ballastSize is what an open and the replay of the log's tail take, with room to
// spare for several starts.
func (s *Store) ballastSize() int64 { return max(s.opts.SegmentSize, 4*int64(s.opts.WriteBuffer)) }

// dropBallast makes room for the start.
func (s *Store) dropBallast() error {
	free, _, err := s.opts.FS.Free(s.opts.DBDir)
	if err != nil || free >= uint64(s.ballastSize()) {
		return nil //nolint:nilerr // the log tells of a volume whose space cannot be told
	}
	err = s.opts.FS.Remove(s.ballast())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("make room on the DB volume: %w", err)
	}
	return nil
}

// keepBallast makes the file whenever it is missing and there is space beyond what
// writes need.
func (s *Store) keepBallast() {
	defer s.goroutines.Done()
	tick := time.NewTicker(s.opts.MarkerInterval)
	defer tick.Stop()
	first := time.After(min(ballastSoon, s.opts.MarkerInterval))
	for {
		select {
		case <-first: // a volume can fill up right after the first start
		case <-tick.C:
		case <-s.stopApply:
			return
		}
		if err := s.makeBallast(); err != nil {
			s.logger.Warn("space for the next start could not be set aside on the DB volume", "error", err)
			_ = s.opts.FS.Remove(s.ballast()) // a part of it helps nobody
		}
	}
}

func (s *Store) makeBallast() error {
	size := s.ballastSize()
	if st, err := s.opts.FS.Stat(s.ballast()); err == nil && st.Size() >= size {
		return nil
	}
	free, _, err := s.opts.FS.Free(s.opts.DBDir)
	if err != nil || free < max(s.opts.ReserveHigh, 3*uint64(size))+uint64(size) {
		return nil //nolint:nilerr // as above
	}
	f, err := s.opts.FS.OpenFile(s.ballast(), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	zeros := make([]byte, min(size, 1<<20))
	for off := int64(0); off < size && err == nil; off += int64(len(zeros)) {
		_, err = f.WriteAt(zeros, off)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
