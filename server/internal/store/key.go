package store

import (
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/stemedb/stemedb/record"
)

// Kind is the type of an item. It is the kind of its entry in the log.
type Kind uint8

// Kinds. The numbers are part of the disk and wire formats.
const (
	KindContent   Kind = 1
	KindSignature Kind = 2
	KindVote      Kind = 3
	// KindCursor records how much of a peer's log this node has applied. It never
	// leaves the node.
	KindCursor Kind = 4
	// KindReset drops every cursor: it is written after a part of the log was
	// found lost, so that everything is fetched again. It never leaves the node.
	KindReset Kind = 5
)

func (k Kind) String() string {
	switch k {
	case KindContent:
		return "content"
	case KindSignature:
		return "signature"
	case KindVote:
		return "vote"
	case KindCursor:
		return "cursor"
	case KindReset:
		return "reset"
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// Record distinguishes the kinds of users' records, which travel between nodes,
// from a node's own notes.
func (k Kind) Record() bool { return k >= KindContent && k <= KindVote }

// Key identifies an item. Two items with one key are the same item. Keys are
// comparable; fields that a kind does not use are zero.
type Key struct {
	Kind Kind
	// Project owns the record. For a cursor it is the peer's incarnation.
	Project string
	// ID is the id of the content that the item is, signs or votes on.
	ID record.Hash
	// Agent signed or voted.
	Agent record.AgentID
	// Vote is the vote's own id.
	Vote record.Hash
}

func (k Key) String() string {
	s := k.Kind.String() + " " + k.Project
	if k.Kind.Record() {
		s += "/" + k.ID.String()
	}
	if k.Kind == KindSignature || k.Kind == KindVote {
		s += " agent " + hex.EncodeToString(k.Agent[:8])
	}
	if k.Kind == KindVote {
		s += " vote " + hex.EncodeToString(k.Vote[:8])
	}
	return s
}

// AppendBinary appends the key's bytes, which are self-delimiting:
//
//	content    kind u8 | len u8 | project | id 32
//	signature  kind u8 | len u8 | project | id 32 | agent 32
//	vote       kind u8 | len u8 | project | id 32 | agent 32 | vote id 32
//	cursor     kind u8 | len u8 | incarnation
//	reset      kind u8 | 0
func (k Key) AppendBinary(dst []byte) ([]byte, error) {
	if len(k.Project) > 255 {
		return dst, fmt.Errorf("key of project %.32q…: name of %d bytes", k.Project, len(k.Project))
	}
	return k.append(dst), nil
}

func (k *Key) append(dst []byte) []byte {
	dst = append(dst, byte(k.Kind), byte(len(k.Project)))
	dst = append(dst, k.Project...)
	if !k.Kind.Record() {
		return dst
	}
	dst = append(dst, k.ID[:]...)
	if k.Kind >= KindSignature {
		dst = append(dst, k.Agent[:]...)
	}
	if k.Kind == KindVote {
		dst = append(dst, k.Vote[:]...)
	}
	return dst
}

// ParseKey reads a key written by AppendBinary and returns the bytes after it.
func ParseKey(b []byte) (Key, []byte, error) {
	if len(b) < 2 || len(b) < 2+int(b[1]) {
		return Key{}, nil, errors.New("key: cut short")
	}
	k := Key{Kind: Kind(b[0]), Project: string(b[2 : 2+int(b[1])])}
	b = b[2+len(k.Project):]
	parts := [][]byte{k.ID[:], k.Agent[:], k.Vote[:]}
	switch k.Kind {
	case KindContent:
		parts = parts[:1]
	case KindSignature:
		parts = parts[:2]
	case KindVote:
	case KindCursor, KindReset:
		parts = nil
	default:
		return Key{}, nil, fmt.Errorf("key: unknown kind %d", k.Kind)
	}
	for _, p := range parts {
		if len(b) < len(p) {
			return Key{}, nil, errors.New("key: cut short")
		}
		b = b[copy(p, b):]
	}
	return k, b, nil
}

// CursorKey is the key of the cursor of a peer's incarnation.
func CursorKey(incarnation string) Key { return Key{Kind: KindCursor, Project: incarnation} }
