package cluster

import (
	"context"
	"iter"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// Store holds this node's records; *store.Store implements it and documents the
// methods.
type Store interface {
	Put(items []store.Item, done func(store.PutResult)) error
	Repair(items []store.Item, done func(store.PutResult)) error
	Has(keys []store.Key) ([]bool, error)
	Read(key store.Key) (store.Item, error)
	ReadAt(pos wal.Position) (store.Item, error)

	Snapshot() (store.Snapshot, error)
	Subjects(project record.ProjectName, prefix, after string, limit int) ([]string, error)

	SetDigest(ctx context.Context, set store.Set) (store.Digest, error)
	SetKeys(ctx context.Context, set store.Set) iter.Seq2[store.SetKey, error]
	BucketDigests(ctx context.Context, prefix []byte) (*[256]store.Digest, error)
	BucketKeys(ctx context.Context, prefix []byte, limit int) (keys []store.Key, more bool, err error)
	SetDigestKey(key [32]byte)

	Cursors() map[string]wal.Position
	Witnesses() map[string]wal.Witness
	Opening() wal.Opening
	CheckWitness(w wal.Witness) error
	ScanKeys(from wal.Position, limitBytes int) (keys []store.KeyAt, next wal.Position, gaps int, err error)
	Export(from, to wal.Position, limitBytes int, fn func(kind store.Kind, payload []byte) error) (next wal.Position, err error)
	First() wal.Position
	End() wal.Position
	Watch() <-chan struct{}
	Empty() bool
	Identity() wal.Identity
	Whole() bool
	SetWhole(losses int) error
	Health() store.Health
	Stats() store.Stats
	DamagedKeys(ctx context.Context) (keys []store.Key, all bool, err error)
	Unreadable(ctx context.Context) ([]store.Key, error)
	Damaged(pos wal.Position) bool
	RebuildAtNextStart() error
	Outstanding() []wal.Range
	Lives() []string
	RolledBack() bool
	SetLife(life string) error
	NoteRollback(known wal.Position, why string) error
}

// Control is the control table as this package needs it; *control.Control
// implements it.
type Control interface {
	State() *control.State
	Err() error
	Watch() <-chan struct{}
	Leader() (name string, ok bool)
	Phase() string
	ChangeWaitsFor() []string
	Now() (at time.Time, sure bool)
	ClockSkew(memberID string) (d time.Duration, known bool)
	ReportNotWhole(ctx context.Context) error
	WithdrawLoss(ctx context.Context) error
	WaitGeneration(ctx context.Context, generation uint64) error
	MayDecide() error
	CheckGeneration(caller uint64) error
	CheckCaller(ctx context.Context) error
	Conn(m control.Member) (grpc.ClientConnInterface, error)
}

// Liveness reports which nodes seem to be alive; package gossip implements it.
type Liveness interface {
	// Alive reports whether the node of that name answers, as far as is known.
	Alive(name string) bool
}

// Timings are the intervals and time-outs of replication; zero values mean
// the defaults named here.
type Timings struct {
	WriteWait    time.Duration // 5 s: how long a write waits for a majority
	ReadWait     time.Duration // 5 s: how long a read waits for its peers
	Hedge        time.Duration // 100 ms: time after which another peer is asked too
	Backoff      time.Duration // 50 ms: first pause after a failed stream; doubles
	MaxBackoff   time.Duration // 2 s
	AckTimeout   time.Duration // 10 s: a stream without an acknowledgement for so long is closed
	TailLinger   time.Duration // 50 ms: how long new records gather before a puller gets them
	PullWait     time.Duration // 20 s: how long a pull waits for something new
	CursorEvery  time.Duration // 30 s: how often progress without new records is made durable
	MendWait     time.Duration // 1 min: how long a repair waits for members that do not answer; negative: no repair
	VerifyEvery  time.Duration // 24 h: between two verifications of the whole log; negative: never
	LossEvery    time.Duration // 1 s: how often the store is checked for a loss
	StartWait    time.Duration // 10 s: how long a start waits for members that do not answer, once this node's table is confirmed
	ScrubEvery   time.Duration // 30 min: between rounds of comparison with one peer; negative: never
	ScrubSettle  time.Duration // 30 s: a difference that disappears within this time was only a delay
	FutureMargin time.Duration // 5 min: how far a timestamp may be ahead of the cluster's time
}

// Limits bound memory and load; zero values mean the defaults named here.
type Limits struct {
	InFlightBytes    int64 // 8 MiB: writes through this node that wait for a majority; further writes queue
	PeerQueueBytes   int64 // 32 MiB: records that wait for one peer's acknowledgement
	StreamBytes      int64 // 16 MiB: records of one peer's stream that wait for the disk here
	MessageBytes     int   // 1 MiB: records in one message of a stream
	PullBytes        int   // 1 MiB: log covered by one answer of a pull
	VerifyBytesRate  int64 // 4 MiB/s: rate at which the log is verified
	CatchUpBytesRate int64 // bytes/s that one puller fetches; 0: no limit
	CachedKeys       int   // 4,096: agents whose expanded keys are kept
	VerifyGroup      int   // 64: single signatures checked together
	ReadTries        int   // 3: attempts of a read while the members change
	Voices           int   // 10,000: agents, and votes, that a read keeps of one claim; with more the claim is partial
}

// Config configures a Cluster. Store, Control and Progress are required.
type Config struct {
	Store   Store
	Control Control
	// Progress is the object that Control was given as its Data.
	Progress *Progress
	// Liveness may be nil: then every member counts as alive.
	Liveness Liveness
	// SkipSignatures accepts records without checking their signatures.
	SkipSignatures bool
	Logger         *slog.Logger
	Registerer     prometheus.Registerer
	Timings        Timings
	Limits         Limits
}
