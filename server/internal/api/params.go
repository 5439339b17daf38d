package api

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/cluster"
	"github.com/stemedb/stemedb/server/internal/keys"
	"github.com/stemedb/stemedb/server/internal/lens"
)

// intParam reads a whole number within bounds.
func (c *call) intParam(name string, preset, low, high int) (int, error) {
	text, given := c.param(name)
	if !given {
		return preset, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < low || n > high {
		return 0, problem(record.CodeOutOfRange, name, fmt.Sprintf("%q is not a whole number from %d to %d", clip(text), low, high), "correct it or leave it out")
	}
	return n, nil
}

func (c *call) param(name string) (text string, given bool) {
	values := c.query[name]
	if len(values) == 0 {
		return "", false
	}
	return values[0], true
}

// nameParam reads a subject or a predicate by the rules of package record.
func (c *call) nameParam(name string, limit int, required bool) (string, error) {
	text, given := c.param(name)
	if !given {
		if required {
			return "", problem(record.CodeMissing, name, "the parameter "+name+" is missing", "give it")
		}
		return "", nil
	}
	switch {
	case text == "":
		return "", problem(record.CodeEmpty, name, "the parameter is empty", "give a value or leave it out")
	case len(text) > limit:
		return "", problem(record.CodeTooLong, name, fmt.Sprintf("the parameter has %d bytes", len(text)), fmt.Sprintf("give at most %d", limit))
	case !utf8.ValidString(text):
		return "", problem(record.CodeInvalidUTF8, name, "the parameter is not UTF-8", "percent-encode UTF-8")
	}
	return text, nil
}

func (c *call) consistency() (cluster.Consistency, error) {
	text, given := c.param("consistency")
	switch {
	case !given || text == "quorum":
		return cluster.Quorum, nil
	case text == "local":
		return cluster.Local, nil
	}
	return 0, problem(record.CodeInvalidValue, "consistency", strconv.Quote(clip(text))+" is not a consistency", "use quorum or local")
}

// scope lists the projects that a read covers, the caller's own first.
func (c *call) scope() ([]string, error) {
	text, given := c.param("scope")
	if !given {
		return []string{c.caller.project}, nil
	}
	var projects []string
	for part := range strings.SplitSeq(text, ",") {
		project := ""
		switch part {
		case "own":
			project = c.caller.project
		case "shared":
			project = keys.SharedProject
		default:
			return nil, problem(record.CodeInvalidValue, "scope", strconv.Quote(clip(part))+" is not a scope", "use own, shared or own,shared")
		}
		if !slices.Contains(projects, project) {
			projects = append(projects, project)
		}
	}
	return projects, nil
}

// claimQuery holds the parameters that all routes for claims share.
type claimQuery struct {
	subject, predicate string
	scope              []string
	consistency        cluster.Consistency
	asOf               uint64
	filter             lens.Filter
	params             lens.Params
	// unreadable are claims that the answer leaves out because they are damaged.
	unreadable []record.Hash
}

// defaultLifecycles are shown unless the caller names others.
func defaultLifecycles() []record.Lifecycle {
	return []record.Lifecycle{record.Approved, record.Proposed}
}

func (c *call) claimQuery(needPredicate bool) (q claimQuery, err error) {
	if q.subject, err = c.nameParam("subject", record.MaxSubject, true); err != nil {
		return q, err
	}
	if q.predicate, err = c.nameParam("predicate", record.MaxPredicate, needPredicate); err != nil {
		return q, err
	}
	if q.scope, err = c.scope(); err != nil {
		return q, err
	}
	if q.consistency, err = c.consistency(); err != nil {
		return q, err
	}
	if q.asOf, err = c.asOf(); err != nil {
		return q, err
	}
	if q.filter, err = c.filter(); err != nil {
		return q, err
	}
	if q.params.Now = q.asOf; q.asOf == 0 {
		now, _ := c.svc.keys.Now()
		q.params.Now = uint64(max(now.Unix(), 0))
	}
	return q, nil
}

func (c *call) asOf() (uint64, error) {
	text, given := c.param("as_of")
	if !given {
		return 0, nil
	}
	at, err := strconv.ParseUint(text, 10, 64)
	if err != nil || at == 0 || at > record.MaxTimestamp {
		return 0, problem(record.CodeOutOfRange, "as_of", strconv.Quote(clip(text))+" is not a time in unix seconds", "give unix seconds above 0, not milliseconds")
	}
	return at, nil
}

func (c *call) filter() (f lens.Filter, err error) {
	f.Lifecycles = defaultLifecycles()
	if text, given := c.param("lifecycle"); given {
		if f.Lifecycles, err = list(text, "lifecycle", record.ParseLifecycle); err != nil {
			return f, err
		}
	}
	if text, given := c.param("source_class"); given {
		if f.Classes, err = list(text, "source_class", record.ParseSourceClass); err != nil {
			return f, err
		}
	}
	if text, given := c.param("min_confidence"); given {
		f.MinConfidence, err = strconv.ParseFloat(text, 64)
		if err != nil || !(f.MinConfidence >= 0 && f.MinConfidence <= 1) {
			return f, problem(record.CodeOutOfRange, "min_confidence", strconv.Quote(clip(text))+" is not a number from 0 to 1", "correct it or leave it out")
		}
	}
	return f, nil
}

// list reads comma separated values of one kind.
func list[T any](text, name string, parse func(string) (T, error)) ([]T, error) {
	var out []T
	for part := range strings.SplitSeq(text, ",") {
		v, err := parse(part)
		if err != nil {
			return nil, problem(record.CodeInvalidValue, name, strconv.Quote(clip(part))+" "+err.Error(), "give one or more, separated by commas")
		}
		out = append(out, v)
	}
	return out, nil
}
