package control

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/hashicorp/go-hclog"
)

// plain renders the values of a log line of Raft as hclog would. slog's JSON would
// show hclog's own types and Stringers as lists of a format and its arguments, as
// numbers, or as structs without exported fields.
func plain(args []any) []any {
	out := slices.Clone(args)
	for i := 1; i < len(out); i += 2 {
		out[i] = plainValue(out[i])
	}
	return out
}

func plainValue(v any) any {
	switch v := v.(type) {
	case hclog.Format: // never empty: hclog would have panicked
		return fmt.Sprintf(fmt.Sprint(v[0]), v[1:]...)
	case hclog.Hex:
		return "0x" + strconv.FormatInt(int64(v), 16)
	case hclog.Octal:
		return "0" + strconv.FormatInt(int64(v), 8)
	case hclog.Binary:
		return "0b" + strconv.FormatInt(int64(v), 2)
	case hclog.Quote:
		return strconv.Quote(string(v))
	case time.Time, time.Duration, error: // slog renders these
		return v
	case fmt.Stringer:
		return fmt.Sprint(v) // safe for a nil pointer
	}
	return v
}
