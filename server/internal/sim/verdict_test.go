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

// spreadLimit bounds how long the last writes take until every node has them.
const spreadLimit = 2 * time.Minute

const scrubFound = "stemedb_scrub_differences_total"

func TestTheMetricsOfTheVerdictExist(t *testing.T) {
	page, err := os.ReadFile("../../../docs/metrics.md") // made from the registry
	require.NoError(t, err)
	require.Contains(t, string(page), "`"+scrubFound+"`")
}

// requireService: without faults nearly every request is answered as asked.
func (w *world) requireService(h *history) {
	w.t.Helper()
	time.Sleep(callLimit + time.Second) // what began during a fault has ended
	answered, refused := h.counts()
	time.Sleep(10 * time.Second)
	answeredNow, refusedNow := h.counts()
	good, bad := answeredNow-answered, refusedNow-refused
	require.Greater(w.t, good, 10, "too few requests succeed in a cluster without faults")
	require.LessOrEqual(w.t, bad, good/20, "%d of %d requests are refused in a cluster without faults", bad, good+bad)
}

// requireVerdict looks at every node alone, and at what no client sees.
func (w *world) requireVerdict(h *history) {
	w.t.Helper()
	w.requireEventually("every node holds everything", func() error {
		for _, m := range w.machines {
			if missing := h.missingAt(m); len(missing) > 0 {
				return fmt.Errorf("%d of %d records are not as they should be, such as: %s", len(missing), len(h.all), missing[0])
			}
		}
		return nil
	})
	w.requireEventually("all nodes hold the same", w.sameDigests)
	w.requireCursors()
	w.requireSameIndex()
	for _, m := range w.machines {
		require.Zero(w.t, w.figure(m, scrubFound), "comparison found at %s something that replication should have brought", m.name)
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

// requireCursors: what a cursor vouches for is held. A cursor says up to where a
// peer's log has been taken in, and whatever is before it is never asked for
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
						require.True(w.t, has, "%s has taken in the log of %s up to %v and lacks %v", m.name, peer.name, cursor, before[i])
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

// requireSameIndex: an index that is made anew from the log says the same as the
// one that grew with it.
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
	require.Equal(w.t, before, after, "the index of %s, made anew, says something else", m.name)
}

// figure reads a counter from a machine's metrics, summed over its labels; 0 when
// it was never raised. TestTheMetricsOfTheVerdictExist holds its name.
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

// supervise starts processes again that ended by themselves, as kubelet does, and
// watches what the control table says of the members. The returned function ends
// it.
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

// restartEnded starts the machines whose process has ended by itself, as kubelet
// does.
func (w *world) restartEnded() {
	for _, m := range w.all() {
		if !m.tryReserve() {
			continue // a fault is at it, and starts it again
		}
		if m.ended() {
			w.logf("%s ended: %v", m.name, m.node.Err())
			w.crash(m, memfs.KillProcess, false)
			w.startMachine(m)
		}
		m.release()
	}
}

// watchWholeness: only a machine whose volumes were touched may have to be filled
// again.
func (w *world) watchWholeness(whole map[string]bool) {
	for _, m := range w.all() {
		for _, member := range m.members() {
			subject := w.machine(member.Name)
			switch {
			case member.Whole:
				whole[member.ID()] = true
			case whole[member.ID()] && !w.lossExpected(subject):
				w.history.fail("%s says that %s lost records, and nothing happened to its volumes", m.name, member.Name)
				w.expectLoss(subject) // said once
			}
		}
	}
}
