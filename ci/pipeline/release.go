package pipeline

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/stemedb/stemedb/ci/cluster"
	"github.com/stemedb/stemedb/ci/process"
	"github.com/stemedb/stemedb/ci/progress"
)

// imageVariable names the image that an existing cluster pulls; every other
// cluster gets the image of this checkout.
const imageVariable = "STEMEDB_CLUSTER_IMAGE"

const (
	pullAlways = "image.pullPolicy=Always"
	// imageAnnotation is the value that restarts the pods when it changes.
	imageAnnotation = `podAnnotations.stemedb\.dev/image=`
)

// release brings the cluster up and installs the release in it. It returns the
// environment in which kubectl and helm talk to that cluster.
func (p *Pipeline) release(ctx context.Context) ([]string, error) {
	existing, err := p.existing()
	if err != nil {
		return nil, err
	}
	values, err := existingValues(existing)
	if err != nil {
		return nil, err
	}
	if slices.Contains(values, pullAlways) {
		p.Reporter.Note("the image has a tag, so it is pulled again and the pods restart; with REPOSITORY@sha256:DIGEST they restart only if the image has changed")
	}
	command, err := p.clusterCommand(ctx)
	if err != nil {
		return nil, err
	}
	if err := p.cluster(ctx, command, "up"); err != nil {
		return nil, err
	}
	if !existing {
		if err := p.images(ctx, command, false); err != nil {
			return nil, err
		}
		// The image keeps its tag from one build to the next, so a change of
		// its content has to restart the pods.
		image, err := fileHash(filepath.Join(p.State, "stemedb.tar"))
		if err != nil {
			return nil, err
		}
		values = []string{"image.tag=" + imageTag, imageAnnotation + image[:16]}
	}
	_, env, err := p.client(ctx, command)
	if err != nil {
		return nil, err
	}
	return env, p.Reporter.Step(ctx, "install the release", func(ctx context.Context) error {
		return p.install(ctx, env, existing, values)
	})
}

// existing reports whether the cluster is, or will be, an existing one.
func (p *Pipeline) existing() (bool, error) {
	if p.Provider == "existing" {
		return true, nil
	}
	return recordedExisting()
}

func recordedExisting() (bool, error) {
	dir, err := cluster.StateDir()
	if err != nil {
		return false, err
	}
	return cluster.IsExisting(dir)
}

// existingValues are the release's values for an existing cluster: an image
// that it can pull, and volumes of its default class.
func existingValues(existing bool) ([]string, error) {
	image := os.Getenv(imageVariable)
	switch {
	case !existing && image != "":
		return nil, progress.WithHint(fmt.Errorf("%s is set, but this cluster gets the image of this checkout", imageVariable),
			"unset it, or name your own cluster: STEMEDB_CLUSTER_PROVIDER=existing STEMEDB_CLUSTER_CONTEXT=NAME")
	case !existing:
		return nil, nil
	case image == "":
		return nil, progress.WithHint(errors.New("images cannot be loaded onto the nodes of an existing cluster"),
			"build it (go -C ci run ./cmd/image stemedb --out stemedb.tar), push it to a registry that the nodes pull from, and name it: %s=REGISTRY/REPOSITORY:TAG make up", imageVariable)
	}
	name, digest, _ := strings.Cut(image, "@")
	repository, tag := name, ""
	// A colon before the last slash belongs to the registry's port.
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		repository, tag = name[:i], name[i+1:]
	}
	if repository == "" || (tag == "" && digest == "") {
		return nil, progress.WithHint(fmt.Errorf("%s=%s has no version", imageVariable, image), "write REGISTRY/REPOSITORY:TAG, or …@sha256:DIGEST")
	}
	values := []string{
		"image.registry=", "image.repository=" + repository, "image.tag=" + tag, "image.digest=" + digest,
		"persistence.wal.storageClassName=", "persistence.db.storageClassName=",
	}
	if digest == "" {
		// A tag may have moved to another image, which neither helm nor a node
		// with the old image would notice.
		values = append(values, pullAlways, imageAnnotation+rand.Text())
	}
	return values, nil
}

// In an existing cluster the namespace may belong to another user, perhaps from
// their make up. This label contains the owner's id: only the state folder with
// this id may install into the namespace and remove it.
const ownerLabel = "stemedb.dev/made-by"

// owner is the random id of the state folder. It is stored next to the record
// of the cluster and removed with it, so that no other folder, of another user
// or for another cluster, has the same id.
func owner() (string, error) {
	dir, err := cluster.StateDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "owner")
	text, err := os.ReadFile(path)
	if id := strings.TrimSpace(string(text)); err == nil && id != "" {
		return id, nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	id := rand.Text()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	return id, os.WriteFile(path, []byte(id+"\n"), 0o600)
}

// ours checks whether the namespace exists, and whether an earlier run with
// this state folder created it.
func (p *Pipeline) ours(ctx context.Context, env []string, id string) (there, ours bool, err error) {
	out, err := p.quiet(ctx, ".", env, "kubectl", "get", "namespace", namespace, "--ignore-not-found",
		"--output", "jsonpath={.metadata.name} {.metadata.labels."+strings.ReplaceAll(ownerLabel, ".", `\.`)+"}")
	if err != nil {
		return false, false, err
	}
	found := strings.Fields(out)
	return len(found) > 0, len(found) > 1 && found[1] == id, nil
}

// takeOver is the hint for taking over a namespace whose state folder no longer exists.
func takeOver(id string) string {
	return fmt.Sprintf("if it is yours, from a state folder that no longer exists, assign it to this one: kubectl label --overwrite namespace %s %s=%s", namespace, ownerLabel, id)
}

func (p *Pipeline) install(ctx context.Context, env []string, existing bool, values []string) error {
	id, err := owner()
	if err != nil {
		return err
	}
	there, ours, err := p.ours(ctx, env, id)
	if err != nil {
		return err
	}
	switch {
	case !there:
		manifest := fmt.Sprintf("{apiVersion: v1, kind: Namespace, metadata: {name: %s, labels: {%s: %s}}}\n", namespace, ownerLabel, id)
		if _, err := p.Runner.Run(ctx, process.Command{Name: "kubectl", Args: []string{"create", "--filename", "-"}, Dir: p.Root, Env: env, In: []byte(manifest)}); err != nil {
			return err
		}
	case existing && !ours:
		return progress.WithHint(fmt.Errorf("that cluster already has a namespace %s that was not created by make up with this state folder; its content is not changed", namespace),
			"use a cluster without it, or install the chart manually, as described in charts/stemedb/README.md; %s", takeOver(id))
	}
	if _, err := p.quiet(ctx, ".", env, "kubectl", "label", "--overwrite", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted"); err != nil {
		return err
	}
	args := []string{"upgrade", "--install", releaseName, "charts/stemedb", "--namespace", namespace, "--values", "values/dev.yaml"}
	for _, value := range values {
		args = append(args, "--set-string", value)
	}
	_, err = p.quiet(ctx, ".", env, "helm", append(args, "--wait", "--timeout", "5m")...)
	return progress.WithHint(err, "check: kubectl -n %s get pods; kubectl -n %s logs %s-0 (with the KUBECONFIG of `make up`)", namespace, namespace, releaseName)
}

// uninstall removes the release from an existing cluster, with the namespace
// that was created for it and therefore with its volumes, and nothing else.
func (p *Pipeline) uninstall(ctx context.Context, command string) error {
	_, env, err := p.client(ctx, command)
	if err != nil {
		return err
	}
	id, err := owner()
	if err != nil {
		return err
	}
	there, ours, err := p.ours(ctx, env, id)
	if err != nil {
		return progress.WithHint(err, "if that cluster no longer exists, remove its record: go -C ci run ./cmd/cluster down")
	}
	if !ours {
		if there {
			p.Reporter.Note("the namespace %s was not created by make up with this state folder, so it is not removed; %s", namespace, takeOver(id))
		}
		return nil
	}
	if _, err := p.quiet(ctx, ".", env, "helm", "uninstall", releaseName, "--namespace", namespace, "--ignore-not-found", "--wait", "--timeout", "5m"); err != nil {
		return err
	}
	_, err = p.quiet(ctx, ".", env, "kubectl", "delete", "namespace", namespace, "--ignore-not-found", "--timeout=5m")
	return err
}
