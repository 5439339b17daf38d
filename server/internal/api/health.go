package api

import (
	"bytes"
	_ "embed"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/common/expfmt"

	"github.com/stemedb/stemedb/server/internal/cluster"
	"github.com/stemedb/stemedb/server/internal/keys"
)

//go:embed openapi.json
var openapiJSON []byte

// notReady says why this node should not receive requests, nil when it should.
func (a *API) notReady() *Problem {
	s := a.services.Load()
	if s == nil {
		return a.startingProblem()
	}
	if a.draining.Load() {
		return problem(cluster.CodeClosed, "", "the node is shutting down", "use another node").retry(retrySoon)
	}
	if err := s.backend.Ready(); err != nil {
		p := asProblem(err)
		if p.Code == codeInternal {
			p = problem(codeNotReady, "", err.Error(), "use another node; GET /v1/cluster/status shows the reason")
		}
		return p.retry(retryAfter(p.RetryAfter))
	}
	return nil
}

// healthBody is the summary of a node that can serve.
type healthBody struct {
	Status  string `json:"status"`
	Node    string `json:"node"`
	Version string `json:"version,omitempty"`
	Auth    bool   `json:"auth"`
	Uptime  int64  `json:"uptime_seconds"`
	// Reasons says why the status is degraded.
	Reasons []cluster.Trouble `json:"reasons,omitempty"`
}

// health is a summary: 200 when the node can serve, otherwise the problem. Both
// list every reason that an operator should know.
func (c *call) health() error {
	if p := c.api.notReady(); p != nil {
		if c.svc != nil {
			p.Reasons = c.svc.backend.Status().Troubles
		}
		return p
	}
	body := healthBody{
		Status: "ok", Node: c.api.opts.Node, Version: c.api.opts.Version, Auth: c.api.opts.Auth,
		Uptime: int64(time.Since(c.api.began).Seconds()), Reasons: c.svc.backend.Status().Troubles,
	}
	if len(body.Reasons) > 0 {
		body.Status = "degraded"
	}
	return c.json(http.StatusOK, body)
}

type statusBody struct {
	Status string `json:"status"`
}

// live reports that the process works. It ignores the node's data, because a
// restart does not help a node that waits for others.
func (c *call) live() error { return c.json(http.StatusOK, statusBody{"live"}) }

// ready reports whether the node should receive requests.
func (c *call) ready() error {
	if p := c.api.notReady(); p != nil {
		return p
	}
	return c.json(http.StatusOK, statusBody{"ready"})
}

// rebuildBody is the progress of a rebuild of the index.
type rebuildBody struct {
	Status   string    `json:"status"` // "rebuilding"
	Progress *Progress `json:"progress"`
}

// startup reports whether log and index are open and, until then, the progress.
// It covers only the log's tail: a rebuild of the index does not count as a
// hanging start.
func (c *call) startup() error {
	if c.svc == nil {
		if p := c.api.progress.Load(); p != nil && p.Rebuild {
			return c.json(http.StatusOK, rebuildBody{"rebuilding", p})
		}
		return c.api.startingProblem()
	}
	return c.json(http.StatusOK, statusBody{"started"})
}

// reducedStatus is the public part of the cluster's status: counts and states.
type reducedStatus struct {
	Detail     string `json:"detail"` // "reduced"
	Because    string `json:"because,omitempty"`
	Generation uint64 `json:"generation"`
	Members    int    `json:"member_count"`
	Alive      int    `json:"alive_count"`
	Whole      int    `json:"whole_count"`
	Leader     bool   `json:"leader_known"`
	Ready      bool   `json:"ready"`
	Change     string `json:"change,omitempty"`
	WriteOK    bool   `json:"write_quorum"`
	ReadOK     bool   `json:"read_quorum"`
	TimeSure   bool   `json:"time_sure"`
}

type fullStatus struct {
	Detail string `json:"detail"` // "full"
	cluster.Status
}

// clusterStatus shows members to callers with a key and counts to all others.
// It also answers when keys cannot be checked, because that is when operators
// look at it.
func (c *call) clusterStatus() error {
	status := c.svc.backend.Status()
	why := c.maybeIdentify()
	if c.caller.known && c.caller.role.Allows(keys.Observe) {
		return c.json(http.StatusOK, fullStatus{Detail: "full", Status: status})
	}
	reduced := reducedStatus{
		Detail: "reduced", Because: why, Generation: status.Generation, Members: len(status.Members),
		Leader: status.Leader != "", Ready: status.Ready, Change: status.Change,
		WriteOK: status.WriteQuorum, ReadOK: status.ReadQuorum, TimeSure: status.TimeSure,
	}
	for _, m := range status.Members {
		if m.Alive {
			reduced.Alive++
		}
		if m.Whole {
			reduced.Whole++
		}
	}
	return c.json(http.StatusOK, reduced)
}

// metrics shows the node's metrics in the Prometheus text format.
func (c *call) metrics() error {
	families, err := c.api.opts.Gatherer.Gather()
	if err != nil && len(families) == 0 {
		return fmt.Errorf("gather the metrics: %w", err)
	}
	format := expfmt.NewFormat(expfmt.TypeTextPlain)
	out := bytes.NewBuffer(c.out[:0])
	encoder := expfmt.NewEncoder(out, format)
	for _, family := range families {
		if err := encoder.Encode(family); err != nil {
			return fmt.Errorf("encode the metric %s: %w", family.GetName(), err)
		}
	}
	c.status, c.contentType, c.out = http.StatusOK, string(format), out.Bytes()
	return nil
}

// openapi is the machine-readable description of this API.
func (c *call) openapi() error {
	c.status, c.contentType = http.StatusOK, mediaJSON
	c.header("Cache-Control", "max-age=300")
	c.out = append(c.out[:0], openapiJSON...)
	return nil
}

type whoamiBody struct {
	Auth      bool   `json:"auth"`
	Project   string `json:"project"`
	Role      string `json:"role"`
	Label     string `json:"label,omitempty"`
	Hash      string `json:"hash,omitempty"`
	ExpiresAt int64  `json:"expires_at,omitempty"`
	// GraceUntil is set when the key was rotated.
	GraceUntil int64 `json:"grace_until,omitempty"`
}

// whoami shows the rights and limits of the caller's key.
func (c *call) whoami() error {
	body := whoamiBody{Auth: c.api.opts.Auth, Project: c.caller.project, Role: string(c.caller.role)}
	if k := c.caller.key; k != nil {
		body.Label, body.Hash, body.ExpiresAt, body.GraceUntil = k.Label, k.Hash.String(), k.ExpiresAt, k.GraceUntil
	}
	return c.json(http.StatusOK, body)
}
