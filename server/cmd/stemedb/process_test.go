package main

import (
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// process is the real binary with its own folders and ports.
type process struct {
	t       *testing.T
	binary  string
	dir     string // holds both volumes and the log
	api     string // host:port
	command *exec.Cmd
}

func newProcess(t *testing.T) *process {
	p := &process{t: t, dir: t.TempDir()}
	p.binary, p.api = filepath.Join(p.dir, "stemedb"), p.freePort()
	out, err := exec.Command("go", "build", "-o", p.binary, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	return p
}

func (p *process) freePort() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(p.t, err)
	defer l.Close()
	return l.Addr().String()
}

// start runs the server with at most so many open files (0: as many as the test).
func (p *process) start(files string, more ...string) {
	args := append([]string{
		"serve", "--node-name", "n0", "--wal-dir", p.dir + "/wal", "--db-dir", p.dir + "/db", "--bind-addr", p.api,
		"--gateway-addr", "127.0.0.1:0", "--replication-addr", p.freePort(), "--gossip-addr", p.freePort(), "--shutdown-grace", "0s",
	}, more...)
	p.command = exec.Command(p.binary, args...)
	if files != "" {
		p.command = exec.Command("sh", append([]string{"-c", `ulimit -n "$0" && exec "$@"`, files, p.binary}, args...)...)
	}
	p.command.Env = []string{}
	log, err := os.Create(p.dir + "/log")
	require.NoError(p.t, err)
	defer log.Close()
	p.command.Stderr = log
	require.NoError(p.t, p.command.Start())
	p.t.Cleanup(func() { _ = p.command.Process.Kill() }) // when a check failed before its end
}

func (p *process) log() string {
	text, err := os.ReadFile(p.dir + "/log")
	require.NoError(p.t, err)
	return string(text)
}

// get asks the server over a connection that is then closed.
func (p *process) get(path string) (status int, body string) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := client.Get("http://" + p.api + path)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(p.t, err)
	return resp.StatusCode, string(text)
}

func (p *process) ready() bool {
	status, _ := p.get("/v1/health/ready")
	return status == http.StatusOK
}

// stop ends the server well.
func (p *process) stop() {
	require.NoError(p.t, p.command.Process.Signal(syscall.SIGTERM))
	require.NoError(p.t, p.command.Wait(), "%s", p.log())
}

// A server that has no file descriptors left says so in log and metrics, and
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

// A server whose control table is damaged, or whose volumes are one folder, ends
// with the file's or the setting's name and the remedy.
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
	require.Error(t, p.command.Wait())
	require.Equal(t, exitFailed, p.command.ProcessState.ExitCode())
	require.Contains(t, p.log(), file+" is damaged")
	require.Contains(t, p.log(), "do not empty the volumes")

	join := []string{"--cluster-join", "n0,n1,n2"}
	secret := p.dir + "/secret"
	require.NoError(t, os.WriteFile(secret, []byte(strings.Repeat("s", 40)), 0o600))
	p.start("", append(join, "--cluster-secret-file", secret)...)
	require.Error(t, p.command.Wait())
	require.Contains(t, p.log(), "the other 2 of the 3 members hold the table")

	require.NoError(t, os.Symlink(p.dir+"/wal", p.dir+"/link"))
	p.start("", "--db-dir", p.dir+"/link")
	require.Error(t, p.command.Wait())
	require.Equal(t, exitUsage, p.command.ProcessState.ExitCode())
	require.Contains(t, p.log(), "STEMEDB_DB_DIR")
}
