package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/stemedb/stemedb/server/internal/store"
)

// Encoding of the bytes fields of package peerpb:
//
//	items:  { kind u8 | uvarint length | payload }*
//	keys:   { store.Key.AppendBinary }*
//	places: { uvarint length | place }*               of a store.Set

var errCutShort = errors.New("cut short")

// appendItem appends one item.
func appendItem(dst []byte, it *store.Item) []byte {
	dst = append(dst, byte(it.Kind))
	dst = binary.AppendUvarint(dst, uint64(len(it.Payload)))
	return append(dst, it.Payload...)
}

// wireSize is about how many bytes appendItem appends; never less.
func wireSize(it *store.Item) int { return 1 + binary.MaxVarintLen32 + len(it.Payload) }

// cutItem removes one item from b without parsing its payload.
func cutItem(b []byte) (kind store.Kind, payload, rest []byte, err error) {
	if len(b) == 0 {
		return 0, nil, nil, errCutShort
	}
	kind = store.Kind(b[0])
	size, n := binary.Uvarint(b[1:])
	if n <= 0 || size > uint64(len(b)-1-n) {
		return 0, nil, nil, fmt.Errorf("%v item: %w", kind, errCutShort)
	}
	b = b[1+n:]
	return kind, b[:size], b[size:], nil
}

// parseItems parses items from a peer. Ids are computed from the payloads, so a
// peer cannot pass one record off as another; kinds that are local to a node are
// refused. The items alias b.
func parseItems(b []byte) ([]store.Item, error) {
	items := make([]store.Item, 0, len(b)/256+2)
	for len(b) > 0 {
		kind, payload, rest, err := cutItem(b)
		if err != nil {
			return nil, err
		}
		it, err := parseRecord(kind, payload)
		if err != nil {
			return nil, err
		}
		items = append(items, it)
		b = rest
	}
	return items, nil
}

func parseRecord(kind store.Kind, payload []byte) (store.Item, error) {
	if !kind.Record() {
		return store.Item{}, fmt.Errorf("%v items are not exchanged between nodes", kind)
	}
	return store.ParseItem(kind, payload)
}

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
