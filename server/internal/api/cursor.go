package api

import (
	"encoding/base64"
	"slices"
	"strconv"

	"github.com/zeebo/blake3"
)

// A cursor is opaque to callers: base64url of
//
//	format u8 | hash of the query, 8 bytes | place in the answer
//
// The middle part is a hash of the route, the project and every parameter but
// cursor and limit, so that a cursor used with another query is refused instead
// of returning a wrong page.
const (
	cursorFormat = 1
	cursorHead   = 1 + 8
	maxCursor    = 2048
)

// binding is the middle part of this call's cursors.
func (c *call) binding() [8]byte {
	h := blake3.New()
	write := func(s string) {
		_, _ = h.WriteString(strconv.Itoa(len(s)) + ":" + s) // never fails
	}
	write(c.route.pattern)
	write(c.caller.project)
	names := make([]string, 0, len(c.query))
	for name := range c.query {
		if name != "cursor" && name != "limit" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		write(name)
		write(c.query.Get(name))
	}
	var out [8]byte
	copy(out[:], h.Sum(nil))
	return out
}

// writeCursor makes the cursor for the items after the place.
func (c *call) writeCursor(place []byte) string {
	binding := c.binding()
	raw := append([]byte{cursorFormat}, binding[:]...)
	return base64.RawURLEncoding.EncodeToString(append(raw, place...))
}

// readCursor returns the place in the call's cursor, nil without one. size is
// the place's length, 0 when it varies.
func (c *call) readCursor(size int) ([]byte, error) {
	text := c.query.Get("cursor")
	if text == "" {
		return nil, nil
	}
	wrong := func(detail string) error {
		return problem(codeInvalidCursor, "cursor", detail, "send the cursor of the previous page with the same parameters, or leave it out to start over")
	}
	if len(text) > maxCursor {
		return nil, wrong("the cursor is too long")
	}
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(raw) <= cursorHead || raw[0] != cursorFormat {
		return nil, wrong("the text is not a cursor")
	}
	if binding := c.binding(); !slices.Equal(raw[1:cursorHead], binding[:]) {
		return nil, wrong("the cursor belongs to another query")
	}
	if place := raw[cursorHead:]; size == 0 || len(place) == size {
		return place, nil
	}
	return nil, wrong("the text is not a cursor")
}
