package main

import (
	"bytes"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFlagAndCommandPrintTheVersion(t *testing.T) {
	for _, arg := range []string{"version", "--version"} {
		var out bytes.Buffer
		command := newCommand(slog.New(slog.DiscardHandler), connect)
		command.SetArgs([]string{arg})
		command.SetOut(&out)
		require.NoError(t, command.Execute(), arg)
		require.Equal(t, versionLine()+"\n", out.String(), arg)
	}
	require.Regexp(t, `^stemedb-k8s \S+ \(go\S+, \w+/\w+\)$`, versionLine())
}
