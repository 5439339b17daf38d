package store

import (
	"errors"
	"fmt"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/filter"
	"github.com/syndtr/goleveldb/leveldb/opt"

	"github.com/stemedb/stemedb/server/internal/vfs"
	"github.com/stemedb/stemedb/server/internal/vfs/leveldbfs"
)

// openDB opens goleveldb, in memory if its volume has no space (room.go).
func (s *Store) openDB() error {
	files, err := leveldbfs.Open(s.opts.FS, s.indexPath(), s.logger)
	if err != nil {
		return err
	}
	s.files, s.db = files, nil
	if s.hasRoom() {
		s.db, err = leveldb.Open(files, s.dbOptions())
	}
	// goleveldb does not always wrap the disk's error.
	if s.db == nil && (err == nil || vfs.IsNoSpace(err) || !s.hasRoom()) {
		files.Stage()
		s.db, err = leveldb.Open(files, s.dbOptions())
	}
	if err != nil {
		return fmt.Errorf("open the index: %w", err)
	}
	return nil
}

func (s *Store) dbOptions() *opt.Options {
	return &opt.Options{
		BlockCacheCapacity:     s.opts.CacheBytes,
		BlockSize:              16 << 10, // with the default of 4 KiB the tables' own indexes overflow the cache at 400,000 records
		WriteBuffer:            s.opts.WriteBuffer,
		Filter:                 filter.NewBloomFilter(10),
		CompactionTableSize:    s.opts.WriteBuffer / 2, // 8 MiB; the default of 2 MiB makes tens of thousands of files
		CompactionTotalSize:    40 << 20,
		OpenFilesCacheCapacity: 200,
		DisableSeeksCompaction: true,
		// NoSync stays off: it would also leave tables and manifests
		// unsynced, and there would be no barrier.
	}
}

func (s *Store) closeDB() error {
	var err error
	if s.files != nil {
		s.files.Abort() // a compaction that waits for space
	}
	if s.db != nil {
		err = s.db.Close()
	}
	if s.files != nil {
		err = errors.Join(err, s.files.Close())
	}
	return err
}
