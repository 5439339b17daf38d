// Command stemedb-backup copies the records of a cluster to object storage and back. It
// is a separate program, so that the server links no storage client.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/stemedb/stemedb/client"
	"github.com/stemedb/stemedb/internal/target"
	"github.com/stemedb/stemedb/server/internal/backup"
)

// version is set by the linker: -ldflags "-X main.version=v1.2.3".
var version = "dev"

// Exit codes.
const (
	exitFailed  = 1 // another attempt may succeed
	exitUsage   = 2 // the command line or the environment is invalid
	exitDamaged = 3 // the backup is damaged or missing; the output names the objects
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command(os.Stdout, os.Stderr).ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "stemedb-backup: "+err.Error())
		os.Exit(exitCode(err))
	}
}

// usageError is an invalid command line.
type usageError struct{ error }

func exitCode(err error) int {
	var damage *backup.DamageError
	var usage usageError
	switch {
	case errors.As(err, &damage):
		return exitDamaged
	case errors.As(err, &usage):
		return exitUsage
	}
	return exitFailed
}

// tool holds the settings that the commands share.
type tool struct {
	remote string
	target target.Target
	out    io.Writer
	log    *slog.Logger
}

func command(stdout, stderr io.Writer) *cobra.Command {
	t := &tool{out: stdout, log: slog.New(slog.NewJSONHandler(stderr, nil))}
	root := &cobra.Command{
		Use:   "stemedb-backup",
		Short: "Back up a StemeDB cluster to object storage, and restore it",
		Long: `Back up a StemeDB cluster to object storage, and restore it.

A backup holds every record that was acknowledged before it began, and all API keys as
hashes. It copies only the records that the newest backup in the same folder lacks. Several backups
may run at once, and an interrupted one is continued by the next.

The remote is written as rclone writes it: gcs:bucket/folder, s3:bucket/folder or
/var/backups. Its section is in the file that RCLONE_CONFIG names, or in variables such as
RCLONE_CONFIG_GCS_TYPE.

Exit codes: 1 another attempt may succeed, 2 invalid usage, 3 the backup is damaged.`,
		Version:       fmt.Sprintf("%s (%s, %s/%s)", version, runtime.Version(), runtime.GOOS, runtime.GOARCH),
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	f := root.PersistentFlags()
	f.StringVar(&t.remote, "remote", os.Getenv("STEMEDB_BACKUP_REMOTE"), "folder of the backups (STEMEDB_BACKUP_REMOTE)")
	root.AddCommand(t.createCommand(), t.listCommand(), t.verifyCommand(), t.restoreCommand(), t.pruneCommand())
	return root
}

// serverFlags are those of commands that call a server.
func (t *tool) serverFlags(cmd *cobra.Command) {
	t.target.Flags(cmd.Flags(), "http://localhost:18180", true)
}

func (t *tool) server() (*client.Client, error) {
	c, err := t.target.Client(
		client.WithUserAgent("stemedb-backup/"+version), client.WithTimeout(time.Minute),
		client.WithOnRetry(func(r client.Retry) {
			t.log.Warn("a request failed and is sent again", "path", r.Path, "attempt", r.Attempt, "wait", r.Wait.Round(time.Millisecond), "error", r.Err)
		}))
	if err != nil {
		return nil, usageError{err}
	}
	return c, nil
}

func (t *tool) open(ctx context.Context) (backup.Remote, error) {
	if t.remote == "" {
		return nil, usageError{errors.New("name the folder of the backups: --remote, or STEMEDB_BACKUP_REMOTE")}
	}
	return openRemote(ctx, t.remote)
}

// progress logs how far a long work is, every few seconds, with the rate and, if the
// total is known, the time left.
func (t *tool) progress(doing string, total int64) func(done int64) {
	began := time.Now()
	next := began.Add(progressEvery)
	return func(done int64) {
		now := time.Now()
		if now.Before(next) {
			return
		}
		next = now.Add(progressEvery)
		rate := float64(done) / now.Sub(began).Seconds()
		args := []any{"bytes", done, "bytes_per_second", int64(rate)}
		if total > 0 && rate > 0 {
			args = append(args, "of", total, "left", time.Duration(float64(total-done)/rate*float64(time.Second)).Round(time.Second))
		}
		t.log.Info(doing, args...)
	}
}

const progressEvery = 5 * time.Second

func (t *tool) createCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Take a backup",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, began := cmd.Context(), time.Now()
			r, err := t.open(ctx)
			if err != nil {
				return err
			}
			server, err := t.server()
			if err != nil {
				return err
			}
			taken, err := backup.Take(ctx, server, r, backup.Options{Now: began, Progress: t.progress("copying", 0)})
			if err != nil {
				return err
			}
			m := taken.Manifest
			args := []any{
				"id", m.ID(), "node", m.Point.Node, "assertions", m.Point.Assertions, "bytes", m.Bytes(), "chunks", len(m.Chunks),
				"copied_bytes", taken.Bytes, "copied_chunks", taken.Copied, "full", taken.Full, "took", time.Since(began).Round(time.Millisecond),
			}
			if taken.Full {
				args = append(args, "reason", taken.Why)
			}
			t.log.Info("the backup is complete", args...)
			_, err = fmt.Fprintln(t.out, m.ID())
			return err
		},
	}
	t.serverFlags(cmd)
	return cmd
}

func (t *tool) listCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the backups, oldest first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := t.open(cmd.Context())
			if err != nil {
				return err
			}
			all, damaged, err := backup.List(cmd.Context(), r)
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "TAKEN\tNODE\tASSERTIONS\tKEYS\tBYTES\tCHUNKS\tID")
			for _, m := range all {
				fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%d\t%s\n", m.TakenAt.Format(time.RFC3339), m.Point.Node, m.Point.Assertions, len(m.Point.Keys), m.Bytes(), len(m.Chunks), m.ID())
			}
			if err := w.Flush(); err != nil {
				return err
			}
			return joined(damaged)
		},
	}
}

func joined(damaged []*backup.DamageError) error {
	var all []error
	for _, d := range damaged {
		all = append(all, d)
	}
	return errors.Join(all...)
}

// find opens the remote and the backup that an argument names, the latest without one.
func (t *tool) find(ctx context.Context, args []string) (backup.Remote, *backup.Manifest, error) {
	r, err := t.open(ctx)
	if err != nil {
		return nil, nil, err
	}
	id := backup.Latest
	if len(args) > 0 {
		id = args[0]
	}
	m, err := backup.Find(ctx, r, id)
	return r, m, err
}

func (t *tool) verifyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "verify [ID]",
		Short: "Read all of a backup, the latest by default, and check every hash",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, m, err := t.find(cmd.Context(), args)
			if err != nil {
				return err
			}
			checked, err := backup.Verify(cmd.Context(), r, m, t.progress("verifying", m.Bytes()))
			if err != nil {
				return err
			}
			if len(checked.Damaged) > 0 {
				return joined(checked.Damaged)
			}
			_, err = fmt.Fprintf(t.out, "%s is intact: %d records, %d bytes in %d chunks\n", m.ID(), checked.Records, m.Bytes(), len(m.Chunks))
			return err
		},
	}
}

func (t *tool) restoreCommand() *cobra.Command {
	withKeys := false
	cmd := &cobra.Command{
		Use:   "restore [ID]",
		Short: "Restore the records of a backup, the latest by default, into an empty or a living cluster",
		Long: `Restore the records of a backup, the latest by default, into an empty or a living cluster.

A restore adds records and removes none. Records that the cluster holds already stay as
they are, so that an interrupted restore is continued by running it again. Members are not
restored, and API keys only with --keys: they work again with the same text, except those
that are revoked in the backup or in the cluster. Root keys are never restored.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			began := time.Now()
			server, err := t.server()
			if err != nil {
				return err
			}
			r, m, err := t.find(cmd.Context(), args)
			if err != nil {
				return err
			}
			done, err := backup.Restore(cmd.Context(), server, r, m, t.progress("restoring", m.Bytes()))
			if err != nil {
				return fmt.Errorf("%d records were restored before the failure; run the command again to continue: %w", done.Created, err)
			}
			if done.Invalid > 0 {
				t.log.Warn("records without a valid signature were left out", "records", done.Invalid)
			}
			if _, err = fmt.Fprintf(t.out, "restored %s: %d records created, %d held already, %d invalid, in %s\n",
				m.ID(), done.Created, done.Existing, done.Invalid, time.Since(began).Round(time.Millisecond)); err != nil || !withKeys {
				return err
			}
			keys, err := backup.RestoreKeys(cmd.Context(), server, m, began)
			if err != nil {
				return err
			}
			for _, hash := range keys.Conflicts {
				t.log.Warn("a key is registered here with another project or role and was left as it is", "hash", hash.String())
			}
			_, err = fmt.Fprintf(t.out, "restored keys: %d registered, %d revoked, %d skipped, %d in conflict\n",
				keys.Registered, keys.Revoked, keys.Skipped, len(keys.Conflicts))
			return err
		},
	}
	t.serverFlags(cmd)
	cmd.Flags().BoolVar(&withKeys, "keys", false, "restore the API keys too; needs a key with the role admin")
	return cmd
}

func (t *tool) pruneCommand() *cobra.Command {
	var keep backup.Retention
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove old backups, and what only they need",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := t.open(cmd.Context())
			if err != nil {
				return err
			}
			done, err := backup.Prune(cmd.Context(), r, keep, time.Now())
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(t.out, "removed %d backups and %d chunks of %d bytes\n", done.Manifests, done.Chunks, done.Bytes)
			return err
		},
	}
	cmd.Flags().IntVar(&keep.Last, "keep-last", 1, "how many of the newest backups are kept in any case, at least 1")
	cmd.Flags().DurationVar(&keep.Within, "keep-within", 30*24*time.Hour, "backups that are not older than this are kept")
	return cmd
}
