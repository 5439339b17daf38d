// Package process starts other programs. Everything in ci that executes a command
// does so through a Runner, so that a test can assert the exact commands and
// answer for them without running anything.
package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

// Command is one program to run until it ends.
type Command struct {
	Name string
	Args []string
	Env  []string  // added to the environment of this process, as NAME=value
	Dir  string    // working directory; empty means this process's
	In   []byte    // standard input
	Tee  io.Writer // also receives standard output and error while they are produced
}

// Cmd is the usual Command: a name and its arguments.
func Cmd(name string, args ...string) Command {
	return Command{Name: name, Args: args}
}

// String is the command as one would type it, with the words quoted that need it.
func (c Command) String() string {
	words := make([]string, 0, len(c.Args)+1)
	for _, w := range append([]string{c.Name}, c.Args...) {
		if w == "" || strings.ContainsAny(w, " \t\n'\"$&|;<>(){}*?!") {
			w = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		words = append(words, w)
	}
	return strings.Join(words, " ")
}

// Runner runs commands. Run returns the command's standard output; an error is
// always an *Error and contains the command's standard error.
type Runner interface {
	Run(ctx context.Context, c Command) (string, error)
}

// Error is a command that could not be started or ended with another status
// than 0.
type Error struct {
	Command Command
	Stderr  string
	Err     error
}

// Error names the command, the reason of the failure and the last lines of its
// standard error.
func (e *Error) Error() string {
	msg := fmt.Sprintf("%s: %v", e.Command, e.Err)
	if tail := LastLines(e.Stderr, 12); tail != "" {
		msg += "\n" + tail
	}
	return msg
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// NotFound reports whether err means that a program is not installed.
func NotFound(err error) bool { return errors.Is(err, exec.ErrNotFound) }

// Exec is the Runner that really runs commands.
type Exec struct{}

// Run implements Runner.
func (Exec) Run(ctx context.Context, c Command) (string, error) {
	cmd := exec.CommandContext(ctx, c.Name, c.Args...)
	cmd.Dir = c.Dir
	cmd.Env = append(os.Environ(), c.Env...)
	if c.In != nil {
		cmd.Stdin = bytes.NewReader(c.In)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if c.Tee != nil {
		cmd.Stdout = io.MultiWriter(&stdout, c.Tee)
		cmd.Stderr = io.MultiWriter(&stderr, c.Tee)
	}
	if err := cmd.Run(); err != nil {
		// A cancelled context is the reason, "signal: killed" only its effect.
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		said := stderr.String()
		if said == "" {
			said = stdout.String()
		}
		return stdout.String(), &Error{Command: c, Stderr: said, Err: err}
	}
	return stdout.String(), nil
}

// LastLines returns the last n lines of text, without trailing white space.
func LastLines(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n \t"), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}
