package control

import "github.com/stemedb/stemedb/server/internal/keys"

// timed is a command with a time in it. The leader stamps it with the table's
// time before it commits it; the proposer leaves the time out, for its clock is
// one member's. A command that is sent again is stamped again: its op, or its
// nature, keeps the first one.
type timed interface {
	command
	// stamp sets the time, in unix seconds. It refuses when a later decision
	// would go by that time and the time is not sure.
	stamp(at int64, sure bool) error
}

func (c *admit) stamp(at int64, _ bool) error  { c.At = at; return nil }
func (c *refill) stamp(at int64, _ bool) error { c.At = at; return nil }

func (c *createKey) stamp(at int64, _ bool) error { c.Key.CreatedAt = at; return nil }

// stamp never refuses a revocation, which is a state: its time is for people.
func (c *revokeKey) stamp(at int64, _ bool) error { c.At = at; return nil }

func (c *rotateKey) stamp(at int64, sure bool) error {
	c.At = at
	if c.Grace > 0 && !sure {
		return keys.ErrNoTime
	}
	return nil
}

// stamped returns the command as the leader commits it. A command that cannot be
// read here goes through as it is: every copy of the table refuses it alike.
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
