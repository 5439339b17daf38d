package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// supervise runs the server until it ends. byTerminal says that it was ended by
// the terminal and by no signal from here.
//
// Ctrl-C reaches every process in the terminal's foreground group, and make ends
// with an error when it gets one. So the server has a group to itself and, when
// this group holds the terminal, takes the terminal for as long as it runs: then
// Ctrl-C reaches the server alone, and once.
func supervise(server *exec.Cmd) (byTerminal bool, err error) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	// Nobody could continue a server that Ctrl-Z has stopped, since the shell
	// sees only make. The server inherits this.
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
			// Only the first is passed on: make and process managers signal
			// the group and then their child once more, and a second signal
			// would end the server at once.
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
		fmt.Fprintln(os.Stderr, "run: take the terminal back:", err)
	}
	_ = tty.Close()
}
