package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// The entries of the log. The kind of an entry is the Kind; integers are
// big-endian; "name" is a length byte followed by that many bytes.
//
//	content    project name | canonical bytes of the content, to the end
//	signature  project name | id 32 | agent 32 | signature 64
//	vote       project name | canonical bytes of the vote | signature 64
//	cursor     incarnation name | position 8, optionally followed by the witness of that
//	           log: opening number 8, opening id 8, end 8 (wal.Witness)
//	reset      reason, text to the end
//
// The same bytes travel between nodes. The payload determines its key: ids are
// computed, never stored, so a payload cannot be taken for another.

// Item is one entry of the log with its key. Make it with NewContent,
// NewSignature, NewVote, NewCursor or ParseItem.
type Item struct {
	Key     Key
	Kind    Kind
	Payload []byte

	// The parsed payload, for the index. Not changed once set.
	parsed  bool
	content *record.Content
	vote    *record.Vote
	cursor  wal.Position
	witness wal.Witness
}

// NewContent makes the item of a content that Validate accepts; id is its id.
// The content must not be changed afterwards.
func NewContent(project record.ProjectName, id record.Hash, c *record.Content) Item {
	payload := appendName(make([]byte, 0, 512), project)
	return Item{
		Key:     Key{Kind: KindContent, Project: project, ID: id},
		Kind:    KindContent,
		parsed:  true,
		Payload: c.AppendCanonical(payload),
		content: c,
	}
}

// NewSignature makes the item of a signature on id.
func NewSignature(project record.ProjectName, id record.Hash, s record.Signature) Item {
	payload := appendName(make([]byte, 0, 1+len(project)+32+32+64), project)
	payload = append(payload, id[:]...)
	payload = append(payload, s.Agent[:]...)
	return Item{
		Key:     Key{Kind: KindSignature, Project: project, ID: id, Agent: s.Agent},
		Kind:    KindSignature,
		parsed:  true,
		Payload: append(payload, s.Sig[:]...),
	}
}

// NewVote makes the item of a vote, which must not be changed afterwards.
func NewVote(project record.ProjectName, v *record.Vote) Item {
	payload := v.AppendCanonical(appendName(make([]byte, 0, 256), project))
	return Item{
		Key:     Key{Kind: KindVote, Project: project, ID: v.Assertion, Agent: v.Agent, Vote: v.ID()},
		Kind:    KindVote,
		parsed:  true,
		Payload: append(payload, v.Sig[:]...),
		vote:    v,
	}
}

// NewCursor records that this node holds everything before pos in the peer's
// log once the Put that contains the cursor is durable.
func NewCursor(incarnation string, pos wal.Position) Item {
	payload := appendName(make([]byte, 0, 1+len(incarnation)+8), incarnation)
	return Item{
		Key:     CursorKey(incarnation),
		Kind:    KindCursor,
		parsed:  true,
		Payload: binary.BigEndian.AppendUint64(payload, uint64(pos)),
		cursor:  pos,
	}
}

// NewWitnessedCursor is NewCursor together with a witness of that log.
func NewWitnessedCursor(incarnation string, pos wal.Position, w wal.Witness) Item {
	it := NewCursor(incarnation, pos)
	if w != (wal.Witness{}) {
		it.Payload, it.witness = appendWitness(it.Payload, w), w
	}
	return it
}

const witnessSize = 24

func appendWitness(dst []byte, w wal.Witness) []byte {
	dst = binary.BigEndian.AppendUint64(dst, w.Opening.Number)
	dst = binary.BigEndian.AppendUint64(dst, w.Opening.ID)
	return binary.BigEndian.AppendUint64(dst, uint64(w.End))
}

// readCursor reads a position and the optional witness after it.
func readCursor(b []byte) (pos wal.Position, w wal.Witness, err error) {
	if len(b) != 8 && len(b) != 8+witnessSize {
		return 0, w, fmt.Errorf("%d bytes of position", len(b))
	}
	if len(b) > 8 {
		w.Opening = wal.Opening{Number: binary.BigEndian.Uint64(b[8:]), ID: binary.BigEndian.Uint64(b[16:])}
		w.End = wal.Position(binary.BigEndian.Uint64(b[24:]))
	}
	return wal.Position(binary.BigEndian.Uint64(b)), w, nil
}

func newReset(reason string) Item {
	return Item{Key: Key{Kind: KindReset}, Kind: KindReset, Payload: []byte(reason), parsed: true}
}

// ParseItem reads a payload from a log, this node's or a peer's, and checks
// everything but its signature. The item aliases payload.
func ParseItem(kind Kind, payload []byte) (Item, error) {
	it := Item{Key: Key{Kind: kind}, Kind: kind, Payload: payload, parsed: true}
	if kind == KindReset {
		return it, nil
	}
	name, rest, err := cutName(payload)
	if err != nil {
		return Item{}, fmt.Errorf("%v entry: %w", kind, err)
	}
	it.Key.Project = name
	switch kind {
	case KindContent:
		err = it.parseContent(rest)
	case KindSignature:
		err = it.parseSignature(rest)
	case KindVote:
		err = it.parseVote(rest)
	case KindCursor:
		it.cursor, it.witness, err = readCursor(rest)
	default:
		err = errors.New("unknown kind")
	}
	if err == nil && kind.Record() {
		err = record.ValidProject(name)
	}
	if err != nil {
		return Item{}, fmt.Errorf("%v entry: %w", kind, err)
	}
	return it, nil
}

func (it *Item) parseContent(rest []byte) error {
	c, err := record.DecodeCanonical(rest)
	if err != nil {
		return err
	}
	it.content = c
	it.Key.ID = record.HashOf(rest)
	return nil
}

func (it *Item) parseSignature(rest []byte) error {
	if len(rest) != 32+32+64 {
		return fmt.Errorf("%d bytes after the project instead of 128", len(rest))
	}
	copy(it.Key.ID[:], rest)
	copy(it.Key.Agent[:], rest[32:])
	return nil
}

func (it *Item) parseVote(rest []byte) error {
	if len(rest) < 64 {
		return errors.New("cut short")
	}
	body := rest[:len(rest)-64]
	v, err := record.DecodeCanonicalVote(body)
	if err != nil {
		return err
	}
	copy(v.Sig[:], rest[len(body):])
	it.vote = v
	it.Key.ID, it.Key.Agent, it.Key.Vote = v.Assertion, v.Agent, record.HashOf(body)
	return nil
}

// Content is the content of a content item, nil otherwise. Do not change it.
func (it *Item) Content() *record.Content { return it.content }

// Vote is the vote of a vote item, nil otherwise. Do not change it.
func (it *Item) Vote() *record.Vote { return it.vote }

// Signature is the signature of a signature item.
func (it *Item) Signature() (record.Signature, bool) {
	if it.Kind != KindSignature || len(it.Payload) < 64 {
		return record.Signature{}, false
	}
	s := record.Signature{Agent: it.Key.Agent}
	copy(s.Sig[:], it.Payload[len(it.Payload)-64:])
	return s, true
}

// Signed is the signature that the item is or has: that of a signature on its content,
// that of a vote on itself. A content has none.
func (it *Item) Signed() (record.SignedItem, bool) {
	if it.vote != nil {
		return it.vote.Signed(), true
	}
	sig, ok := it.Signature()
	return record.SignedItem{Agent: sig.Agent, Sig: sig.Sig, ID: it.Key.ID}, ok
}

// complete parses an item that was assembled by hand.
func (it *Item) complete() error {
	if it.parsed {
		return nil
	}
	parsed, err := ParseItem(it.Kind, it.Payload)
	if err != nil {
		return err
	}
	if it.Key != parsed.Key {
		return fmt.Errorf("%v entry: the key says %v, the payload %v", it.Kind, it.Key, parsed.Key)
	}
	*it = parsed
	return nil
}

func appendName(dst []byte, name string) []byte {
	dst = append(dst, byte(len(name)))
	return append(dst, name...)
}

func cutName(b []byte) (name string, rest []byte, err error) {
	if len(b) == 0 || len(b) < 1+int(b[0]) {
		return "", nil, errors.New("cut short")
	}
	n := 1 + int(b[0])
	return string(b[1:n]), b[n:], nil
}

func appendFloat(dst []byte, f float64) []byte {
	return binary.BigEndian.AppendUint64(dst, math.Float64bits(f))
}

func readFloat(b []byte) float64 { return math.Float64frombits(binary.BigEndian.Uint64(b)) }
