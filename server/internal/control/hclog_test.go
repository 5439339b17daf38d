package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"
)

// Raft's log lines have the same values in JSON as in hclog's text.
func TestLinesOfRaftAreRendered(t *testing.T) {
	var out bytes.Buffer
	c := &Control{log: slog.New(slog.NewJSONHandler(&out, nil))}
	var none *raft.Raft
	servers := []raft.Server{{Suffrage: raft.Voter, ID: "n0/a", Address: "n0/a|n0:1"}}
	for _, row := range []struct{ value, want any }{
		{hclog.Fmt("%+v", servers), "[{Suffrage:Voter ID:n0/a Address:n0/a|n0:1}]"},
		{hclog.Fmt("%+v", []raft.Server(nil)), "[]"},
		{hclog.Fmt("%0.2f%%", 12.345), "12.35%"},
		{hclog.Fmt("%d / %d", 1, 2), "1 / 2"},
		{hclog.Fmt("no arguments"), "no arguments"},
		{hclog.Hex(255), "0xff"},
		{hclog.Octal(8), "010"},
		{hclog.Binary(5), "0b101"},
		{hclog.Quote("a\nb"), `"a\nb"`},
		{raft.Candidate, "Candidate"},
		{none, "<nil>"},
		{raft.ServerAddress("a|b"), "a|b"},
		{errors.New("broken"), "broken"},
		{time.Second, float64(time.Second)},
		{7, 7.0},
		{nil, nil},
	} {
		out.Reset()
		c.hclog().Info("message", "other", 1, "value", row.value)
		var line map[string]any
		require.NoError(t, json.Unmarshal(out.Bytes(), &line), "%s", out.Bytes())
		require.Equal(t, row.want, line["value"], "%T", row.value)
		require.Equal(t, 1.0, line["other"])
	}
}
