package control

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/stemedb/stemedb/server/internal/control/controlpb"
	"github.com/stemedb/stemedb/server/internal/keys"
)

// retryEvery is the interval between attempts to reach a leader.
const retryEvery = 100 * time.Millisecond

// propose has the leader commit the command, and returns when this copy shows it,
// or after a time limit. It retries until ctx ends; commands are idempotent.
func (c *Control) propose(ctx context.Context, cmd command) (*result, error) {
	answer, index, err := c.proposed(ctx, cmd)
	if answer != nil {
		c.await(ctx, index)
	}
	return answer, err
}

// proposed is propose without the wait for this copy; index is the index of the
// command.
func (c *Control) proposed(ctx context.Context, cmd command) (answer *result, index uint64, err error) {
	b, err := encodeCommand(cmd)
	if err != nil {
		return nil, 0, err
	}
	var last error
	for {
		changed := c.changed.wait()
		answer, index, err := c.proposeOnce(ctx, b)
		if err == nil {
			err = answer.err()
			if !errors.Is(err, errUnformed) && !errors.Is(err, errDamaged) {
				return answer, index, err
			}
		}
		last = err
		timer := time.NewTimer(retryEvery)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, 0, fmt.Errorf("%w: %w (%w)", ErrNoLeader, ctx.Err(), last)
		case <-c.ctx.Done():
			timer.Stop()
			return nil, 0, ErrClosed
		case <-timer.C:
		case <-changed:
			timer.Stop()
		}
	}
}

func (c *Control) proposeOnce(ctx context.Context, b []byte) (*result, uint64, error) {
	if c.leading() {
		return c.commit(b)
	}
	leader, err := c.leaderClient()
	if err != nil {
		return nil, 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timings.CallTimeout)
	defer cancel()
	response, err := leader.Forward(ctx, &controlpb.ForwardRequest{Command: b})
	if err != nil {
		return nil, 0, fmt.Errorf("forward a command to the leader: %w", err)
	}
	answer := &result{}
	if err := unmarshal(response.Result, answer); err != nil {
		return nil, 0, fmt.Errorf("decode the leader's answer: %w", err)
	}
	return answer, response.Index, nil
}

// commit stamps the command and hands it to Raft. A leader that loses its
// majority steps down within its lease, so this takes bounded time.
func (c *Control) commit(b []byte) (*result, uint64, error) {
	if err := checkCommand(b); err != nil {
		return nil, 0, err
	}
	b, err := c.stamped(b)
	if err != nil {
		return refuse(err), 0, nil
	}
	future := c.raft.Load().Apply(b, c.cfg.Timings.CallTimeout)
	if err := future.Error(); err != nil {
		return nil, 0, fmt.Errorf("commit a command: %w", err)
	}
	answer, ok := future.Response().(*result)
	if !ok {
		return nil, 0, fmt.Errorf("the control table answered a %T", future.Response())
	}
	return answer, future.Index(), nil
}

// await waits until this copy has applied the index, so that a caller reads its
// own write. If that takes too long, the write is still valid.
func (c *Control) await(ctx context.Context, index uint64) bool {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timings.CallTimeout)
	defer cancel()
	for {
		changed := c.changed.wait()
		if c.State().Index >= index {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		case <-c.ctx.Done():
			return false
		}
	}
}

// leaderClient returns the control service of the leader.
func (c *Control) leaderClient() (controlpb.ControlClient, error) {
	addr, id := c.leader()
	if id == "" || addr == "" {
		return nil, ErrNoLeader
	}
	if id == c.id {
		return nil, fmt.Errorf("%w: this node has just been elected", ErrNoLeader)
	}
	conn, err := c.connTo(id, addr)
	if err != nil {
		return nil, err
	}
	return controlpb.NewControlClient(conn), nil
}

func newOp() (string, error) {
	var b [12]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("draw a random name: %w", err)
	}
	return hex.EncodeToString(b[:]), nil
}

// CreateKey registers a key; created is false when it existed already. Errors:
// keys.ErrExists, keys.ErrRevoked, ErrNoLeader.
func (c *Control) CreateKey(ctx context.Context, k keys.Key) (after keys.Key, created bool, err error) {
	op, err := newOp()
	if err != nil {
		return keys.Key{}, false, err
	}
	answer, err := c.propose(ctx, &createKey{Op: op, Key: k})
	if err != nil {
		return keys.Key{}, false, fmt.Errorf("register a key: %w", err)
	}
	return *answer.Key, answer.Created, nil
}

// GetKey reads this node's copy. See Confirmed.
func (c *Control) GetKey(h keys.Hash) (keys.Key, bool) {
	k, ok := c.State().Keys[h]
	return k, ok
}

// ListKeys returns all keys of this node's copy, revoked ones too, ordered by
// project, creation and hash.
func (c *Control) ListKeys() []keys.Key { return c.State().sortedKeys() }

// PatchKey changes a key that is still at the version in the patch. Errors:
// keys.ErrNotFound, ErrRevoked, ErrVersion, ErrNoLeader.
func (c *Control) PatchKey(ctx context.Context, h keys.Hash, p keys.Patch) (keys.Key, error) {
	op, err := newOp()
	if err != nil {
		return keys.Key{}, err
	}
	return c.keyChange(ctx, "change a key", &patchKey{Op: op, Hash: h, Patch: p})
}

// RevokeKey ends a key permanently; it is idempotent. Errors: keys.ErrNotFound,
// ErrNoLeader.
func (c *Control) RevokeKey(ctx context.Context, h keys.Hash) (keys.Key, error) {
	return c.keyChange(ctx, "revoke a key", &revokeKey{Hash: h})
}

func (c *Control) keyChange(ctx context.Context, what string, cmd command) (keys.Key, error) {
	answer, err := c.propose(ctx, cmd)
	if err != nil {
		return keys.Key{}, fmt.Errorf("%s: %w", what, err)
	}
	return *answer.Key, nil
}

// RotateKey registers a successor; the old key stays valid for grace more seconds
// (0..keys.MaxGrace), and without grace ends at once. Errors: keys.ErrNotFound,
// ErrRevoked, ErrRotated, ErrExists for a successor that is taken, ErrNoTime for
// a grace while the members' clocks disagree, ErrNoLeader.
func (c *Control) RotateKey(ctx context.Context, old, successor keys.Hash, grace int64) (oldKey, fresh keys.Key, err error) {
	if grace < 0 || grace > keys.MaxGrace {
		return keys.Key{}, keys.Key{}, fmt.Errorf("rotate a key: a grace of %d s is not in 0..%d", grace, keys.MaxGrace)
	}
	op, err := newOp()
	if err != nil {
		return keys.Key{}, keys.Key{}, err
	}
	answer, err := c.propose(ctx, &rotateKey{Op: op, Hash: old, Successor: successor, Grace: grace})
	if err != nil {
		return keys.Key{}, keys.Key{}, fmt.Errorf("rotate a key: %w", err)
	}
	return *answer.Key, *answer.Fresh, nil
}

// EnsureRootKey registers the root key as an admin key, waiting for a leader as
// long as ctx allows. It is idempotent. A revoked root key stays revoked: then
// revoked is true, and the node keeps running.
func (c *Control) EnsureRootKey(ctx context.Context, h keys.Hash) (revoked bool, err error) {
	_, _, err = c.CreateKey(ctx, keys.Key{
		Hash: h, Project: keys.SharedProject, Role: keys.Admin, Label: "root", Root: true, Enabled: true,
	})
	switch {
	case errors.Is(err, keys.ErrRevoked):
		c.log.Warn("the root key of the configuration was revoked and stays revoked; configure another one", "key_hash", h.String())
		return true, nil
	case err != nil:
		return false, fmt.Errorf("seed the root key: %w", err)
	}
	return false, nil
}

// CancelChange ends an open change of members as if it had not been opened;
// records acknowledged meanwhile stay acknowledged. The subject requests a new
// change after GiveUpAfter, or after a restart. Errors: ErrNoSuchChange,
// ErrNoLeader.
func (c *Control) CancelChange(ctx context.Context, change uint64) error {
	_, err := c.propose(ctx, &cancelChange{Change: change})
	if errors.Is(err, errOutdated) {
		return ErrNoSuchChange
	}
	if err != nil {
		return fmt.Errorf("cancel change %d of the members: %w", change, err)
	}
	return nil
}

// AcceptLoss makes a member whole by an operator's decision: the records that it
// lost and that no whole member holds are given up. It accepts the loss that the
// table shows now, and only when too few whole members are left to refill the
// member. For a member that is whole it does nothing. Errors: ErrNoSuchMember,
// ErrLossStands, ErrNoLeader.
func (c *Control) AcceptLoss(ctx context.Context, name string) error {
	// A stale copy might not show the loss, or show an earlier one.
	if err := c.refresh(ctx); err != nil {
		return fmt.Errorf("accept the loss of %s: %w: %w", name, ErrNoLeader, err)
	}
	state := c.State()
	m, ok := state.Member(name)
	if !ok {
		return fmt.Errorf("%w: %s", ErrNoSuchMember, name)
	}
	if m.Whole {
		return nil
	}
	_, err := c.propose(ctx, &acceptLoss{Member: m.ID(), Loss: m.report(), Change: state.LastChange})
	if errors.Is(err, errNotMember) {
		return fmt.Errorf("%w: %s", ErrNoSuchMember, name)
	}
	if err != nil {
		return fmt.Errorf("accept the loss of %s: %w", name, err)
	}
	return nil
}

// WithdrawLoss withdraws the latest report that this node lost records: it has
// read all of them since. It does nothing if there is no report.
func (c *Control) WithdrawLoss(ctx context.Context) error {
	m, ok := c.Self()
	if !ok || m.Whole || m.Loss == "" {
		return nil
	}
	_, err := c.propose(ctx, &withdrawLoss{Member: c.id, Loss: m.Loss})
	if err != nil && !errors.Is(err, errOutdated) {
		return fmt.Errorf("withdraw the report of a loss: %w", err)
	}
	return nil
}

// registerLife registers this start in the table before this node decides
// anything. If the table has a later start than the volumes, the volumes were
// restored to an older state.
func (c *Control) registerLife() error {
	if c.registered.Load() {
		return nil
	}
	ctx, cancel := context.WithTimeout(c.ctx, c.cfg.Timings.CallTimeout)
	defer cancel()
	if _, ok := c.Self(); !ok {
		return errNotMember
	}
	known := c.cfg.Data.Lives()
	now := ""
	if len(known) > 0 { // otherwise there was never enough space to record one
		now = known[len(known)-1]
	}
	_, err := c.propose(ctx, &live{Member: c.id, Known: known, Now: now, RolledBack: c.cfg.Data.RolledBack()})
	if errors.Is(err, errRolledBack) {
		c.cfg.Data.NoteRollback("the control table has a later start of this member than its WAL volume")
		return err
	}
	if err != nil {
		return fmt.Errorf("register the start of this node: %w", err)
	}
	if err := c.cfg.Data.SetLife(now); err != nil {
		// The volume then lists more lives than necessary.
		c.log.Warn("the registration of this start could not be recorded", "error", err)
	}
	c.registered.Store(true)
	c.changed.broadcast() // MayDecide has changed
	return nil
}

// ReportNotWhole records that this node lost records, so that it counts in no
// read until a change has refilled it. It is called once for each loss, after the
// node's cursors were reset (see Data), and retries until it is committed or ctx
// ends. It returns when this copy shows the report: before that, the copy may
// still show the end of an earlier refill. A node that is not a member has
// nothing to report.
func (c *Control) ReportNotWhole(ctx context.Context) error {
	op, err := newOp()
	if err != nil {
		return err
	}
	answer, index, err := c.proposed(ctx, &loss{Member: c.id, Loss: op})
	if err != nil && !errors.Is(err, errNotMember) {
		return fmt.Errorf("report that this node is not whole: %w", err)
	}
	for answer != nil && !c.await(ctx, index) {
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("the report that this node is not whole is committed, but its copy of the control table does not show it yet: %w", ctx.Err())
		case c.ctx.Err() != nil:
			return ErrClosed
		}
	}
	return nil
}
