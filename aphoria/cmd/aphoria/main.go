// Command aphoria scans a project's code and keeps its observations in StemeDB.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/stemedb/stemedb/aphoria/internal/cli"
)

// version is set by the linker.
var version = "dev"

// grace is how long a command may take to end after a signal. Its files are
// written atomically, so it can be cut off.
const grace = 2 * time.Second

func main() {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		number, _ := (<-signals).(syscall.Signal) // on this system every signal is one
		signal.Stop(signals)                      // a second one ends the process immediately
		cancel(&cli.Stopped{Signal: number})
		time.Sleep(grace)
		os.Exit(128 + int(number))
	}()
	os.Exit(cli.Run(ctx, os.Args[1:], cli.Env{
		Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv, Version: version,
	}))
}
