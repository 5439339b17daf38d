// Package store is what is durable on this node: the log (package wal), which
// is the truth, and an index of positions in goleveldb, which can always be
// made again from it.
//
// What it promises:
//   - When a Put is done without error, each of its items is in the log, synced,
//     and seen by every read that begins afterwards, whether or not the index
//     has taken it in yet.
//   - A Put is atomic: after a crash all of its new items are there or none.
//     An item that is held already is not written again; one that another Put
//     is just writing is waited for.
//   - Items are content-addressed and never change, so a Put may be repeated,
//     and the log may be replayed into the index, any number of times.
//   - Memory is bounded: what the index has not taken in yet is limited, and
//     Put answers ErrBusy above that.
//   - An index that knows of entries behind the end of the log proves a loss,
//     which the log notes before that index is dropped.
//   - A full DB volume fails nothing: the index waits for space, reads go on,
//     Put is refused as on a full WAL volume, a start works (ballast.go, room.go).
//   - The index's marker never claims more than survived a crash (see apply.go),
//     so whatever the index loses, replay from the marker restores.
//
// codec.go describes what stands in the log, index.go what stands in the index.
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
	// ErrIndexFailed: goleveldb reported damage or its disk failed. Sticky
	// until the process restarts, which makes the index anew when needed.
	ErrIndexFailed = errors.New("the index failed; a restart rebuilds it from the log")
	// ErrIndexLacks: a part of the log could not be read when the index took it in,
	// and can be read now. The next Open makes the index anew.
	ErrIndexLacks = errors.New("the index lacks a part of the log that can be read again; a restart mends that")
	// ErrClosed: Close was called.
	ErrClosed = errors.New("the store is closed")
)

// DamageError: the item is held, but its bytes in the log cannot be read or do
// not match its id. Fetch it from a peer and hand it to Repair.
type DamageError struct {
	Key      Key
	Position wal.Position
	Err      error
}

func (e *DamageError) Error() string {
	return "damaged: " + e.Key.String() + " at " + e.Position.String() + ": " + e.Err.Error()
}

func (e *DamageError) Unwrap() error { return e.Err }

// Options say where the store lives and how much it may hold in memory.
type Options struct {
	// FS holds both directories; vfs.OS() when nil.
	FS vfs.FS
	// WALDir holds the log, DBDir the packs (DBDir/packs) and the index
	// (DBDir/index). They should lie on different volumes.
	WALDir, DBDir string
	// NodeName is the name of this node; volumes of another one are refused.
	NodeName string
	// Members is how many members the cluster is expected to have (see wal.Options).
	Members int

	// SegmentSize, Reserve and ReserveHigh are the log's (see wal.Options).
	SegmentSize          int64
	Reserve, ReserveHigh uint64

	// ApplyBytes bounds what is durable, or on its way, and not in the index
	// yet, but for one Put; default 32 MiB. What is being written to the index
	// stays in memory until all of it is, so that up to twice as much is held. A start
	// that finds the DB volume full may hold four times as much, see room.go.
	ApplyBytes int64
	// MarkerBytes and MarkerInterval: the index's marker is written after so
	// many bytes of log, or after so long when it is at least a 64th of them;
	// default 64 MiB and 30 s. They bound what a start after a crash replays.
	MarkerBytes    int64
	MarkerInterval time.Duration
	// CacheBytes is goleveldb's block cache, default 64 MiB; WriteBuffer the
	// size of its memtable, default 16 MiB (two of them are held).
	CacheBytes, WriteBuffer int
	// ScrubRate bounds BucketDigests, in index entries per second; default
	// 200,000, negative for no limit.
	ScrubRate int

	// Progress, when set, is told how the start proceeds. It is called from
	// Open's goroutine, at least once per 4 MiB of log.
	Progress func(Progress)

	// replayChunk is how many bytes of log are brought in at once; tests
	// shorten it.
	replayChunk int
	// betweenBarrier runs inside barrier; tests fill the memtable there.
	betweenBarrier func()

	// Rand draws the incarnation; crypto/rand when nil.
	Rand io.Reader
	// Logger and Registerer may be nil.
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Progress is how far a start has come.
type Progress struct {
	// Rebuild tells a rebuild of the whole index from the replay of the log's
	// tail, which is short. A rebuild resumes where it was when it is
	// interrupted by a restart.
	Rebuild bool
	// Done and Total are bytes of log.
	Done, Total int64
}

// PutResult is what became of a Put.
type PutResult struct {
	// New tells for each item, in order, whether this Put wrote it. It means
	// something when Err is nil.
	New []bool
	// Err is nil when every item is durable and visible. Otherwise the
	// outcome of the new items is unknown; putting them again is harmless.
	Err error
}

// Stored is an assertion with everything that is held about it.
type Stored struct {
	Project    record.ProjectName
	ID         record.Hash
	Content    *record.Content
	Signatures []record.Signature // by agent
	Votes      []record.Vote      // the newest of each agent, by agent
	// Partial: there are more signatures, or votes, than were asked for, or some
	// that cannot be read.
	Partial bool
	// Lifecycle is the content's own or that of its newest descendant (see
	// lens.Claim), found among what is held now. ReplacedBy is that one.
	Lifecycle  record.Lifecycle
	ReplacedBy *record.Hash
}

// Claim is what the index knows of an assertion, enough for every lens without
// reading the payload.
type Claim struct {
	lens.Claim
	Project   record.ProjectName
	Subject   string
	Predicate string
	// Position is the content's place in the log, for ReadAt.
	Position wal.Position
	// Unreadable: the content's bytes are damaged, and no member that was asked
	// holds an intact copy. The store never sets it; whoever asks the members does.
	Unreadable bool
}

// ClaimQuery selects claims.
type ClaimQuery struct {
	Project record.ProjectName
	Subject string
	// Predicate "" selects every predicate of the subject.
	Predicate string
	// AsOf, when not 0, leaves out claims, votes and replacements that are
	// signed with a later time.
	AsOf uint64
	// After, when set, starts behind this claim.
	After *ClaimCursor
}

// ClaimCursor is a place in the order of claims.
type ClaimCursor struct {
	Predicate string
	Timestamp uint64
	ID        record.Hash
}

// KeyAt is a key with its place in the log.
type KeyAt struct {
	Key      Key
	Position wal.Position
	// Bytes is the size of the payload.
	Bytes int
}

// State is what the store can do.
type State string

// States, the worst that applies.
const (
	StateOK          State = "ok"
	StateReadOnly    State = "read-only"    // too little space; passes
	StateFailed      State = "failed"       // the log failed; restart
	StateIndexFailed State = "index-failed" // the index failed; restart
)

// Health is the store's condition.
type Health struct {
	State State
	// Err says why, nil when State is ok.
	Err error
	// Whole is false after a loss, until SetWhole.
	Whole bool
	// Damage lists what of the log cannot be read; Losses counts the findings so far.
	Damage []wal.Range
	Losses int
	// Space is how full the volumes are.
	Space []wal.Space
}

// Stats are figures for metrics and status pages.
type Stats struct {
	End     wal.Position // durable end of the log
	Applied wal.Position // what the index holds
	Marker  wal.Position // where a replay would begin
	// Assertions is how many contents the node holds. One that was rewritten
	// because its bytes were damaged counts once more after it was replayed.
	Assertions int64
	// PendingBytes are durable or under way, and not in the index yet.
	PendingBytes int64
	// WriteDelays and WriteDelay are goleveldb's stalls.
	WriteDelays int64
	WriteDelay  time.Duration
	IndexBytes  int64
}
