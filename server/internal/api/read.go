package api

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"iter"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/cluster"
	"github.com/stemedb/stemedb/server/internal/lens"
	"github.com/stemedb/stemedb/server/internal/store"
)

const (
	defaultPage = 100
	maxPage     = 1000
	// pageBytes ends a page early when its claims, or its winners, are large.
	pageBytes = 4 << 20
	// pageScan ends a page early when the filter passes few claims, so that no
	// page of a hot subject takes unbounded time.
	pageScan = 20_000
	// maxAnswers bounds the number of a subject's predicates that a lens answers
	// on one page.
	maxAnswers = 100
)

type assertionBody struct {
	Hash    string `json:"hash"`
	Project string `json:"project"`
	*record.Content
	EffectiveLifecycle record.Lifecycle   `json:"effective_lifecycle"`
	Signatures         []record.Signature `json:"signatures"`
	Votes              []record.Vote      `json:"votes"`
	// Partial: there are more signatures, or votes, than are shown.
	Partial     bool   `json:"partial,omitempty"`
	Consistency string `json:"consistency"`
}

// Sizes of a signature and a vote in JSON, rounded up.
const (
	signatureText = 256
	voteText      = 480
)

// getAssertion shows one record with its signatures and the newest vote of each
// agent.
func (c *call) getAssertion() error {
	began := time.Now()
	id, err := c.hashParam("hash")
	if err != nil {
		return err
	}
	consistency, err := c.consistency()
	if err != nil {
		return err
	}
	scope, err := c.scope()
	if err != nil {
		return err
	}
	var stored *store.Stored
	for _, project := range scope {
		stored, err = c.svc.backend.Get(c.ctx, project, id, consistency)
		if !errors.Is(err, store.ErrNotFound) {
			break
		}
	}
	if err != nil {
		return err
	}
	body := assertionBody{
		Hash: stored.ID.String(), Project: stored.Project, Content: stored.Content, EffectiveLifecycle: stored.Lifecycle,
		Signatures: stored.Signatures, Votes: stored.Votes, Partial: stored.Partial, Consistency: consistency.String(),
	}
	space := memory{call: c}
	defer space.leave()
	if err := space.show(signatureText*len(body.Signatures) + voteText*len(body.Votes)); err != nil {
		return err
	}
	if body.Signatures == nil {
		body.Signatures = []record.Signature{}
	}
	if body.Votes == nil {
		body.Votes = []record.Vote{}
	}
	c.api.meters.queried("assertion", began)
	return c.json(http.StatusOK, body)
}

// queryBody is a page of claims, or of a lens's answers.
type queryBody struct {
	Subject     string            `json:"subject"`
	Predicate   string            `json:"predicate,omitempty"`
	Lens        string            `json:"lens,omitempty"`
	Consistency string            `json:"consistency"`
	AsOf        uint64            `json:"as_of,omitempty"`
	Answers     []answerBody      `json:"answers,omitzero"`
	Claims      []json.RawMessage `json:"claims,omitzero"`
	Cursor      string            `json:"cursor,omitempty"`
	omitted
}

// answerBody is a lens's answer for one predicate.
type answerBody struct {
	Predicate string          `json:"predicate"`
	Winner    json.RawMessage `json:"winner"` // a claimBody; null when no value has support
	Why       lens.Why        `json:"why"`
}

// runQuery lists claims or, with a lens, draws an answer for each predicate.
func (c *call) runQuery() error {
	began := time.Now()
	q, err := c.claimQuery(false)
	if err != nil {
		return err
	}
	body := queryBody{Subject: q.subject, Predicate: q.predicate, Consistency: q.consistency.String(), AsOf: q.asOf}
	name, withLens := c.param("lens")
	if withLens {
		body.Lens = name
		err = c.answers(&q, name, &body)
	} else {
		err = c.list(&q, &body)
	}
	if err != nil {
		return err
	}
	c.showOmitted(&q, &body.omitted)
	c.api.meters.queried("query", began)
	return c.json(http.StatusOK, body)
}

// list fills a page of claims.
func (c *call) list(q *claimQuery, body *queryBody) error {
	limit, err := c.intParam("limit", defaultPage, 1, maxPage)
	if err != nil {
		return err
	}
	after, err := c.claimCursor()
	if err != nil {
		return err
	}
	claims, err := c.claims(q)
	if err != nil {
		return err
	}
	body.Claims = []json.RawMessage{}
	space := memory{call: c}
	defer space.leave()
	var last *store.Claim
	scanned := 0
	for claim, err := range claims(after) {
		if err != nil {
			return err
		}
		if len(body.Claims) == limit || scanned == pageScan || space.full() {
			body.Cursor = c.writeCursor(claimPlace(last))
			return nil
		}
		scanned, last = scanned+1, claim
		if !q.shows(claim) {
			continue
		}
		text, err := space.text(claim)
		if cluster.MayOmit(err, q.consistency) {
			q.omit(claim)
			continue
		}
		if err != nil {
			return err
		}
		body.Claims = append(body.Claims, text)
	}
	return nil
}

// answers runs the lens on each predicate in turn.
func (c *call) answers(q *claimQuery, name string, body *queryBody) error {
	l, known := lens.Get[*store.Claim](name)
	if !known {
		return problem(record.CodeInvalidValue, "lens", strconv.Quote(clip(name))+" is not a lens", "use one of "+strings.Join(lens.Names(), ", ")+"; skeptic and layered are separate routes")
	}
	limit, err := c.intParam("limit", maxAnswers, 1, maxAnswers)
	if err != nil {
		return err
	}
	place, err := c.readCursor(0)
	if err != nil {
		return err
	}
	var after *store.ClaimCursor
	if place != nil {
		after = endOf(string(place))
	}
	space := memory{call: c}
	defer space.leave()
	q.params.Hold = space.hold
	body.Answers = []answerBody{}
	claims, err := c.claims(q)
	if err != nil {
		return err
	}
	for predicate, group := range byPredicate(claims, after) {
		if n := len(body.Answers); n == limit || space.full() {
			body.Cursor = c.writeCursor([]byte(body.Answers[n-1].Predicate))
			return nil
		}
		src := source{query: q}
		answer, err := l(src.feed(group), q.params)
		if err := cmp.Or(src.err, err); err != nil {
			return err
		}
		space.empty()
		if !src.passed {
			continue
		}
		winner, err := space.winner(answer.Winner)
		if err != nil {
			return err
		}
		body.Answers = append(body.Answers, answerBody{Predicate: predicate, Winner: winner, Why: answer.Why})
	}
	return nil
}

// byPredicate yields the claims after the given place in one sequence for each
// predicate. Claims that a consumer leaves unread are not read: the source is
// queried again for the claims after them. An error is passed to the sequence
// in which it occurs.
func byPredicate(claims cluster.ClaimSource, after *store.ClaimCursor) iter.Seq2[string, iter.Seq2[*store.Claim, error]] {
	return func(yield func(string, iter.Seq2[*store.Claim, error]) bool) {
		for {
			if after = eachPredicate(claims(after), yield); after == nil {
				return
			}
		}
	}
}

// eachPredicate yields sequences until the consumer stops (nil), or has left
// one unread: then it returns the end of that one.
func eachPredicate(claims iter.Seq2[*store.Claim, error], yield func(string, iter.Seq2[*store.Claim, error]) bool) (left *store.ClaimCursor) {
	next, stop := iter.Pull2(claims)
	defer stop()
	claim, err, ok := next()
	for ok {
		predicate := ""
		if claim != nil {
			predicate = claim.Predicate
		}
		group := func(yield func(*store.Claim, error) bool) {
			for ok && (err != nil || claim.Predicate == predicate) {
				c, e := claim, err
				claim, err, ok = next()
				if !yield(c, e) || e != nil {
					return
				}
			}
		}
		if !yield(predicate, group) {
			return nil
		}
		if ok && err == nil && claim.Predicate == predicate {
			return endOf(predicate)
		}
	}
	return nil
}

// endOf is a place after the oldest possible claim of a predicate.
func endOf(predicate string) *store.ClaimCursor { return &store.ClaimCursor{Predicate: predicate} }

// A claim's place in a cursor: timestamp u64 | id 32 | predicate.
func claimPlace(claim *store.Claim) []byte {
	place := binary.BigEndian.AppendUint64(nil, claim.Timestamp)
	place = append(place, claim.ID[:]...)
	return append(place, claim.Predicate...)
}

func (c *call) claimCursor() (*store.ClaimCursor, error) {
	place, err := c.readCursor(0)
	if err != nil || place == nil {
		return nil, err
	}
	if len(place) < 8+32 {
		return nil, problem(codeInvalidCursor, "cursor", "the text is not a cursor", "leave it out to start over")
	}
	return &store.ClaimCursor{
		Timestamp: binary.BigEndian.Uint64(place), ID: record.Hash(place[8:40]), Predicate: string(place[40:]),
	}, nil
}

type subjectsBody struct {
	Prefix      string   `json:"prefix"`
	Subjects    []string `json:"subjects"`
	Consistency string   `json:"consistency"`
	Cursor      string   `json:"cursor,omitempty"`
}

// subjects lists the subjects below a path.
func (c *call) subjects() error {
	began := time.Now()
	prefix, err := c.nameParam("prefix", record.MaxSubject, false)
	if err != nil {
		return err
	}
	limit, err := c.intParam("limit", defaultPage, 1, maxPage)
	if err != nil {
		return err
	}
	scope, err := c.scope()
	if err != nil {
		return err
	}
	consistency, err := c.consistency()
	if err != nil {
		return err
	}
	place, err := c.readCursor(0)
	if err != nil {
		return err
	}
	body := subjectsBody{Prefix: prefix, Subjects: []string{}, Consistency: consistency.String()}
	for _, project := range scope {
		more, err := c.svc.backend.Subjects(c.ctx, project, prefix, string(place), limit+1, consistency)
		if err != nil {
			return err
		}
		body.Subjects = append(body.Subjects, more...)
	}
	slices.Sort(body.Subjects)
	body.Subjects = slices.Compact(body.Subjects)
	if len(body.Subjects) > limit {
		body.Subjects = body.Subjects[:limit]
		body.Cursor = c.writeCursor([]byte(body.Subjects[limit-1]))
	}
	c.api.meters.queried("subjects", began)
	return c.json(http.StatusOK, body)
}
