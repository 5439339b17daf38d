package cluster

import (
	"time"

	"github.com/stemedb/stemedb/record"
)

// Consistency selects the records that a read has to see.
type Consistency uint8

const (
	// Quorum sees every write that was acknowledged before.
	Quorum Consistency = iota
	// Local sees the records of this node only.
	Local
)

func (c Consistency) String() string {
	if c == Local {
		return "local"
	}
	return "quorum"
}

// WriteResult is the outcome for one record.
type WriteResult struct {
	// ID is the id of the content, or of the vote; set whenever the record
	// could be encoded.
	ID record.Hash
	// Created is false when the whole record was held already.
	Created bool
	// Err is nil when the record is durable on a majority. A *record.FieldError
	// means that the record is invalid, an *UnavailableError that it has to be sent
	// again.
	Err error
}

// Status is the cluster as this node sees it.
type Status struct {
	ClusterID  string         `json:"cluster_id"`
	Generation uint64         `json:"generation"`
	Node       string         `json:"node"`
	Leader     string         `json:"leader,omitempty"` // of the control table
	Ready      bool           `json:"ready"`
	Reason     string         `json:"reason,omitempty"` // why it is not ready
	Members    []MemberStatus `json:"members"`
	// Troubles lists conditions of this node that need an operator.
	Troubles []Trouble `json:"troubles,omitempty"`
	// Change is the kind of the open change of members, WaitsFor the leader's latest
	// report of the conditions that keep it open.
	Change   string   `json:"change,omitempty"`
	ChangeID uint64   `json:"change_id,omitempty"`
	WaitsFor []string `json:"waits_for,omitempty"`
	// WriteQuorum and ReadQuorum report whether enough members are alive. This node
	// counts in reads only when it is ready.
	WriteQuorum bool `json:"write_quorum"`
	ReadQuorum  bool `json:"read_quorum"`
	// TimeSure: a majority of the members' clocks agree on the time, and this
	// node knows it.
	TimeSure bool `json:"time_sure"`
}

// Trouble is one condition of a node; Code is one of Reasons.
type Trouble struct {
	Code   string `json:"code"`
	Detail string `json:"detail"`
	Remedy string `json:"remedy"`
	Volume string `json:"volume,omitempty"` // "wal" or "packs", as the metrics name it
}

// MemberStatus is one member as seen from this node.
type MemberStatus struct {
	Name        string `json:"name"`
	Incarnation string `json:"incarnation"`
	Self        bool   `json:"self,omitempty"`
	Alive       bool   `json:"alive"`
	Whole       bool   `json:"whole"`
	// Connected reports whether an open stream carries writes to it.
	Connected bool `json:"connected"`
	// LagBytes is how much of that member's log this node has not pulled yet: -1
	// when the member has not answered since this node started, 0 for self.
	LagBytes int64 `json:"lag_bytes"`
	// LastHeard is the time of its last answer to a pull; zero if there was none.
	LastHeard time.Time `json:"last_heard,omitzero"`
	// ClockSkew is the member's clock minus the cluster's time, in seconds; nil when
	// unknown.
	ClockSkew *float64 `json:"clock_skew_seconds,omitempty"`
	PeerAddr  string   `json:"peer_addr,omitempty"`
	APIAddr   string   `json:"api_addr,omitempty"`
}
