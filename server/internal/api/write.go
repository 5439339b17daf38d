package api

import (
	"errors"
	"net/http"
	"strings"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/cluster"
)

const (
	statusCreated = "created"
	statusExists  = "exists"
	statusFailed  = "failed"
)

// assert makes one assertion durable on a majority.
func (c *call) assert() error {
	if err := c.needBody(); err != nil {
		return err
	}
	a, err := parseAssertion(c.mediaType, c.body)
	if err != nil {
		return err
	}
	results := c.svc.backend.Assert(c.permitted(), c.caller.project, []*record.Assertion{a})
	if len(results) != 1 {
		return errors.New("the cluster returned the wrong number of results for one assertion")
	}
	if results[0].Err == nil {
		c.api.meters.ingested.Inc()
	}
	return c.written(results[0])
}

func parseAssertion(mediaType string, body []byte) (*record.Assertion, error) {
	if mediaType == record.MediaCBOR || mediaType == record.MediaCBORSeq {
		return record.ParseAssertionCBOR(body)
	}
	return record.ParseAssertionJSON(body)
}

// vote makes one vote durable on a majority.
func (c *call) vote() error {
	if err := c.needBody(); err != nil {
		return err
	}
	parse := record.ParseVoteJSON
	if c.mediaType == record.MediaCBOR {
		parse = record.ParseVoteCBOR
	}
	v, err := parse(c.body)
	if err != nil {
		return err
	}
	return c.written(c.svc.backend.Vote(c.permitted(), c.caller.project, v))
}

func (c *call) needBody() error {
	if len(c.body) > 0 {
		return nil
	}
	return problem(record.CodeEmpty, "", "the body is empty", "send a record as "+strings.Join(c.route.media, " or "))
}

// written answers for one record. The answer is built by hand, because this is
// the hottest path.
func (c *call) written(r cluster.WriteResult) error {
	if r.Err != nil {
		return r.Err
	}
	c.status, c.contentType = http.StatusOK, mediaJSON
	status := statusExists
	if r.Created {
		c.status, status = http.StatusCreated, statusCreated
	}
	out := append(c.out[:0], `{"hash":"`...)
	out, _ = r.ID.AppendText(out) // never fails
	out = append(out, `","status":"`...)
	out = append(out, status...)
	c.out = append(out, "\"}\n"...)
	return nil
}

// itemResult is the result of one record of a batch.
type itemResult struct {
	Index  int          `json:"index"`
	Hash   string       `json:"hash,omitempty"`
	Status string       `json:"status"`
	Error  *problemBody `json:"error,omitempty"`
}

type batchBody struct {
	Created int          `json:"created"`
	Exists  int          `json:"exists"`
	Failed  int          `json:"failed"`
	Results []itemResult `json:"results"`
}

// assertBatch makes up to 1,000 assertions durable. Each gets its own result;
// one bad item does not affect the others. A body that cannot be split into
// items is refused as a whole, before any item is written.
func (c *call) assertBatch() error {
	if err := c.needBody(); err != nil {
		return err
	}
	var (
		good     []*record.Assertion
		places   []int // of good, in the batch
		problems = map[int]*Problem{}
		total    int
	)
	for item, err := range record.BatchItems(c.mediaType, c.body) {
		if err != nil {
			return batchProblem(err)
		}
		a, err := parseAssertion(c.mediaType, item)
		if err != nil {
			problems[total] = asProblem(err)
		} else {
			good, places = append(good, a), append(places, total)
		}
		total++
	}
	var results []cluster.WriteResult
	if len(good) > 0 {
		results = c.svc.backend.Assert(c.permitted(), c.caller.project, good)
		if c.refused != nil {
			return c.refused
		}
		if len(results) != len(good) {
			return errors.New("the cluster returned the wrong number of results for a batch")
		}
	}
	if p := noneTried(results); p != nil {
		return p
	}
	return c.json(http.StatusOK, c.batchAnswer(total, results, places, problems))
}

// batchProblem is the problem of a batch that could not be split into items.
// Its size is a fault of the body, not of a field.
func batchProblem(err error) error {
	p := asProblem(err)
	if p.Code == record.CodeTooMany && p.Field == "" {
		p.Status = http.StatusRequestEntityTooLarge
	}
	return p
}

// noneTried is the common problem of a batch when the node could write none of
// its valid items now. The batch is then answered like a single record, so that
// callers and the gateway know from the status that they should retry it.
func noneTried(results []cluster.WriteResult) *Problem {
	var first *Problem
	for _, r := range results {
		if r.Err == nil {
			return nil
		}
		p := asProblem(r.Err)
		if p.Status < http.StatusInternalServerError {
			continue
		}
		if first != nil && first.Code != p.Code {
			return nil
		}
		if first == nil {
			first = p
		}
	}
	return first
}

func (c *call) batchAnswer(total int, results []cluster.WriteResult, places []int, problems map[int]*Problem) batchBody {
	answer := batchBody{Results: make([]itemResult, total)}
	for i := range answer.Results {
		answer.Results[i].Index = i
	}
	for i, r := range results {
		item := &answer.Results[places[i]]
		if !r.ID.IsZero() {
			item.Hash = r.ID.String()
		}
		switch {
		case r.Err != nil:
			problems[places[i]] = asProblem(r.Err)
		case r.Created:
			item.Status = statusCreated
			answer.Created++
		default:
			item.Status = statusExists
			answer.Exists++
		}
	}
	for i, p := range problems {
		body := p.body("", "")
		answer.Results[i].Status, answer.Results[i].Error = statusFailed, &body
		answer.Failed++
	}
	c.api.meters.ingested.Add(float64(answer.Created + answer.Exists))
	return answer
}
