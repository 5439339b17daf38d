package record

import (
	"bytes"
	"errors"
	"io"
	"iter"
	"mime"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
)

// Media types of the bodies that carry records.
const (
	MediaJSON    = "application/json"     // one record, or an array of them
	MediaNDJSON  = "application/x-ndjson" // a batch, one record a line
	MediaCBOR    = "application/cbor"     // one record, or a CBOR sequence of them
	MediaCBORSeq = "application/cbor-seq" // a batch as a CBOR sequence (RFC 8742)
)

// BatchItems splits the body of a batch into its items, in order, without
// looking into them: a bad item does not spoil the others. The items alias
// body. An error is always the last value yielded and invalidates the whole
// body, because the items after it cannot be delimited. It is a *FieldError:
// for bytes that do not frame items, for no items or more than MaxBatchItems,
// and for a body larger than MaxBatchBytes. mediaType may carry parameters.
func BatchItems(mediaType string, body []byte) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		if len(body) > MaxBatchBytes {
			yield(nil, fieldErr("", CodeTooLarge, "is a batch of "+utoa(uint64(len(body)))+" bytes", "send at most "+utoa(MaxBatchBytes)+" bytes in one batch"))
			return
		}
		split, err := splitter(mediaType)
		if err != nil {
			yield(nil, err)
			return
		}
		count := 0
		err = split(body, func(item []byte) error {
			if count++; count > MaxBatchItems {
				return fieldErr("", CodeTooMany, "is a batch of more than "+utoa(MaxBatchItems)+" items", "send at most "+utoa(MaxBatchItems)+" records in one batch")
			}
			if !yield(item, nil) {
				return errStopped
			}
			return nil
		})
		switch {
		case errors.Is(err, errStopped):
		case err != nil:
			yield(nil, err)
		case count == 0:
			yield(nil, fieldErr("", CodeEmpty, "is a batch without items", "send at least one record"))
		}
	}
}

// errStopped ends a splitter whose consumer has stopped reading.
var errStopped = errors.New("stopped")

type splitFunc func(body []byte, item func([]byte) error) error

func splitter(mediaType string) (splitFunc, error) {
	base, _, err := mime.ParseMediaType(mediaType)
	if err == nil {
		switch base {
		case MediaJSON:
			return splitArray, nil
		case MediaNDJSON, "application/ndjson", "application/jsonl":
			return splitLines, nil
		case MediaCBOR, MediaCBORSeq:
			return splitSequence, nil
		}
	}
	return nil, fieldErr("Content-Type", CodeInvalidValue, "is "+strconv.Quote(clip(mediaType)), "send "+MediaJSON+", "+MediaNDJSON+" or "+MediaCBORSeq)
}

// splitArray leaves duplicate names and invalid UTF-8 to the parser of the
// item, where they spoil that item alone.
func splitArray(body []byte, item func([]byte) error) error {
	dec := jsontext.NewDecoder(bytes.NewBuffer(body), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if dec.PeekKind() != '[' {
		return fieldErr("", CodeMalformed, "is not a JSON array", "send [record, …], or one record a line as "+MediaNDJSON)
	}
	if _, err := dec.ReadToken(); err != nil {
		return jsonFault("", err)
	}
	for i := 0; dec.PeekKind() != ']'; i++ {
		v, err := dec.ReadValue()
		if err != nil {
			return jsonFault("["+strconv.Itoa(i)+"]", err)
		}
		// The decoder may reuse v's memory; the body is not overwritten.
		end := int(dec.InputOffset())
		if err := item(body[end-len(v) : end : end]); err != nil {
			return err
		}
	}
	if _, err := dec.ReadToken(); err != nil {
		return jsonFault("", err)
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return fieldErr("", CodeMalformed, "has data after the closing ]", "send one JSON array")
	}
	return nil
}

// splitLines passes over blank lines, so that a trailing newline is no item.
func splitLines(body []byte, item func([]byte) error) error {
	for line := range bytes.Lines(body) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			continue
		}
		if err := item(line); err != nil {
			return err
		}
	}
	return nil
}

func splitSequence(body []byte, item func([]byte) error) error {
	for i := 0; len(body) > 0; i++ {
		n, ok := itemLength(body, maxDepth)
		if !ok {
			return fieldErr("["+strconv.Itoa(i)+"]", CodeMalformed, "is not a complete CBOR item of definite length", "send a CBOR sequence (RFC 8742) of records, nested at most "+strconv.Itoa(maxDepth)+" deep")
		}
		if err := item(body[:n:n]); err != nil {
			return err
		}
		body = body[n:]
	}
	return nil
}

// maxDepth is more than any record needs.
const maxDepth = 8

// itemLength finds the end of the first CBOR item of b. The length in the head
// is checked against the bytes that remain before anything is skipped, so the
// input bounds time and depth.
func itemLength(b []byte, depth int) (int, bool) {
	if len(b) == 0 || depth == 0 {
		return 0, false
	}
	major := b[0] & 0xe0
	if b[0]&0x1f > 27 {
		return 0, false
	}
	n, pos, _ := readArgument(b)
	if pos == 0 {
		return 0, false
	}
	children := uint64(0)
	switch major {
	case majorBytes, majorText:
		if n > uint64(len(b)-pos) {
			return 0, false
		}
		return pos + int(n), true
	case majorArray:
		children = n
	case majorMap:
		if n > uint64(len(b)) {
			return 0, false
		}
		children = 2 * n
	case 6 << 5:
		children = 1
	}
	for ; children > 0; children-- {
		size, ok := itemLength(b[pos:], depth-1)
		if !ok {
			return 0, false
		}
		pos += size
	}
	return pos, true
}
