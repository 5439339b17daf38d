package keys

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxLabel is the longest label in bytes.
const MaxLabel = 128

// MaxGrace is the longest time, in seconds, that a rotated key lives on: 30 days.
const MaxGrace = 30 * 24 * 3600

// SharedProject is the space that all projects read. Only admin keys belong to
// it and write to it.
const SharedProject = "shared"

// Errors of the transitions. The control table returns them to the caller
// through the node that took the request: they are compared with errors.Is on
// the node that applied the change, and sent by name between nodes.
var (
	ErrNotFound = errors.New("no key has this hash")
	// ErrExists: the hash is registered with another project, role or expiry.
	ErrExists = errors.New("a key with this hash is registered with other fields")
	// ErrRevoked: the key was revoked, which cannot be undone.
	ErrRevoked = errors.New("the key is revoked")
	// ErrVersion: the key changed since the caller read it.
	ErrVersion = errors.New("the key has changed since it was read")
	// ErrRotated: the key was rotated already; its successor can be rotated.
	ErrRotated = errors.New("the key was rotated before")
	// ErrNoTime: the change sets a time limit and the time is unknown.
	ErrNoTime = errors.New("no majority of the members' clocks agree on the time")
)

// ValidateLabel refuses a label that cannot be shown in a table or a log line.
func ValidateLabel(label string) error {
	if len(label) > MaxLabel {
		return fmt.Errorf("a label has at most %d bytes, this one has %d", MaxLabel, len(label))
	}
	if !utf8.ValidString(label) || strings.IndexFunc(label, unicode.IsControl) >= 0 {
		return errors.New("a label is UTF-8 text without control characters")
	}
	return nil
}

// Register registers a key whose hash may be held already. It returns the key
// that the table holds afterwards and whether that key is new. It is
// idempotent, so that provisioning can be repeated.
func Register(held *Key, fresh Key) (after Key, created bool, err error) {
	if held == nil {
		fresh.Version = 1
		return fresh, true, nil
	}
	switch {
	case held.RevokedAt != 0:
		return *held, false, ErrRevoked
	case held.Project != fresh.Project, held.Role != fresh.Role, held.ExpiresAt != fresh.ExpiresAt:
		return *held, false, ErrExists
	}
	return *held, false, nil
}

// Patch is a change of a key's mutable fields; nil leaves a field as it is.
type Patch struct {
	// Version is the version that the caller saw.
	Version   uint64  `json:"version"`
	Label     *string `json:"label,omitempty"`
	Role      *Role   `json:"role,omitempty"`
	Enabled   *bool   `json:"enabled,omitempty"`
	ExpiresAt *int64  `json:"expires_at,omitempty"` // 0 removes the expiry
}

// Patched returns the key after the patch.
func (k Key) Patched(p Patch) (Key, error) {
	switch {
	case k.RevokedAt != 0:
		return k, ErrRevoked
	case k.Version != p.Version:
		return k, ErrVersion
	}
	if p.Label != nil {
		k.Label = *p.Label
	}
	if p.Role != nil {
		k.Role = *p.Role
	}
	if p.Enabled != nil {
		k.Enabled = *p.Enabled
	}
	if p.ExpiresAt != nil {
		k.ExpiresAt = *p.ExpiresAt
	}
	k.Version++
	return k, nil
}

// RevokedNow returns the key revoked at that unix second. Revoking twice keeps
// the first time and is not an error. A time at or before the epoch revokes as
// well as any other.
func (k Key) RevokedNow(now int64) Key {
	if k.RevokedAt != 0 {
		return k
	}
	k.RevokedAt = max(now, 1)
	k.Version++
	return k
}

// Rotate hands the key's project, role, label and expiry to a successor with
// the hash. The old key works for grace more seconds (0..MaxGrace); without
// grace it ends with the rotation, whatever the time is.
func (k Key) Rotate(successor Hash, now, grace int64) (old, fresh Key, err error) {
	switch {
	case k.RevokedAt != 0:
		return k, Key{}, ErrRevoked
	case k.RotatedTo != nil:
		return k, Key{}, ErrRotated
	}
	fresh = Key{
		Hash: successor, Project: k.Project, Role: k.Role, Label: k.Label,
		CreatedAt: now, ExpiresAt: k.ExpiresAt, Enabled: k.Enabled, Version: 1,
	}
	k.RotatedTo = &successor
	if k.GraceUntil = 0; grace > 0 {
		k.GraceUntil = max(now+grace, 1)
	}
	k.Version++
	return k, fresh, nil
}
