// Command tools builds the programs that development and tests need and keeps
// them in a cache outside the checkout.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/stemedb/stemedb/ci/process"
	"github.com/stemedb/stemedb/ci/progress"
	"github.com/stemedb/stemedb/ci/tools"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		progress.Explain(os.Stderr, err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "tools",
		Short:         "Build development tools into a cache outside the checkout",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(
		&cobra.Command{
			Use:   "path TOOL",
			Short: "Build a tool unless it is cached, and print its path",
			Args:  cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				b, err := builder()
				if err != nil {
					return err
				}
				path, err := b.Path(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(cmd.OutOrStdout(), path)
				return err
			},
		},
		&cobra.Command{
			Use:   "build [TOOL...]",
			Short: "Build tools (by default all tools of the source cluster)",
			RunE: func(cmd *cobra.Command, args []string) error {
				b, err := builder()
				if err != nil {
					return err
				}
				if len(args) == 0 {
					args = tools.ClusterTools()
				}
				paths, err := b.Paths(cmd.Context(), args...)
				for _, name := range args {
					if path, ok := paths[name]; ok {
						fmt.Fprintf(cmd.OutOrStdout(), "%-24s %s\n", name, path)
					}
				}
				return err
			},
		},
		&cobra.Command{
			Use:   "run TOOL [ARGUMENT...]",
			Short: "Build a tool unless it is cached, and run it in place of this process",
			Args:  cobra.MinimumNArgs(1),
			// Flags after the tool's name belong to the tool.
			DisableFlagParsing: true,
			RunE: func(cmd *cobra.Command, args []string) error {
				b, err := builder()
				if err != nil {
					return err
				}
				path, err := b.Path(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				argv := append([]string{filepath.Base(path)}, args[1:]...)
				if err := syscall.Exec(path, argv, os.Environ()); err != nil {
					return fmt.Errorf("starting %s: %w", path, err)
				}
				return nil
			},
		},
		&cobra.Command{
			Use:   "list",
			Short: "List the available tools",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				for _, name := range tools.Names() {
					fmt.Fprintln(cmd.OutOrStdout(), name)
				}
				return nil
			},
		},
	)
	return root
}

func builder() (*tools.Builder, error) {
	return tools.New(process.Exec{}, progress.New(os.Stderr))
}
