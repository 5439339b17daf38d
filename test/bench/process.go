package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a server under measurement, started and stopped here by its pid.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{}
}

// start runs a server with its output in dir/name.log.
func start(name, dir string, env []string, path string, args ...string) (*process, error) {
	return startAs(name, dir, nil, env, path, args...)
}

func startAs(name, dir string, attr *syscall.SysProcAttr, env []string, path string, args ...string) (*process, error) {
	logPath := filepath.Join(dir, name+".log")
	out, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open log of %s: %w", name, err)
	}
	defer out.Close()
	cmd := exec.Command(path, args...) //nolint:noctx // it is ended by stop, gracefully
	// Without this process's environment, because a server rejects unknown settings.
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}, env...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = attr
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, cmd: cmd, log: logPath, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		_ = cmd.Wait()
	}()
	return p, nil
}

// stop ends the process with sig and waits for it.
func (p *process) stop(sig syscall.Signal) {
	_ = p.cmd.Process.Signal(sig)
	select {
	case <-p.done:
	case <-time.After(90 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// await polls until ready returns true, the process ends, or the time is over.
func (p *process) await(ctx context.Context, limit time.Duration, ready func() error) (time.Duration, error) {
	began := time.Now()
	for {
		err := ready()
		if err == nil {
			return time.Since(began), nil
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-p.done:
			return 0, fmt.Errorf("%s ended before it was ready; its log: %s", p.name, tail(p.log))
		case <-time.After(20 * time.Millisecond):
		}
		if time.Since(began) > limit {
			return 0, fmt.Errorf("%s not ready after %s: %w; its log: %s", p.name, limit, err, tail(p.log))
		}
	}
}

// cpu is the processor time (user and system) used so far by the process and its
// descendants, in milliseconds: PostgreSQL works in one process for each client.
func (p *process) cpu() float64 {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is valid
	parent, ticks := map[int]int{}, map[int]float64{}
	for _, name := range stats {
		raw, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil {
			continue
		}
		parent[pid], ticks[pid] = parseStat(string(raw))
	}
	var total float64
	for pid, used := range ticks {
		// No chain of parents is longer than the number of processes.
		for at, steps := pid, 0; at != 0 && steps < len(parent); at, steps = parent[at], steps+1 {
			if at == p.cmd.Process.Pid {
				total += used
				break
			}
		}
	}
	return total * 10 // USER_HZ is 100 on Linux
}

// parseStat reads a process's parent and its processor time in ticks from
// /proc/PID/stat: user and system, its own and that of its children that have
// ended.
func parseStat(text string) (parent int, ticks float64) {
	// The command's name may contain spaces; the fields are counted after it.
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	parent, _ = strconv.Atoi(fields[1])
	for _, field := range fields[11:15] {
		v, _ := strconv.ParseFloat(field, 64)
		ticks += v
	}
	return parent, ticks
}

// memory is the resident set and its peak, in MiB.
func (p *process) memory() (rss, peak float64) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		v, _ := strconv.ParseFloat(f[1], 64)
		switch f[0] {
		case "VmRSS:":
			rss = v / 1024
		case "VmHWM:":
			peak = v / 1024
		}
	}
	return rss, peak
}

// httpOK requests a URL once and expects 200.
func httpOK(ctx context.Context, client *http.Client, url string) func() error {
	return func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		_, _ = io.Copy(io.Discard, resp.Body)
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	}
}

func tail(path string) string {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	if len(raw) > 1500 {
		raw = raw[len(raw)-1500:]
	}
	return string(raw)
}
