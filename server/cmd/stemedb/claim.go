package main

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/stemedb/stemedb/client"
	"github.com/stemedb/stemedb/client/agentkey"
	"github.com/stemedb/stemedb/record"
)

func claimCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "claim",
		Short: "Sign, send and read claims by hand",
		Long: `Sign, send and read claims by hand.

A claim is signed by an agent: an Ed25519 key on this machine. The agent key is read from
the file that --agent-key-file names, else from STEME_PRIVATE_KEY (64 hex digits), else from
a file in the user's configuration folder. That last file is made when it is first needed;
only its owner can read it. An agent key is not an API key: the agent key identifies the
author of a claim, the API key the project that it belongs to.

The server is the one that --url or STEMEDB_URL names. With auth on, STEMEDB_API_KEY or
STEMEDB_API_KEY_FILE gives the API key.`,
		Example: `  stemedb claim assert --subject code://go/example.com/app/tls --predicate cert_verification \
    --text off --source-class expert
  stemedb claim query code://go/example.com/app/tls --lens consensus`,
	}
	cmd.AddCommand(claimSignCommand(), claimAssertCommand(), claimVoteCommand(), claimGetCommand(), claimQueryCommand())
	return cmd
}

// session holds the server and the timeout of a claim command.
type session struct {
	target  serverTarget
	timeout time.Duration
}

func (s *session) flags(fs *pflag.FlagSet) {
	s.target.Flags(fs, "http://localhost:18181", true)
	fs.DurationVar(&s.timeout, "timeout", time.Minute, "time limit of all attempts together")
}

// with runs do with a client and reports retries on standard error.
func (s *session) with(cmd *cobra.Command, do func(context.Context, *client.Client) error) error {
	c, err := s.target.client(client.WithOnRetry(func(r client.Retry) {
		fmt.Fprintf(cmd.ErrOrStderr(), "attempt %d failed; next attempt in %s: %v\n", r.Attempt, r.Wait.Round(time.Second/10), r.Err)
	}))
	if err != nil {
		return err
	}
	defer c.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(cmd.Context(), s.timeout)
	defer cancel()
	err = do(ctx, c)
	var refused *client.Error
	if errors.As(err, &refused) {
		warnIncomplete(cmd, refused.Incomplete)
	}
	return sorted(err)
}

// warnIncomplete reports on standard error that an answer may lack records.
func warnIncomplete(cmd *cobra.Command, why string) {
	if why != "" {
		fmt.Fprintf(cmd.ErrOrStderr(), "warning: the answer may lack records: %s\n", plain(why))
	}
}

// sorted sets the exit code of a client error.
func sorted(err error) error {
	var wrong *record.FieldError
	var refused *client.Error
	var exit *exitError
	switch {
	case err == nil || errors.As(err, &exit):
		return err
	case errors.As(err, &wrong):
		return fail(exitUsage, "%w", err)
	case errors.As(err, &refused) && refused.Status/100 == 4 && refused.Status != http.StatusTooManyRequests:
		return fail(exitNo, "%w", err)
	}
	return fail(exitFailed, "%w", err)
}

// signer finds the agent key.
type signer struct{ file string }

func (s *signer) flags(fs *pflag.FlagSet) {
	fs.StringVar(&s.file, "agent-key-file", "", "file with the agent key (default: stemedb/agent.key in the user's configuration folder)")
}

// key reads the agent key. The default file is made when it is missing; a named
// file is not, since a mistyped name would create another agent.
func (s *signer) key(cmd *cobra.Command) (ed25519.PrivateKey, error) {
	if v := os.Getenv(agentkey.Variable); v != "" && s.file == "" {
		key, err := agentkey.Parse(v)
		if err != nil {
			return nil, fail(exitUsage, "%s %w", agentkey.Variable, err)
		}
		return key, nil
	}
	if s.file != "" {
		key, err := agentkey.Load(s.file)
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("there is no agent key in %s; correct the name, or make one: (umask 077; openssl rand -hex 32 > %s)", s.file, s.file)
		}
		return key, usage(err)
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return nil, fail(exitUsage, "there is no folder for the agent key (%w); name a file with --agent-key-file, or set %s", err, agentkey.Variable)
	}
	file := filepath.Join(dir, "stemedb", "agent.key")
	key, err := agentkey.Load(file)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, usage(err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return nil, fail(exitUsage, "make a folder for the agent key: %w", err)
	}
	if key, err = agentkey.Create(file); err != nil {
		return nil, usage(err)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "made the agent key %s; the agent is %s\n", file, record.AgentOf(key))
	return key, nil
}

// usage gives a non-nil error the exit code of an invalid command line.
func usage(err error) error {
	if err == nil {
		return nil
	}
	return fail(exitUsage, "%w", err)
}

// outputFlag is the format of a command's result.
type outputFlag string

func (o *outputFlag) flags(fs *pflag.FlagSet) {
	fs.StringVarP((*string)(o), "output", "o", "text", "text or json")
}

func (o *outputFlag) check() error {
	if *o != "text" && *o != "json" {
		return fail(exitUsage, "--output: %q is not an output format; use text or json", string(*o))
	}
	return nil
}

// printJSON writes one JSON document on one line.
func printJSON(cmd *cobra.Command, v any) error {
	if err := json.NewEncoder(cmd.OutOrStdout()).Encode(v); err != nil {
		return fail(exitFailed, "print: %w", err)
	}
	return nil
}
