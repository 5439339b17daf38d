// Command aphoria scans a project's code and keeps what it sees in StemeDB.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/stemedb/stemedb/aphoria/cli"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Run(ctx, os.Args[1:], cli.Env{
		Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv, Version: version,
	})
	stop()
	os.Exit(code)
}
