package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/stemedb/stemedb/aphoria/internal/agent"
)

func (a *app) checkCommand() *cobra.Command {
	var url string
	cmd := &cobra.Command{
		Use:   "check-remote [PATH]",
		Short: "Check the configured server and the project's API key",
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
	for _, row := range [][2]string{{"server", c.BaseURL()}, {"project", who.Project}, {"role", who.Role}} {
		if err := a.out("%-8s %s", row[0], row[1]); err != nil {
			return err
		}
	}
	if who.ExpiresAt > 0 {
		if err := a.out("expires  %s", time.Unix(who.ExpiresAt, 0).UTC().Format(time.RFC3339)); err != nil {
			return err
		}
	}
	status, err := c.ClusterStatus(ctx)
	if err != nil {
		return failed(err)
	}
	if err := a.out("cluster  %d members, %d alive, %d whole", status.MemberCount, status.AliveCount, status.WholeCount); err != nil {
		return err
	}
	key, err := agent.Load(s.stateDir, a.Getenv)
	switch {
	case errors.Is(err, agent.ErrNoKey):
		a.warn("%v", err)
	case err != nil:
		return err
	default:
		if err := a.out("agent    %s", agent.ID(key)); err != nil {
			return err
		}
	}
	if who.Auth && who.Role != "write_agent" && who.Role != "admin" {
		return failed(fmt.Errorf("the key's role is %s, which may not write; ask for a key with the role write_agent", who.Role))
	}
	return nil
}
