package api

import (
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/cluster"
	"github.com/stemedb/stemedb/server/internal/keys"
)

// Keys are judged by the cluster's time, whatever this machine's clock shows.
func TestKeysAreJudgedByTheClustersTime(t *testing.T) {
	w := newWorld(t, nil)
	now := time.Now().Unix()
	expiry := w.key("alpha", keys.ReadOnly, func(k *keys.Key) { k.ExpiresAt = now + 1800 })
	grace := w.key("alpha", keys.ReadOnly, func(k *keys.Key) { k.RotatedTo, k.GraceUntil = &keys.Hash{}, now+1800 })
	whoami := func(key string) (int, string) {
		r := w.do(request{method: "GET", path: "/v1/whoami", key: key})
		if r.Code == http.StatusOK {
			return r.Code, ""
		}
		return r.Code, problemOf(t, r).Code
	}
	for _, row := range []struct {
		cluster        time.Duration
		status         int
		expiry, graced string
	}{
		{0, 200, "", ""},
		{time.Hour, 401, codeKeyExpired, codeKeyRotated},
		{-time.Hour, 200, "", ""},
	} {
		w.table.clock.Set(row.cluster)
		status, code := whoami(expiry)
		require.Equal(t, []any{row.status, row.expiry}, []any{status, code}, "%v", row.cluster)
		status, code = whoami(grace)
		require.Equal(t, []any{row.status, row.graced}, []any{status, code}, "%v", row.cluster)
	}

	// So are the times in requests, and the status of a key that is shown.
	w.table.clock.Set(time.Hour)
	body := `{"project":"alpha","role":"read_only","expires_at":` + strconv.FormatInt(now+1800, 10) + `}`
	require.Equal(t, "expires_at", problemOf(t, w.as(keys.Admin, "POST", "/v1/admin/api-keys", body)).Field)
	shown := w.as(keys.Admin, "GET", "/v1/admin/api-keys/"+keys.HashOf(expiry).String(), "")
	require.Equal(t, "expired", decode[keyBody](t, shown).Status)
	w.table.clock.Set(-time.Hour)
	body = `{"project":"alpha","role":"read_only","expires_at":` + strconv.FormatInt(now-1800, 10) + `}`
	require.Equal(t, http.StatusCreated, w.as(keys.Admin, "POST", "/v1/admin/api-keys", body).Code)
}

// While the time is unknown, requests that need it get 503, which a gateway
// retries elsewhere, and everything else works.
func TestWhatNeedsTheTimeIsRefusedWhileItIsNotKnown(t *testing.T) {
	w := newWorld(t, nil)
	c := newContract(t)
	limited := map[string]string{
		"expiry": w.key("alpha", keys.ReadOnly, func(k *keys.Key) { k.ExpiresAt = 1 << 40 }),
		"past":   w.key("alpha", keys.ReadOnly, func(k *keys.Key) { k.ExpiresAt = 1 }),
		"grace":  w.key("alpha", keys.ReadOnly, func(k *keys.Key) { k.RotatedTo, k.GraceUntil = &keys.Hash{}, 1<<40 }),
	}
	ended := w.key("alpha", keys.ReadOnly, func(k *keys.Key) { k.RotatedTo = &keys.Hash{} })
	other := keys.HashOf(w.key("alpha", keys.ReadOnly, nil)).String()
	w.table.timeUnknown.Store(true)

	apart := func(r request) {
		t.Helper()
		got := w.do(r)
		p := problemOf(t, got)
		require.Equal(t, []any{http.StatusServiceUnavailable, cluster.CodeClocksApart}, []any{p.Status, p.Code}, r.path)
		require.NotEmpty(t, got.Header().Get("Retry-After"))
		c.check(t, r, got)
	}
	for _, key := range limited {
		apart(request{method: "GET", path: "/v1/whoami", key: key})
	}
	got := w.do(request{method: "GET", path: "/v1/whoami", key: ended})
	require.Equal(t, codeKeyRotated, problemOf(t, got).Code, "a rotation without grace needs no time")
	require.Equal(t, http.StatusOK, w.as(keys.ReadOnly, "GET", "/v1/whoami", "").Code)

	admin := func(method, path, body string) request {
		return request{method: method, path: "/v1/admin/api-keys" + path, key: w.raw[keys.Admin], body: []byte(body), media: "application/json"}
	}
	apart(admin("POST", "", `{"project":"alpha","role":"read_only","expires_at":2000000000}`))
	apart(admin("PATCH", "/"+other, `{"version":1,"expires_at":2000000000}`))
	apart(admin("POST", "/"+other+"/rotate", `{"grace":"1h"}`))
	for _, works := range []struct {
		status int
		request
	}{
		{http.StatusOK, admin("PATCH", "/"+other, `{"version":1,"expires_at":0}`)},
		{http.StatusCreated, admin("POST", "/"+other+"/rotate", `{"grace":"0s"}`)}, // makes another version
	} {
		got := w.do(works.request)
		require.Equal(t, works.status, got.Code, "body: %s", got.Body)
		c.check(t, works.request, got)
	}
	require.Equal(t, http.StatusNoContent, w.as(keys.Admin, "DELETE", "/v1/admin/api-keys/"+keys.HashOf(ended).String(), "").Code)
}
