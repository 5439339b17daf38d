// Package cli holds aphoria's commands. Results go to standard output,
// everything else to standard error. The exit code is 0 for success, 1 when the
// scan blocks or claims could not be kept, 2 when the command is invalid, 128
// plus the signal's number when a signal stopped it.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/stemedb/stemedb/aphoria/internal/config"
	"github.com/stemedb/stemedb/client"
)

// Env holds the commands' inputs from outside.
type Env struct {
	Stdout, Stderr io.Writer
	Getenv         func(string) string
	Version        string
	Now            func() time.Time // nil: time.Now
	// ClientOptions are added to those of every client, for tests.
	ClientOptions []client.Option
}

// Exit codes.
const (
	exitOK      = 0
	exitBlocked = 1 // also: claims were not kept
	exitUsage   = 2
)

// Stopped is the cause of a context that a signal ended.
type Stopped struct {
	Signal syscall.Signal
}

func (s *Stopped) Error() string { return "stopped by a signal: " + s.Signal.String() }

// exitCode follows the shells: 128 plus the signal's number.
func (s *Stopped) exitCode() int { return 128 + int(s.Signal) }

// codedError carries an exit code other than exitUsage.
type codedError struct {
	code int
	err  error
}

func (e *codedError) Error() string { return e.err.Error() }
func (e *codedError) Unwrap() error { return e.err }

func failed(err error) error { return &codedError{exitBlocked, err} }

// app is one run.
type app struct {
	Env
	configFile string
	stateDir   string
}

// Run executes one command line and returns the exit code.
func Run(ctx context.Context, args []string, env Env) int {
	if env.Now == nil {
		env.Now = time.Now
	}
	a := &app{Env: env}
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var stopped *Stopped
	if errors.As(context.Cause(ctx), &stopped) {
		// The command did not finish, whatever it did until then.
		a.say("%v", stopped)
		return stopped.exitCode()
	}
	if err == nil {
		return exitOK
	}
	a.say("%s", strings.ReplaceAll(err.Error(), "\n", "; ")) // of errors.Join
	var coded *codedError
	if errors.As(err, &coded) {
		return coded.code
	}
	return exitUsage
}

func (a *app) root() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "aphoria",
		Short: "Scan a project's code and keep the findings in StemeDB",
		Long: `Scan a project's code and keep the findings in StemeDB.

Exit codes:
  0  done
  1  scan --exit-code: an observation is blocked; --persist: claims were not kept;
     both: no claim can hold an observation; standard error has the details
  2  the command line, the configuration or the agent key is invalid
  130, 143  stopped by SIGINT or SIGTERM`,
		Version:       a.Version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.SetVersionTemplate("{{.Version}}\n")
	cmd.SetOut(a.Stdout)
	cmd.SetErr(a.Stderr)
	flags := cmd.PersistentFlags()
	flags.StringVar(&a.configFile, "config", "", "configuration `FILE` (default: .aphoria/config.toml in the project or above it)")
	flags.StringVar(&a.stateDir, "state-dir", "", "`DIR` of the agent key and the queue (default: the configuration's directory)")
	cmd.AddCommand(a.initCommand(), a.scanCommand(), a.checkCommand(), a.versionCommand())
	return cmd
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return a.out("%s", a.Version)
		},
	}
}

// settings are the configuration and its locations.
type settings struct {
	config.Config
	file        string // "" when there is none
	stateDir    string
	projectRoot string // the directory of .aphoria; "" when not searched for or not found
}

// load finds the configuration of the project at dir. Without one the defaults
// apply.
func (a *app) load(dir string) (*settings, error) {
	s := &settings{Config: config.Default(), file: a.configFile, stateDir: a.stateDir}
	if s.file == "" {
		found, err := config.Find(dir)
		if err != nil {
			return nil, err
		}
		if s.file = found; found != "" {
			s.projectRoot = filepath.Dir(filepath.Dir(found))
		}
	}
	if s.file != "" {
		c, err := config.Load(s.file)
		if err != nil {
			return nil, err
		}
		s.Config = c
	}
	if s.stateDir == "" {
		s.stateDir = filepath.Join(dir, config.Dir)
		if s.file != "" {
			s.stateDir = filepath.Dir(s.file)
		}
	}
	abs, err := filepath.Abs(s.stateDir)
	if err != nil {
		return nil, fmt.Errorf("find the state directory: %w", err)
	}
	s.stateDir = abs
	return s, nil
}

// client makes the client of the configured server.
func (a *app) client(s *settings, url string, opts ...client.Option) (*client.Client, error) {
	if url == "" {
		url = s.Hosted.URL
	}
	if url == "" {
		return nil, errors.New("no server is configured; set url in [hosted] of .aphoria/config.toml, or give --url")
	}
	key := a.Getenv(s.Hosted.APIKeyEnv)
	if key == "" {
		a.warn("%s is not set, so requests carry no API key", s.Hosted.APIKeyEnv)
	}
	opts = append([]client.Option{
		client.WithUserAgent("aphoria/" + a.Version),
		client.WithOnRetry(func(r client.Retry) {
			a.say("attempt %d failed: %v; next attempt in %s", r.Attempt, r.Err, r.Wait.Round(100*time.Millisecond))
		}),
	}, opts...)
	return client.New(url, key, append(opts, a.ClientOptions...)...)
}

// directory returns the command's path argument, "." by default.
func directory(args []string) (string, error) {
	dir := "."
	if len(args) > 0 {
		dir = args[0]
	}
	info, err := os.Stat(dir)
	if err != nil {
		return "", fmt.Errorf("find the project: %w", err)
	}
	if !info.IsDir() {
		return "", fmt.Errorf("%s is not a directory; give the project's root", dir)
	}
	return dir, nil
}
