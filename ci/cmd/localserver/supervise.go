package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// catchSignals keeps these signals from ending this process.
func catchSignals() <-chan os.Signal {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	return signals
}

// supervise runs the server until it ends, and calls ready when health answers.
// It stops the server after a signal and when its own parent has ended: make
// may be killed without a signal to its children. byTerminal reports that the terminal
// ended it, not a signal from here.
//
// Ctrl-C reaches every process in the terminal's foreground group, and make
// ends with an error when it gets one. The server therefore has its own group
// and, if this group holds the terminal, takes over the terminal while it runs:
// Ctrl-C then reaches only the server, and only once.
func supervise(server *exec.Cmd, signals <-chan os.Signal, health string, ready func()) (byTerminal bool, err error) {
	parent := os.Getppid()
	// A server stopped by Ctrl-Z could not be continued, since the shell sees
	// only make. The server inherits this setting.
	signal.Ignore(syscall.SIGTSTP, syscall.SIGTTOU)
	server.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	tty := terminal()
	if tty != nil {
		defer giveBack(tty)
		server.SysProcAttr = &syscall.SysProcAttr{Foreground: true, Ctty: int(tty.Fd())}
	}
	dieWithParent(server)
	if err := server.Start(); err != nil {
		return false, fmt.Errorf("start the server: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Wait() }()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	answers := make(chan struct{})
	go awaitHealth(ctx, health, answers)
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	asked := false
	stop := func() {
		if !asked {
			_ = server.Process.Signal(syscall.SIGTERM) // it may have ended
		}
		asked = true
	}
	for {
		select {
		case <-answers:
			answers = nil
			ready()
		case <-tick.C:
			if os.Getppid() != parent {
				stop()
			}
		case <-signals:
			// Only the first signal is forwarded: make and process managers
			// signal the group and then their child again, and a second signal
			// would stop the server immediately.
			stop()
		case err := <-ended:
			// A server that still starts has no handler, so the signal ends it.
			if stopped := stoppedBy(err); stopped != 0 && (asked || tty != nil && stopped != syscall.SIGTERM) {
				err = nil
			}
			return tty != nil && !asked, err
		}
	}
}

const pollEvery = 100 * time.Millisecond

// stoppedBy returns the signal that ended the process if it is one by which
// people stop it, otherwise 0.
func stoppedBy(err error) syscall.Signal {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return 0
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() {
		return 0
	}
	switch s := status.Signal(); s {
	case syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP:
		return s
	default:
		return 0
	}
}

// awaitHealth closes answers when the server answers.
func awaitHealth(ctx context.Context, url string, answers chan<- struct{}) {
	client := http.Client{Timeout: time.Second}
	for ctx.Err() == nil {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return // the address is ours
		}
		if resp, err := client.Do(req); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				close(answers)
				return
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(pollEvery):
		}
	}
}

// terminal opens the controlling terminal if this process's group holds it.
func terminal() *os.File {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil
	}
	if group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP); err != nil || group != unix.Getpgrp() {
		_ = tty.Close()
		return nil
	}
	return tty
}

// giveBack makes this process's group the terminal's foreground group again.
func giveBack(tty *os.File) {
	if err := unix.IoctlSetPointerInt(int(tty.Fd()), unix.TIOCSPGRP, unix.Getpgrp()); err != nil {
		fmt.Fprintln(os.Stderr, "localserver: take the terminal back:", err)
	}
	_ = tty.Close()
}
