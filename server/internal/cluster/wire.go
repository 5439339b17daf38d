package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/stemedb/stemedb/server/internal/store"
)

// Encoding of the bytes fields of package peerpb:
//
//	items:  records of package store
//	keys:   { store.Key.AppendBinary }*
//	places: { uvarint length | place }*               of a store.Set

var errCutShort = errors.New("cut short")

// appendKeys appends keys of records.
func appendKeys(dst []byte, keys ...store.Key) ([]byte, error) {
	var err error
	for _, k := range keys {
		if dst, err = k.AppendBinary(dst); err != nil {
			return nil, err
		}
	}
	return dst, nil
}

// parseKeys parses keys from a peer.
func parseKeys(b []byte) ([]store.Key, error) {
	keys := make([]store.Key, 0, len(b)/64+1)
	for len(b) > 0 {
		k, rest, err := store.ParseKey(b)
		if err != nil {
			return nil, err
		}
		if !k.Kind.Record() {
			return nil, fmt.Errorf("key %v is not exchanged between nodes", k)
		}
		keys = append(keys, k)
		b = rest
	}
	return keys, nil
}

func appendPlace(dst, place []byte) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(place))), place...)
}

// cutPlace removes one place from b.
func cutPlace(b []byte) (place, rest []byte, err error) {
	size, n := binary.Uvarint(b)
	if n <= 0 || size > uint64(len(b)-n) {
		return nil, nil, fmt.Errorf("place: %w", errCutShort)
	}
	b = b[n:]
	return b[:size], b[size:], nil
}
