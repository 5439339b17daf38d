package control

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"
)

// DamagedError means that the control table's log cannot be read. Its text names
// the file, the members that still hold the table, and the remedy.
type DamagedError struct {
	Path string
	// Members is the number of members in the newest snapshot, 0 without one; the
	// caller may then set it.
	Members int
	Err     error
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("the control table's log %s is damaged (%v); %s", e.Path, e.Err, storageRemedy(e.Members))
}

func (e *DamagedError) Unwrap() error { return e.Err }

// storageRemedy says which members still hold the table, and how a node whose log
// is damaged or gone gets it back. A node that joins anew has to be admitted by a
// majority of the members, of which this one is still counted.
func storageRemedy(members int) string {
	const putBack = "put the file back from a copy or a snapshot of the WAL volume"
	switch {
	case members <= 1:
		return "this node is the only member, so the members and API keys in it are held nowhere else: " + putBack +
			". The records on the volumes are not affected; do not empty the volumes, nobody could refill them"
	case members == 2:
		return "the other one of the 2 members holds the table and the records too, but cannot admit this node anew without its vote: " + putBack +
			"; do not empty the volumes"
	}
	return fmt.Sprintf("the other %d of the %d members hold the table and the records too: when \"stemedb cluster status\" of one of them shows at least %d of them alive and whole, "+
		"empty both volumes of this node, so that it joins as a new member and is refilled by them; otherwise %s", members-1, members, Majority(members), putBack)
}

// checkLog reads the whole log once, so that damage is found here and not by Raft,
// where it would end the process: bbolt panics over inconsistent pages, and faults
// when the file was truncated.
func checkLog(path string, options bbolt.Options) (err error) {
	info, err := os.Stat(path)
	if err != nil || info.IsDir() || info.Size() == 0 {
		return nil //nolint:nilerr // opening it creates it, or says why not
	}
	if info.Size() < int64(2*os.Getpagesize()) {
		return fmt.Errorf("%w: it has %d bytes", errInconsistent, info.Size())
	}
	defer recovered(&err)
	options.ReadOnly = true
	db, err := bbolt.Open(path, 0, &options)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(_ []byte, b *bbolt.Bucket) error {
			sum := byte(0)
			return b.ForEach(func(k, v []byte) error {
				for _, part := range [][]byte{k, v} {
					for _, c := range part {
						sum ^= c // each byte is touched
					}
				}
				return nil
			})
		})
	})
}

// errInconsistent: bbolt panics over the content of the file, or it is too short.
var errInconsistent = errors.New("it is inconsistent")

// recovered makes a panic, or a fault of the memory that a file is mapped to, an
// error. It is deferred first.
func recovered(err *error) {
	if v := recover(); v != nil {
		*err = fmt.Errorf("%w: %v", errInconsistent, v)
	}
}

// withFaults runs do so that faults of mapped memory are panics.
func withFaults(do func() error) error {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	return do()
}

// isDamage distinguishes errors about the content of the file from others: a lock
// held by another process, missing permissions, a full disk.
func isDamage(err error) bool {
	for _, kind := range []error{errInconsistent, bbolterrors.ErrInvalid, bbolterrors.ErrChecksum, bbolterrors.ErrVersionMismatch, bbolterrors.ErrInvalidMapping} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// membersOf is the number of members in the newest snapshot, 0 without one.
func membersOf(snapshots raft.SnapshotStore) int {
	all, err := snapshots.List()
	if err != nil || len(all) == 0 {
		return 0
	}
	return len(all[0].Configuration.Servers)
}
