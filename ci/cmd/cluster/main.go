// Command cluster brings up a three-node Kubernetes cluster for development and
// tests and removes it again.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/stemedb/stemedb/ci/cluster"
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

// settings are the flags that all commands share.
type settings struct {
	provider string
	options  cluster.Options
}

func command() *cobra.Command {
	s := &settings{}
	root := &cobra.Command{
		Use:           "cluster",
		Short:         "A three-node Kubernetes cluster for development and tests",
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			return s.complete()
		},
	}
	f := root.PersistentFlags()
	f.StringVar(&s.provider, "provider", os.Getenv("STEMEDB_CLUSTER_PROVIDER"),
		"one of "+strings.Join(cluster.Providers(), ", ")+"; empty selects one that the machine supports [STEMEDB_CLUSTER_PROVIDER]")
	f.StringVar(&s.options.Context, "context", os.Getenv("STEMEDB_CLUSTER_CONTEXT"), "existing: the context to use [STEMEDB_CLUSTER_CONTEXT]")
	f.StringVar(&s.options.Dir, "state", "", "state folder (default below ~/.local/state) [STEMEDB_STATE]")
	f.StringVar(&s.options.NodeRange, "node-range", os.Getenv("STEMEDB_CLUSTER_NODE_RANGE"), "source: a /24 for nodes (default 10.99.0.0/24)")
	f.StringVar(&s.options.PodRange, "pod-range", os.Getenv("STEMEDB_CLUSTER_POD_RANGE"), "source: a /16 for pods (default 10.244.0.0/16)")
	f.StringVar(&s.options.ServiceRange, "service-range", os.Getenv("STEMEDB_CLUSTER_SERVICE_RANGE"), "source: a /16 for Services (default 10.96.0.0/16)")

	root.AddCommand(
		s.up(),
		s.down(),
		s.simple("status", "Show nodes and processes; fails if the cluster is not up", func(cmd *cobra.Command, p cluster.Provider) error {
			text, err := p.Status(cmd.Context())
			fmt.Fprint(cmd.OutOrStdout(), text)
			return err
		}),
		s.simple("kubeconfig", "Print the path of the kubeconfig", func(cmd *cobra.Command, p cluster.Provider) error {
			if _, err := os.Stat(p.Kubeconfig()); err != nil {
				return progress.WithHint(errors.New("no cluster is up"), "bring it up with: cluster up")
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), p.Kubeconfig())
			return err
		}),
		s.loadImage(),
		s.fault("node-cut NODE", "Disconnect a node from the network", cluster.Faults.CutNode),
		s.fault("node-heal NODE", "Reconnect a node to the network", cluster.Faults.HealNode),
		s.signal(),
	)
	return root
}

func (s *settings) complete() error {
	s.options.Runner = process.Exec{}
	s.options.Reporter = progress.New(os.Stderr)
	if s.options.Dir == "" {
		dir, err := cluster.StateDir()
		if err != nil {
			return err
		}
		s.options.Dir = dir
	}
	builder, err := tools.New(s.options.Runner, s.options.Reporter)
	if err != nil {
		return err
	}
	s.options.Tools = builder
	return nil
}

func (s *settings) up() *cobra.Command {
	return &cobra.Command{
		Use:   "up",
		Short: "Bring the cluster up, or verify that it is",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := cluster.Up(cmd.Context(), s.options, s.provider)
			if err != nil {
				return err
			}
			s.options.Reporter.Note("the cluster is up: export KUBECONFIG=%s", p.Kubeconfig())
			return nil
		},
	}
}

func (s *settings) down() *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Take the cluster down and revert all changes made by up",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			was, err := cluster.Down(cmd.Context(), s.options)
			if err != nil {
				return err
			}
			if !was {
				s.options.Reporter.Note("no cluster is up in %s", s.options.Dir)
				return nil
			}
			s.options.Reporter.Note("the cluster is down")
			return nil
		},
	}
}

func (s *settings) loadImage() *cobra.Command {
	return &cobra.Command{
		Use:   "load-image TAR...",
		Short: "Load images onto every node",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := cluster.Open(s.options)
			if err != nil {
				return err
			}
			return s.options.Reporter.Step(cmd.Context(), "load "+strings.Join(args, " "), func(ctx context.Context) error {
				return p.LoadImage(ctx, args...)
			})
		},
	}
}

func (s *settings) simple(use, short string, do func(*cobra.Command, cluster.Provider) error) *cobra.Command {
	return &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := cluster.Open(s.options)
			if err != nil {
				return err
			}
			return do(cmd, p)
		},
	}
}

func (s *settings) fault(use, short string, do func(cluster.Faults, context.Context, string) error) *cobra.Command {
	return &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := s.faults()
			if err != nil {
				return err
			}
			return do(f, cmd.Context(), args[0])
		},
	}
}

func (s *settings) signal() *cobra.Command {
	name := "KILL"
	cmd := &cobra.Command{
		Use:   "kill-container NAMESPACE/POD/CONTAINER...",
		Short: "Send a signal to all given containers at once, bypassing kubelet and runtime",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			number := unix.SignalNum("SIG" + strings.TrimPrefix(name, "SIG"))
			if number == 0 {
				return fmt.Errorf("--signal %q: there is no such signal", name)
			}
			f, err := s.faults()
			if err != nil {
				return err
			}
			var containers []cluster.Container
			for _, a := range args {
				c, err := cluster.ParseContainer(a)
				if err != nil {
					return err
				}
				containers = append(containers, c)
			}
			return cluster.Signal(cmd.Context(), s.options, f, number, containers...)
		},
	}
	cmd.Flags().StringVar(&name, "signal", name, "name of the signal: KILL, STOP, CONT, TERM")
	return cmd
}

func (s *settings) faults() (cluster.Faults, error) {
	p, err := cluster.Open(s.options)
	if err != nil {
		return nil, err
	}
	f, ok := p.(cluster.Faults)
	if !ok {
		return nil, fmt.Errorf("provider %s cannot inject faults into nodes or containers", p.Name())
	}
	return f, nil
}
