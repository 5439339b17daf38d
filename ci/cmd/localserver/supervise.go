package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// supervise runs the server until it ends. byTerminal reports that the terminal
// ended it, not a signal from here.
//
// Ctrl-C reaches every process in the terminal's foreground group, and make
// ends with an error when it gets one. The server therefore has its own group
// and, if this group holds the terminal, takes over the terminal while it runs:
// Ctrl-C then reaches only the server, and only once.
func supervise(server *exec.Cmd) (byTerminal bool, err error) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	// A server stopped by Ctrl-Z could not be continued, since the shell sees
	// only make. The server inherits this setting.
	signal.Ignore(syscall.SIGTSTP, syscall.SIGTTOU)
	server.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	tty := terminal()
	if tty != nil {
		defer giveBack(tty)
		server.SysProcAttr = &syscall.SysProcAttr{Foreground: true, Ctty: int(tty.Fd())}
	}
	if err := server.Start(); err != nil {
		return false, fmt.Errorf("start the server: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Wait() }()
	asked := false
	for {
		select {
		case <-signals:
			// Only the first signal is forwarded: make and process managers
			// signal the group and then their child again, and a second signal
			// would stop the server immediately.
			if !asked {
				_ = server.Process.Signal(syscall.SIGTERM) // it may have ended
			}
			asked = true
		case err := <-ended:
			return tty != nil && !asked, err
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
