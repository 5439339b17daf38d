package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/stemedb/stemedb/server/internal/config"
	"github.com/stemedb/stemedb/server/internal/node"
)

func serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run a server",
		Long: `Run a server: a member of a cluster, or a single node.

Every setting is a flag and an environment variable; the flag wins. Where [_FILE] is
shown, the variable with that ending names a file that holds the value; the only
flag of a secret names such a file, since command lines are public. An unknown variable
that begins with STEMEDB_ is an error.

SIGTERM or SIGINT ends the server gracefully: it becomes unready, goes on serving for the
shutdown grace, finishes requests in progress and stops. A second signal ends it immediately.`,
		Example: `  stemedb serve --wal-dir /tmp/stemedb/wal --db-dir /tmp/stemedb/db`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(cmd.Flags(), config.Source{})
			if err != nil {
				return fail(exitUsage, "the configuration is invalid; nothing was started\n%w", err)
			}
			return serve(cmd.Context(), cfg, cmd.ErrOrStderr())
		},
	}
	config.RegisterFlags(cmd.Flags())
	cmd.SetUsageTemplate("Usage:\n  stemedb serve [flags]\n\nExample:\n" + cmd.Example + "\n" + config.Usage())
	return cmd
}

// startsAgain is the maximum number of restarts of a node per hour within one
// process. A node that fails more often ends the process, so that its supervisor
// decides when to retry.
const startsAgain = 3

// allowed reports whether a node may be restarted now, after the given earlier
// starts, and returns those including this one.
func allowed(earlier []time.Time, now time.Time) (starts []time.Time, ok bool) {
	starts = slices.DeleteFunc(earlier, func(t time.Time) bool { return now.Sub(t) >= time.Hour })
	if len(starts) >= startsAgain {
		return starts, false
	}
	return append(starts, now), true
}

// serve runs a node until a signal stops it or it fails. A failure that a restart
// resolves does not end the process.
func serve(ctx context.Context, cfg *config.Config, logs io.Writer) error {
	log := logger(cfg, logs)
	slog.SetDefault(log)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, os.Interrupt)
	defer signal.Stop(signals)

	warn(log, cfg)
	var starts []time.Time
	for {
		log.Info("starting", "version", versionString(), "node", cfg.NodeName)
		n, err := node.Start(ctx, cfg, node.Environment{Logger: log, Version: versionString()})
		if err != nil {
			return fail(exitFailed, "%w", err)
		}
		asked, err := runNode(ctx, n, log, signals)
		again := errors.Is(err, node.ErrStartAgain)
		if again && asked {
			return nil
		}
		if again {
			starts, again = allowed(starts, time.Now())
		}
		if !again {
			return err
		}
		log.Warn("restarting the node", "reason", err)
	}
}

// runner is the part of a node that runNode needs.
type runner interface {
	Done() <-chan struct{}
	Err() error
	Shutdown(ctx context.Context) error
}

// runNode waits for the end of a node: because of a signal (asked), or by itself.
// The first signal during a shutdown that the node began by itself does not count
// as a second one.
func runNode(ctx context.Context, n runner, log *slog.Logger, signals <-chan os.Signal) (asked bool, err error) {
	stop := func(s os.Signal) {
		log.Info("asked to stop; another signal stops immediately", "signal", s.String())
		asked = true
	}
	var cause error
	select {
	case s := <-signals:
		stop(s)
	case <-n.Done():
		cause = n.Err()
	}

	stopping, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stopped := make(chan error, 1)
	go func() { stopped <- n.Shutdown(stopping) }()
	for done := false; !done; {
		select {
		case err = <-stopped:
			done = true
		case s := <-signals:
			if asked {
				return true, &exitError{exitStopped, fmt.Errorf("stopped immediately by a second signal (%s)", s)}
			}
			stop(s)
		}
	}
	if cause != nil {
		err = cause
	}
	if err != nil {
		return asked, fail(exitFailed, "%w", err)
	}
	return asked, nil
}

func logger(cfg *config.Config, out io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: cfg.LogLevel}
	if cfg.LogFormat == "text" {
		return slog.New(slog.NewTextHandler(out, options))
	}
	return slog.New(slog.NewJSONHandler(out, options))
}

// warn logs settings that are allowed but dangerous.
func warn(log *slog.Logger, cfg *config.Config) {
	if !cfg.AuthEnabled {
		log.Warn("auth is off: every client that reaches this server may do everything", "setting", config.Prefix+"AUTH_ENABLED")
	}
	if cfg.UnsafeSkipSignatures {
		log.Warn("signatures are not checked: records prove nothing", "setting", config.Prefix+"UNSAFE_SKIP_SIGNATURES")
	}
	if cfg.AuthEnabled && cfg.RootAPIKey == "" {
		log.Warn("auth is on and no root key is given: a new cluster has no key that can make others", "setting", config.Prefix+"ROOT_API_KEY")
	}
}
