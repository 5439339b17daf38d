package main

import (
	"os/exec"
	"runtime"
	"syscall"
)

// The kernel ties the signal to the thread that starts the child, so that
// thread must live as long as this process.
func init() { runtime.LockOSThread() }

// dieWithParent stops the server even if this process is killed.
func dieWithParent(server *exec.Cmd) { server.SysProcAttr.Pdeathsig = syscall.SIGTERM }
