package control

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/fxamacker/cbor/v2"

	"github.com/stemedb/stemedb/server/internal/keys"
)

// A command is the payload of an entry in Raft's log: one byte with the format
// that it needs, one byte with its kind, the CRC32C of those two and of the rest
// (four bytes, big endian; these six bytes are the same in every format), and a
// CBOR map. The proposer computes the checksum and the leader verifies it before
// it commits the command. From the first release on, neither the meaning nor the
// fields of a kind change: a different command gets a new kind and a new format.
// So a node either applies a command as intended or knows that it cannot.
//
// Commands are idempotent, because a command is sent again when its answer is
// lost: either by nature or by an op, a random name of the request that the table
// remembers.
type command interface {
	kind() byte
	// apply changes s, which is a copy, and returns the answer. A refused command
	// leaves s unchanged.
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

// found initializes the table. On an initialized table it does nothing.
type found struct {
	ClusterID string   `cbor:"cluster_id"`
	Members   []Member `cbor:"members"`
	DigestKey [32]byte `cbor:"digest_key"`
}

// admit makes a node a member: it opens a join or a replacement. For a member it
// updates the addresses.
type admit struct {
	Member Member `cbor:"member"`
	At     int64  `cbor:"at"`
}

// loss records that a member lost records; Loss names the report.
type loss struct {
	Member string `cbor:"member"`
	Loss   string `cbor:"loss"`
}

// acceptLoss is an operator's decision to give up the records that a member lost
// and that no whole member holds: the member counts as whole again. It identifies
// the loss that was reviewed, so that neither a repeated nor a late command
// accepts another one: Loss is that report, and Change, for a member that is not
// whole without a report, is the newest change opened by then.
type acceptLoss struct {
	Member string `cbor:"member"`
	Loss   string `cbor:"loss"`
	Change uint64 `cbor:"change"`
}

// withdrawLoss withdraws a report of a loss if it is still the latest one: the
// member has read every record again.
type withdrawLoss struct {
	Member string `cbor:"member"`
	Loss   string `cbor:"loss"`
}

// live registers a start of a member by the life on its WAL volume (see
// wal/life.go). Known are the lives that the volume lists. A member whose
// registered life is not among them has been rolled back: the command is refused,
// or, with RolledBack (once the member's log is prepared for it), recorded as a
// loss.
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
	Whole      []string `cbor:"whole"` // ids of the members of the new set that hold everything
}

// cancelChange ends the open change, if it is still that one, and leaves the
// members as they were before it. A leader that abandons the change gives the
// generation at which it found that the subject makes no progress, because the
// subject may have changed since then. An operator cancels the change in any
// state and gives no generation.
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

// checkCommand verifies the checksum of a command.
func checkCommand(b []byte) error {
	if len(b) < commandPreamble || !bytes.Equal(b[2:commandPreamble], checksum(b[:2], b[commandPreamble:])) {
		return fmt.Errorf("a command of %d bytes %w", len(b), errDamaged)
	}
	return nil
}

// errFormat: the command needs a format that the cluster has not enabled.
var errFormat = errors.New("the command needs a newer format than the cluster uses")

// decodeCommand decodes a command. allowed is the format that the cluster uses;
// every node refuses a command that needs a newer one (errFormat). A command that
// is allowed but unknown here means that this release is too old. A damaged
// command (errDamaged) is refused: if it is damaged on one member only, the
// digests of the tables differ from then on.
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

// result is the answer of a command, locally and over the wire.
type result struct {
	// Error is the name of one of the errors below, empty for success.
	Error string `cbor:"error,omitempty"`
	// Detail is the full text for people.
	Detail  string    `cbor:"detail,omitempty"`
	Key     *keys.Key `cbor:"key,omitempty"`
	Fresh   *keys.Key `cbor:"fresh,omitempty"`
	Created bool      `cbor:"created,omitempty"`
}

// refusal is an error of a command that is sent between nodes by name.
type refusal struct {
	name string
	err  error
}

var (
	errUnformed  = errors.New("the cluster has not formed yet")
	errBusy      = errors.New("another change of members is open")
	errNotMember = errors.New("not a member of the cluster")
	errOutdated  = errors.New("the table has changed since")
	// errTooFewWhole: too few members could fill a joining node.
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

// err converts the named error back into one that errors.Is recognises.
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

// marshal encodes deterministic CBOR, so that equal tables have equal bytes.
func marshal(v any) ([]byte, error) {
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		return nil, err
	}
	return mode.Marshal(v)
}

// unmarshal refuses fields that v does not have, because they would be lost.
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
