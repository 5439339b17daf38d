package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/stemedb/stemedb/client"
)

func healthcheckCommand() *cobra.Command {
	var t serverTarget
	var check string
	var timeout time.Duration
	checks := []string{"live", "ready", "startup"}
	cmd := &cobra.Command{
		Use:   "healthcheck",
		Short: "Ask a server whether it is live, ready or started",
		Long:  "Ask a server whether it is live, ready or started. Exits with 0 when it is, with 3\nwhen it is not, with 2 when it does not answer.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !slices.Contains(checks, check) {
				return fail(exitUsage, "--check: %q is not one of live, ready and startup", check)
			}
			c, err := t.client(client.WithRetries(), client.WithTimeout(timeout))
			if err != nil {
				return err
			}
			defer c.CloseIdleConnections()
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			status, err := c.Health(ctx, client.Probe("/"+check))
			var refused *client.Error
			switch {
			case errors.As(err, &refused) && refused.Status == http.StatusServiceUnavailable:
				return fail(exitNo, "%w", err)
			case err != nil:
				return fail(exitFailed, "%w", err)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), status)
			return err
		},
	}
	t.Flags(cmd.Flags(), "http://localhost:18180", false)
	cmd.Flags().StringVar(&check, "check", "ready", "live, ready or startup")
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Second, "how long to wait for the answer")
	return cmd
}
