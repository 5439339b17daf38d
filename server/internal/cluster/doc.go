// Package cluster turns several stores into one: it replicates writes, brings
// members up to date, and lets a read see every acknowledged write.
//
// Promises:
//   - A write that was answered without error is durable on a majority of the
//     members (of the old and of the new ones while a change of members is open),
//     by the state of the control table at the moment of the answer. That
//     includes records that existed before.
//   - A quorum read sees every write that was acknowledged before it began. A
//     record that it has shown is shown by later quorum reads too, acknowledged
//     or not. It fails when too few members are whole to promise that.
//   - A node that has just started acknowledges nothing, for itself or for
//     others, and counts in no read until the leader has confirmed its copy of
//     the control table.
//   - Every member eventually holds everything that any other member holds,
//     however long it was down, and resumes where it was after a restart.
//   - Damage is not a loss: a damaged record is replaced by the copy of any member that
//     holds one, whole or not, before its member stops counting in reads (mend.go). A
//     refill continues behind a record that one source lacks.
//   - The only member of a cluster that lost records answers from the remaining ones and
//     says so, until an operator accepts the loss (whole.go).
//   - A write that its Permit refuses is written nowhere. A permitted write goes
//     to this node's log and to the peers within Timings.WriteWait or not at all:
//     an abandoned write is not sent to a peer afterwards (permit.go).
//   - A member whose log was restored to an older state counts in no read once a
//     peer that has seen more of it, or the control table, can be reached; a
//     member that has just started waits for its peers until then (vouch.go).
//   - A peer that is slow, down or sends malformed data costs bounded memory and
//     never delays the others.
//
// Records are immutable and content-addressed, so copying is idempotent, and no
// order has to be agreed on. The set of members, which has to be agreed on, comes
// from package control as snapshots with a generation. Three rules connect the
// two:
//
//  1. The write rule is evaluated with the newest state when acks come in, never
//     with the state at the beginning of a write (write.go).
//  2. A member acknowledges a peer's record only if at that moment, the record
//     being durable, it has not passed the caller's generation
//     (serve_replicate.go). So the log end that a member records at a newer
//     generation covers every record that older callers may count. The same holds
//     for a member's part in a quorum read (serve.go), and for the reader's own
//     (read.go).
//  3. A quorum read hears a majority, and while a change of members is open a
//     majority of the new members too, because others may have closed the change
//     already. It answers from a snapshot of the store in which every record is
//     on a majority (merge.go).
//
// An acknowledgement belongs to an incarnation: package control puts the target's
// id into every call, so that an emptied node never answers for its earlier
// incarnation.
package cluster
