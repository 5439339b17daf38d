package control

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/fxamacker/cbor/v2"

	"github.com/stemedb/stemedb/server/internal/keys"
)

// A command is what Raft's log carries: one byte with the format that it needs,
// one byte with its kind, the CRC32C of those two and of what follows (four
// bytes, big endian; these six bytes are the same in every format), and a CBOR
// map. The proposer makes the checksum and the leader checks it before it
// commits the command. From the first release on, a kind is never given another
// meaning, and no field is ever added to a kind: what has to differ gets a new
// kind and a new format. So a node either applies a command as its author meant
// it or knows that it cannot.
//
// Commands can be applied twice without harm, because a command is sent again
// when its answer is lost: either by their nature or by an op, a random name of
// the request that the table remembers.
type command interface {
	kind() byte
	// apply changes s, which is a copy, and answers. A refused command leaves
	// s as it was.
	apply(s *State) *result
}

// The kinds of commands.
const (
	kindFound       = 1
	kindAdmit       = 2
	kindLoss        = 3
	kindRefill      = 4
	kindClose       = 5
	kindCreateKey   = 6
	kindPatchKey    = 7
	kindRevokeKey   = 8
	kindRotateKey   = 9
	kindAcceptLoss  = 10
	kindCancel      = 11
	kindWithdraw    = 12
	kindLive        = 13
	commandPreamble = 2 + sealSize
)

// found begins the table. On a table that has begun it does nothing.
type found struct {
	ClusterID string   `cbor:"cluster_id"`
	Members   []Member `cbor:"members"`
	DigestKey [32]byte `cbor:"digest_key"`
}

// admit makes a node a member: it opens a join or a replacement. For a member
// it brings its addresses up to date.
type admit struct {
	Member Member `cbor:"member"`
	At     int64  `cbor:"at"`
}

// loss records that a member lost records; Loss names the report.
type loss struct {
	Member string `cbor:"member"`
	Loss   string `cbor:"loss"`
}

// acceptLoss is an operator's word that the records which a member lost, and which
// no whole member holds, are given up: the member counts as whole again. It is
// about the loss that was looked at, so that neither a repeated nor a late command
// accepts another one: Loss is that report, and Change, for a member that is not
// whole without a report of its own, the newest change that had been opened.
type acceptLoss struct {
	Member string `cbor:"member"`
	Loss   string `cbor:"loss"`
	Change uint64 `cbor:"change"`
}

// withdrawLoss takes a report of a loss back, if it is still the latest one: the
// member holds every record again, and has shown it by reading them.
type withdrawLoss struct {
	Member string `cbor:"member"`
	Loss   string `cbor:"loss"`
}

// live registers a start of a member, by the life that its WAL volume carries
// (see wal/life.go). Known are the lives that the volume lists. A member whose
// registered life is not among them has been rolled back: that is refused, and
// with RolledBack, once its log is prepared for it, noted as a loss.
type live struct {
	Member     string   `cbor:"member"`
	Known      []string `cbor:"known"`
	Now        string   `cbor:"now"`
	RolledBack bool     `cbor:"rolled_back"`
}

// refill opens the change that makes a member whole again.
type refill struct {
	Member string `cbor:"member"`
	At     int64  `cbor:"at"`
}

// closeChange ends the open change, if it is still that one at that generation.
type closeChange struct {
	Change     uint64   `cbor:"change"`
	Generation uint64   `cbor:"generation"`
	Whole      []string `cbor:"whole"` // ids of the new set that hold everything
}

// cancelChange ends the open change, if it is still that one, and leaves the
// members as they were before it. A leader that gives the change up names the
// generation at which it heard that its subject gets nowhere; since then the subject
// may be another one. An operator means the change, whatever has happened in it, and
// names no generation.
type cancelChange struct {
	Change     uint64 `cbor:"change"`
	Generation uint64 `cbor:"generation,omitempty"`
}

type createKey struct {
	Op  string   `cbor:"op"`
	Key keys.Key `cbor:"key"`
}

type patchKey struct {
	Op    string     `cbor:"op"`
	Hash  keys.Hash  `cbor:"hash"`
	Patch keys.Patch `cbor:"patch"`
}

type revokeKey struct {
	Hash keys.Hash `cbor:"hash"`
	At   int64     `cbor:"at"`
}

type rotateKey struct {
	Op        string    `cbor:"op"`
	Hash      keys.Hash `cbor:"hash"`
	Successor keys.Hash `cbor:"successor"`
	At        int64     `cbor:"at"`
	Grace     int64     `cbor:"grace"`
}

func (*found) kind() byte        { return kindFound }
func (*admit) kind() byte        { return kindAdmit }
func (*loss) kind() byte         { return kindLoss }
func (*refill) kind() byte       { return kindRefill }
func (*closeChange) kind() byte  { return kindClose }
func (*acceptLoss) kind() byte   { return kindAcceptLoss }
func (*withdrawLoss) kind() byte { return kindWithdraw }
func (*live) kind() byte         { return kindLive }
func (*cancelChange) kind() byte { return kindCancel }
func (*createKey) kind() byte    { return kindCreateKey }
func (*patchKey) kind() byte     { return kindPatchKey }
func (*revokeKey) kind() byte    { return kindRevokeKey }
func (*rotateKey) kind() byte    { return kindRotateKey }

func newCommand(kind byte) command {
	switch kind {
	case kindFound:
		return &found{}
	case kindAdmit:
		return &admit{}
	case kindLoss:
		return &loss{}
	case kindRefill:
		return &refill{}
	case kindClose:
		return &closeChange{}
	case kindAcceptLoss:
		return &acceptLoss{}
	case kindWithdraw:
		return &withdrawLoss{}
	case kindLive:
		return &live{}
	case kindCancel:
		return &cancelChange{}
	case kindCreateKey:
		return &createKey{}
	case kindPatchKey:
		return &patchKey{}
	case kindRevokeKey:
		return &revokeKey{}
	case kindRotateKey:
		return &rotateKey{}
	}
	return nil
}

// encodeCommand writes a command of format 1, the only one so far.
func encodeCommand(c command) ([]byte, error) {
	body, err := marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode a command of the control table: %w", err)
	}
	return sealCommand(1, c.kind(), body), nil
}

func sealCommand(format, kind byte, body []byte) []byte {
	head := []byte{format, kind}
	return slices.Concat(head, checksum(head, body), body)
}

// checkCommand finds out whether b is a command as its proposer made it.
func checkCommand(b []byte) error {
	if len(b) < commandPreamble || !bytes.Equal(b[2:commandPreamble], checksum(b[:2], b[commandPreamble:])) {
		return fmt.Errorf("a command of %d bytes %w", len(b), errDamaged)
	}
	return nil
}

// errFormat: the command needs a format that the cluster has not switched on.
var errFormat = errors.New("the command needs a newer format than the cluster uses")

// decodeCommand reads a command. allowed is the format that the cluster uses;
// what needs a newer one is refused by every node alike (errFormat). A command
// that is allowed but not known here means that this release is too old. One
// that is damaged (errDamaged) is refused: if it is damaged on one member only,
// the digests of the tables differ from then on.
func decodeCommand(b []byte, allowed int) (command, error) {
	if err := checkCommand(b); err != nil {
		return nil, err
	}
	if format := int(b[0]); format == 0 || format > allowed {
		return nil, fmt.Errorf("%w: %d, the cluster uses %d", errFormat, format, allowed)
	} else if format > Format {
		return nil, ErrTooOld
	}
	c := newCommand(b[1])
	if c == nil {
		return nil, fmt.Errorf("%w: kind %d of format %d is unknown", errFormat, b[1], b[0])
	}
	if err := unmarshal(b[commandPreamble:], c); err != nil {
		return nil, fmt.Errorf("%w: kind %d: %w", errFormat, b[1], err)
	}
	return c, nil
}

// result is what applying a command answers, also over the wire.
type result struct {
	// Error is the name of one of the errors below, empty for success.
	Error string `cbor:"error,omitempty"`
	// Detail says more for people.
	Detail  string    `cbor:"detail,omitempty"`
	Key     *keys.Key `cbor:"key,omitempty"`
	Fresh   *keys.Key `cbor:"fresh,omitempty"`
	Created bool      `cbor:"created,omitempty"`
}

// refusal is an error of a command that travels between nodes by its name.
type refusal struct {
	name string
	err  error
}

var (
	errUnformed  = errors.New("the cluster has not formed yet")
	errBusy      = errors.New("another change of members is open")
	errNotMember = errors.New("not a member of the cluster")
	errOutdated  = errors.New("the table has changed since")
	// errTooFewWhole: a join would find too few members to be filled from.
	errTooFewWhole = errors.New("too few members are whole for a cluster to grow")
	errRolledBack  = errors.New("the member's WAL volume is older than its last start")
)

func refusals() []refusal {
	return []refusal{
		{"not_found", keys.ErrNotFound},
		{"exists", keys.ErrExists},
		{"revoked", keys.ErrRevoked},
		{"version", keys.ErrVersion},
		{"rotated", keys.ErrRotated},
		{"no_time", keys.ErrNoTime},
		{"unformed", errUnformed},
		{"busy", errBusy},
		{"not_member", errNotMember},
		{"outdated", errOutdated},
		{"rolled_back", errRolledBack},
		{"too_few_whole", errTooFewWhole},
		{"loss_stands", ErrLossStands},
		{"format", errFormat},
		{"too_old", ErrTooOld},
		{"damaged", errDamaged},
	}
}

func refuse(err error) *result {
	r := &result{Error: "other", Detail: err.Error()}
	for _, known := range refusals() {
		if errors.Is(err, known.err) {
			r.Error = known.name
		}
	}
	return r
}

// err turns the named error back into one that errors.Is recognises.
func (r *result) err() error {
	if r.Error == "" {
		return nil
	}
	for _, known := range refusals() {
		if known.name != r.Error {
			continue
		}
		if r.Detail == "" || r.Detail == known.err.Error() {
			return known.err
		}
		return &detailed{text: r.Detail, err: known.err}
	}
	return errors.New(r.Detail)
}

type detailed struct {
	text string
	err  error
}

func (d *detailed) Error() string { return d.text }
func (d *detailed) Unwrap() error { return d.err }

// marshal writes deterministic CBOR, so that equal tables are equal bytes.
func marshal(v any) ([]byte, error) {
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		return nil, err
	}
	return mode.Marshal(v)
}

// unmarshal refuses fields that v does not have: they would be lost.
func unmarshal(b []byte, v any) error {
	mode, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		MaxArrayElements:  1 << 22,
		MaxMapPairs:       1 << 22,
	}.DecMode()
	if err != nil {
		return err
	}
	return mode.Unmarshal(b, v)
}
