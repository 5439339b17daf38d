package record

import (
	"bytes"
	"encoding/hex"
	"fmt"
)

// Hash is a BLAKE3-256: the id of a content or a vote, or a hash of a source.
type Hash [32]byte

// AgentID is an agent's Ed25519 public key.
type AgentID [32]byte

// ParseHash reads 64 hex digits.
func ParseHash(s string) (Hash, error) {
	var h Hash
	return h, decodeHex(h[:], []byte(s))
}

// String is the lower-case hex.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// IsZero reports whether h is all zeros, which is no record's id.
func (h Hash) IsZero() bool { return h == Hash{} }

// Compare orders hashes by their bytes: -1, 0 or 1.
func (h Hash) Compare(o Hash) int { return bytes.Compare(h[:], o[:]) }

// MarshalText returns the lower-case hex.
func (h Hash) MarshalText() ([]byte, error) { return h.AppendText(nil) }

// AppendText appends the lower-case hex.
func (h Hash) AppendText(dst []byte) ([]byte, error) { return hex.AppendEncode(dst, h[:]), nil }

// UnmarshalText reads 64 hex digits.
func (h *Hash) UnmarshalText(b []byte) error { return decodeHex(h[:], b) }

// String is the lower-case hex.
func (a AgentID) String() string { return hex.EncodeToString(a[:]) }

// Compare orders agents by their bytes: -1, 0 or 1.
func (a AgentID) Compare(o AgentID) int { return bytes.Compare(a[:], o[:]) }

// MarshalText returns the lower-case hex.
func (a AgentID) MarshalText() ([]byte, error) { return a.AppendText(nil) }

// AppendText appends the lower-case hex.
func (a AgentID) AppendText(dst []byte) ([]byte, error) { return hex.AppendEncode(dst, a[:]), nil }

// UnmarshalText reads 64 hex digits.
func (a *AgentID) UnmarshalText(b []byte) error { return decodeHex(a[:], b) }

// decodeHex fills dst exactly. Both cases of digits are read; the lower one is
// written.
func decodeHex(dst, src []byte) error {
	if len(src) != 2*len(dst) {
		return fmt.Errorf("has %d characters instead of %d hex digits", len(src), 2*len(dst))
	}
	if _, err := hex.Decode(dst, src); err != nil {
		return fmt.Errorf("is not hex of %d digits", 2*len(dst))
	}
	return nil
}
