package store

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Records between nodes and in backups:
//
//	records: { kind u8 | uvarint length | payload }*
//
// The payloads are those of the log (codec.go). Ids are computed from them, so one
// record cannot be passed off as another.

var errRecordsCutShort = errors.New("cut short")

// AppendRecord appends one record.
func AppendRecord(dst []byte, kind Kind, payload []byte) []byte {
	dst = append(dst, byte(kind))
	dst = binary.AppendUvarint(dst, uint64(len(payload)))
	return append(dst, payload...)
}

// RecordSize is about how many bytes AppendRecord appends; never less.
func RecordSize(payload []byte) int { return 1 + binary.MaxVarintLen32 + len(payload) }

// CutRecord takes one record off b. It does not look into the payload, which aliases b.
func CutRecord(b []byte) (kind Kind, payload, rest []byte, err error) {
	if len(b) == 0 {
		return 0, nil, nil, errRecordsCutShort
	}
	kind = Kind(b[0])
	size, n := binary.Uvarint(b[1:])
	if n <= 0 || size > uint64(len(b)-1-n) {
		return 0, nil, nil, fmt.Errorf("%v: %w", kind, errRecordsCutShort)
	}
	b = b[1+n:]
	return kind, b[:size], b[size:], nil
}

// ParseRecord reads one record. Kinds that never leave a node are an error. The item
// aliases payload.
func ParseRecord(kind Kind, payload []byte) (Item, error) {
	if !kind.Record() {
		return Item{}, fmt.Errorf("%v items never leave their node", kind)
	}
	return ParseItem(kind, payload)
}

// ParseRecords reads records. The items alias b.
func ParseRecords(b []byte) ([]Item, error) {
	items := make([]Item, 0, len(b)/256+2)
	for len(b) > 0 {
		kind, payload, rest, err := CutRecord(b)
		if err != nil {
			return nil, err
		}
		it, err := ParseRecord(kind, payload)
		if err != nil {
			return nil, err
		}
		items = append(items, it)
		b = rest
	}
	return items, nil
}
