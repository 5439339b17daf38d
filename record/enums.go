package record

import (
	"fmt"
	"strings"
)

// SourceClass is the kind of source that a claim rests on. The zero value means
// none and is invalid in a content.
type SourceClass uint8

// The source classes, in the order of their authority.
const (
	Regulatory SourceClass = iota + 1
	Clinical
	Observational
	Expert
	Community
	Anecdotal
)

var sourceClassNames = [...]string{"", "regulatory", "clinical", "observational", "expert", "community", "anecdotal"}

// SourceClasses lists the valid classes, highest authority first.
func SourceClasses() []SourceClass {
	return []SourceClass{Regulatory, Clinical, Observational, Expert, Community, Anecdotal}
}

// Valid reports whether c is one of the six classes.
func (c SourceClass) Valid() bool { return c >= Regulatory && c <= Anecdotal }

// Tier is 0 for regulatory to 5 for anecdotal. It is -1 for the zero value.
func (c SourceClass) Tier() int { return int(c) - 1 }

// String is the name on the wire, "" for the zero value.
func (c SourceClass) String() string { return nameOf(sourceClassNames[:], uint8(c)) }

// ParseSourceClass parses a wire name.
func ParseSourceClass(s string) (SourceClass, error) {
	c, err := valueOf(sourceClassNames[:], 1, s)
	return SourceClass(c), err
}

// MarshalText returns the name on the wire.
func (c SourceClass) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText parses a wire name.
func (c *SourceClass) UnmarshalText(b []byte) (err error) {
	*c, err = ParseSourceClass(string(b))
	return err
}

// Lifecycle is how far a claim has come. The zero value is Proposed, the
// default.
type Lifecycle uint8

// The stages.
const (
	Proposed Lifecycle = iota
	UnderReview
	Approved
	Deprecated
	Rejected
)

var lifecycleNames = [...]string{"proposed", "under_review", "approved", "deprecated", "rejected"}

// Lifecycles lists the stages.
func Lifecycles() []Lifecycle {
	return []Lifecycle{Proposed, UnderReview, Approved, Deprecated, Rejected}
}

// Valid reports whether l is one of the five stages.
func (l Lifecycle) Valid() bool { return l <= Rejected }

// String is the name on the wire.
func (l Lifecycle) String() string { return nameOf(lifecycleNames[:], uint8(l)) }

// ParseLifecycle parses a wire name.
func ParseLifecycle(s string) (Lifecycle, error) {
	l, err := valueOf(lifecycleNames[:], 0, s)
	return Lifecycle(l), err
}

// MarshalText returns the name on the wire.
func (l Lifecycle) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText parses a wire name.
func (l *Lifecycle) UnmarshalText(b []byte) (err error) {
	*l, err = ParseLifecycle(string(b))
	return err
}

// ObjectType is the tag of an object. The zero value means none and is invalid.
type ObjectType uint8

// The object types.
const (
	TypeText ObjectType = iota + 1
	TypeNumber
	TypeBoolean
	TypeReference
)

var objectTypeNames = [...]string{"", "text", "number", "boolean", "reference"}

// String is the name on the wire, "" for the zero value.
func (t ObjectType) String() string { return nameOf(objectTypeNames[:], uint8(t)) }

// ParseObjectType parses a wire name.
func ParseObjectType(s string) (ObjectType, error) {
	t, err := valueOf(objectTypeNames[:], 1, s)
	return ObjectType(t), err
}

// MarshalText returns the name on the wire.
func (t ObjectType) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText parses a wire name.
func (t *ObjectType) UnmarshalText(b []byte) (err error) {
	*t, err = ParseObjectType(string(b))
	return err
}

func nameOf(names []string, v uint8) string {
	if int(v) >= len(names) {
		return fmt.Sprintf("invalid(%d)", v)
	}
	return names[v]
}

// valueOf finds s among names[first:]; a comparison of a few short strings is
// faster than a map and allocates nothing.
func valueOf(names []string, first int, s string) (uint8, error) {
	for i := first; i < len(names); i++ {
		if names[i] == s {
			return uint8(i), nil
		}
	}
	return 0, fmt.Errorf("is not one of %s", strings.Join(names[first:], ", "))
}
