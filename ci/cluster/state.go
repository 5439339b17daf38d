package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/stemedb/stemedb/ci/progress"
)

// record is the file cluster.json of the state folder, which identifies the
// cluster. It is written before anything is changed, so that Down can always
// clean up, and later commands need no flags.
type record struct {
	Provider     string `json:"provider"`
	Context      string `json:"context,omitempty"`
	NodeRange    string `json:"nodeRange,omitempty"`
	PodRange     string `json:"podRange,omitempty"`
	ServiceRange string `json:"serviceRange,omitempty"`
}

func recordFile(dir string) string { return filepath.Join(dir, "cluster.json") }

// readRecord returns the zero record when the folder holds no cluster.
func readRecord(dir string) (record, error) {
	var r record
	text, err := os.ReadFile(recordFile(dir))
	if errors.Is(err, os.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return r, fmt.Errorf("reading the record of the cluster: %w", err)
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, progress.WithHint(fmt.Errorf("reading %s: %w", recordFile(dir), err), "remove that file if no cluster is up")
	}
	if !slices.Contains(Providers(), r.Provider) {
		return r, progress.WithHint(fmt.Errorf("%s names the unknown provider %q", recordFile(dir), r.Provider), "remove that file if no cluster is up")
	}
	return r, nil
}

func writeRecord(o Options, provider string) error {
	r := record{provider, o.Context, o.NodeRange, o.PodRange, o.ServiceRange}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("writing the record of the cluster: %w", err)
	}
	if _, err := o.writeFile(filepath.Base(recordFile(o.Dir)), string(text)+"\n"); err != nil {
		return fmt.Errorf("writing the record of the cluster: %w", err)
	}
	return nil
}

// adopt uses the recorded options, and rejects options that contradict them.
func (o *Options) adopt(r record) error {
	for _, f := range []struct {
		flag     string
		asked    *string
		recorded string
	}{
		{"--context", &o.Context, r.Context},
		{"--node-range", &o.NodeRange, r.NodeRange},
		{"--pod-range", &o.PodRange, r.PodRange},
		{"--service-range", &o.ServiceRange, r.ServiceRange},
	} {
		if *f.asked != "" && *f.asked != f.recorded {
			return progress.WithHint(fmt.Errorf("%s %s was requested, but the cluster in %s was created with %q", f.flag, *f.asked, o.Dir, f.recorded),
				"take that one down first")
		}
		*f.asked = f.recorded
	}
	return nil
}

// Up chooses a provider (asked may be empty), prints the changes and brings the
// cluster up. A second call verifies it and restarts stopped components.
func Up(ctx context.Context, o Options, asked string) (Provider, error) {
	unlock, err := o.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	choice, err := Choose(ctx, o, asked)
	if err != nil {
		return nil, err
	}
	o.Reporter.Note("cluster provider %s: %s", choice.Provider, choice.Reason)
	r, err := readRecord(o.Dir)
	if err != nil {
		return nil, err
	}
	if r.Provider != "" {
		if err := o.adopt(r); err != nil {
			return nil, err
		}
	}
	p, err := New(choice.Provider, o)
	if err != nil {
		return nil, err
	}
	if r.Provider == "" {
		if err := o.Reporter.Step(ctx, "check this machine", p.Check); err != nil {
			return nil, err
		}
		o.Reporter.Note("changes on this machine:")
		for _, line := range p.Changes() {
			o.Reporter.Note("  - %s", line)
		}
		if err := writeRecord(o, choice.Provider); err != nil {
			return nil, err
		}
	}
	return p, p.Up(ctx)
}

// Open returns the provider whose cluster is in the state folder.
func Open(o Options) (Provider, error) {
	r, err := readRecord(o.Dir)
	if err != nil {
		return nil, err
	}
	if r.Provider == "" {
		return nil, progress.WithHint(fmt.Errorf("no cluster is up in %s", o.Dir), "bring it up with: cluster up")
	}
	if err := o.adopt(r); err != nil {
		return nil, err
	}
	return New(r.Provider, o)
}

// Down takes down the cluster in the state folder and removes the folder. It
// reports whether there was one.
func Down(ctx context.Context, o Options) (bool, error) {
	unlock, err := o.lock()
	if err != nil {
		return false, err
	}
	defer unlock()
	r, err := readRecord(o.Dir)
	if err != nil || r.Provider == "" {
		return false, err
	}
	p, err := Open(o)
	if err != nil {
		return true, err
	}
	if err := p.Down(ctx); err != nil {
		return true, err
	}
	if err := os.RemoveAll(o.Dir); err != nil {
		return true, fmt.Errorf("removing the state folder: %w", err)
	}
	return true, nil
}

// lock keeps a second command from changing the same cluster at the same time.
func (o Options) lock() (unlock func(), err error) {
	path := strings.TrimRight(o.Dir, "/") + ".lock"
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("locking the cluster: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the cluster: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(
			progress.WithHint(fmt.Errorf("another command is bringing the cluster in %s up or down (%w)", o.Dir, err), "wait for it to end"),
			f.Close())
	}
	// Closing the file releases the lock.
	return func() { _ = f.Close() }, nil
}
