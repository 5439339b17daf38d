// Package cluster makes several stores one: it replicates what is written,
// brings members up to date, and lets a read see every acknowledged write.
//
// What it promises:
//   - A write that was answered without error is durable on a majority of the
//     members (on a majority of the old and of the new ones while a change of
//     members is open), by the state of the control table at the moment of the
//     answer. That holds for what existed before as well.
//   - A quorum read sees every write that was acknowledged before it began, and
//     every record that it has shown, later quorum reads show too, whether it was
//     acknowledged or not. When too few members are whole to promise that, it
//     says so.
//   - A node that has just started acknowledges nothing, for itself or for others,
//     and counts in no read, until the leader has confirmed its copy of the
//     control table.
//   - Every member comes to hold everything that any other member holds, however
//     long it was away, and goes on from where it was when it starts again.
//   - Damage is not a loss: a damaged record is replaced by the copy of any member that
//     holds one, whole or not, before its member stops counting in reads (mend.go). A
//     refill continues behind a record that one source lacks.
//   - The only member of a cluster that lost records answers from the remaining ones and
//     says so, until an operator accepts the loss (whole.go).
//   - A write that its Permit refuses is written nowhere. One that is permitted goes
//     to this node's log and to the peers within Timings.WriteWait or not at all: a
//     write that was given up is not sent to a peer afterwards (permit.go).
//   - A member whose log was put back to an older state counts in no read once a
//     peer that has seen more of it, or the control table, can be heard; until
//     then a member that has just started waits for its peers (vouch.go).
//   - A peer that is slow, gone or sends nonsense costs bounded memory and never
//     holds up what the others can do.
//
// Records are immutable and content-addressed, so every copy is a harmless
// repetition, and nothing here has to agree on an order. What must be agreed on,
// the members, comes from package control as snapshots with a generation.
// Three rules keep the two worlds together:
//
//  1. The write rule is evaluated with the newest state when acks come in, never
//     with the one from the beginning of a write (write.go).
//  2. A member acknowledges a peer's record only if at that moment, the record
//     being durable, it has not passed the caller's generation (serve_replicate.go). So
//     whoever notes its log's end at a newer generation has noted all that older
//     callers may count.
//     The same holds for a member's part in a quorum read (serve.go), and for the
//     reader's own (read.go).
//  3. A quorum read hears a majority, and while a change of members is open a
//     majority of the new members too, for it cannot know whether others have
//     closed the change already. It answers from a snapshot of the store of which
//     every record is on a majority (merge.go).
//
// An acknowledgement belongs to an incarnation: package control puts the target's
// id into every call, so that an emptied node never answers for its old self.
package cluster
