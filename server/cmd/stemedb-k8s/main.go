// Command stemedb-k8s is the only part of StemeDB's image that calls the
// Kubernetes API, so that the server links no Kubernetes client and needs no
// rights. The chart's Jobs run it inside the cluster.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	appsv1client "k8s.io/client-go/kubernetes/typed/apps/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
)

// namespaceFile is where a pod finds its namespace.
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// version is set by the linker: -ldflags "-X main.version=v1.2.3".
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	logger := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	if err := newCommand(logger, connect).ExecuteContext(ctx); err != nil {
		logger.Error("stemedb-k8s failed", "error", err.Error())
		stop()
		os.Exit(exitCode(err))
	}
}

// Exit codes. The chart's Job retries after exitFailed and ends immediately
// after exitRefused.
const (
	exitFailed  = 1 // another attempt may succeed
	exitRefused = 2 // the Secrets must be changed first; the log has the steps
)

func exitCode(err error) int {
	if errors.Is(err, errUnusable) {
		return exitRefused
	}
	return exitFailed
}

// cluster is the part of the Kubernetes API that the commands need.
type cluster struct {
	secrets      corev1client.SecretsGetter
	statefulSets appsv1client.StatefulSetsGetter
}

// connector opens the Kubernetes API; tests replace it.
type connector func() (cluster, error)

// connect uses the pod's service account.
func connect() (cluster, error) {
	config, err := rest.InClusterConfig()
	if err != nil {
		return cluster{}, fmt.Errorf("find the Kubernetes API: %w; run this command in a pod whose service account token is mounted", err)
	}
	config.Timeout = 10 * time.Second
	config.UserAgent = "stemedb-k8s"
	return newCluster(config)
}

func newCluster(config *rest.Config) (cluster, error) {
	core, err := corev1client.NewForConfig(config)
	if err != nil {
		return cluster{}, err
	}
	apps, err := appsv1client.NewForConfig(config)
	if err != nil {
		return cluster{}, err
	}
	return cluster{secrets: core, statefulSets: apps}, nil
}

func newCommand(logger *slog.Logger, connect connector) *cobra.Command {
	root := &cobra.Command{
		Use:           "stemedb-k8s",
		Short:         "Run StemeDB's tasks that need the Kubernetes API",
		Version:       versionLine(),
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetVersionTemplate("{{.Version}}\n")
	root.AddCommand(newEnsureSecretCommand(logger, connect), newVersionCommand())
	return root
}

// versionLine is the output of "stemedb-k8s version" and "stemedb-k8s
// --version".
func versionLine() string {
	return fmt.Sprintf("stemedb-k8s %s (%s, %s/%s)", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version and how the binary was built",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), versionLine())
			return err
		},
	}
}

func newEnsureSecretCommand(logger *slog.Logger, connect connector) *cobra.Command {
	spec := secretSpec{}
	timeout := 90 * time.Second
	cmd := &cobra.Command{
		Use:   "ensure-secret",
		Short: "Make sure that the members start with the secrets that their cluster uses",
		Long: `With --source=generated, makes a Secret with a new root API key and a new
cluster secret. When the Secret exists, only missing fields are added; existing
values are never changed, so the command is idempotent. When members already run
with another Secret, its values are copied.

With every source, the values that the members will start with are compared
with their current values. Different or lost values are refused, because
a member that restarts with another cluster secret cannot join the others.
Values are never printed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if spec.namespace == "" {
				spec.namespace = podNamespace()
			}
			if err := spec.check(); err != nil {
				return err
			}
			kubernetes, err := connect()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			done, err := ensureSecret(ctx, kubernetes, spec, logger)
			if err != nil {
				return err
			}
			logger.Info("the members can start with this Secret", "namespace", spec.namespace, "name", spec.name, "result", string(done))
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar((*string)(&spec.source), "source", string(generated), "where the Secret comes from: generated, existing or externalSecret")
	flags.StringVar(&spec.name, "name", "", "name of the Secret that the members will mount (required)")
	flags.StringVar(&spec.statefulSet, "statefulset", "", "name of the members' StatefulSet (required)")
	flags.StringVar(&spec.staged, "staged-name", "", "name of the Secret that External Secrets fills before a switch to externalSecret")
	flags.BoolVar(&spec.hook, "hook", false, "this Job runs before an install creates the StatefulSet: pods of a StatefulSet may hold values even if none is ready")
	flags.BoolVar(&spec.acceptNew, "accept-new-values", false, "accept values that differ from those in use; all members must then be restarted together")
	flags.StringVar(&spec.namespace, "namespace", "", "namespace of the Secret (default: the pod's)")
	flags.StringVar(&spec.rootKeyField, "root-key-field", "root-api-key", "field for the root API key")
	flags.StringVar(&spec.clusterSecretField, "cluster-secret-field", "cluster-secret", "field for the cluster secret")
	flags.DurationVar(&timeout, "timeout", timeout, "give up after this long")
	return cmd
}

func podNamespace() string {
	raw, err := os.ReadFile(namespaceFile)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw))
}

// check refuses invalid flags and names the flag to change.
func (s secretSpec) check() error {
	switch {
	case s.name == "":
		return errors.New("--name is empty; name the Secret")
	case s.statefulSet == "":
		return errors.New("--statefulset is empty; name the members' StatefulSet")
	case s.source != generated && s.source != existing && s.source != external:
		return fmt.Errorf("--source is %q; use %s, %s or %s", s.source, generated, existing, external)
	case s.source == external && s.staged == "":
		return errors.New("--staged-name is empty; name the Secret that External Secrets fills before a switch")
	case s.namespace == "":
		return errors.New("--namespace is empty and this is not a pod; name the Secret's namespace")
	case s.rootKeyField == "":
		return errors.New("--root-key-field is empty; name the field for the root API key")
	case s.clusterSecretField == "":
		return errors.New("--cluster-secret-field is empty; name the field for the cluster secret")
	case s.rootKeyField == s.clusterSecretField:
		return fmt.Errorf("--root-key-field and --cluster-secret-field are both %q; give each secret its own field", s.rootKeyField)
	}
	return nil
}
