package sim

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"os"
	"path"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/cluster"
	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/store"
)

// Scenarios are hand-written schedules, as opposed to the random ones of
// faults_test.go. This file holds their common steps.

// scenario runs f in a settled cluster of n machines.
func scenario(t *testing.T, n int, timings control.Timings, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, n)
		w.control = timings
		w.scrub = -1 // it would hide missing catch-up
		defer w.close()
		for _, m := range w.machines {
			m.start()
		}
		w.settle()
		f(w)
	})
}

var scenarioSigner = ed25519.NewKeyFromSeed(append(make([]byte, 31), 9))

// claim returns a signed assertion with a text as its object.
func claim(subject, text string) *record.Assertion {
	a := &record.Assertion{Content: record.Content{
		Subject: subject, Predicate: "version", Object: record.Text(text), Confidence: 0.5,
		SourceClass: record.Observational, Timestamp: uint64(time.Now().Unix()),
	}}
	a.Sign(scenarioSigner)
	return a
}

// put writes a claim through this machine; nil means acknowledged.
func (m *machine) put(a *record.Assertion) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return m.node.Cluster().Assert(ctx, simProject, []*record.Assertion{a})[0].Err
}

// get reads a claim through this machine with a quorum.
func (m *machine) get(a *record.Assertion) error { return m.read(a, cluster.Quorum) }

func (m *machine) read(a *record.Assertion, consistency cluster.Consistency) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err := m.node.Cluster().Get(ctx, simProject, a.ID(), consistency)
	return err
}

// putHere makes a claim durable on this machine alone, like a coordinator's log
// before any other member has the record.
func (m *machine) putHere(a *record.Assertion) {
	m.w.t.Helper()
	items := []store.Item{store.NewContent(simProject, a.ID(), &a.Content), store.NewSignature(simProject, a.ID(), a.Signatures[0])}
	done := make(chan error, 1)
	require.NoError(m.w.t, m.node.Store().Put(items, func(res store.PutResult) { done <- res.Err }))
	require.NoError(m.w.t, <-done)
}

// requireSeenOrUnavailable requires that a read of an acknowledged claim finds it
// or fails as unavailable.
func requireSeenOrUnavailable(t *testing.T, m *machine, a *record.Assertion) {
	t.Helper()
	if err := m.get(a); err != nil {
		require.ErrorIs(t, err, cluster.ErrUnavailable, "a quorum read at %s misses an acknowledged write", m.name)
	}
}

// leader returns the leader of the control table and the other machines.
func (w *world) leader() (leader *machine, others []*machine) {
	w.t.Helper()
	for _, m := range w.machines {
		if m.node != nil && m.node.Control().IsLeader() {
			leader = m
		} else {
			others = append(others, m)
		}
	}
	require.NotNil(w.t, leader, "no machine leads the control table")
	return leader, others
}

// instantDisks removes the latency of all disks, including those of later
// machines.
func (w *world) instantDisks() {
	w.instant = true
	for _, m := range w.machines {
		m.temper.setFactor(0)
	}
}

// rot flips one bit of the stored record whose payload holds text, in the log
// or in a pack.
func (m *machine) rot(text string) {
	m.w.t.Helper()
	for _, dir := range []string{walDir, path.Join(dbDir, "packs")} {
		entries, err := m.disk.ReadDir(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		require.NoError(m.w.t, err)
		for _, e := range entries {
			if e.IsDir() {
				continue
			}
			name := path.Join(dir, e.Name())
			if at := bytes.Index(m.file(name), []byte(text)); at >= 0 {
				require.NoError(m.w.t, m.disk.FlipBit(name, int64(at), 1))
				return
			}
		}
	}
	m.w.t.Fatalf("no record of %s holds %q", m.name, text)
}

// file reads a file of the machine's disk.
func (m *machine) file(name string) []byte {
	m.w.t.Helper()
	f, err := m.disk.OpenFile(name, os.O_RDONLY, 0)
	require.NoError(m.w.t, err)
	size, err := f.Size()
	require.NoError(m.w.t, err)
	b := make([]byte, size)
	if _, err = f.ReadAt(b, 0); err != nil {
		require.ErrorIs(m.w.t, err, io.EOF)
	}
	require.NoError(m.w.t, f.Close())
	return b
}

// snapshot copies the files below dir, like a storage snapshot of a volume.
func (m *machine) snapshot(dir string) map[string][]byte {
	m.w.t.Helper()
	files := map[string][]byte{}
	entries, err := m.disk.ReadDir(dir)
	require.NoError(m.w.t, err)
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		if !e.IsDir() {
			files[name] = m.file(name)
			continue
		}
		for inner, b := range m.snapshot(name) {
			files[inner] = b
		}
	}
	return files
}

// rollBack restores a volume from a snapshot; the machine is down.
func (m *machine) rollBack(dir string, files map[string][]byte) {
	m.w.t.Helper()
	m.disk.Wipe(dir)
	for name, b := range files {
		require.NoError(m.w.t, m.disk.MkdirAll(path.Dir(name), 0o700))
		f, err := m.disk.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
		require.NoError(m.w.t, err)
		_, err = f.WriteAt(b, 0)
		require.NoError(m.w.t, err)
		require.NoError(m.w.t, f.Sync())
		require.NoError(m.w.t, f.Close())
		require.NoError(m.w.t, m.disk.SyncDir(path.Dir(name)))
	}
	require.NoError(m.w.t, m.disk.SyncDir(dir))
}

// A node with a wrong clock, the leader included, accepts fresh records and
// refuses records from the future like any other.
func TestANodeWithAWrongClockJudgesRecordsLikeTheOthers(t *testing.T) {
	for _, by := range []time.Duration{-time.Hour, time.Hour} {
		scenario(t, 3, control.Timings{}, func(w *world) {
			leader, others := w.leader()
			for _, wrong := range []*machine{others[0], leader} {
				wrong.clock.Set(by)
				time.Sleep(10 * time.Second)
				for _, m := range w.machines {
					require.NoError(w.t, m.node.Ready())
					require.NoError(w.t, m.put(claim("fresh/"+m.name, w.t.Name()+wrong.name)))
					late := claim("late/"+m.name, wrong.name)
					late.Timestamp += 600
					late.Signatures = nil
					late.Sign(scenarioSigner)
					var field *record.FieldError
					require.ErrorAs(w.t, m.put(late), &field, "%s while the clock of %s is wrong by %v", m.name, wrong.name, by)
					require.Equal(w.t, "timestamp", field.Field)
				}
				wrong.clock.Set(0)
				time.Sleep(10 * time.Second)
			}
		})
	}
}
