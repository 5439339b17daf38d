package api

import (
	"errors"
	"fmt"
	"slices"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/cluster"
	"github.com/stemedb/stemedb/server/internal/store"
)

// Damaged claims
//
// A claim whose content cannot be read on any member does not spoil its subject:
// the answer leaves it out, names it, and carries the header X-Stemedb-Incomplete.
// With consistency=local the same goes for a claim that only other members hold
// intact and did not give.

// omitted is the part of an answer that names the claims left out.
type omitted struct {
	// UnreadableClaims match the query and are left out because their content is
	// damaged; at most namedClaims of them.
	UnreadableClaims []record.Hash `json:"unreadable_claims,omitempty"`
}

const namedClaims = 1000

// shows reports whether a claim belongs into the answer.
func (q *claimQuery) shows(claim *store.Claim) bool {
	if !q.filter.Match(&claim.Claim) {
		return false
	}
	if claim.Unreadable {
		q.omit(claim)
	}
	return !claim.Unreadable
}

// omit notes that a claim is left out. A claim may be met several times.
func (q *claimQuery) omit(claim *store.Claim) {
	if len(q.unreadable) < namedClaims && !slices.Contains(q.unreadable, claim.ID) {
		q.unreadable = append(q.unreadable, claim.ID)
	}
}

func (c *call) showOmitted(q *claimQuery, into *omitted) {
	if len(q.unreadable) == 0 {
		return
	}
	into.UnreadableClaims = q.unreadable
	c.header(headerIncomplete, fmt.Sprintf("%d damaged claims are left out; unreadable_claims names them", len(q.unreadable)))
}

// damageTries bounds how often one request meets damage that was unknown before.
const damageTries = 16

// withoutDamage runs a read again when a lens chose a claim whose content turned
// out to be damaged: from then on the damage is known, and the claim is left out.
func withoutDamage(read func(*call) error) func(*call) error {
	return func(c *call) (err error) {
		for range damageTries {
			var found *foundDamage
			if err = read(c); !errors.As(err, &found) {
				return err
			}
		}
		return err
	}
}

// foundDamage is the error of a content that turned out to be damaged.
type foundDamage struct{ error }

func (e *foundDamage) Unwrap() error { return e.error }

// content reads the content of a claim.
func (c *call) content(claim *store.Claim) (*record.Content, error) {
	content, err := c.svc.backend.Content(c.ctx, claim)
	if cluster.IsDamage(err) {
		err = &foundDamage{err}
	}
	return content, err
}
