// Package keys defines API keys: their format and hash, their roles and the
// rights of each role, and the changes in a key's life. All of it is pure: the
// control table applies the transitions of this package in the order in which
// Raft commits them, and every node checks requests against the result.
//
// Promised: a revocation and a rotation without grace are states, which hold
// whatever any clock shows; an expiry and a grace period are judged by the
// given time, and are undecided when the time is unknown.
//
// A raw key (steme_live_ or steme_test_ and 48 hex digits) is shown once, when
// it is minted. Everywhere else its BLAKE3-256 hash is used.
package keys

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/zeebo/blake3"
)

// Environments of a key: the middle part of its text. They name the intended
// use of a key and grant no rights.
const (
	Live = "live"
	Test = "test"
)

const (
	prefix    = "steme_"
	secretLen = 24 // random bytes: 192 bits
	rawLen    = len(prefix) + len(Live) + 1 + 2*secretLen
)

// Hash is the BLAKE3-256 of a raw key's text. It names the key everywhere and
// does not reveal it. Its text form is 64 lower-case hex digits.
type Hash [32]byte

// HashOf returns the hash that names the raw key.
func HashOf(raw string) Hash { return blake3.Sum256([]byte(raw)) }

// ParseHash reads the 64 hex digits of a hash; either case is accepted.
func ParseHash(text string) (Hash, error) {
	var h Hash
	err := h.UnmarshalText([]byte(text))
	return h, err
}

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText makes a Hash usable as a JSON string and as a JSON map key.
func (h Hash) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

// UnmarshalText is the inverse of MarshalText.
func (h *Hash) UnmarshalText(text []byte) error {
	if len(text) != 2*len(h) {
		return fmt.Errorf("a key hash has %d hex digits, not %d characters", 2*len(h), len(text))
	}
	if _, err := hex.Decode(h[:], text); err != nil {
		return fmt.Errorf("a key hash has only hex digits: %w", err)
	}
	return nil
}

// Generate mints a raw key for the environment (Live or Test) out of random,
// which is crypto/rand's reader when nil.
func Generate(environment string, random io.Reader) (string, error) {
	if environment != Live && environment != Test {
		return "", fmt.Errorf("a key's environment is %q or %q, not %q", Live, Test, environment)
	}
	if random == nil {
		random = rand.Reader
	}
	var secret [secretLen]byte
	if _, err := io.ReadFull(random, secret[:]); err != nil {
		return "", fmt.Errorf("draw a random key: %w", err)
	}
	return prefix + environment + "_" + hex.EncodeToString(secret[:]), nil
}

// ValidateRaw returns an error when the text is not a raw key. The error never
// contains the text, so that it can be logged.
func ValidateRaw(raw string) error {
	const shape = "a key is steme_live_ or steme_test_ followed by 48 lower-case hex digits"
	rest, ok := strings.CutPrefix(raw, prefix)
	if !ok {
		return fmt.Errorf("%s; this text does not begin with %q", shape, prefix)
	}
	environment, secret, ok := strings.Cut(rest, "_")
	if !ok || (environment != Live && environment != Test) {
		return fmt.Errorf("%s; this one's environment is neither", shape)
	}
	if len(secret) != 2*secretLen {
		return fmt.Errorf("%s; this one has %d characters there", shape, len(secret))
	}
	for _, c := range []byte(secret) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return fmt.Errorf("%s; this one has another character there", shape)
		}
	}
	return nil
}

// WellFormed is a cheap check of whether the text can be a raw key.
func WellFormed(raw string) bool { return len(raw) == rawLen && ValidateRaw(raw) == nil }

// Key is one API key as the control table holds it. Times are unix seconds of
// the table's time. The leader stamps a change before it commits it, so that
// all copies of the table are equal and no other member's clock matters.
type Key struct {
	Hash    Hash   `json:"hash"`
	Project string `json:"project"`
	Role    Role   `json:"role"`
	Label   string `json:"label,omitempty"`
	// Root marks the key that STEMEDB_ROOT_API_KEY seeded.
	Root bool `json:"root,omitempty"`

	CreatedAt int64 `json:"created_at"`
	// ExpiresAt ends the key at that second; 0 means never.
	ExpiresAt int64 `json:"expires_at,omitempty"`
	// Enabled can be turned off and on again by an operator.
	Enabled bool `json:"enabled"`
	// RevokedAt, once set, is never cleared: a revoked key stays in the table
	// so that registering its hash again cannot bring it back.
	RevokedAt int64 `json:"revoked_at,omitempty"`
	// RotatedTo names the successor; the key itself works until GraceUntil. A
	// GraceUntil of 0 is a rotation without grace: the key ended with the
	// rotation, whatever any clock shows.
	RotatedTo  *Hash `json:"rotated_to,omitempty"`
	GraceUntil int64 `json:"grace_until,omitempty"`

	// Version begins at 1 and grows by 1 with each change.
	Version uint64 `json:"version"`
}

// Reason says why a key does not work. The zero Reason means that it works.
type Reason string

// The reasons for which a known key is refused.
const (
	Usable   Reason = ""
	Disabled Reason = "disabled"
	Expired  Reason = "expired"
	Revoked  Reason = "revoked"
	Rotated  Reason = "rotated"
	// Undecided: the key has a time limit and the time is unknown.
	Undecided Reason = "undecided"
)

// Check returns why the key does not work at that time, or Usable when it
// works. The zero time means that the time is unknown; a key without a time
// limit does not need it.
func (k *Key) Check(now time.Time) Reason {
	switch {
	case k.RevokedAt != 0:
		return Revoked
	case k.RotatedTo != nil && k.GraceUntil == 0:
		return Rotated
	}
	limited := k.RotatedTo != nil || k.ExpiresAt != 0
	switch at := now.Unix(); {
	case limited && now.IsZero() && k.Enabled:
		return Undecided
	case k.RotatedTo != nil && at >= k.GraceUntil:
		return Rotated
	case k.ExpiresAt != 0 && at >= k.ExpiresAt:
		return Expired
	case !k.Enabled:
		return Disabled
	}
	return Usable
}
