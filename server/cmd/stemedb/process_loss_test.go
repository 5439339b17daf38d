package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A member's WAL folder is replaced by an older copy while its DB folder stays.
// A record that it acknowledged together with one other member is never
// answered with 404, and the member is not whole before it is refilled.
func TestProcessWhoseWALFolderWasPutBackIsRefilled(t *testing.T) {
	ps := newProcesses(t, 3)
	n0, n1, n2 := ps[0], ps[1], ps[2]
	for _, p := range ps {
		p.start("")
	}
	for _, p := range ps {
		p.awaitReady()
	}
	n0.write("before", 20, 0)
	n0.stop()
	old := filepath.Join(n0.dir, "old")
	copyFolder(t, n0.dir+"/wal", old)
	n0.start("")
	n0.awaitReady()

	n2.kill()
	ids := n0.write("acknowledged by two", 200, 0)
	n0.stop()
	n1.kill()
	require.NoError(t, os.RemoveAll(n0.dir+"/wal"))
	require.NoError(t, os.Rename(old, n0.dir+"/wal"))
	n0.start("")
	n2.start("")
	n0.eventually(func() bool { status, _ := n0.get("/v1/health/startup"); return status == http.StatusOK })
	n2.eventually(func() bool { status, _ := n2.get("/v1/health/startup"); return status == http.StatusOK })
	neverMissing := func() {
		for _, p := range []*process{n0, n2} {
			status, _, body := p.read(ids[len(ids)-1], "quorum")
			require.NotEqual(t, http.StatusNotFound, status, "%s: %s", p.name, body)
		}
	}
	reasons := map[string]healthReason{}
	n0.eventually(func() bool {
		neverMissing()
		_, reasons = n0.health()
		_, given := reasons["not_whole"]
		return given
	})
	require.Contains(t, reasons["not_whole"].Detail, "lost")
	require.Equal(t, "the other members refill it", reasons["not_whole"].Remedy)
	require.False(t, n0.ready())

	n1.start("")
	n0.eventually(func() bool {
		neverMissing()
		return n0.ready() && n2.ready()
	})
	n0.requireReasons()
	for _, id := range ids {
		status, _, body := n0.read(id, "local")
		require.Equal(t, http.StatusOK, status, body)
	}
	status, _, body := n2.read(ids[0], "quorum")
	require.Equal(t, http.StatusOK, status, body)
}

func copyFolder(t *testing.T, from, to string) {
	t.Helper()
	out, err := exec.Command("cp", "-a", from, to).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// flip changes a bit of a record's text in each file that holds it; one of them is
// in the folder of the pattern.
func (p *process) flip(pattern, text string) {
	found := false
	for _, each := range []string{"db/packs/*.pack", "wal/wal-*.seg"} { // a sealed segment is in both for a while
		files, err := filepath.Glob(filepath.Join(p.dir, each))
		require.NoError(p.t, err)
		for _, name := range files {
			b, err := os.ReadFile(name)
			require.NoError(p.t, err)
			i := bytes.Index(b, []byte(text))
			if i < 0 {
				continue
			}
			f, err := os.OpenFile(name, os.O_RDWR, 0)
			require.NoError(p.t, err)
			_, err = f.WriteAt([]byte{b[i] ^ 1}, int64(i))
			require.NoError(p.t, err)
			require.NoError(p.t, f.Close())
			found = found || each == pattern
		}
	}
	require.True(p.t, found, "no file %s holds %s", pattern, text)
}

// One bit of a single node's log flips, in a sealed segment or in the open one:
// the node serves everything else and reports the loss until an operator
// accepts it.
func TestProcessThatLostAByteServesTheRest(t *testing.T) {
	for name, row := range map[string]struct {
		files string // below the process's folder
		fill  int    // records of 60 kB before the restart
	}{
		"in a sealed segment": {"db/packs/*.pack", 1200},
		"in the open segment": {"wal/wal-*.seg", 0},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProcess(t)
			p.start("")
			p.awaitReady()
			ids := p.write("flipped", 20, 0)
			chosen := p.write("chosen", 3, 0)
			newest := slices.Index(chosen, slices.Max(chosen)) // of equal times the largest id is the newest
			if row.fill > 0 {
				p.write("filler", row.fill, 60_000)
				p.eventually(func() bool { packs, _ := filepath.Glob(p.dir + "/" + row.files); return len(packs) > 0 })
			}
			p.stop()
			p.flip(row.files, "flipped number 000007")
			p.flip(row.files, fmt.Sprintf("chosen number %06d", newest))
			p.start("")
			p.awaitReady()
			p.requireRest("chosen", chosen[newest]) // a lens may be the first to meet the damage
			bad := ids[7]
			p.eventually(func() bool { // the read finds damage that the start did not check for
				status, _, body := p.read(bad, "quorum")
				require.Equal(t, http.StatusGone, status, body)
				require.Contains(t, body, "this node is the only member")
				_, header, _ := p.read(ids[8], "quorum")
				return header.Get("X-Stemedb-Incomplete") != ""
			})
			lost := p.requireReasons("not_whole")["not_whole"]
			require.Contains(t, lost.Detail, "this node lost 2 parts of its log")
			require.Contains(t, lost.Detail, "2 records of which no member has a readable copy")
			require.Contains(t, lost.Remedy, "stemedb cluster accept-loss n0 --yes")
			require.Contains(t, lost.Remedy, "do not empty the volumes")
			for _, id := range slices.Delete(slices.Clone(ids), 7, 8) {
				status, header, body := p.read(id, "quorum")
				require.Equal(t, http.StatusOK, status, body)
				require.NotEmpty(t, header.Get("X-Stemedb-Incomplete"))
			}
			after := p.write("written afterwards", 1, 0)[0]
			status, _, body := p.read(after, "quorum")
			require.Equal(t, http.StatusOK, status, body)

			p.requireRest("flipped", bad)

			code, _, errOut := command("", "cluster", "accept-loss", "n0", "--url", "http://"+p.api)
			require.Equal(t, exitUsage, code, "it has to be confirmed")
			require.Contains(t, errOut, "--yes")
			code, _, errOut = command("", "cluster", "accept-loss", "n0", "--yes", "--url", "http://"+p.api)
			require.Equal(t, exitOK, code, errOut)
			given := func() bool { // the same process restarts without the record
				status, _, _ := p.read(bad, "quorum")
				return status == http.StatusNotFound
			}
			p.eventually(given)
			for range 2 {
				p.awaitReady()
				p.requireReasons()
				require.True(t, given())
				_, header, _ := p.read(ids[8], "quorum")
				require.Empty(t, header.Get("X-Stemedb-Incomplete"))
				p.requireRest("flipped")
				p.requireRest("chosen")
				p.stop()
				p.start("") // and it stays accepted
			}
			p.awaitReady()
			again := p.write("flipped", 20, 0)
			require.Equal(t, ids, again)
			status, _, body = p.read(bad, "quorum")
			require.Equal(t, http.StatusOK, status, body)
			p.requireReasons()
			p.stop()
		})
	}
}

// requireRest reads a subject in every way: each answer omits the damaged claims
// and names them.
func (p *process) requireRest(subject string, damaged ...string) {
	p.t.Helper()
	for _, path := range []string{
		"query?lens=recency&", "query?lens=consensus&", "query?lens=confidence&", "query?lens=authority&",
		"skeptic?predicate=p&", "layered?predicate=p&", "query?", "query?predicate=p&", "query?limit=2&",
	} {
		for _, consistency := range []string{"quorum", "local"} {
			path := "/v1/" + path + "consistency=" + consistency + "&subject=" + url.QueryEscape("code://"+subject)
			status, header, text := p.call(http.MethodGet, path, p.root, nil)
			require.Equal(p.t, http.StatusOK, status, "%s: %s", path, text)
			var body struct {
				Unreadable []string `json:"unreadable_claims"`
				Cursor     string   `json:"cursor"`
			}
			require.NoError(p.t, json.Unmarshal([]byte(text), &body))
			// A later page may name them, and recency reads no further than its winner.
			if body.Cursor == "" && (body.Unreadable != nil || !strings.Contains(path, "recency")) {
				require.Equal(p.t, damaged, body.Unreadable, "%s: %s", path, text)
			}
			if len(damaged) == 0 {
				require.Empty(p.t, header.Get("X-Stemedb-Incomplete"), path)
			}
			if len(body.Unreadable) > 0 {
				require.NotEmpty(p.t, header.Get("X-Stemedb-Incomplete"), path)
			}
			for _, id := range damaged {
				require.NotContains(p.t, text, `"hash":"`+id, path)
			}
		}
	}
}

// The prepared segment, which holds only its header, is deleted: that is not a
// loss.
func TestProcessWithoutItsPreparedSegmentLostNothing(t *testing.T) {
	p := newProcess(t)
	p.start("")
	p.awaitReady()
	ids := p.write("kept", 20, 0)
	var segments []string
	p.eventually(func() bool {
		var err error
		segments, err = filepath.Glob(p.dir + "/wal/wal-*.seg")
		require.NoError(t, err)
		return len(segments) > 1
	})
	p.stop()
	slices.Sort(segments)
	require.NoError(t, os.Remove(segments[len(segments)-1]))
	p.start("")
	p.awaitReady()
	p.requireReasons()
	ids = append(ids, p.write("written afterwards", 1, 0)...)
	for _, id := range ids {
		status, header, body := p.read(id, "quorum")
		require.Equal(t, http.StatusOK, status, body)
		require.Empty(t, header.Get("X-Stemedb-Incomplete"))
	}
	p.stop()
}
