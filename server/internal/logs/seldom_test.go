package logs

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// The first line of a kind is logged immediately, the others wait for their
// interval and are counted; another kind is not delayed.
func TestLinesOfOneKindAreRare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		s := NewSeldom(slog.New(slog.NewJSONHandler(&out, nil)), time.Minute)
		for range 250 { // for 125 s
			s.Log(slog.LevelWarn, "a", "first kind", "n", 1)
			time.Sleep(500 * time.Millisecond)
		}
		s.Log(slog.LevelError, "b", "second kind")
		type line struct {
			Level, Msg string
			N          int
			LeftOut    int `json:"left_out"`
		}
		var lines []line
		for d := json.NewDecoder(&out); d.More(); {
			var l line
			require.NoError(t, d.Decode(&l))
			lines = append(lines, l)
		}
		require.Equal(t, []line{
			{"WARN", "first kind", 1, 0}, {"WARN", "first kind", 1, 119}, {"WARN", "first kind", 1, 119}, {"ERROR", "second kind", 0, 0},
		}, lines)
	})
}
