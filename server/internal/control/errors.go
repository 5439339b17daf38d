package control

import "errors"

// Errors that callers distinguish.
var (
	// ErrUnregistered: this node's start is not in the table yet.
	ErrUnregistered = errors.New("the start of this node is not registered in the control table yet")
	// ErrNoLeader: no leader answered in time. The command may still have been
	// applied; a retry is safe.
	ErrNoLeader = errors.New("the control table has no leader that a majority follows")
	// ErrNotConfirmedYet: this node has started, and its copy of the table may be
	// older than the one before the restart.
	ErrNotConfirmedYet = errors.New("the leader has not confirmed this node's copy of the control table since the node started: it may be stale")
	// ErrNoSuchMember: the cluster has no member of that name.
	ErrNoSuchMember = errors.New("the cluster has no member of that name")
	// ErrLossStands: a member's loss cannot be accepted; the text states the reason.
	ErrLossStands = errors.New("the loss is not accepted")
	// ErrNoSuchChange: the change of members is not open: it was closed or
	// cancelled before.
	ErrNoSuchChange = errors.New("that change of members is not open: it was closed or cancelled before")
	// ErrClosed: the node is shutting down.
	ErrClosed = errors.New("the control table is closed")
	// ErrTooOld: the cluster uses a format that this release does not know.
	ErrTooOld = errors.New("the cluster uses a newer format of the control table than this release knows: install the release that the other members run")
)
