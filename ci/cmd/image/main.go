// Command image builds container images without a registry or a daemon.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/stemedb/stemedb/ci/image"
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
		Use:           "image",
		Short:         "Build container images without a registry or a daemon",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(stemedbCommand(), buildCommand())
	return root
}

func stemedbCommand() *cobra.Command {
	var tag, version, out, certificates string
	cmd := &cobra.Command{
		Use:   "stemedb",
		Short: "Compile this checkout and write the image of StemeDB",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if certificates == "" {
				var err error
				if certificates, err = image.Certificates(); err != nil {
					return err
				}
			}
			return write(cmd.Context(), out, version, image.StemeDBPrograms(), func(files []image.File) image.Spec {
				return image.StemeDB(tag, version, files, certificates)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&tag, "tag", "dev", "tag of the image")
	f.StringVar(&version, "version", "dev", "version that the binaries report")
	f.StringVar(&out, "out", "", "tar to write (required)")
	f.StringVar(&certificates, "certificates", "", "certificate authorities to put into the image (default: this machine's)")
	_ = cmd.MarkFlagRequired("out")
	return cmd
}

func buildCommand() *cobra.Command {
	var (
		spec               image.Spec
		version, out       string
		programs, binaries []string
		labels             map[string]string
		certificates       string
	)
	cmd := &cobra.Command{
		Use:   "build --name docker.io/stemedb/e2e:dev --program ./test/client=/client --out client.tar",
		Short: "Write an image of any static binaries",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			root, err := tools.CheckoutDir()
			if err != nil {
				return err
			}
			var list []image.Program
			for _, text := range programs {
				p, err := image.ParseProgram(root, text)
				if err != nil {
					return fmt.Errorf("--program %w", err)
				}
				list = append(list, p)
			}
			return write(cmd.Context(), out, version, list, func(files []image.File) image.Spec {
				for _, text := range binaries {
					source, dest, _ := strings.Cut(text, "=")
					files = append(files, image.File{Path: dest, Source: source})
				}
				if certificates != "" {
					files = append(files, image.File{Path: image.CertificatesPath, Source: certificates, Mode: 0o644})
				}
				spec.Files, spec.Labels = files, labels
				if len(spec.Entrypoint) == 0 && len(files) > 0 {
					spec.Entrypoint = []string{files[0].Path}
				}
				return spec
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&spec.Reference, "name", "", "full name with registry and tag (required)")
	f.StringArrayVar(&programs, "program", nil, "FOLDER=PATH: compile the main package of that folder of the checkout; may be repeated")
	f.StringArrayVar(&binaries, "binary", nil, "FILE=PATH: copy that file; may be repeated")
	f.StringArrayVar(&spec.Entrypoint, "entrypoint", nil, "program and fixed arguments, one word per flag (default: the first program)")
	f.StringArrayVar(&spec.Cmd, "cmd", nil, "default arguments, one word per flag")
	f.StringVar(&spec.User, "user", image.NonRoot, "uid:gid")
	f.StringToStringVar(&labels, "label", nil, "NAME=VALUE; may be repeated")
	f.StringVar(&certificates, "certificates", "", "certificate authorities to put into the image")
	f.StringVar(&version, "version", "dev", "version that the binaries report")
	f.StringVar(&out, "out", "", "tar to write (required)")
	_ = cmd.MarkFlagRequired("name")
	_ = cmd.MarkFlagRequired("out")
	return cmd
}

// write compiles the programs, lets spec place them and writes the tar.
func write(ctx context.Context, out, version string, programs []image.Program, spec func([]image.File) image.Spec) error {
	root, err := tools.CheckoutDir()
	if err != nil {
		return err
	}
	scratch, err := os.MkdirTemp("", "stemedb-image-")
	if err != nil {
		return fmt.Errorf("making a folder for binaries: %w", err)
	}
	defer func() { _ = os.RemoveAll(scratch) }()
	reporter := progress.New(os.Stderr)
	c := &image.Compiler{Root: root, Version: version, Runner: process.Exec{}, Reporter: reporter}
	files, err := c.Compile(ctx, scratch, programs...)
	if err != nil {
		return err
	}
	s := spec(files)
	return reporter.Step(ctx, "write "+s.Reference+" to "+filepath.Base(out), func(context.Context) error {
		return image.Write(s, out)
	})
}
