package sim

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/lens"
	"github.com/stemedb/stemedb/server/internal/store"
)

// history records the cluster's answers about its records. A record that was
// acknowledged, or shown by a quorum read, has to be in every quorum read that
// begins later, even if its write was refused.
type history struct {
	mu      sync.Mutex
	began   time.Time
	all     []*entry // in the order of the first attempt
	byKey   map[entryKey]*entry
	wrong   []string // violations
	acked   int      // acknowledged writes
	refused int      // writes refused or timed out, which is not a violation
	reads   int      // quorum reads that were answered and checked
	unread  int      // quorum reads that were refused
}

type entryKey struct {
	project string
	id      record.Hash
}

// entry is one attempted record and its known state.
type entry struct {
	entryKey
	content record.Content
	known   known
}

// known is the part of a record that later reads have to show.
type known struct {
	content bool
	agents  map[record.AgentID]bool
	votes   map[record.AgentID]uint64 // time of each agent's newest vote
}

func newHistory() *history {
	return &history{began: time.Now(), byKey: map[entryKey]*entry{}}
}

// attempt records that a record is about to be written.
func (h *history) attempt(project string, a *record.Assertion) *entry {
	h.mu.Lock()
	defer h.mu.Unlock()
	key := entryKey{project, a.ID()}
	e := h.byKey[key]
	if e == nil {
		e = &entry{entryKey: key, content: a.Content, known: known{agents: map[record.AgentID]bool{}, votes: map[record.AgentID]uint64{}}}
		h.byKey[key], h.all = e, append(h.all, e)
	}
	return e
}

// some returns a random attempted record, or nil. The newest are the most likely
// to be missed, so it chooses among those half of the time.
func (h *history) some(r *rand.Rand) *entry {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch n := len(h.all); {
	case n == 0:
		return nil
	case r.IntN(2) == 0:
		return h.all[n-1-r.IntN(min(n, 8))]
	default:
		return h.all[r.IntN(n)]
	}
}

// expected returns a copy of the records that a read that begins now has to show.
func (h *history) expected(e *entry) known {
	h.mu.Lock()
	defer h.mu.Unlock()
	return e.known.clone()
}

func (k *known) clone() known {
	c := known{content: k.content, agents: map[record.AgentID]bool{}, votes: map[record.AgentID]uint64{}}
	c.add(*k)
	return c
}

func (k *known) add(o known) {
	k.content = k.content || o.content
	for a := range o.agents {
		k.agents[a] = true
	}
	for a, at := range o.votes {
		k.votes[a] = max(k.votes[a], at)
	}
}

// missing names a part of k that shown lacks, or returns "".
func (k *known) missing(shown known) string {
	if k.content && !shown.content {
		return "the record"
	}
	if !shown.content {
		return "" // votes without their record are not shown
	}
	for a := range k.agents {
		if !shown.agents[a] {
			return fmt.Sprintf("the signature of %x", a[:4])
		}
	}
	for a, at := range k.votes {
		if shown.votes[a] < at {
			return fmt.Sprintf("the vote of %x from %d (its newest is from %d)", a[:4], at, shown.votes[a])
		}
	}
	return ""
}

func shownByRecord(s *store.Stored) known {
	k := known{content: true, agents: map[record.AgentID]bool{}, votes: map[record.AgentID]uint64{}}
	for i := range s.Signatures {
		k.agents[s.Signatures[i].Agent] = true
	}
	for i := range s.Votes {
		k.votes[s.Votes[i].Agent] = s.Votes[i].Timestamp
	}
	return k
}

func shownByClaim(c *lens.Claim) known {
	k := known{content: true, agents: map[record.AgentID]bool{}, votes: map[record.AgentID]uint64{}}
	for _, a := range c.Agents {
		k.agents[a] = true
	}
	for i := range c.Votes {
		k.votes[c.Votes[i].Agent] = c.Votes[i].Timestamp
	}
	return k
}

// write records the outcome of a write.
func (h *history) write(e *entry, facts known, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil {
		h.acked++
		e.known.add(facts)
		return
	}
	h.refused++
	if !passes(err) {
		h.violation("the write of a valid record was answered: %v", err)
	}
}

// read compares the answer of a quorum read with the records that it had to show,
// and records its content.
func (h *history) read(by string, e *entry, want, shown known, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case err != nil && passes(err):
		h.unread++
		return
	case err != nil:
		h.violation("%s: a quorum read of %s failed: %v", by, e.id, err)
		return
	}
	h.reads++
	if lack := want.missing(shown); lack != "" {
		h.violation("%s: a quorum read of %s misses %s", by, e.id, lack)
	}
	e.known.add(shown)
}

// violation records a broken promise; mu is held.
func (h *history) violation(format string, args ...any) {
	h.wrong = append(h.wrong, fmt.Sprintf("%.3fs: ", time.Since(h.began).Seconds())+fmt.Sprintf(format, args...))
}

// fail records a broken promise found by another check.
func (h *history) fail(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.violation(format, args...)
}

// group lists the records with one subject and predicate, and the part of each
// that a read that begins now has to show.
func (h *history) group(project, subject, predicate string) (all []*entry, want []known) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.all {
		if e.project == project && e.content.Subject == subject && e.content.Predicate == predicate {
			all, want = append(all, e), append(want, e.known.clone())
		}
	}
	return all, want
}

// subjects returns the subjects of a project that a listing has to show now.
func (h *history) subjects(project string) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []string
	for _, e := range h.all {
		if e.project == project && e.known.content {
			all = append(all, e.content.Subject)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// counts are the requests so far: successful and refused.
func (h *history) counts() (answered, refused int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.acked + h.reads, h.refused + h.unread
}

// missingAt lists the required records that a node by itself does not hold.
func (h *history) missingAt(m *machine) (missing []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.all {
		if !e.known.content && len(e.known.votes) == 0 {
			continue
		}
		s, err := m.node.Store().Assertion(e.project, e.id)
		shown := known{}
		switch {
		case errors.Is(err, store.ErrNotFound):
		case err != nil:
			missing = append(missing, fmt.Sprintf("%s cannot read %s: %v", m.name, e.id, err))
			continue
		default:
			shown = shownByRecord(s)
		}
		if lack := e.known.missing(shown); lack != "" {
			missing = append(missing, fmt.Sprintf("%s lacks %s of %s", m.name, lack, e.id))
		}
	}
	return missing
}
