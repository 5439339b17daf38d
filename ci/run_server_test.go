// Package ci holds the tests of the scripts in this folder.
package ci

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const stopped = "StemeDB has stopped and its data is removed."

// output collects the output of a process while it runs.
type output struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.all.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.all.String()
}

// terminal opens a new pseudo-terminal.
func terminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = master.Close() })
	require.NoError(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	require.NoError(t, err)
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	return master, slave
}

// freePorts finds four consecutive ports without a listener.
func freePorts(t *testing.T) int {
	t.Helper()
	for range 1000 {
		base := 21000 + 4*rand.IntN(2000)
		free := true
		for port := base; port < base+4 && free; port++ {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if free = err == nil; free {
				_ = l.Close()
			}
		}
		if free {
			return base
		}
	}
	require.Fail(t, "no four consecutive free ports")
	return 0
}

// start runs a command that starts a server, and returns once it serves.
func start(t *testing.T, cmd *exec.Cmd, out *output) {
	t.Helper()
	port := freePorts(t)
	cmd.Env = append(os.Environ(), fmt.Sprintf("PORT=%d", port), "TMPDIR="+t.TempDir())
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		if cmd.ProcessState == nil { // a check failed before the end
			_ = cmd.Process.Signal(syscall.SIGTERM)
			_ = cmd.Wait()
		}
	})
	require.Eventually(t, func() bool {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/v1/health/ready", port+1))
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	}, 5*time.Minute, 50*time.Millisecond, "%s", out)
}

// ended waits for the command and checks that it succeeded and left no data.
func ended(t *testing.T, cmd *exec.Cmd, out *output) {
	t.Helper()
	err := cmd.Wait()
	require.NoError(t, err, "%s", out)
	folders, err := os.ReadDir(strings.TrimPrefix(cmd.Env[len(cmd.Env)-1], "TMPDIR="))
	require.NoError(t, err)
	require.Empty(t, folders)
}

func TestMakeRunEndsWellByCtrlC(t *testing.T) {
	master, slave := terminal(t)
	cmd := exec.Command("make", "--no-print-directory", "-C", "..", "run")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	var out output
	read := make(chan struct{})
	go func() {
		defer close(read)
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			_, _ = out.Write(buf[:n])
			if err != nil { // no process has the terminal open any longer
				return
			}
		}
	}()
	start(t, cmd, &out)
	require.NoError(t, slave.Close())
	before := len(out.String())
	_, err := master.Write([]byte{3})
	require.NoError(t, err)
	ended(t, cmd, &out)
	<-read
	require.Equal(t, "^C\r\n"+stopped+"\r\n", out.String()[before:])
}

// Without a terminal a signal goes to the group, and make or a process manager
// adds one to the script itself.
func TestTheServerSeesOneSignalOfSeveral(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(signal.String(), func(t *testing.T) {
			var out output
			cmd := exec.Command("./run-server")
			cmd.Stdout, cmd.Stderr = &out, &out
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			start(t, cmd, &out)
			before := len(out.String())
			require.NoError(t, syscall.Kill(-cmd.Process.Pid, signal))
			require.NoError(t, syscall.Kill(cmd.Process.Pid, signal))
			ended(t, cmd, &out)
			require.Equal(t, stopped+"\n", out.String()[before:])
		})
	}
}
