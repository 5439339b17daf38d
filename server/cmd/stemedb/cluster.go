package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/stemedb/stemedb/client"
)

// trouble lists why the cluster is not healthy, or returns nothing.
func trouble(s *client.ClusterStatus) string {
	members, alive, whole := s.MemberCount, s.AliveCount, s.WholeCount
	var parts []string
	if members == 0 {
		parts = append(parts, "the cluster has not formed")
	}
	if alive < members {
		parts = append(parts, fmt.Sprintf("%d of %d members are alive", alive, members))
	}
	if whole < members {
		parts = append(parts, fmt.Sprintf("%d of %d members are whole", whole, members))
	}
	if !s.WriteQuorum {
		parts = append(parts, "too few members are alive for writes")
	}
	if !s.ReadQuorum {
		parts = append(parts, "too few whole members are alive for reads")
	}
	if !s.TimeSure {
		parts = append(parts, "no majority of the members' clocks agree on the time")
	}
	if s.Change != "" {
		parts = append(parts, "a change of members is open ("+s.Change+")")
	}
	return strings.Join(parts, "; ")
}

func clusterCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "cluster", Short: "Show a cluster and decide about its members"}
	cmd.AddCommand(clusterStatusCommand(), acceptLossCommand(), cancelChangeCommand())
	return cmd
}

func acceptLossCommand() *cobra.Command {
	return decision("accept-loss NAME", cobra.ExactArgs(1), "Give up the records that a member lost",
		`Give up the records that a member lost and that no whole member holds. The member
counts as whole afterwards: reads no longer wait for those records, and nothing
shows that they existed. Use it when no copy is left: in a cluster of one, or when
so many members lost records that the others cannot refill them. It is refused
while they can. A member whose index names damaged records starts again by itself and
builds its index anew without them; a record that is sent again is stored anew. It has
no effect on a whole member. Needs an API key with the role admin, and --yes.`,
		"the records that the member lost are given up permanently",
		func(ctx context.Context, c *client.Client, args []string) error { return c.AcceptLoss(ctx, args[0]) })
}

func cancelChangeCommand() *cobra.Command {
	return decision("cancel-change [ID]", cobra.MaximumNArgs(1), "Cancel the open change of members",
		`Cancel the open change of members. Until then, a join whose node never comes back
makes writes wait for one more member. Nothing acknowledged is lost. The node asks
to join again after 5 minutes, or when it is restarted. With ID (change_id of the
status) no other change is cancelled. Needs an API key with the role admin, and
--yes.`,
		"the open change of members is cancelled",
		func(ctx context.Context, c *client.Client, args []string) error {
			if len(args) == 0 {
				return c.CancelChange(ctx, 0)
			}
			id, err := strconv.ParseUint(args[0], 10, 64)
			if err != nil || id == 0 {
				return fail(exitUsage, "%q is not the number of a change; take change_id from the status", args[0])
			}
			return c.CancelChange(ctx, id)
		})
}

// decision is a command that --yes must confirm.
func decision(use string, args cobra.PositionalArgs, short, long, effect string, send func(context.Context, *client.Client, []string) error) *cobra.Command {
	var t serverTarget
	var yes bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long, Args: args,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !yes {
				return fail(exitUsage, "--yes is missing: %s", effect)
			}
			c, err := t.client(client.WithRetries(), client.WithTimeout(timeout))
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			var exit *exitError
			if err := send(ctx, c, args); errors.As(err, &exit) {
				return err
			} else if err != nil {
				return fail(exitFailed, "%w", err)
			}
			fmt.Fprintln(cmd.OutOrStdout(), "done")
			return nil
		},
	}
	t.Flags(cmd.Flags(), "http://localhost:18181", true)
	cmd.Flags().BoolVar(&yes, "yes", false, "confirm the decision")
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long to wait for the answer")
	return cmd
}

func clusterStatusCommand() *cobra.Command {
	var t serverTarget
	var output string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the members of a cluster and whether each is alive and whole",
		Long: `Show the members of a cluster and whether each is alive and whole. With an API key
(STEMEDB_API_KEY or STEMEDB_API_KEY_FILE) members are listed, without one they are
only counted.

Exits with 3 unless every member is alive and whole, a majority of the members'
clocks agree and no change is open.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := t.client(client.WithRetries(), client.WithTimeout(timeout))
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			s, err := c.ClusterStatus(ctx)
			if err != nil {
				return fail(exitFailed, "%w", err)
			}
			switch output {
			case "json":
				_, err = cmd.OutOrStdout().Write(s.JSON)
			case "text":
				err = printStatus(cmd.OutOrStdout(), s)
			default:
				return fail(exitUsage, "--output: %q is not an output format; use text or json", output)
			}
			if err != nil {
				return fail(exitFailed, "print: %w", err)
			}
			if problem := trouble(s); problem != "" {
				return fail(exitNo, "%s", problem)
			}
			return nil
		},
	}
	t.Flags(cmd.Flags(), "http://localhost:18180", true)
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Second, "how long to wait for the answer")
	return cmd
}

func printStatus(out io.Writer, s *client.ClusterStatus) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if s.Detail != "full" {
		why := "no API key was given"
		if s.Because != "" && s.Because != "key_missing" {
			why = s.Because
		}
		fmt.Fprintf(w, "members\t%d (%d alive, %d whole)\ngeneration\t%d\nnames\tnot shown: %s\n", s.MemberCount, s.AliveCount, s.WholeCount, s.Generation, why)
	} else {
		fmt.Fprintf(w, "cluster\t%s\nanswered by\t%s\nleader\t%s\ngeneration\t%d\n", s.ClusterID, s.Node, s.Leader, s.Generation)
	}
	if s.Change != "" {
		fmt.Fprintf(w, "open change\t%s, waits for %s\n", s.Change, strings.Join(s.WaitsFor, ", "))
	}
	if s.Reason != "" {
		fmt.Fprintf(w, "not ready\t%s\n", s.Reason)
	}
	if s.Detail == "full" {
		fmt.Fprintf(w, "\nMEMBER\tALIVE\tWHOLE\tBEHIND (BYTES)\tCLOCK OFF BY\tINCARNATION\n")
		for _, m := range s.Members {
			skew := "unknown"
			if m.ClockSkew != nil {
				skew = strconv.FormatFloat(*m.ClockSkew, 'f', 3, 64) + " s"
			}
			fmt.Fprintf(w, "%s\t%t\t%t\t%d\t%s\t%s\n", m.Name, m.Alive, m.Whole, m.LagBytes, skew, m.Incarnation)
		}
	}
	return w.Flush()
}
