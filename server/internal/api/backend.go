package api

import (
	"context"
	"errors"
	"net/http"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/cluster"
	"github.com/stemedb/stemedb/server/internal/remedy"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// Backend is the API's view of the cluster. *cluster.Cluster documents the
// methods and implements all of them except Peers.
type Backend interface {
	Assert(ctx context.Context, project string, as []*record.Assertion) []cluster.WriteResult
	Vote(ctx context.Context, project string, v *record.Vote) cluster.WriteResult
	Get(ctx context.Context, project string, id record.Hash, consistency cluster.Consistency) (*store.Stored, error)
	Claims(ctx context.Context, q store.ClaimQuery, consistency cluster.Consistency) (cluster.ClaimSource, error)
	Content(ctx context.Context, claim *store.Claim) (*record.Content, error)
	Subjects(ctx context.Context, project, prefix, after string, limit int, consistency cluster.Consistency) ([]string, error)
	// BackupPoint, Incarnation, Export and Import are those of backups.
	BackupPoint(ctx context.Context) (cluster.BackupPoint, error)
	Incarnation() string
	Export(from, to wal.Position, limitBytes int, fn func(kind store.Kind, payload []byte) error) (next wal.Position, err error)
	Import(ctx context.Context, items []store.Item) (cluster.Imported, error)
	Ready() error
	Status() cluster.Status
	// Incomplete says why answers may lack records; empty: they are complete.
	Incomplete() string
	// AcceptLoss and CancelChange are operators' decisions; errors are those of
	// package control.
	AcceptLoss(ctx context.Context, member string) error
	CancelChange(ctx context.Context, change uint64) error
	// Peers lists the other members, the likeliest to serve first. The slice
	// is the caller's.
	Peers() []Peer
}

// backendProblem is the problem for a failure of the cluster or the store.
func backendProblem(err error) *Problem {
	var u *cluster.UnavailableError
	if errors.As(err, &u) {
		p := problem(u.Code, "", u.Message, remedyRetry).retry(retryAfter(u.RetryAfter)).because(err)
		if _, known := codeTable[u.Code]; !known {
			p.Code, p.Status = codeUnavailable, http.StatusServiceUnavailable
		}
		if u.Code == cluster.CodeReadOnly {
			p.Remedy = remedy.Space(u.Members)
		}
		return p
	}
	var lost *cluster.LostError
	if errors.As(err, &lost) {
		detail := "the record was stored, but its bytes are damaged, and no other member holds an intact copy"
		if lost.Members <= 1 {
			detail = "the record was stored, but its bytes are damaged, and this node is the only member"
		}
		return problem(cluster.CodeLost, "hash", detail, "send the record again, which stores it anew, or restore it from a backup").because(err)
	}
	if errors.Is(err, store.ErrNotFound) {
		return problem(codeNoRecord, "hash", "no record of this project has this hash", "check the hash, and that the key belongs to the project in which the record was asserted")
	}
	var damage *store.DamageError
	switch {
	case errors.As(err, &damage):
		return problem(cluster.CodeDamaged, "", "the record is held, but its bytes on this node are damaged", remedyRetry).retry(retrySoon).because(err)
	case errors.Is(err, store.ErrBusy):
		return problem(cluster.CodeOverloadedDisk, "", err.Error(), remedyRetry).retry(retrySoon)
	case errors.Is(err, store.ErrIndexFailed):
		return problem(cluster.CodeStorageFailed, "", err.Error(), remedyRetry).retry(retryAfter(0)).because(err)
	case errors.Is(err, store.ErrClosed):
		return problem(cluster.CodeClosed, "", "the node is shutting down", remedyRetry).retry(retrySoon)
	}
	return nil
}
