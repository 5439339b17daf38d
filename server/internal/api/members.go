package api

import (
	"errors"
	"net/http"
	"strconv"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/control"
)

// Operators' decisions about members.

// acceptLoss gives up, on an operator's request, the records that a member lost
// and the other members cannot restore. For a whole member it does nothing.
func (c *call) acceptLoss() error {
	return c.decided(c.svc.backend.AcceptLoss(c.ctx, c.params.ByName("name")))
}

// cancelChange ends the open change of members. It is idempotent.
func (c *call) cancelChange() error {
	open := c.svc.backend.Status().ChangeID
	if text, given := c.param("id"); given {
		id, err := strconv.ParseUint(text, 10, 64)
		if err != nil || id == 0 {
			return problem(record.CodeInvalidValue, "id", "it is not the number of a change", "take change_id from GET /v1/cluster/status, or leave it out")
		}
		if id != open {
			return noSuchChange()
		}
	}
	if open == 0 {
		return c.decided(nil)
	}
	return c.decided(c.svc.backend.CancelChange(c.ctx, open))
}

func noSuchChange() *Problem {
	return problem(codeNoSuchChange, "id", "that change of members is not open: it was closed or cancelled before", "look at change_id in GET /v1/cluster/status")
}

func noSuchMember() *Problem {
	return problem(codeNoSuchMember, "name", "the cluster has no member of that name", "take the name from GET /v1/cluster/status, such as stemedb-0")
}

// decided answers 204, or the problem when the decision was not made.
func (c *call) decided(err error) error {
	switch {
	case errors.Is(err, control.ErrNoSuchMember):
		return noSuchMember()
	case errors.Is(err, control.ErrLossStands):
		return problem(codeLossStands, "name", err.Error(), "look at GET /v1/cluster/status; a loss is accepted only when the whole members cannot restore the records")
	case errors.Is(err, control.ErrNoSuchChange):
		return noSuchChange()
	case err != nil:
		return keysFailed(err)
	}
	c.status = http.StatusNoContent
	return nil
}
