// Command stemedb is the server and its tools in one static binary. "stemedb
// help" lists the commands.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
)

// Exit codes; the help of the root command documents them.
const (
	exitOK      = 0
	exitUsage   = 1 // configuration or command line; nothing was started
	exitFailed  = 2 // a failure, or the server could not be reached
	exitNo      = 3 // a negative answer: not ready, not healthy, a check failed, refused
	exitStopped = 130
)

// exitError carries the exit code of a failure.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func fail(code int, format string, args ...any) error {
	return &exitError{code, fmt.Errorf(format, args...)}
}

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is the whole program except for the process. It returns the exit code.
func run(args []string, in io.Reader, out, errOut io.Writer) int {
	root := rootCommand()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.Execute()
	if err == nil {
		return exitOK
	}
	var exit *exitError
	if !errors.As(err, &exit) {
		exit = &exitError{exitUsage, err}
	}
	fmt.Fprintf(errOut, "stemedb: %v\n", exit.err)
	return exit.code
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "stemedb",
		Short: "A store of signed claims, replicated on a cluster",
		Long: `StemeDB stores signed claims about code and shows which agents support them.

Exit codes:
  0    done
  1    the command line or the configuration is invalid; nothing was started
  2    a failure, or the server could not be reached
  3    a negative answer: not ready, not healthy, a failed check, or a refusal by the server
  130  stopped immediately by a second signal`,
		Version:      versionLine(),
		SilenceUsage: true, SilenceErrors: true,
	}
	root.SetVersionTemplate("{{.Version}}\n")
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(serveCommand(), keysCommand(), claimCommand(), smokeCommand(), clusterCommand(), healthcheckCommand(), versionCommand())
	return root
}
