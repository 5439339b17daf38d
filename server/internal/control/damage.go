package control

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"

	"github.com/stemedb/stemedb/server/internal/remedy"
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
	return fmt.Sprintf("the control table's log %s is damaged (%v), but the records on the volumes are not; %s",
		e.Path, e.Err, remedy.Volumes(e.Members, remedy.ThisNode, putLogBack))
}

func (e *DamagedError) Unwrap() error { return e.Err }

const putLogBack = "restore the file from a copy or a snapshot of the WAL volume"

// members is the number of members by the table, or else the expected number.
func (c *Control) members() int {
	if n := len(c.State().Everyone()); n > 0 {
		return n
	}
	return c.expected()
}

func (c *Control) expected() int { return Expected(c.cfg.Join, c.cfg.Name, c.cfg.PeerAddr) }

// remedy is the advice for a node that cannot use its copy of the table.
func (c *Control) remedy(putBack string) string {
	return remedy.Volumes(c.members(), remedy.ThisNode, putBack)
}

const putTableBack = "restore the folder \"control\" of the WAL volume from a copy or a snapshot"

// noTable is the advice for a node that has to fetch the table and reaches no
// other member.
func noTable(members int) string {
	if members > 1 {
		return "start the other members; this node fetches the table from one of them"
	}
	return remedy.Volumes(members, remedy.ThisNode, putTableBack)
}

// checkLog reads the whole log once, so that damage is found here and not in
// Raft, where it would end the process: bbolt panics on inconsistent pages, and
// causes a memory fault when the file was truncated.
func checkLog(path string, options bbolt.Options) (err error) {
	info, err := os.Stat(path) //nolint:forbidigo // a file of storage.go, which is a door
	if err != nil || info.IsDir() || info.Size() == 0 {
		return nil // opening it creates it, or returns the error
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
						sum ^= c // every byte is read
					}
				}
				return nil
			})
		})
	})
}

// errInconsistent: bbolt panics on the content of the file, or the file is too
// short.
var errInconsistent = errors.New("it is inconsistent")

// recovered converts a panic, or a fault of mapped memory, into an error. It is
// deferred first.
func recovered(err *error) {
	if v := recover(); v != nil {
		*err = fmt.Errorf("%w: %v", errInconsistent, v)
	}
}

// withFaults runs do with faults of mapped memory turned into panics.
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
