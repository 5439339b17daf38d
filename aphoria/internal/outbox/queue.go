// Package outbox sends signed claims to a StemeDB server, and keeps them in
// files while no server can be reached. A queued claim leaves the queue only
// when a server has acknowledged it or a person removes it.
package outbox

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/stemedb/stemedb/record"
)

const (
	queueDir = "queue"
	// A queued batch is a CBOR sequence (RFC 8742) of signed assertions in
	// their wire form, at most BatchSize of them.
	queuedSuffix = ".cborseq"
	// Permanently refused claims are kept under this suffix and not sent again.
	refusedSuffix = ".refused"
)

// Queue is the directory of batches that wait for a server.
type Queue struct {
	dir string
}

// NewQueue is the queue of a state directory. The directory is made at the
// first Put.
func NewQueue(stateDir string) *Queue { return &Queue{filepath.Join(stateDir, queueDir)} }

// Put stores a batch durably: after it returns, a loss of power does not lose
// the batch. It is idempotent.
func (q *Queue) Put(as []*record.Assertion, now time.Time) error {
	if err := os.MkdirAll(q.dir, 0o700); err != nil {
		return fmt.Errorf("queue a batch: %w", err)
	}
	body := encode(as)
	sum := record.HashOf(body)
	tag := hex.EncodeToString(sum[:8])
	names, err := q.Names()
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.Contains(name, tag) {
			return nil
		}
	}
	// Names sort by age.
	return q.write(fmt.Sprintf("%020d-%s%s", now.UnixNano(), tag, queuedSuffix), body)
}

// Names lists the batches, oldest first.
func (q *Queue) Names() ([]string, error) {
	entries, err := os.ReadDir(q.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the queue: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() && strings.HasSuffix(e.Name(), queuedSuffix) {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// Read returns one batch.
func (q *Queue) Read(name string) ([]*record.Assertion, error) {
	file := filepath.Join(q.dir, name)
	body, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the queue: %w", err)
	}
	var as []*record.Assertion
	for item, err := range record.BatchItems(record.MediaCBORSeq, body) {
		var a *record.Assertion
		if err == nil {
			a, err = record.ParseAssertionCBOR(item)
		}
		if err != nil {
			return nil, fmt.Errorf("the queued batch %s is damaged: %w; move the file away, and scan again", file, err)
		}
		as = append(as, a)
	}
	return as, nil
}

// Remove removes a batch after its refused claims have been kept aside.
func (q *Queue) Remove(name string, refused []*record.Assertion) error {
	if len(refused) > 0 {
		if err := q.write(strings.TrimSuffix(name, queuedSuffix)+refusedSuffix, encode(refused)); err != nil {
			return err
		}
	}
	if err := os.Remove(filepath.Join(q.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("take a batch out of the queue: %w", err)
	}
	return nil
}

// write creates a file atomically.
func (q *Queue) write(name string, body []byte) error {
	f, err := os.CreateTemp(q.dir, ".writing-*")
	if err != nil {
		return fmt.Errorf("queue a batch: %w", err)
	}
	_, err = f.Write(body)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(q.dir, name))
	}
	if err != nil {
		return fmt.Errorf("queue a batch: %w", errors.Join(err, removeIfThere(f.Name())))
	}
	return q.syncDir()
}

func (q *Queue) syncDir() error {
	d, err := os.Open(q.dir)
	if err != nil {
		return fmt.Errorf("queue a batch: %w", err)
	}
	defer func() { _ = d.Close() }() // only read
	if err := d.Sync(); err != nil {
		return fmt.Errorf("queue a batch: %w", err)
	}
	return nil
}

func removeIfThere(name string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func encode(as []*record.Assertion) []byte {
	var b []byte
	for _, a := range as {
		b = a.AppendCBOR(b)
	}
	return b
}
