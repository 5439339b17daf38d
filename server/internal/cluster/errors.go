package cluster

import (
	"errors"
	"fmt"
	"time"

	"github.com/stemedb/stemedb/server/internal/store"
)

// Codes of an UnavailableError.
const (
	// CodeNoQuorum: too few members made the record durable in time. It may
	// surface all the same; sending it again is right.
	CodeNoQuorum = "no_quorum"
	// CodeOverloadedDisk: this node's log or index does not keep up.
	CodeOverloadedDisk = "overloaded_disk"
	// CodeOverloadedWrites: too many writes wait for their majority.
	CodeOverloadedWrites = "overloaded_writes"
	// CodeOverloadedPeers: the queues to a majority of the members are full.
	CodeOverloadedPeers = "overloaded_peers"
	// CodeOverloadedSignatures: too many signatures wait to be verified.
	CodeOverloadedSignatures = "overloaded_signatures"
	// CodeOverloadedComparison: a quorum read compares more records than this node
	// gets through in the time of the request.
	CodeOverloadedComparison = "overloaded_comparison"
	// CodeReadOnly: this node has too little space left (507).
	CodeReadOnly = "read_only"
	// CodeNearlyFull: a volume of this node is close to that. Only the health
	// summary says so.
	CodeNearlyFull = "nearly_full"
	// CodeStorageFailed: this node's log or index failed.
	CodeStorageFailed = "storage_failed"
	// CodeUnconfirmed: this node has started and does not know yet whether its
	// copy of the control table is current.
	CodeUnconfirmed = "unconfirmed"
	// CodeControlFailed: this node's copy of the control table failed or is not
	// trusted; the node mends it by itself.
	CodeControlFailed = "control_failed"
	// CodeNotMember: this node is not, or not any more, a member.
	CodeNotMember = "not_a_member"
	// CodeNotWhole: this node lost records and is being refilled.
	CodeNotWhole = "not_whole"
	// CodeTooFewWhole: too few members are whole for any read to be sure of
	// seeing every acknowledged write. Lasts until they were refilled.
	CodeTooFewWhole = "too_few_whole_members"
	// CodePeersUnreachable: enough members are whole, but too few answered.
	CodePeersUnreachable = "peers_unreachable"
	// CodeCatchingUp: this node has started and does not hold yet what the
	// others had then.
	CodeCatchingUp = "catching_up"
	// CodeDamaged: the record's bytes on this node are damaged, and a member that
	// may hold an intact copy did not give it.
	CodeDamaged = "damaged_record"
	// CodeLost: the record's bytes on this node are damaged, and every other
	// member said that it holds no intact copy.
	CodeLost = "lost_record"
	// CodeClocksApart: the members' clocks disagree, so this node cannot judge
	// a time.
	CodeClocksApart = "clocks_apart"
	// CodeClosed: the node is shutting down.
	CodeClosed = "shutting_down"
)

// UnavailableError says that something cannot be done now. Nothing about the
// request was wrong; it may be sent again.
type UnavailableError struct {
	// Code is one of the Code constants.
	Code string
	// Message says what happened, for people.
	Message string
	// RetryAfter is when trying again may help; at least one second.
	RetryAfter time.Duration
	// Err is the cause, if there is one to show.
	Err error
}

func (e *UnavailableError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %v", e.Message, e.Err)
	}
	return e.Message
}

func (e *UnavailableError) Unwrap() error { return e.Err }

// Is makes every UnavailableError match ErrUnavailable.
func (e *UnavailableError) Is(target error) bool { return target == ErrUnavailable }

// ErrUnavailable matches every *UnavailableError.
var ErrUnavailable = errors.New("unavailable now")

// LostError says that the bytes of a record on this node are damaged and that
// every other member, if there are any, said that it holds no intact copy.
type LostError struct {
	Key store.Key
	// Members is the number of members of the cluster, with this node.
	Members int
}

func (e *LostError) Error() string {
	if e.Members <= 1 {
		return fmt.Sprintf("the bytes of %v are damaged, and this node is the only member", e.Key)
	}
	return fmt.Sprintf("the bytes of %v on this node are damaged, and none of the other members holds an intact copy", e.Key)
}

// CodeInvalidSignature is the code of the *record.FieldError for a signature
// that does not fit its agent and content.
const CodeInvalidSignature = "invalid_signature"

func unavailable(code, message string, cause error) *UnavailableError {
	e := &UnavailableError{Code: code, Message: message, RetryAfter: time.Second, Err: cause}
	if code == CodeReadOnly || code == CodeStorageFailed || code == CodeTooFewWhole {
		e.RetryAfter = 10 * time.Second
	}
	return e
}
