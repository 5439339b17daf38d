package record

import "fmt"

// Vote is one agent's opinion on an assertion. Of an agent's votes on one
// assertion the newest (timestamp, then id) counts.
type Vote struct {
	Assertion Hash     `json:"assertion"` // id of the content
	Agent     AgentID  `json:"agent"`
	Weight    float64  `json:"weight"`    // -1 (against) .. 1 (for)
	Timestamp uint64   `json:"timestamp"` // unix seconds, 0..MaxTimestamp
	Sig       SigBytes `json:"signature"`
}

// Validate checks every rule that needs neither a clock nor a key. Its errors
// are *FieldErrors.
func (v *Vote) Validate() error {
	if !(v.Weight >= -1 && v.Weight <= 1) {
		return fieldErr("weight", CodeOutOfRange, fmt.Sprintf("is %v", v.Weight), "give a number from -1 (against) to 1 (for)")
	}
	return checkTimestamp(v.Timestamp)
}

// Newer reports whether v supersedes o. Both are votes of one agent on one
// assertion.
func (v *Vote) Newer(o *Vote) bool {
	if v.Timestamp != o.Timestamp {
		return v.Timestamp > o.Timestamp
	}
	return v.ID().Compare(o.ID()) > 0
}
