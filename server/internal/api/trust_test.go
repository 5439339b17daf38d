package api

import (
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/keys"
)

// change makes a key another one in this node's copy of the table.
func (w *world) change(raw string, do func(*keys.Key)) {
	_, err := w.table.change(keys.HashOf(raw), func(k keys.Key) (keys.Key, error) { do(&k); return k, nil })
	require.NoError(w.t, err)
}

func (w *world) revoke(raw string) {
	w.change(raw, func(k *keys.Key) { *k = k.RevokedNow(time.Now().Unix()) })
}

// slowBody returns its bytes and calls meanwhile before the last one.
type slowBody struct {
	rest      []byte
	meanwhile func()
}

func (b *slowBody) Read(p []byte) (int, error) {
	switch len(b.rest) {
	case 0:
		return 0, io.EOF
	case 1:
		b.meanwhile()
	}
	n := copy(p, b.rest[:max(1, len(b.rest)-1)])
	b.rest = b.rest[n:]
	return n, nil
}

// changing are requests that change something, one for each such route that has
// a body, with a role that may make it.
func changing(t testing.TB) []request {
	t.Helper()
	hash := keys.HashOf("steme_test_" + unknownHash[:48]).String()
	vote := jsonOf(t, vote(claim(nil).ID(), 1, 1))
	json := func(method, path, body string) request {
		return request{method: method, path: path, media: js, body: []byte(body)}
	}
	return []request{
		json("POST", "/v1/assert", jsonOf(t, claim(nil))),
		json("POST", "/v1/assert/batch", jsonOf(t, []*record.Assertion{claim(nil)})),
		json("POST", "/v1/vote", vote),
		json("POST", "/v1/admin/api-keys", `{"project":"beta","role":"read_only"}`),
		json("POST", "/v1/admin/api-keys", `{"project":"beta","role":"read_only","key_hash":"`+hash+`"}`),
		json("PATCH", "/v1/admin/api-keys/"+hash, `{"version":1,"label":"x"}`),
		json("POST", "/v1/admin/api-keys/"+hash+"/rotate", `{"grace":"0s"}`),
		{method: "POST", path: "/v1/admin/restore", media: mediaRecords, body: pieceOf(claim(nil))},
	}
}

var hexHash = regexp.MustCompile("[0-9a-f]{64}")

// A request whose key is revoked while its body arrives changes nothing, on any
// route.
func TestKeyIsCheckedAgainWhenTheBodyIsThere(t *testing.T) {
	seen := map[string]bool{}
	for _, row := range changing(t) {
		seen[row.method+" "+hexHash.ReplaceAllString(row.path, ":hash")] = true
		for name, lose := range map[string]struct {
			do   func(w *world, raw string)
			code string
		}{
			"revoked":      {func(w *world, raw string) { w.revoke(raw) }, codeKeyRevoked},
			"degraded":     {func(w *world, raw string) { w.change(raw, func(k *keys.Key) { k.Role = keys.ReadOnly }) }, codeForbidden},
			"switched off": {func(w *world, raw string) { w.change(raw, func(k *keys.Key) { k.Enabled = false }) }, codeKeyDisabled},
			"unconfirmed":  {func(w *world, _ string) { w.table.unconfirmed.Store(true) }, codeKeysUnconfirmed},
		} {
			t.Run(row.method+" "+row.path+" "+name, func(t *testing.T) {
				w := newWorld(t, nil)
				raw := w.key("alpha", keys.Admin, nil)
				before := w.backend.calls.Load()
				req := httptest.NewRequest(row.method, row.path, &slowBody{row.body, func() { lose.do(w, raw) }})
				req.Header.Set("X-API-Key", raw)
				req.Header.Set("Content-Type", row.media)
				got := httptest.NewRecorder()
				w.api.Handler().ServeHTTP(got, req)
				require.Equal(t, lose.code, problemOf(t, got).Code)
				require.Equal(t, before, w.backend.calls.Load())
				require.Zero(t, w.table.changes.Load())
			})
		}
	}
	for _, rt := range routes() {
		if len(rt.media) > 0 {
			require.True(t, seen[rt.method+" "+rt.pattern], rt.pattern)
		}
	}
}

// A write that waits for its turn is checked once more before it is handed over.
func TestKeyIsCheckedAgainWhenAWriteHasItsTurn(t *testing.T) {
	for _, row := range changing(t)[:3] {
		for _, code := range []string{codeKeyRevoked, codeKeysUnconfirmed} {
			t.Run(row.path+" "+code, func(t *testing.T) {
				w := newWorld(t, nil)
				w.backend.slow.Store(int64(20 * time.Millisecond))
				row.key = w.key("alpha", keys.WriteAgent, nil)
				w.backend.left = make(chan time.Duration)
				done := make(chan *httptest.ResponseRecorder)
				go func() { done <- w.do(row) }()
				<-w.backend.left // the write waits
				if code == codeKeyRevoked {
					w.revoke(row.key)
				} else { // five seconds are less than the limit of a write
					w.table.stale.Store(int64(26 * time.Second))
				}
				require.Equal(t, code, problemOf(t, <-done).Code)
				_, err := w.backend.store.Assertion("alpha", claim(nil).ID())
				require.Error(t, err)
				require.Empty(t, w.backend.store.Cursors())
			})
		}
	}
}

// A change of keys is aborted before the trust in the copy of the keys ends.
func TestChangeOfKeysEndsWithTheTrustInTheCopy(t *testing.T) {
	for _, row := range []struct {
		stale time.Duration
		left  time.Duration // for the proposal, out of the requested minute
	}{{0, 25 * time.Second}, {20 * time.Second, 5 * time.Second}, {25 * time.Second, 0}, {29 * time.Second, 0}} {
		synctest.Test(t, func(t *testing.T) {
			t.Cleanup(func() { time.Sleep(time.Minute) }) // the last goroutine of goleveldb ends later
			w := newWorld(t, nil)
			target := keys.HashOf(w.key("beta", keys.ReadOnly, nil)).String()
			w.table.stale.Store(int64(row.stale))
			for _, r := range append(changing(t)[3:7], request{method: "DELETE", path: "/v1/admin/api-keys/" + target}) {
				w.table.left = -1
				r.key, r.header = w.raw[keys.Admin], http.Header{headerTimeout: {"60"}}
				got := w.do(r)
				if row.left == 0 {
					require.Equal(t, codeKeysUnconfirmed, problemOf(t, got).Code, "%s %s", r.method, r.path)
					require.EqualValues(t, -1, w.table.left, "nothing was proposed")
					continue
				}
				require.Equal(t, row.left, w.table.left, "%s %s", r.method, r.path)
			}
			// Reads are not bounded by it.
			require.Equal(t, http.StatusOK, w.as(keys.Admin, "GET", "/v1/admin/api-keys", "").Code)
		})
	}
}

// A read whose key is revoked while it works or waits shows nothing.
func TestKeyIsCheckedAgainBeforeAnAnswerIsLetGo(t *testing.T) {
	for _, path := range append(weighing, "/v1/query"+hotSubject, "/v1/query"+hotSubject+"&lens=recency&limit=1") {
		w := newWorld(t, nil)
		w.hot("hot", 3)
		raw := w.key("alpha", keys.ReadOnly, nil)
		require.Equal(t, http.StatusOK, w.do(request{method: "GET", path: path, key: raw}).Code)
		w.backend.onClaim = func(int) { w.revoke(raw) }
		got := w.do(request{method: "GET", path: path, key: raw})
		require.Equal(t, codeKeyRevoked, problemOf(t, got).Code, path)
		require.NotContains(t, got.Body.String(), "hot", path)
	}
}

// When a gateway retries on another node, that node checks the key with its own
// copy.
func TestGatewayRetryIsCheckedByTheOtherNode(t *testing.T) {
	c := newTrio(t, nil)
	r := c.write(t)
	c.nodes[0].backend.failWith(noQuorum())
	behind := newTable() // has not heard of the revocation
	behind.keys = maps.Clone(c.nodes[0].table.keys)
	c.nodes[0].world.api.services.Store(&services{c.nodes[0].backend, behind})
	c.nodes[1].revoke(r.key)
	require.Equal(t, codeKeyRevoked, problemOf(t, c.ask(r)).Code)
	require.NotZero(t, c.dials.Load())
}
