package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/stemedb/stemedb/aphoria/agent"
	"github.com/stemedb/stemedb/aphoria/extract"
	"github.com/stemedb/stemedb/aphoria/outbox"
	"github.com/stemedb/stemedb/aphoria/scan"
	"github.com/stemedb/stemedb/client"
	"github.com/stemedb/stemedb/server/record"
)

type scanFlags struct {
	persist, exitCode, all bool
	format, url            string
}

func (a *app) scanCommand() *cobra.Command {
	var f scanFlags
	cmd := &cobra.Command{
		Use:   "scan [PATH]",
		Short: "Look at the code, and with --persist keep what was seen in StemeDB",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := directory(args)
			if err != nil {
				return err
			}
			return a.scan(cmd.Context(), dir, f)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.persist, "persist", false, "sign the observations and send them to the server of [hosted]")
	flags.BoolVar(&f.exitCode, "exit-code", false, "exit with 1 when something is blocked")
	flags.BoolVar(&f.all, "show-observations", false, "list plain facts too, not only what is flagged or blocked")
	flags.StringVar(&f.format, "format", "table", "`FORMAT` of the output: table or json")
	flags.StringVar(&f.url, "url", "", "`URL` of the server, instead of the configured one")
	return cmd
}

func (a *app) scan(ctx context.Context, dir string, f scanFlags) error {
	if f.format != "table" && f.format != "json" {
		return fmt.Errorf("--format is %q; use table or json", f.format)
	}
	s, err := a.load(dir)
	if err != nil {
		return err
	}
	var box *outbox.Outbox
	var sign func([]scan.Finding) []*record.Assertion
	if f.persist {
		// Before the scan: what is wrong here should not take its time to show.
		if box, sign, err = a.outbox(s, f.url); err != nil {
			return err
		}
	}
	registry, err := extract.Default()
	if err != nil {
		return err
	}
	start := a.Now()
	res, err := scan.Run(ctx, dir, s.stateDir, s.Config, registry, start)
	if err != nil {
		return err
	}
	for _, w := range res.Warnings {
		fmt.Fprintf(a.Stderr, "aphoria: warning: %s\n", w)
	}
	out := report{Result: res, all: f.all, took: a.Now().Sub(start)}
	var sendErr error
	if f.persist {
		out.persisted, sendErr = box.Send(ctx, sign(res.Findings))
		a.explain(out.persisted)
	}
	if err := out.write(a.Stdout, f.format); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	if sendErr != nil {
		return failed(sendErr)
	}
	if blocked := res.Count(extract.Block); f.exitCode && blocked > 0 {
		return failed(fmt.Errorf("%d observations are blocked", blocked))
	}
	return nil
}

// outbox prepares sending: the agent's key, the client, the queue.
func (a *app) outbox(s *settings, url string) (*outbox.Outbox, func([]scan.Finding) []*record.Assertion, error) {
	key, err := agent.Load(s.stateDir, a.Getenv)
	if err != nil {
		return nil, nil, err
	}
	c, err := a.client(s, url, client.WithAgentKey(key))
	if err != nil {
		return nil, nil, err
	}
	sign := func(findings []scan.Finding) []*record.Assertion {
		as := make([]*record.Assertion, len(findings))
		for i := range findings {
			as[i] = &record.Assertion{
				Content:    findings[i].Content,
				Signatures: []record.Signature{record.SignContent(key, findings[i].ID)},
			}
		}
		return as
	}
	started, shown := a.Now(), a.Now()
	return &outbox.Outbox{
		Sender: c, Queue: outbox.NewQueue(s.stateDir), Fallback: s.Hosted.OfflineFallback, Now: a.Now,
		Progress: func(done, total int) {
			if now := a.Now(); done < total && now.Sub(shown) > time.Second {
				shown = now
				fmt.Fprintf(a.Stderr, "aphoria: sent %d of %d after %s\n", done, total, now.Sub(started).Round(time.Second))
			}
		},
	}, sign, nil
}

// explain says what did not go as it should.
func (a *app) explain(s *outbox.Summary) {
	for _, e := range s.Errors {
		fmt.Fprintf(a.Stderr, "aphoria: warning: %s\n", e)
	}
	if s.Queued > 0 {
		fmt.Fprintf(a.Stderr, "aphoria: warning: %d claims wait in the queue; the next scan --persist sends them first\n", s.Queued)
	}
	if s.Skipped > 0 {
		fmt.Fprintf(a.Stderr, "aphoria: warning: %d claims were not sent (offline_fallback = skip); scan again when the server is back\n", s.Skipped)
	}
}

func (a *app) checkCommand() *cobra.Command {
	var url string
	cmd := &cobra.Command{
		Use:   "check-remote [PATH]",
		Short: "Try the configured server and the project's API key",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := directory(args)
			if err != nil {
				return err
			}
			return a.checkRemote(cmd.Context(), dir, url)
		},
	}
	cmd.Flags().StringVar(&url, "url", "", "`URL` of the server, instead of the configured one")
	return cmd
}

func (a *app) checkRemote(ctx context.Context, dir, url string) error {
	s, err := a.load(dir)
	if err != nil {
		return err
	}
	c, err := a.client(s, url)
	if err != nil {
		return err
	}
	who, err := c.WhoAmI(ctx)
	if err != nil {
		return failed(err)
	}
	if _, err := fmt.Fprintf(a.Stdout, "server   %s\nproject  %s\nrole     %s\n", c.BaseURL(), who.Project, who.Role); err != nil {
		return err
	}
	if who.ExpiresAt > 0 {
		if _, err := fmt.Fprintf(a.Stdout, "expires  %s\n", time.Unix(who.ExpiresAt, 0).UTC().Format(time.RFC3339)); err != nil {
			return err
		}
	}
	status, err := c.ClusterStatus(ctx)
	if err != nil {
		return failed(err)
	}
	if _, err := fmt.Fprintf(a.Stdout, "cluster  %d members, %d alive, %d whole\n", status.MemberCount, status.AliveCount, status.WholeCount); err != nil {
		return err
	}
	key, err := agent.Load(s.stateDir, a.Getenv)
	switch {
	case errors.Is(err, agent.ErrNoKey):
		fmt.Fprintf(a.Stderr, "aphoria: warning: %v\n", err)
	case err != nil:
		return err
	default:
		if _, err := fmt.Fprintf(a.Stdout, "agent    %s\n", agent.ID(key)); err != nil {
			return err
		}
	}
	if who.Auth && who.Role != "write_agent" && who.Role != "admin" {
		return failed(fmt.Errorf("the key's role is %s, which may not write; ask for one with write_agent", who.Role))
	}
	return nil
}
