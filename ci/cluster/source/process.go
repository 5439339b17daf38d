package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/stemedb/stemedb/ci/progress"
)

// processes starts, finds and stops the cluster's components by pid files. A
// pid file contains the process's start time in addition to its id, so that a
// reused id is not mistaken for our process.
type processes struct {
	pids string // folder of pid files
	logs string // folder of logs
}

func (p processes) log(name string) string { return filepath.Join(p.logs, name+".log") }
func (p processes) pid(name string) string { return filepath.Join(p.pids, name+".pid") }

// start starts the component unless it runs, and reports whether it did.
func (p processes) start(c component) (started bool, err error) {
	if _, running := p.running(c.name); running {
		return false, nil
	}
	for _, dir := range []string{p.pids, p.logs} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return false, fmt.Errorf("starting %s: %w", c.name, err)
		}
	}
	log, err := os.OpenFile(p.log(c.name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return false, fmt.Errorf("starting %s: %w", c.name, err)
	}
	defer func() { _ = log.Close() }()             // the component has its own handle
	cmd := exec.Command(c.cmd.Name, c.cmd.Args...) //nolint:noctx // the component outlives this process
	cmd.Env = append(os.Environ(), c.cmd.Env...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return false, fmt.Errorf("starting %s: %w", c.name, err)
	}
	born, err := birth(cmd.Process.Pid)
	if err != nil {
		return false, progress.WithLog(fmt.Errorf("starting %s: it exited immediately", c.name), p.log(c.name))
	}
	text := fmt.Sprintf("%d %s\n", cmd.Process.Pid, born)
	if err := os.WriteFile(p.pid(c.name), []byte(text), 0o600); err != nil {
		return false, errors.Join(fmt.Errorf("starting %s: %w", c.name, err), cmd.Process.Kill())
	}
	return true, cmd.Process.Release()
}

// running returns the process id of a running component.
func (p processes) running(name string) (int, bool) {
	text, err := os.ReadFile(p.pid(name))
	if err != nil {
		return 0, false
	}
	fields := strings.Fields(string(text))
	if len(fields) != 2 {
		return 0, false
	}
	pid, err := strconv.Atoi(fields[0])
	if err != nil {
		return 0, false
	}
	born, err := birth(pid)
	return pid, err == nil && born == fields[1]
}

// stop ends the components, with SIGTERM first and SIGKILL after the grace.
func (p processes) stop(ctx context.Context, grace time.Duration, names ...string) error {
	left := map[string]int{}
	for _, name := range names {
		if pid, running := p.running(name); running {
			left[name] = pid
			if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("stopping %s: %w", name, err)
			}
		}
	}
	killAt := time.Now().Add(grace)
	killed := false
	for {
		for name := range left {
			if _, running := p.running(name); !running {
				delete(left, name)
			}
		}
		if len(left) == 0 {
			break
		}
		if !killed && time.Now().After(killAt) {
			killed = true
			for _, pid := range left {
				// It may have ended meanwhile.
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("waiting for %d processes to end: %w", len(left), err)
		}
	}
	for _, name := range names {
		if err := os.Remove(p.pid(name)); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("stopping %s: %w", name, err)
		}
	}
	return nil
}

// known lists the components that have a pid file, sorted.
func (p processes) known() []string {
	found, err := filepath.Glob(filepath.Join(p.pids, "*.pid"))
	if err != nil {
		return nil
	}
	names := make([]string, len(found))
	for i, f := range found {
		names[i] = strings.TrimSuffix(filepath.Base(f), ".pid")
	}
	sort.Strings(names)
	return names
}

// wait polls check until it succeeds. It fails after the time limit or when one
// of the named components has died; the error then refers to that component's
// log.
func (p processes) wait(ctx context.Context, limit time.Duration, check func(context.Context) error, names ...string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not ready after %s", limit))
	defer cancel()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		for _, name := range names {
			if _, running := p.running(name); !running {
				return progress.WithLog(fmt.Errorf("%s has ended", name), p.log(name))
			}
		}
		if sleepErr := sleep(ctx, 300*time.Millisecond); sleepErr != nil {
			out := fmt.Errorf("%w; at last: %w", sleepErr, err)
			if len(names) > 0 {
				out = progress.WithLog(out, p.log(names[len(names)-1]))
			}
			return out
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// birth is the start time of a live process, in clock ticks since boot. A
// zombie counts as ended.
func birth(pid int) (string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// The command's name is in brackets and may contain any characters, including brackets.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 {
		return "", fmt.Errorf("process %d: unexpected format of stat", pid)
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return "", os.ErrProcessDone
	}
	return fields[19], nil
}
