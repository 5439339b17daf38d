package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/stemedb/stemedb/ci/cluster/source"
	"github.com/stemedb/stemedb/ci/process"
	"github.com/stemedb/stemedb/ci/progress"
)

// Choice is a provider and the reason for choosing it.
type Choice struct{ Provider, Reason string }

// Choose picks the provider. In this order: the requested one; the one recorded
// in the state folder; k3d if docker responds and k3d's node image is
// available; kind likewise; source if this machine allows it. The provider
// existing is used only on request.
func Choose(ctx context.Context, o Options, asked string) (Choice, error) {
	state, err := readRecord(o.Dir)
	if err != nil {
		return Choice{}, err
	}
	recorded := state.Provider
	if asked != "" && !slices.Contains(Providers(), asked) {
		return Choice{}, progress.WithHint(fmt.Errorf("there is no cluster provider %q", asked), "choose one of %s", strings.Join(Providers(), ", "))
	}
	switch {
	case recorded != "" && asked != "" && asked != recorded:
		return Choice{}, progress.WithHint(fmt.Errorf("provider %s was requested, but %s holds a cluster of %s", asked, o.Dir, recorded),
			"take that one down first")
	case asked != "":
		return Choice{asked, "it was requested"}, nil
	case recorded != "":
		return Choice{recorded, "its cluster is in " + o.Dir}, nil
	}
	return probe(ctx, o.Runner, source.Usable)
}

// probe checks which providers this machine supports.
func probe(ctx context.Context, r process.Runner, sourceUsable func() error) (Choice, error) {
	var why []string
	try := func(name, args string) bool {
		ctx, cancel := context.WithTimeoutCause(ctx, 20*time.Second, errors.New("no answer within 20s"))
		defer cancel()
		_, err := r.Run(ctx, process.Cmd("docker", strings.Fields(args)...))
		if err != nil {
			why = append(why, name)
		}
		return err == nil
	}
	// The image is on this machine already, or its registry knows it:
	// requesting the manifest downloads no image.
	has := func(image string) bool {
		if _, err := r.Run(ctx, process.Cmd("docker", "image", "inspect", image)); err == nil {
			return true
		}
		return try("the image "+image+" is not available", "manifest inspect "+image)
	}
	if try("no docker daemon responds", "info --format {{.ServerVersion}}") {
		if has(K3sImage) && has(K3DToolsImage) {
			return Choice{"k3d", "docker responds and the image " + K3sImage + " is available"}, nil
		}
		if has(KindImage) {
			return Choice{"kind", "docker responds and the image " + KindImage + " is available"}, nil
		}
	}
	if err := sourceUsable(); err != nil {
		return Choice{}, progress.WithHint(fmt.Errorf("no cluster provider works on this machine: %s; source: %w", strings.Join(why, "; "), err),
			"install docker and make an image registry reachable, or run this as root on Linux, or name a cluster with --provider existing --context NAME")
	}
	return Choice{"source", strings.Join(why, "; ")}, nil
}
