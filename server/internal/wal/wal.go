// Package wal is the log that holds everything StemeDB stores.
//
// Promised:
//   - A commit whose Done was called with nil is durable: after any crash, Read
//     and Scan return each of its entries at its position.
//   - A commit is atomic: after a crash all of its entries are there or none.
//   - Done is called once per accepted commit, in log order.
//   - Positions are permanent: full segments become immutable packs on a second
//     volume, and a position reads the same from either.
//   - Acknowledged bytes are never cut. A tail that no later write proves to have
//     been durable is set aside, cut and counted; any other invalid bytes are
//     damage: they are reported and kept, and the rest stays readable.
//   - A peer that saw the log during one of its openings can detect later that
//     it was restored to an older state, however far it has grown (witness.go).
//   - After a failed write or sync, nothing is retried on that file: the log
//     stays readable and rejects writes until the process restarts.
//
// format.go describes the bytes, manifest.go and identity.go the small files
// beside them.
package wal

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stemedb/stemedb/server/internal/remedy"
	"github.com/stemedb/stemedb/server/internal/vfs"
)

// Position is the address of an entry: the number of its segment in the upper
// 32 bits, the byte offset of its frame in the lower ones. Positions increase
// in log order, with gaps between them. 0 is before every entry.
type Position uint64

func makePosition(seq, off uint32) Position { return Position(seq)<<32 | Position(off) }

// Segment is the number of the segment (and of its pack).
func (p Position) Segment() uint32 { return uint32(p >> 32) }

// Offset is the byte offset in the segment.
func (p Position) Offset() uint32 { return uint32(p) }

func (p Position) String() string { return fmt.Sprintf("%d:%d", p.Segment(), p.Offset()) }

// Range is a part of the log: from From up to, not including, To.
type Range struct {
	From Position `json:"from"`
	To   Position `json:"to"`
	// Reason is the cause, for people.
	Reason string `json:"reason"`
	// Unread: the disk returned an error, not wrong bytes, so the part may be
	// readable later (Log.Recheck).
	Unread bool `json:"unread,omitempty"`
}

func (r Range) String() string {
	text := fmt.Sprintf("[%v, %v)", r.From, r.To)
	if r.Reason != "" {
		text += " (" + r.Reason + ")"
	}
	return text
}

// Limits of one entry.
const (
	// MinKind and MaxKind bound the kinds that a user of the log may choose.
	MinKind = 1
	MaxKind = 0xFE
	// MaxPayload is the largest payload in bytes.
	MaxPayload = 1<<24 - 1
)

// Entry is one item of the log: bytes of a kind. The log interprets neither.
type Entry struct {
	Kind    uint8 // MinKind..MaxKind
	Payload []byte
}

// Commit is written as a whole or not at all.
type Commit struct {
	// Entries are copied by Append.
	Entries []Entry
	// Positions receives one position per entry. Append sets it (reusing its
	// capacity); it is valid once Done was called with nil.
	Positions []Position
	// Done is called exactly once for a commit that Append accepted: with nil
	// when it is durable, otherwise with an error that wraps ErrFailed,
	// ErrReadOnly or ErrClosed. Calls come one after another in log order. It
	// must not block and must not call Close.
	Done func(err error)
}

// Errors of Append and Done; test with errors.Is.
var (
	// ErrFailed: a write or sync failed. Sticky until the process restarts. A
	// commit in progress has an unknown outcome; sending it again is idempotent
	// for users that address by content.
	ErrFailed = errors.New("the log failed and no longer accepts writes")
	// ErrReadOnly: too little space is left. Temporary.
	ErrReadOnly = errors.New("the log is read-only because a volume is nearly full")
	// ErrBusy: more bytes wait for the disk than Options.QueueBytes allows.
	ErrBusy = errors.New("the log's queue is full")
	// ErrClosed: Close was called.
	ErrClosed = errors.New("the log is closed")
	// ErrTooLarge: an entry above MaxPayload or a commit above a segment.
	ErrTooLarge = errors.New("too large for the log")
	// ErrInvalid: a kind outside MinKind..MaxKind or a commit without entries.
	ErrInvalid = errors.New("not a valid commit")
)

// Errors of Read and Scan.
var (
	// ErrGone: the position is in a segment or pack that was lost.
	ErrGone = errors.New("the part of the log that held this position is lost")
	// ErrNoEntry: no entry begins at this position.
	ErrNoEntry = errors.New("no entry at this position")
)

// ErrMoreLost: a loss was found that the caller of SetWhole did not know.
var ErrMoreLost = errors.New("more losses or damage of the log were found meanwhile")

// DamageError reports bytes that were durable and are no longer valid.
type DamageError struct{ Range Range }

func (e *DamageError) Error() string { return "damaged log: " + e.Range.String() }

// Gap is the error of Scan at an unreadable part of the log. Scan's next is
// then after that part.
type Gap struct {
	Range Range
	// Lost distinguishes a missing segment or pack from damaged bytes.
	Lost bool
}

func (g *Gap) Error() string { return "gap in the log: " + g.Range.String() }

// State is the set of operations that the log accepts.
type State int

const (
	// StateOK: reads and writes.
	StateOK State = iota
	// StateReadOnly: too little space; writes get ErrReadOnly. Temporary.
	StateReadOnly
	// StateFailed: writes get ErrFailed until the process restarts.
	StateFailed
)

func (s State) String() string {
	switch s {
	case StateOK:
		return "ok"
	case StateReadOnly:
		return "read-only"
	case StateFailed:
		return "failed"
	}
	return fmt.Sprintf("State(%d)", int(s))
}

// Options are the location of the log and the sizes of its parts.
type Options struct {
	// FS holds both directories; vfs.OS() when nil.
	FS vfs.FS
	// WALDir is where commits become durable, PackDir where full segments are
	// kept. They may be on different volumes and must differ. Both are created if
	// missing. Files with other names in them are left alone.
	WALDir, PackDir string
	// Node is the name of this node; volumes of another node are rejected.
	Node string

	// Members is the expected number of members of the cluster, 0 if unknown. Only
	// the advice in errors depends on it.
	Members int

	// SegmentSize is the size of a segment in bytes; default 64 MiB, at least
	// 16 KiB. It bounds a commit and may differ from one start to the next.
	SegmentSize int64
	// MaxBatchBytes bounds the bytes that one sync makes durable; default 4 MiB. A
	// larger commit becomes a separate batch.
	MaxBatchBytes int
	// QueueBytes bounds the bytes that wait for the disk; default 64 MiB.
	QueueBytes int
	// The log turns read-only when less than Reserve bytes are free on either
	// volume and accepts writes again above ReserveHigh. Defaults: 2 and 3
	// segments.
	Reserve, ReserveHigh uint64
	// CheckInterval is the interval between checks of free space; default 2 s.
	CheckInterval time.Duration

	// Rand yields the incarnation and the salts of segments; crypto/rand if nil.
	Rand io.Reader
	// Logger and Registerer may be nil.
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// remedy is the advice for volumes that cannot be used.
func (o *Options) remedy(putBack string) string {
	return remedy.Volumes(o.Members, remedy.ThisNode, putBack)
}

// Identity is the identity that both volumes carry.
type Identity struct {
	// Node is the name under which the volumes were first used.
	Node string
	// Incarnation is 32 hex digits, drawn when the volumes were empty. A node
	// that lost its WAL volume has a new one.
	Incarnation string
	// Cluster is empty until SetClusterID.
	Cluster string
	// Shared: the cluster has had other members, since SetShared. A node that lost
	// its WAL volume still knows it from the pack volume.
	Shared bool
}

// Pack describes a sealed segment on the pack volume.
type Pack struct {
	Segment uint32
	// End is the position after its last entry.
	End Position
	// Bytes is the size of the file, Entries the number of intact entries.
	Bytes   int64
	Entries uint64
	// Hash is the BLAKE3-256 of everything before the footer, in hex.
	Hash string
}
