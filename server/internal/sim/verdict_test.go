package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// spreadLimit is the time limit until every node has the last writes.
const spreadLimit = 2 * time.Minute

const scrubFound = "stemedb_scrub_differences_total"

func TestTheMetricsOfTheVerdictExist(t *testing.T) {
	page, err := os.ReadFile("../../../docs/metrics.md") // generated from the registry
	require.NoError(t, err)
	require.Contains(t, string(page), "`"+scrubFound+"`")
}

// requireService: without faults nearly every request succeeds.
func (w *world) requireService(h *history) {
	w.t.Helper()
	time.Sleep(callLimit + time.Second) // requests that began during a fault have ended
	answered, refused := h.counts()
	time.Sleep(10 * time.Second)
	answeredNow, refusedNow := h.counts()
	good, bad := answeredNow-answered, refusedNow-refused
	require.Greater(w.t, good, 10, "too few requests succeed in a cluster without faults")
	require.LessOrEqual(w.t, bad, good/20, "%d of %d requests are refused in a cluster without faults", bad, good+bad)
}

// requireVerdict checks every node by itself, including state that no client
// sees.
func (w *world) requireVerdict(h *history) {
	w.t.Helper()
	w.requireEventually("every node holds everything", func() error {
		for _, m := range w.machines {
			if missing := h.missingAt(m); len(missing) > 0 {
				return fmt.Errorf("%d of %d records are wrong or missing, such as: %s", len(missing), len(h.all), missing[0])
			}
		}
		return nil
	})
	w.requireEventually("all nodes hold the same", w.sameDigests)
	w.requireCursors()
	w.requireSameIndex()
	for _, m := range w.machines {
		require.Zero(w.t, w.figure(m, scrubFound), "the comparison found records at %s that replication should have delivered", m.name)
	}
	require.Empty(w.t, h.wrong)
	require.Positive(w.t, h.acked, "no write was acknowledged: the schedule tests nothing")
	require.Positive(w.t, h.reads, "no read was answered: the schedule tests nothing")
}

func (w *world) requireEventually(what string, check func() error) {
	w.t.Helper()
	deadline := time.Now().Add(spreadLimit)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			require.NoError(w.t, err, what)
		}
		time.Sleep(time.Second)
	}
}

func (m *machine) digests() (*[256]store.Digest, error) {
	return m.node.Store().BucketDigests(context.Background(), nil)
}

func (w *world) sameDigests() error {
	first, err := w.machines[0].digests()
	if err != nil {
		return err
	}
	for _, m := range w.machines[1:] {
		d, err := m.digests()
		if err != nil {
			return err
		}
		if *d != *first {
			return fmt.Errorf("%s and %s hold different records", w.machines[0].name, m.name)
		}
	}
	return nil
}

// requireCursors: all records below a cursor are held. A cursor is the position
// up to which a peer's log has been pulled; records before it are never requested
// again.
func (w *world) requireCursors() {
	w.t.Helper()
	for _, peer := range w.machines {
		log := peer.node.Store()
		for _, m := range w.machines {
			cursor := m.node.Store().Cursor(log.Identity().Incarnation)
			if m == peer || cursor == 0 {
				continue
			}
			at := wal.Position(0)
			for at < cursor {
				keys, next, _, err := log.ScanKeys(at, 1<<20)
				require.NoError(w.t, err)
				var before []store.Key
				for _, k := range keys {
					if k.Position < cursor {
						before = append(before, k.Key)
					}
				}
				held, err := m.node.Store().Has(before)
				require.NoError(w.t, err)
				for i, has := range held {
					if before[i].Kind != store.KindCursor {
						require.True(w.t, has, "%s has pulled the log of %s up to %v and lacks %v", m.name, peer.name, cursor, before[i])
					}
				}
				if next == at {
					break
				}
				at = next
			}
		}
	}
}

// requireSameIndex: an index that is rebuilt from the log equals the one that was
// built incrementally.
func (w *world) requireSameIndex() {
	w.t.Helper()
	m := w.machines[w.rng.IntN(len(w.machines))]
	m.reserve()
	defer m.release()
	before, err := m.digests()
	require.NoError(w.t, err)
	w.stopMachine(m)
	m.disk.Wipe(indexDir)
	w.startMachine(m)
	w.settle()
	after, err := m.digests()
	require.NoError(w.t, err)
	require.Equal(w.t, before, after, "the rebuilt index of %s differs", m.name)
}

// figure reads a counter from a machine's metrics, summed over its labels; 0 if
// it was never incremented. TestTheMetricsOfTheVerdictExist checks its name.
func (w *world) figure(m *machine, name string) (sum float64) {
	w.t.Helper()
	v := w.newVisitor("inspector")
	defer v.leave()
	resp, err := v.http.Get("http://" + m.name + ":18180/metrics")
	require.NoError(w.t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(w.t, errors.Join(err, resp.Body.Close()))
	require.Equal(w.t, http.StatusOK, resp.StatusCode)
	lines := regexp.MustCompile(`(?m)^`+name+`(\{[^}]*\})? (\S+)$`).FindAllSubmatch(body, -1)
	for _, l := range lines {
		var x float64
		_, err := fmt.Sscan(string(l[2]), &x)
		require.NoError(w.t, err)
		sum += x
	}
	return sum
}

// supervise restarts processes that ended by themselves, like kubelet, and
// watches the members in the control table. The returned function ends it.
func (w *world) supervise() (end func()) {
	w.supervised = true
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		whole := map[string]bool{}
		for {
			select {
			case <-stop:
				return
			case <-time.After(500 * time.Millisecond):
			}
			w.restartEnded()
			w.watchWholeness(whole)
		}
	}()
	return func() { close(stop); <-done }
}

// restartEnded restarts the machines whose process has ended by itself, like
// kubelet.
func (w *world) restartEnded() {
	for _, m := range w.all() {
		if !m.tryReserve() {
			continue // an active fault restarts it
		}
		if m.ended() {
			w.logf("%s ended: %v", m.name, m.node.Err())
			w.crash(m, memfs.KillProcess, false)
			w.startMachine(m)
		}
		m.release()
	}
}

// watchWholeness: only a machine whose volumes were affected by a fault may need
// a refill.
func (w *world) watchWholeness(whole map[string]bool) {
	for _, m := range w.all() {
		for _, member := range m.members() {
			subject := w.machine(member.Name)
			switch {
			case member.Whole:
				whole[member.ID()] = true
			case whole[member.ID()] && !w.lossExpected(subject):
				w.history.fail("on %s, %s is reported to have lost records, and no fault affected its volumes", m.name, member.Name)
				w.expectLoss(subject) // reported once
			}
		}
	}
}
