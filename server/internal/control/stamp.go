package control

import "github.com/stemedb/stemedb/server/internal/keys"

// timed is a command that contains a time. The leader sets it to the table's time
// before it commits the command; the proposer does not, because its clock is only
// one member's. A repeated command is stamped again, but only its first stamp
// takes effect, because commands are idempotent.
type timed interface {
	command
	// stamp sets the time, in unix seconds. It returns an error when a later
	// decision would depend on that time and the time is not sure.
	stamp(at int64, sure bool) error
}

func (c *admit) stamp(at int64, _ bool) error  { c.At = at; return nil }
func (c *refill) stamp(at int64, _ bool) error { c.At = at; return nil }

func (c *createKey) stamp(at int64, _ bool) error { c.Key.CreatedAt = at; return nil }

// stamp never refuses a revocation: it does not depend on its time, which is
// informational.
func (c *revokeKey) stamp(at int64, _ bool) error { c.At = at; return nil }

func (c *rotateKey) stamp(at int64, sure bool) error {
	c.At = at
	if c.Grace > 0 && !sure {
		return keys.ErrNoTime
	}
	return nil
}

// stamped returns the command as the leader commits it. A command that cannot be
// decoded here is committed unchanged: every copy of the table refuses it.
func (c *Control) stamped(b []byte) ([]byte, error) {
	cmd, err := decodeCommand(b, max(c.State().Format, 1))
	t, ok := cmd.(timed)
	if ok && err == nil {
		at, sure := c.Now()
		if err := t.stamp(at.Unix(), sure); err != nil {
			return nil, err
		}
		return encodeCommand(t)
	}
	return b, nil
}
