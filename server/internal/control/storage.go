package control

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

// keptSnapshots is the number of snapshots kept in addition to the log.
const keptSnapshots = 2

// OpenStorage opens Raft's storage below dir, on the WAL volume: its log and its
// vote in control.db, snapshots in a separate directory. Every write is synced
// before Raft continues.
func OpenStorage(dir string) (RaftStorage, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("create the directory of the control table: %w", err)
	}
	snapshots, err := openSnapshots(dir)
	if err != nil {
		return nil, fmt.Errorf("open the control table's snapshots in %s: %w", dir, err)
	}
	path := filepath.Join(dir, "control.db")
	bolt, err := openLog(path)
	if isDamage(err) {
		return nil, &DamagedError{Path: path, Members: membersOf(snapshots), Err: err}
	}
	if err != nil {
		return nil, fmt.Errorf("open the control table's log %s: %w", path, err)
	}
	return &boltStorage{bolt: bolt, snapshots: snapshots}, nil
}

// boltOptions makes a lock held by another process an error instead of a reason
// to wait.
func boltOptions() *bbolt.Options { return &bbolt.Options{Timeout: time.Second} }

// rewrite replaces the database by a synced copy of itself. After a failed sync,
// the kernel shows pages that are not on the disk and does not write them again:
// Raft would acknowledge entries that a power cut destroys.
func rewrite(path string) (err error) {
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	db, err := bbolt.Open(path, 0o600, boltOptions())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	fresh := path + ".tmp"
	if err := db.View(func(tx *bbolt.Tx) error { return copyTo(fresh, tx) }); err != nil {
		return errors.Join(err, os.Remove(fresh))
	}
	if err := os.Rename(fresh, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func copyTo(path string, tx *bbolt.Tx) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err = tx.WriteTo(f); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func openLog(path string) (bolt *raftboltdb.BoltStore, err error) {
	err = withFaults(func() (err error) {
		if err := checkLog(path, *boltOptions()); err != nil {
			return err
		}
		defer recovered(&err)
		if err := rewrite(path); err != nil {
			return fmt.Errorf("copy it: %w", err)
		}
		bolt, err = raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: boltOptions()})
		return err
	})
	return bolt, err
}

type boltStorage struct {
	bolt      *raftboltdb.BoltStore
	snapshots *snapshotFiles
}

func (s *boltStorage) Logs() raft.LogStore           { return s.bolt }
func (s *boltStorage) Stable() raft.StableStore      { return s.bolt }
func (s *boltStorage) Snapshots() raft.SnapshotStore { return s.snapshots }
func (s *boltStorage) Close() error                  { return s.bolt.Close() }

// DropSnapshot implements RaftStorage.
func (s *boltStorage) DropSnapshot(id string) error {
	return os.RemoveAll(filepath.Join(s.snapshots.dir, id))
}

// snapshotFiles is hashicorp's store, except that it also lists snapshots with
// unreadable metadata: they are damaged, not absent.
type snapshotFiles struct {
	*raft.FileSnapshotStore
	dir string
}

// unfinished is the suffix of the directory of a snapshot that is being written.
const unfinished = ".tmp"

// openSnapshots also removes the remains of failed attempts.
func openSnapshots(dir string) (*snapshotFiles, error) {
	store, err := raft.NewFileSnapshotStoreWithLogger(dir, keptSnapshots, hclog.New(&hclog.LoggerOptions{Output: io.Discard}))
	if err != nil {
		return nil, err
	}
	s := &snapshotFiles{FileSnapshotStore: store, dir: filepath.Join(dir, "snapshots")}
	names, err := s.names()
	for _, name := range names {
		if strings.HasSuffix(name, unfinished) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(s.dir, name)))
		}
	}
	return s, err
}

func (s *snapshotFiles) names() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// List implements raft.SnapshotStore: the newest one comes first.
func (s *snapshotFiles) List() ([]*raft.SnapshotMeta, error) {
	all, err := s.FileSnapshotStore.List()
	if err != nil {
		return nil, err
	}
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		listed := slices.ContainsFunc(all, func(m *raft.SnapshotMeta) bool { return m.ID == name })
		var m raft.SnapshotMeta
		if _, err := fmt.Sscanf(name, "%d-%d-", &m.Term, &m.Index); err == nil && !listed && !strings.HasSuffix(name, unfinished) {
			m.ID = name
			all = append(all, &m)
		}
	}
	slices.SortStableFunc(all, func(a, b *raft.SnapshotMeta) int {
		return cmp.Or(cmp.Compare(b.Term, a.Term), cmp.Compare(b.Index, a.Index))
	})
	return all, nil
}
