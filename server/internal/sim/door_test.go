package sim

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/stemedb/stemedb/client"
	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/cluster"
	"github.com/stemedb/stemedb/server/internal/lens"
	"github.com/stemedb/stemedb/server/internal/store"
)

// door is a way to access the cluster. Reads are quorum reads; an absent record
// is known{} and not an error.
type door interface {
	assert(ctx context.Context, project string, as []*record.Assertion) []error
	vote(ctx context.Context, project string, v *record.Vote) error
	get(ctx context.Context, project string, id record.Hash) (known, error)
	subjects(ctx context.Context, project string) ([]string, error)
}

// passes reports whether an error is the temporary error that faults may cause.
func passes(err error) bool {
	return errors.Is(err, cluster.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) || client.IsTemporary(err)
}

// direct calls a node inside its process, behind the API.
type direct struct{ c *cluster.Cluster }

func (d direct) assert(ctx context.Context, project string, as []*record.Assertion) []error {
	errs := make([]error, len(as))
	for i, res := range d.c.Assert(ctx, project, as) {
		errs[i] = res.Err
	}
	return errs
}

func (d direct) vote(ctx context.Context, project string, v *record.Vote) error {
	return d.c.Vote(ctx, project, v).Err
}

func (d direct) get(ctx context.Context, project string, id record.Hash) (known, error) {
	s, err := d.c.Get(ctx, project, id, cluster.Quorum)
	if errors.Is(err, store.ErrNotFound) {
		return known{}, nil
	}
	if err != nil {
		return known{}, err
	}
	return shownByRecord(s), nil
}

func (d direct) subjects(ctx context.Context, project string) ([]string, error) {
	return d.c.Subjects(ctx, project, subjectPrefix, "", 1000, cluster.Quorum)
}

// claims reads all claims of a subject and predicate.
func (d direct) claims(ctx context.Context, project, subject, predicate string) (map[record.Hash]*lens.Claim, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // releases the snapshot
	source, err := d.c.Claims(ctx, store.ClaimQuery{Project: project, Subject: subject, Predicate: predicate}, cluster.Quorum)
	if err != nil {
		return nil, err
	}
	found := map[record.Hash]*lens.Claim{}
	for claim, err := range source(nil) {
		if err != nil {
			return nil, err
		}
		found[claim.ID] = &claim.Claim
	}
	return found, nil
}

// gateway calls a node's gateway over HTTP with the key of one project.
type gateway struct{ c *client.Client }

func (g gateway) assert(ctx context.Context, _ string, as []*record.Assertion) []error {
	errs := make([]error, len(as))
	if len(as) == 1 {
		_, errs[0] = g.c.Assert(ctx, as[0])
		return errs
	}
	results, _ := g.c.AssertBatch(ctx, as)
	for i := range results {
		errs[i] = results[i].Err
	}
	return errs
}

func (g gateway) vote(ctx context.Context, _ string, v *record.Vote) error {
	_, err := g.c.Vote(ctx, v)
	return err
}

func (g gateway) get(ctx context.Context, _ string, id record.Hash) (known, error) {
	r, err := g.c.Get(ctx, id)
	if client.IsNotFound(err) {
		return known{}, nil
	}
	if err != nil {
		return known{}, err
	}
	return shownByRecord(&store.Stored{Signatures: r.Signatures, Votes: r.Votes}), nil
}

func (g gateway) subjects(ctx context.Context, _ string) ([]string, error) {
	page, err := g.c.Subjects(ctx, subjectPrefix, "", 1000)
	if err != nil {
		return nil, err
	}
	return page.Subjects, nil
}

// visitor is a host outside the cluster that sends HTTP requests.
type visitor struct {
	w    *world
	http *http.Client
}

func (w *world) newVisitor(name string) *visitor {
	proc := w.net.Host(name).Start()
	return &visitor{w: w, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
			defer cancel()
			return proc.Dial(ctx, addr)
		},
		// A connection that a fault broke is noticed by its next request.
		IdleConnTimeout: 5 * time.Second,
	}}}
}

// gateway returns the door of one machine for a key. Nothing is retried, so that
// each answer is the cluster's first.
func (v *visitor) gateway(m *machine, key string) gateway {
	c, err := client.New("http://"+m.name+":18181", key, client.WithHTTPClient(v.http), client.WithRetries(), client.WithTimeout(10*time.Second))
	if err != nil {
		v.w.t.Fatal(err)
	}
	return gateway{c}
}

func (v *visitor) leave() { v.http.CloseIdleConnections() }
