package control

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

// keptSnapshots is how many snapshots stay beside the newest log.
const keptSnapshots = 2

// OpenStorage opens Raft's storage below dir, on the WAL volume: its log and
// its vote in control.db, snapshots in a directory of their own. Every write
// is synced before Raft goes on.
func OpenStorage(dir string) (RaftStorage, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("make the directory of the control table: %w", err)
	}
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(dir, keptSnapshots, hclog.New(&hclog.LoggerOptions{Output: io.Discard}))
	if err != nil {
		return nil, fmt.Errorf("open the control table's snapshots in %s: %w", dir, err)
	}
	path := filepath.Join(dir, "control.db")
	bolt, err := openLog(path)
	if damaged(err) {
		return nil, &DamagedError{Path: path, Members: membersOf(snapshots), Err: err}
	}
	if err != nil {
		return nil, fmt.Errorf("open the control table's log %s: %w", path, err)
	}
	return &boltStorage{bolt: bolt, snapshots: snapshots}, nil
}

func openLog(path string) (bolt *raftboltdb.BoltStore, err error) {
	// Another process that holds the file is an error, not a reason to wait.
	options := bbolt.Options{Timeout: time.Second}
	err = withFaults(func() (err error) {
		if err := checkLog(path, options); err != nil {
			return err
		}
		defer recovered(&err)
		bolt, err = raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: &options})
		return err
	})
	return bolt, err
}

type boltStorage struct {
	bolt      *raftboltdb.BoltStore
	snapshots raft.SnapshotStore
}

func (s *boltStorage) Logs() raft.LogStore           { return s.bolt }
func (s *boltStorage) Stable() raft.StableStore      { return s.bolt }
func (s *boltStorage) Snapshots() raft.SnapshotStore { return s.snapshots }
func (s *boltStorage) Close() error                  { return s.bolt.Close() }
