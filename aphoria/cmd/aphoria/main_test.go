package main

import (
	"bufio"
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func build(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "aphoria")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	return binary
}

// A server that accepts and never answers causes the longest wait.
func TestASignalEndsAScanThatWaitsForItsServer(t *testing.T) {
	binary := build(t)
	silent, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, silent.Close()) })
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "a.py"), []byte("requests.get(u, verify=False)\n"), 0o644))
	for signal, want := range map[syscall.Signal]int{syscall.SIGTERM: 143, syscall.SIGINT: 130} {
		cmd := exec.CommandContext(t.Context(), binary, "scan", dir, "--persist", "--url", "http://"+silent.Addr().String())
		cmd.Env = append(os.Environ(), "STEME_PRIVATE_KEY="+strings.Repeat("01", 32), "STEMEDB_API_KEY=k")
		stdout, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		lines := bufio.NewScanner(stdout)
		found := false
		for !found && lines.Scan() {
			found = strings.HasPrefix(lines.Text(), "BLOCK")
		}
		require.True(t, found, "the finding is printed while the server keeps silent")
		require.NoError(t, cmd.Process.Signal(signal))
		for lines.Scan() { // to the end of the process
			continue
		}
		require.Error(t, cmd.Wait())
		require.Equal(t, want, cmd.ProcessState.ExitCode())
	}
}

func TestASignalEndsAScanWithinAFile(t *testing.T) {
	binary := build(t)
	dir := t.TempDir()
	// Far more than the rules can scan before the signal arrives.
	require.NoError(t, os.WriteFile(filepath.Join(dir, "a.py"), []byte(strings.Repeat("f(x,verify=False);", 3_000_000)), 0o644))
	config := filepath.Join(t.TempDir(), "c.toml")
	require.NoError(t, os.WriteFile(config, []byte("[scan]\nmax_file_bytes = 67108864\n"), 0o644))
	// The scan asks git three times before it reads the first file.
	tools, asked := t.TempDir(), filepath.Join(t.TempDir(), "asked")
	require.NoError(t, os.WriteFile(filepath.Join(tools, "git"), []byte("#!/bin/sh\necho >> '"+asked+"'\nexit 1\n"), 0o755))
	var said bytes.Buffer
	cmd := exec.CommandContext(t.Context(), binary, "scan", dir, "--config", config)
	cmd.Env = append(os.Environ(), "PATH="+tools+":/usr/bin:/bin")
	cmd.Stdout, cmd.Stderr = &said, &said
	require.NoError(t, cmd.Start())
	require.Eventually(t, func() bool {
		raw, err := os.ReadFile(asked)
		return err == nil && len(raw) == 3
	}, time.Minute, time.Millisecond)
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	require.Error(t, cmd.Wait())
	require.Equal(t, 143, cmd.ProcessState.ExitCode())
	require.Equal(t, "aphoria: stopped by a signal: terminated\n", said.String())
}
