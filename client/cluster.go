package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// ClusterStatus is the cluster as the answering node sees it. Without a key
// that may see more, Detail is "reduced" and only the counts are set.
type ClusterStatus struct {
	Detail      string   `json:"detail"` // full or reduced
	Because     string   `json:"because"`
	Generation  uint64   `json:"generation"`
	Ready       bool     `json:"ready"`
	Change      string   `json:"change"` // of members, while one is open
	ChangeID    uint64   `json:"change_id"`
	WriteQuorum bool     `json:"write_quorum"`
	ReadQuorum  bool     `json:"read_quorum"`
	TimeSure    bool     `json:"time_sure"` // a majority of the members' clocks agree
	ClusterID   string   `json:"cluster_id"`
	Node        string   `json:"node"`
	Leader      string   `json:"leader"`
	Reason      string   `json:"reason"` // why it is not ready
	Members     []Member `json:"members"`
	WaitsFor    []string `json:"waits_for"`

	MemberCount int  `json:"member_count"`
	AliveCount  int  `json:"alive_count"`
	WholeCount  int  `json:"whole_count"`
	LeaderKnown bool `json:"leader_known"`

	// JSON is the server's answer.
	JSON []byte `json:"-"`
}

// Member is one member of the cluster.
type Member struct {
	Name        string    `json:"name"`
	Incarnation string    `json:"incarnation"`
	Self        bool      `json:"self"`
	Alive       bool      `json:"alive"`
	Whole       bool      `json:"whole"`
	Connected   bool      `json:"connected"`
	LagBytes    int64     `json:"lag_bytes"` // -1: unknown
	LastHeard   time.Time `json:"last_heard"`
	// ClockSkew is the member's clock minus the cluster's time, in seconds; nil:
	// unknown.
	ClockSkew *float64 `json:"clock_skew_seconds"`
	PeerAddr  string   `json:"peer_addr"`
	APIAddr   string   `json:"api_addr"`
}

// ClusterStatus returns a node's view of the cluster. The counts are also set
// when the members are listed.
func (c *Client) ClusterStatus(ctx context.Context) (*ClusterStatus, error) {
	var raw jsontext.Value
	if err := c.get(ctx, "/v1/cluster/status", nil, &raw); err != nil {
		return nil, err
	}
	out := ClusterStatus{JSON: raw}
	if err := decode(raw, &out); err != nil {
		return nil, err
	}
	if len(out.Members) > 0 {
		out.MemberCount, out.AliveCount, out.WholeCount = len(out.Members), 0, 0
		out.LeaderKnown = out.Leader != ""
		for _, m := range out.Members {
			if m.Alive {
				out.AliveCount++
			}
			if m.Whole {
				out.WholeCount++
			}
		}
	}
	return &out, nil
}

// Probe is a question about one node's health.
type Probe string

// The probes.
const (
	Summary Probe = ""         // the health summary, with reasons for an operator
	Live    Probe = "/live"    // the process answers
	Ready   Probe = "/ready"   // it serves reads and writes
	Startup Probe = "/startup" // it has started
)

// Health asks the node that answers. A negative answer is an *Error with status 503.
func (c *Client) Health(ctx context.Context, probe Probe) (status string, err error) {
	var out struct {
		Status string `json:"status"`
	}
	err = c.get(ctx, "/v1/health"+string(probe), nil, &out)
	return out.Status, err
}

// AcceptLoss gives up the records that a member lost and no whole member holds. It is
// never retried, so that it cannot accept a loss that happened in between.
func (c *Client) AcceptLoss(ctx context.Context, member string) error {
	return c.sendOnce(ctx, http.MethodPost, "/v1/admin/members/"+url.PathEscape(member)+"/accept-loss", nil, nil)
}

// CancelChange cancels a change of members by its number (ClusterStatus.ChangeID); 0 is
// whichever change is open. It is never retried, so that it cannot cancel the next one.
func (c *Client) CancelChange(ctx context.Context, id uint64) error {
	r := request{method: http.MethodDelete, path: "/v1/admin/change"}
	if id != 0 {
		r.query = url.Values{"id": {strconv.FormatUint(id, 10)}}
	}
	once := *c
	once.delays = nil
	_, err := once.call(ctx, r, nil)
	return err
}
