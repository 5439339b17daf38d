// Package store is the durable storage of this node: the log (package wal), which
// is authoritative, and an index of positions in goleveldb, which can always be
// rebuilt from the log.
//
// Promised:
//   - When a Put is done without error, each of its items is in the log, synced,
//     and seen by every read that begins afterwards, whether or not the index has
//     applied it yet.
//   - A Put is atomic: after a crash all of its new items are there or none. An
//     item that is already held is not written again; if another Put is writing it,
//     this one waits for that.
//   - Items are content-addressed and never change, so Put, and the replay of the
//     log into the index, are idempotent.
//   - Memory is bounded: the amount that the index has not applied yet is limited,
//     and Put returns ErrBusy above that.
//   - An index that knows of entries after the end of the log proves a loss, which
//     the log records before that index is dropped.
//   - A full DB volume fails nothing: the index waits for space, reads continue,
//     Put is rejected as on a full WAL volume, a start works (ballast.go, room.go).
//   - The index's marker never claims more than survived a crash (see apply.go), so
//     replay from the marker restores whatever the index loses.
//
// codec.go describes the entries of the log, index.go those of the index.
package store

import (
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/lens"
	"github.com/stemedb/stemedb/server/internal/vfs"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// Errors; test with errors.Is. Put also returns the errors of package wal.
var (
	// ErrNotFound: nothing is held under this key.
	ErrNotFound = errors.New("not found")
	// ErrBusy: too much waits for the index. Passes; try again in a moment.
	ErrBusy = errors.New("the index is behind; try again in a moment")
	// ErrIndexFailed: goleveldb reported damage or its disk failed. Sticky until
	// the process restarts, which rebuilds the index if needed.
	ErrIndexFailed = errors.New("the index failed; a restart rebuilds it from the log")
	// ErrIndexLacks: a part of the log could not be read when the index was to
	// apply it, and can be read now. The next Open rebuilds the index.
	ErrIndexLacks = errors.New("the index lacks a part of the log that can be read again; a restart repairs that")
	// ErrClosed: Close was called.
	ErrClosed = errors.New("the store is closed")
)

// DamageError: the item is held, but its bytes in the log cannot be read or do
// not match its id. Fetch it from a peer and pass it to Repair.
type DamageError struct {
	Key      Key
	Position wal.Position
	Err      error
}

func (e *DamageError) Error() string {
	return "damaged: " + e.Key.String() + " at " + e.Position.String() + ": " + e.Err.Error()
}

func (e *DamageError) Unwrap() error { return e.Err }

// Options are the location of the store and the limits of its memory.
type Options struct {
	// FS holds both directories; vfs.OS() when nil.
	FS vfs.FS
	// WALDir holds the log, DBDir the packs (DBDir/packs) and the index
	// (DBDir/index). They should be on different volumes.
	WALDir, DBDir string
	// NodeName is the name of this node; volumes of another node are rejected.
	NodeName string
	// Members is the expected number of members of the cluster (see wal.Options).
	Members int

	// SegmentSize, Reserve and ReserveHigh are the log's (see wal.Options).
	SegmentSize          int64
	Reserve, ReserveHigh uint64

	// ApplyBytes bounds the bytes that are durable, or being written, and not in the
	// index yet, except for one Put; default 32 MiB. Bytes being written to the
	// index stay in memory until all of them are, so up to twice as much is held. A
	// start that finds the DB volume full may hold four times as much, see room.go.
	ApplyBytes int64
	// MarkerBytes and MarkerInterval: the index's marker is written after that
	// many bytes of log, or after that time if it is at least a 64th of them;
	// default 64 MiB and 30 s. They bound the replay of a start after a crash.
	MarkerBytes    int64
	MarkerInterval time.Duration
	// CacheBytes is goleveldb's block cache, default 64 MiB; WriteBuffer the
	// size of its memtable, default 16 MiB (two of them are held).
	CacheBytes, WriteBuffer int
	// ScrubRate bounds BucketDigests, in index entries per second; default
	// 200,000, negative for no limit.
	ScrubRate int

	// Progress, if set, receives the progress of the start. It is called from
	// Open's goroutine, at least once per 4 MiB of log.
	Progress func(Progress)

	// replayChunk is the number of log bytes applied at once; tests shorten it.
	replayChunk int
	// betweenBarrier runs inside barrier; tests fill the memtable there.
	betweenBarrier func()

	// Rand draws the incarnation; crypto/rand when nil.
	Rand io.Reader
	// Logger and Registerer may be nil.
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Progress is the progress of a start.
type Progress struct {
	// Rebuild distinguishes a rebuild of the whole index from the replay of the
	// log's tail, which is short. A rebuild that a restart interrupts continues
	// where it was.
	Rebuild bool
	// Done and Total are bytes of log.
	Done, Total int64
}

// PutResult is the outcome of a Put.
type PutResult struct {
	// New reports for each item, in order, whether this Put wrote it. It is valid
	// if Err is nil.
	New []bool
	// Err is nil when every item is durable and visible. Otherwise the outcome of
	// the new items is unknown; putting them again is idempotent.
	Err error
}

// Stored is an assertion with everything held about it.
type Stored struct {
	Project    record.ProjectName
	ID         record.Hash
	Content    *record.Content
	Signatures []record.Signature // by agent
	Votes      []record.Vote      // the newest of each agent, by agent
	// Partial: there are more signatures, or votes, than requested, or some that
	// cannot be read.
	Partial bool
	// Lifecycle is the content's own or that of its newest descendant (see
	// lens.Claim) among the records held now. ReplacedBy is that descendant.
	Lifecycle  record.Lifecycle
	ReplacedBy *record.Hash
}

// Claim is the index's knowledge of an assertion, enough for every lens without
// reading the payload.
type Claim struct {
	lens.Claim
	Project   record.ProjectName
	Subject   string
	Predicate string
	// Position is the content's place in the log, for ReadAt.
	Position wal.Position
	// Unreadable: the content's bytes are damaged, and no queried member holds an
	// intact copy. The store never sets it; the caller that queries the members does.
	Unreadable bool
}

// ClaimQuery selects claims.
type ClaimQuery struct {
	Project record.ProjectName
	Subject string
	// Predicate "" selects every predicate of the subject.
	Predicate string
	// AsOf, when not 0, leaves out claims, votes and replacements signed with a
	// later time.
	AsOf uint64
	// After, if set, starts after this claim.
	After *ClaimCursor
}

// ClaimCursor is a position in the order of claims.
type ClaimCursor struct {
	Predicate string
	Timestamp uint64
	ID        record.Hash
}

// KeyAt is a key with its position in the log.
type KeyAt struct {
	Key      Key
	Position wal.Position
	// Bytes is the size of the payload.
	Bytes int
}

// State is the set of operations that the store accepts.
type State string

// States; the worst one that applies is reported.
const (
	StateOK          State = "ok"
	StateReadOnly    State = "read-only"    // too little space; temporary
	StateFailed      State = "failed"       // the log failed; restart
	StateIndexFailed State = "index-failed" // the index failed; restart
)

// Health is the store's condition.
type Health struct {
	State State
	// Err is the reason, nil if State is ok.
	Err error
	// Whole is false after a loss, until SetWhole.
	Whole bool
	// Damage lists the unreadable parts of the log; Losses counts the findings so far.
	Damage []wal.Range
	Losses int
	// Space describes the free space of the volumes.
	Space []wal.Space
}

// Stats are figures for metrics and status pages.
type Stats struct {
	End     wal.Position // durable end of the log
	Applied wal.Position // the index holds everything up to here
	Marker  wal.Position // where a replay would begin
	// Assertions is the number of contents that the node holds. A content that was
	// rewritten because of damage counts once more after its replay.
	Assertions int64
	// PendingBytes are durable or being written, and not in the index yet.
	PendingBytes int64
	// WriteDelays and WriteDelay are goleveldb's stalls.
	WriteDelays int64
	WriteDelay  time.Duration
	IndexBytes  int64
}
