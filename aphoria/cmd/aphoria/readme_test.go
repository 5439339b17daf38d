package main

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// block is the fenced block of a page that contains the text.
func block(t *testing.T, page, holds string) string {
	t.Helper()
	raw, err := os.ReadFile(page)
	require.NoError(t, err)
	for i, part := range strings.Split(string(raw), "```") {
		if i%2 == 1 && strings.Contains(part, holds) {
			return part
		}
	}
	require.Fail(t, "no block of "+page+" holds "+holds)
	return ""
}

// shell runs lines at the repository's root and ends the processes that they
// leave behind.
func shell(t *testing.T, lines string, env ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "bash", "-e", "-o", "pipefail", "-c", lines)
	cmd.Dir = filepath.Join("..", "..", "..")
	// The server refuses unknown settings, such as those of tools.
	own := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "STEMEDB_") })
	cmd.Env = append(own, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Start()
	require.NoError(t, err)
	t.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }) // it may have ended
	require.NoError(t, cmd.Wait(), "%s", &out)
	return out.String()
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { require.NoError(t, l.Close()) }()
	return l.Addr().String()
}

// The lines run unchanged except for the folder and the ports, which may be in
// use.
func TestTheLinesOfTheREADMEWorkAsPasted(t *testing.T) {
	dir := t.TempDir()
	gateway := freePort(t)
	lines := strings.NewReplacer("bin/", dir+"/", "127.0.0.1:18181", gateway).Replace(block(t, "../../../README.md", "aphoria scan"))
	said := shell(t, lines,
		"STEMEDB_GATEWAY_ADDR="+gateway, "STEMEDB_BIND_ADDR="+freePort(t), "STEMEDB_REPLICATION_ADDR="+freePort(t),
		"STEMEDB_GOSSIP_ADDR="+freePort(t), "STEMEDB_ADVERTISE_ADDR=127.0.0.1")
	require.Contains(t, said, " 0 exist, 0 failed, 0 queued, 0 skipped")
	require.NotContains(t, said, "persisted: 0 created")
}

func TestTheBuildCommandsMakeBinaries(t *testing.T) {
	for page, binary := range map[string]string{"../../../README.md": "stemedb", "../../README.md": "aphoria"} {
		dir := t.TempDir()
		for line := range strings.Lines(block(t, page, "go build")) {
			if command, _, _ := strings.Cut(line, " #"); strings.HasPrefix(command, "go build") {
				command, _, _ = strings.Cut(command, " && ")
				shell(t, strings.ReplaceAll(command, "bin/", dir+"/"))
			}
		}
		info, err := os.Stat(filepath.Join(dir, binary))
		require.NoError(t, err, page)
		require.NotZero(t, info.Mode()&0o111, page)
	}
}
