package main

import (
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A server that has no file descriptors left reports it in log and metrics, and
// serves again once connections are closed.
func TestProcessWithoutFileDescriptors(t *testing.T) {
	p := newProcess(t)
	p.start("80")
	require.Eventually(t, p.ready, time.Minute, 20*time.Millisecond, "%s", p.log())
	var open []net.Conn
	for range 120 { // those that are not accepted wait in the kernel
		conn, err := net.Dial("tcp", p.api)
		require.NoError(t, err)
		open = append(open, conn)
	}
	require.Eventually(t, func() bool { return strings.Contains(p.log(), "out of file descriptors") }, time.Minute, 20*time.Millisecond)
	for _, conn := range open {
		require.NoError(t, conn.Close())
	}
	require.Eventually(t, p.ready, time.Minute, 20*time.Millisecond)
	_, text := p.get("/metrics")
	require.Contains(t, text, `stemedb_accept_errors_total{listener="api"} `)
	require.NotContains(t, text, `stemedb_accept_errors_total{listener="api"} 0`+"\n")
	p.stop()
}

// A server whose control table is damaged, or whose volumes are the same
// folder, ends with the name of the file or the setting and the remedy.
func TestProcessThatCannotStartSaysWhy(t *testing.T) {
	p := newProcess(t)
	p.start("")
	require.Eventually(t, p.ready, time.Minute, 20*time.Millisecond, "%s", p.log())
	p.stop()

	file := p.dir + "/wal/control/control.db"
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	clear(b[:2*os.Getpagesize()])
	require.NoError(t, os.WriteFile(file, b, 0o600))
	p.start("")
	require.Error(t, p.wait())
	require.Equal(t, exitFailed, p.command.ProcessState.ExitCode())
	require.Contains(t, p.log(), file+" is damaged")
	require.Contains(t, p.log(), "do not empty the volumes")

	join := []string{"--cluster-join", "n0,n1,n2"}
	secret := p.dir + "/secret"
	require.NoError(t, os.WriteFile(secret, []byte(strings.Repeat("s", 40)), 0o600))
	p.start("", append(join, "--cluster-secret-file", secret)...)
	require.Error(t, p.wait())
	require.Contains(t, p.log(), "the other 2 of the 3 members hold the table")

	require.NoError(t, os.Symlink(p.dir+"/wal", p.dir+"/link"))
	p.start("", "--db-dir", p.dir+"/link")
	require.Error(t, p.wait())
	require.Equal(t, exitUsage, p.command.ProcessState.ExitCode())
	require.Contains(t, p.log(), "STEMEDB_DB_DIR")
}
