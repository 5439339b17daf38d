package api

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/clock"
	"github.com/stemedb/stemedb/server/internal/cluster"
	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/keys"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// solo is a backend of one node: the real store on a simulated disk and real
// signature checks, without replication. fail, when set, is the error of every
// call.
type solo struct {
	// incomplete and change are returned until an operator decides.
	incomplete string
	change     uint64
	troubles   []cluster.Trouble
	store      *store.Store
	verifier   *record.Verifier
	fail       atomic.Pointer[error]
	slow       atomic.Int64 // nanoseconds added to each write
	calls      atomic.Int64
	others     []Peer
	panics     atomic.Bool

	voices  int                   // as cluster.Limits.Voices
	asked   []cluster.Consistency // by calls of Claims, in order
	given   int                   // number of claims returned
	onClaim func(given int)       // called before each
	left    chan time.Duration    // when set, gets the time that each write has
	lost    map[record.Hash]bool  // no member can read them; true once that is known
}

func newSolo(t testing.TB) *solo {
	t.Helper()
	disk := memfs.New(1)
	s, err := store.Open(t.Context(), store.Options{
		FS: disk, WALDir: "/wal", DBDir: "/db", NodeName: "n0", SegmentSize: 1 << 20, CacheBytes: 1 << 20, WriteBuffer: 1 << 20,
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return &solo{store: s, verifier: record.NewVerifier(16)}
}

func (b *solo) failure() error {
	b.calls.Add(1)
	if b.panics.Load() {
		panic("made to panic")
	}
	if e := b.fail.Load(); e != nil {
		return *e
	}
	return nil
}

func (b *solo) failWith(err error) {
	if err == nil {
		b.fail.Store(nil)
		return
	}
	b.fail.Store(&err)
}

func (b *solo) Assert(ctx context.Context, project string, as []*record.Assertion) []cluster.WriteResult {
	out := make([]cluster.WriteResult, len(as))
	failed := b.failure()
	for i, a := range as {
		id := a.ID()
		out[i] = b.write(ctx, failed, id, a.AppendSigned(nil, id), a.Timestamp, func() (items []store.Item) {
			items = append(items, store.NewContent(project, id, &a.Content))
			for _, s := range a.Signatures {
				items = append(items, store.NewSignature(project, id, s))
			}
			return items
		})
	}
	return out
}

func (b *solo) Vote(ctx context.Context, project string, v *record.Vote) cluster.WriteResult {
	return b.write(ctx, b.failure(), v.ID(), []record.SignedItem{v.Signed()}, v.Timestamp, func() []store.Item {
		return []store.Item{store.NewVote(project, v)}
	})
}

func (b *solo) write(ctx context.Context, failed error, id record.Hash, signed []record.SignedItem, at uint64, items func() []store.Item) cluster.WriteResult {
	r := cluster.WriteResult{ID: id, Err: failed}
	if failed != nil {
		return r
	}
	if at > uint64(time.Now().Add(5*time.Minute).Unix()) {
		r.Err = &record.FieldError{Field: "timestamp", Code: record.CodeOutOfRange, Problem: "is in the future", Remedy: "set the clock"}
		return r
	}
	for _, ok := range b.verifier.Verify(signed) {
		if !ok {
			r.Err = &record.FieldError{Field: "signatures[0].signature", Code: cluster.CodeInvalidSignature, Problem: "does not verify", Remedy: "sign the id"}
			return r
		}
	}
	if b.left != nil {
		deadline, _ := ctx.Deadline()
		b.left <- time.Until(deadline)
	}
	if d := time.Duration(b.slow.Load()); d > 0 {
		select {
		case <-time.After(d):
		case <-ctx.Done():
			r.Err = ctx.Err()
			return r
		}
	}
	if r.Err = cluster.Permitted(ctx, time.Now().Add(5*time.Second)); r.Err != nil {
		return r
	}
	done := make(chan store.PutResult, 1)
	if r.Err = b.store.Put(items(), func(p store.PutResult) { done <- p }); r.Err == nil {
		p := <-done
		r.Err, r.Created = p.Err, slices.Contains(p.New, true)
	}
	return r
}

func (b *solo) Get(_ context.Context, project string, id record.Hash, _ cluster.Consistency) (*store.Stored, error) {
	if err := b.failure(); err != nil {
		return nil, err
	}
	return b.store.AssertionWithin(project, id, b.voices)
}

func (b *solo) Claims(ctx context.Context, q store.ClaimQuery, consistency cluster.Consistency) (cluster.ClaimSource, error) {
	if err := b.failure(); err != nil {
		return nil, err
	}
	b.asked = append(b.asked, consistency)
	return func(after *store.ClaimCursor) iter.Seq2[*store.Claim, error] {
		q.After = after
		claims := b.store.Claims(ctx, q, b.voices)
		if b.onClaim == nil && b.lost == nil {
			return claims
		}
		return func(yield func(*store.Claim, error) bool) {
			for claim, err := range claims {
				if err == nil {
					claim.Unreadable = b.lost[claim.ID]
					b.given++
				}
				if err == nil && b.onClaim != nil {
					b.onClaim(b.given)
				}
				if !yield(claim, err) {
					return
				}
			}
		}
	}, nil
}

func (b *solo) Content(_ context.Context, claim *store.Claim) (*record.Content, error) {
	if _, lost := b.lost[claim.ID]; lost {
		b.lost[claim.ID] = true
		return nil, &cluster.LostError{Members: 1}
	}
	stored, err := b.store.Assertion(claim.Project, claim.ID)
	if err != nil {
		return nil, err
	}
	return stored.Content, nil
}

func (b *solo) Subjects(_ context.Context, project, prefix, after string, limit int, _ cluster.Consistency) ([]string, error) {
	if err := b.failure(); err != nil {
		return nil, err
	}
	return b.store.Subjects(project, prefix, after, limit)
}

func (b *solo) Ready() error {
	if e := b.fail.Load(); e != nil {
		return *e
	}
	return nil
}

func (b *solo) Incomplete() string { return b.incomplete }

func (b *solo) AcceptLoss(_ context.Context, member string) error {
	switch member {
	case "n0":
	case "n1":
		return fmt.Errorf("%w: the others refill n1", control.ErrLossStands)
	default:
		return control.ErrNoSuchMember
	}
	b.incomplete = ""
	return nil
}

func (b *solo) CancelChange(_ context.Context, change uint64) error {
	if change != b.change {
		return control.ErrNoSuchChange
	}
	b.change = 0
	return nil
}

func (b *solo) Status() cluster.Status {
	return cluster.Status{
		ClusterID: "c1", Generation: 3, Node: "n0", Leader: "n0", Ready: b.Ready() == nil, ChangeID: b.change, Troubles: b.troubles, WriteQuorum: true, ReadQuorum: true,
		Members: []cluster.MemberStatus{
			{Name: "n0", Incarnation: "a", Self: true, Alive: true, Whole: true},
			{Name: "n1", Incarnation: "b", Alive: true, LagBytes: -1, APIAddr: "n1:18180"},
		},
	}
}

func (b *solo) Peers() []Peer { return slices.Clone(b.others) }

// table is a table of keys of one node, with the real transitions.
type table struct {
	mu          sync.Mutex
	keys        map[keys.Hash]keys.Key
	leaderOnly  map[keys.Hash]keys.Key // known to the leader, not to this copy
	unconfirmed atomic.Bool
	stale       atomic.Int64 // nanoseconds since this copy was current
	leaderGone  atomic.Bool
	asked       atomic.Int64
	changes     atomic.Int64  // proposed so far
	left        time.Duration // that the last one had
	clock       clock.Shifted
	timeUnknown atomic.Bool
}

var errNoLeader = errors.New("no leader")

func newTable() *table {
	return &table{keys: map[keys.Hash]keys.Key{}, leaderOnly: map[keys.Hash]keys.Key{}}
}

func (k *table) ConfirmedUntil() time.Time {
	if k.unconfirmed.Load() {
		return time.Time{}
	}
	return time.Now().Add(30*time.Second - time.Duration(k.stale.Load()))
}

// propose records a proposed change.
func (k *table) propose(ctx context.Context) {
	k.changes.Add(1)
	if deadline, ok := ctx.Deadline(); ok {
		k.left = time.Until(deadline)
	}
}

// Now is the cluster's time as the test sets it, or the node's own clock while
// the time is unknown.
func (k *table) Now() (time.Time, bool) { return k.clock.Now(), !k.timeUnknown.Load() }

func (k *table) GetKey(h keys.Hash) (keys.Key, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	key, ok := k.keys[h]
	return key, ok
}

func (k *table) ListKeys() []keys.Key {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Collect(maps.Values(k.keys))
}

func (k *table) LookupAtLeader(_ context.Context, h keys.Hash) (keys.Key, bool, error) {
	k.asked.Add(1)
	if k.leaderGone.Load() {
		return keys.Key{}, false, errNoLeader
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if key, ok := k.leaderOnly[h]; ok {
		k.keys[h] = key
	}
	key, ok := k.keys[h]
	return key, ok, nil
}

// change applies a transition to a key, which must exist.
func (k *table) change(h keys.Hash, do func(keys.Key) (keys.Key, error)) (keys.Key, error) {
	if k.leaderGone.Load() {
		return keys.Key{}, errNoLeader
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	held, ok := k.keys[h]
	if !ok {
		return keys.Key{}, keys.ErrNotFound
	}
	after, err := do(held)
	if err == nil {
		k.keys[h] = after
	}
	return after, err
}

func (k *table) CreateKey(ctx context.Context, fresh keys.Key) (keys.Key, bool, error) {
	k.propose(ctx)
	if k.leaderGone.Load() {
		return keys.Key{}, false, errNoLeader
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	var held *keys.Key
	if key, ok := k.keys[fresh.Hash]; ok {
		held = &key
	}
	at, _ := k.Now()
	fresh.CreatedAt = at.Unix()
	after, created, err := keys.Register(held, fresh)
	if err == nil {
		k.keys[fresh.Hash] = after
	}
	return after, created, err
}

func (k *table) PatchKey(ctx context.Context, h keys.Hash, p keys.Patch) (keys.Key, error) {
	k.propose(ctx)
	return k.change(h, func(key keys.Key) (keys.Key, error) { return key.Patched(p) })
}

func (k *table) RevokeKey(ctx context.Context, h keys.Hash) (keys.Key, error) {
	k.propose(ctx)
	return k.change(h, func(key keys.Key) (keys.Key, error) { return key.RevokedNow(k.clock.Now().Unix()), nil })
}

func (k *table) RotateKey(ctx context.Context, h, successor keys.Hash, grace int64) (old, fresh keys.Key, err error) {
	k.propose(ctx)
	now, sure := k.Now()
	if grace > 0 && !sure {
		return old, fresh, keys.ErrNoTime
	}
	old, err = k.change(h, func(key keys.Key) (keys.Key, error) {
		var after keys.Key
		after, fresh, err = key.Rotate(successor, now.Unix(), grace)
		return after, err
	})
	if err == nil {
		k.mu.Lock()
		k.keys[successor] = fresh
		k.mu.Unlock()
	}
	return old, fresh, err
}

// world is one API with its dependencies.
type world struct {
	t       testing.TB
	api     *API
	backend *solo
	table   *table
	raw     map[keys.Role]string // a raw key of project "alpha" for each role
	random  *rand.Rand
}

func newWorld(t testing.TB, change func(*Options)) *world {
	t.Helper()
	opts := Options{Node: "n0", Version: "test", Auth: true}
	if change != nil {
		change(&opts)
	}
	a, err := New(opts)
	require.NoError(t, err)
	w := &world{t: t, api: a, backend: newSolo(t), table: newTable(), raw: map[keys.Role]string{}, random: rand.New(rand.NewPCG(1, 2))}
	for _, role := range keys.Roles() {
		w.raw[role] = w.key("alpha", role, nil)
	}
	a.Attach(w.backend, w.table)
	return w
}

// key puts a key into the table and returns its text.
func (w *world) key(project string, role keys.Role, change func(*keys.Key)) string {
	raw, err := keys.Generate(keys.Test, nil)
	require.NoError(w.t, err)
	k := keys.Key{Hash: keys.HashOf(raw), Project: project, Role: role, Enabled: true, CreatedAt: 1, Version: 1}
	if change != nil {
		change(&k)
	}
	w.table.mu.Lock()
	defer w.table.mu.Unlock()
	w.table.keys[k.Hash] = k
	return raw
}

// request is one request to a handler.
type request struct {
	method, path string
	key          string
	body         []byte
	media        string
	header       http.Header
}

func (w *world) do(r request) *httptest.ResponseRecorder { return send(w.api.Handler(), r) }

func send(h http.Handler, r request) *httptest.ResponseRecorder {
	var body io.Reader
	if r.body != nil {
		body = bytes.NewReader(r.body)
	}
	req := httptest.NewRequest(r.method, r.path, body)
	for name, values := range r.header {
		req.Header[name] = values
	}
	if r.key != "" {
		req.Header.Set("X-API-Key", r.key)
	}
	if r.media != "" {
		req.Header.Set("Content-Type", r.media)
	}
	recorder := httptest.NewRecorder()
	h.ServeHTTP(recorder, req)
	return recorder
}

// as is a request with the key of a role, JSON when there is a body.
func (w *world) as(role keys.Role, method, path, body string) *httptest.ResponseRecorder {
	r := request{method: method, path: path, key: w.raw[role]}
	if body != "" {
		r.body, r.media = []byte(body), "application/json"
	}
	return w.do(r)
}

func decode[T any](t testing.TB, r *httptest.ResponseRecorder) (v T) {
	t.Helper()
	require.NoError(t, json.Unmarshal(r.Body.Bytes(), &v), "body: %s", r.Body)
	return v
}

// problemOf checks that an answer is a problem and returns it.
func problemOf(t testing.TB, r *httptest.ResponseRecorder) problemBody {
	t.Helper()
	require.Equal(t, mediaProblem, r.Header().Get("Content-Type"), "body: %s", r.Body)
	p := decode[problemBody](t, r)
	require.Equal(t, r.Code, p.Status)
	require.NotEmpty(t, p.Title)
	require.NotEmpty(t, p.Detail)
	require.Equal(t, r.Header().Get(headerRequestID), p.RequestID)
	return p
}

// agentKey is the signing key of a numbered agent.
func agentKey(n byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize))
}

// claim makes a signed assertion.
func claim(change func(*record.Content), agents ...byte) *record.Assertion {
	a := &record.Assertion{Content: record.Content{
		Subject: "code://go/example/tls", Predicate: "verification", Object: record.Text("on"),
		Confidence: 0.9, SourceClass: record.Expert, Timestamp: 1_700_000_000,
	}}
	if change != nil {
		change(&a.Content)
	}
	if len(agents) == 0 {
		agents = []byte{1}
	}
	for _, n := range agents {
		a.Sign(agentKey(n))
	}
	return a
}

func jsonOf(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	require.NoError(t, err)
	return string(b)
}

func vote(id record.Hash, weight float64, agent byte) *record.Vote {
	v := &record.Vote{Assertion: id, Weight: weight, Timestamp: 1_700_000_100}
	record.SignVote(agentKey(agent), v)
	return v
}

// assert writes a claim and returns its id.
func (w *world) assert(a *record.Assertion) record.Hash {
	r := w.as(keys.WriteAgent, "POST", "/v1/assert", jsonOf(w.t, a))
	require.Contains(w.t, []int{http.StatusCreated, http.StatusOK}, r.Code, "body: %s", r.Body)
	return a.ID()
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

func replaceOnce(t testing.TB, s, old, with string) string {
	t.Helper()
	require.Contains(t, s, old)
	return strings.Replace(s, old, with, 1)
}

func (b *solo) BackupPoint(context.Context) (cluster.BackupPoint, error) {
	if err := b.failure(); err != nil {
		return cluster.BackupPoint{}, err
	}
	identity := b.store.Identity()
	return cluster.BackupPoint{
		ClusterID: "c", Node: identity.Node, Incarnation: identity.Incarnation,
		First: b.store.First(), End: b.store.End(), Assertions: b.store.Stats().Assertions,
	}, nil
}

func (b *solo) Incarnation() string { return b.store.Identity().Incarnation }

func (b *solo) Export(from, to wal.Position, limit int, fn func(store.Kind, []byte) error) (wal.Position, error) {
	if err := b.failure(); err != nil {
		return 0, err
	}
	return b.store.Export(from, to, limit, fn)
}

func (b *solo) Import(_ context.Context, items []store.Item) (cluster.Imported, error) {
	if err := b.failure(); err != nil {
		return cluster.Imported{}, err
	}
	res := cluster.Imported{}
	for piece := range slices.Chunk(items, 4) {
		done := make(chan store.PutResult, 1)
		if err := b.store.Put(piece, func(p store.PutResult) { done <- p }); err != nil {
			return res, err
		}
		p := <-done
		if p.Err != nil {
			return res, p.Err
		}
		for _, fresh := range p.New {
			if fresh {
				res.Created++
			} else {
				res.Existing++
			}
		}
	}
	return res, nil
}
