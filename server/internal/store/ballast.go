package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// The index needs space to apply the log's tail, even on a volume that something
// else filled to the last byte. So a file without useful content keeps some space
// on the DB volume, and a start that finds too little space removes it. Without
// the file the node still starts, serves reads and rejects writes, but holds the
// tail in memory (room.go). The file is created again once there is space.

const ballastName = "ballast"

// ballastSoon delays the file after a start, which has its own files to write.
const ballastSoon = 2 * time.Second

func (s *Store) ballast() string { return filepath.Join(s.opts.DBDir, ballastName) }

// ballastSize is the size of an open and the replay of the log's tail, enough
// for several starts.
func (s *Store) ballastSize() int64 { return max(s.opts.SegmentSize, 4*int64(s.opts.WriteBuffer)) }

// dropBallast frees space for the start.
func (s *Store) dropBallast() error {
	free, _, err := s.opts.FS.Free(s.opts.DBDir)
	if err != nil || free >= uint64(s.ballastSize()) {
		return nil //nolint:nilerr // the log reports a volume whose free space is unknown
	}
	err = s.opts.FS.Remove(s.ballast())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("free space on the DB volume: %w", err)
	}
	return nil
}

// keepBallast creates the file if it is missing and there is more space than
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
			s.logger.Warn("space for the next start could not be reserved on the DB volume", "error", err)
			_ = s.opts.FS.Remove(s.ballast()) // a partial file is useless
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
