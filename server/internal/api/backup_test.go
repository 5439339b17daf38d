package api

import (
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/cluster"
	"github.com/stemedb/stemedb/server/internal/keys"
	"github.com/stemedb/stemedb/server/internal/store"
)

// point asks for a backup point.
func (w *world) point(t *testing.T) (p backupBody) {
	t.Helper()
	got := w.as(keys.Backup, "GET", "/v1/admin/backup", "")
	require.Equal(t, 200, got.Code, got.Body)
	require.NoError(t, json.Unmarshal(got.Body.Bytes(), &p))
	return p
}

func (w *world) piece(p *backupBody, from, to string) *httptest.ResponseRecorder {
	return w.as(keys.Backup, "GET", "/v1/admin/backup/records?incarnation="+p.Incarnation+"&from="+from+"&to="+to, "")
}

func (w *world) restorePiece(t *testing.T, piece []byte) (done restoreBody) {
	t.Helper()
	got := w.do(request{method: "POST", path: "/v1/admin/restore", key: w.raw[keys.Backup], media: mediaRecords, body: piece})
	require.Equal(t, 200, got.Code, got.Body)
	require.NoError(t, json.Unmarshal(got.Body.Bytes(), &done))
	return done
}

// What one server holds is copied piece by piece into another one, which then gives the
// same answers. The next backup gives only what is new.
func TestABackupIsRestoredPieceByPiece(t *testing.T) {
	from, into := newWorld(t, nil), newWorld(t, nil)
	var ids []record.Hash
	for i := range 80 {
		a := claim(func(c *record.Content) {
			c.Timestamp += uint64(i)
			c.Object = record.Text(strings.Repeat("x", 50_000))
		}, 1)
		ids = append(ids, a.ID())
		require.Equal(t, 201, from.as(keys.WriteAgent, "POST", "/v1/assert", jsonOf(t, a)).Code)
	}
	require.Equal(t, 201, from.as(keys.WriteAgent, "POST", "/v1/vote", jsonOf(t, vote(ids[0], 1, 5))).Code)
	p := from.point(t)
	require.NotEmpty(t, p.Keys)
	require.EqualValues(t, 80, p.Assertions)
	pieces, created := 0, 0
	for at := p.First; at != p.End; pieces++ {
		got := from.piece(&p, at, p.End)
		require.Equal(t, 200, got.Code, got.Body)
		require.Less(t, got.Body.Len(), maxRestoreBody)
		created += into.restorePiece(t, got.Body.Bytes()).Created
		require.Zero(t, into.restorePiece(t, got.Body.Bytes()).Created, "sent again")
		require.Greater(t, got.Header().Get(headerNext), at)
		at = got.Header().Get(headerNext)
	}
	require.Greater(t, pieces, 1)
	require.Equal(t, 161, created, "contents, signatures and a vote")
	for _, id := range ids {
		path := "/v1/assertions/" + id.String()
		require.JSONEq(t, from.as(keys.ReadOnly, "GET", path, "").Body.String(), into.as(keys.ReadOnly, "GET", path, "").Body.String())
	}

	require.Equal(t, 201, from.as(keys.WriteAgent, "POST", "/v1/assert", jsonOf(t, claim(nil, 2))).Code, "an incremental backup")
	got := from.piece(&p, p.End, from.point(t).End)
	require.Equal(t, restoreBody{Created: 2}, into.restorePiece(t, got.Body.Bytes()))
}

func TestABackupRefusesWhatIsNotItsLog(t *testing.T) {
	w := newWorld(t, nil)
	p := w.point(t)
	for path, code := range map[string]string{
		"/v1/admin/backup?node=nobody":                                                                 codeNoSuchMember,
		"/v1/admin/backup/records?incarnation=x&from=" + p.First + "&to=" + p.End:                      codeNoSuchLog,
		"/v1/admin/backup/records?incarnation=" + p.Incarnation + "&from=00000009ffffffff&to=" + p.End: codeNoSuchLog,
		"/v1/admin/backup/records?incarnation=" + p.Incarnation + "&from=9&to=" + p.End:                record.CodeInvalidHex,
		"/v1/admin/backup/records?incarnation=" + p.Incarnation + "&from=" + p.First:                   record.CodeMissing,
		"/v1/admin/backup/records?node=nobody&incarnation=x&from=" + p.First + "&to=" + p.End:          codeNoSuchMember,
	} {
		require.Equal(t, code, problemOf(t, w.as(keys.Backup, "GET", path, "")).Code, path)
	}
	for name, body := range map[string][]byte{
		"not records": []byte("hello"),
		"a cursor":    store.AppendRecord(nil, store.KindCursor, store.NewCursor("x", 1).Payload),
		"cut short":   {byte(store.KindContent), 200, 1, 2},
	} {
		got := w.do(request{method: "POST", path: "/v1/admin/restore", key: w.raw[keys.Backup], media: mediaRecords, body: body})
		require.Equal(t, record.CodeMalformed, problemOf(t, got).Code, name)
	}
}

// pieceOf is a piece of a backup that holds an assertion.
func pieceOf(a *record.Assertion) []byte {
	it := store.NewContent("alpha", a.ID(), &a.Content)
	return store.AppendRecord(nil, it.Kind, it.Payload)
}

// A request that names a node is answered by that node, through any other one.
func TestABackupOfANodeIsTakenThroughAnyOtherOne(t *testing.T) {
	c := newTrio(t, nil)
	ask := func(path string) *httptest.ResponseRecorder {
		return c.ask(request{method: "GET", path: path, key: c.nodes[0].raw[keys.Backup]})
	}
	got := ask("/v1/admin/backup?node=n1")
	require.Equal(t, 200, got.Code, got.Body)
	var p backupBody
	require.NoError(t, json.Unmarshal(got.Body.Bytes(), &p))
	require.Equal(t, c.nodes[1].backend.Incarnation(), p.Incarnation)
	got = ask("/v1/admin/backup/records?node=n1&incarnation=" + p.Incarnation + "&from=" + p.First + "&to=" + p.End)
	require.Equal(t, 200, got.Code, got.Body)
	require.Equal(t, p.End, got.Header().Get(headerNext))
	c.nodes[1].backend.failWith(noQuorum())
	require.Equal(t, cluster.CodeNoQuorum, problemOf(t, ask("/v1/admin/backup?node=n1")).Code, "no other node can stand in")
	require.Equal(t, codeNoSuchMember, problemOf(t, ask("/v1/admin/backup?node=n9")).Code)
}
