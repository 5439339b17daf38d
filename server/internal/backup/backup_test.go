package backup

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/client"
	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// node is a server of one store. Its pieces are small.
type node struct {
	t       testing.TB
	name    string
	cluster string
	store   *store.Store
	written int
	down    bool
	others  []*node // reached through this one
}

func newNode(t testing.TB, name string) *node {
	t.Helper()
	s, err := store.Open(t.Context(), store.Options{
		FS: memfs.New(1), WALDir: "wal", DBDir: "db", NodeName: name, SegmentSize: 1 << 20, CacheBytes: 1 << 20, WriteBuffer: 1 << 20,
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return &node{t: t, name: name, cluster: "c", store: s}
}

func (n *node) put(items ...store.Item) (fresh int) {
	n.t.Helper()
	done := make(chan store.PutResult, 1)
	require.NoError(n.t, n.store.Put(items, func(p store.PutResult) { done <- p }))
	p := <-done
	require.NoError(n.t, p.Err)
	for _, isNew := range p.New {
		if isNew {
			fresh++
		}
	}
	return fresh
}

var signer = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))

// write adds claims of about 1 KiB.
func (n *node) write(count int) {
	n.t.Helper()
	for range count {
		a := &record.Assertion{Content: record.Content{
			Subject: "code://x", Predicate: "is", Object: record.Text(fmt.Sprint(n.written, strings.Repeat(" x", 400))),
			Confidence: 0.5, SourceClass: record.Observational, Timestamp: uint64(1_700_000_000 + n.written),
		}}
		a.Sign(signer)
		n.written++
		id := a.ID()
		n.put(store.NewContent("p", id, &a.Content), store.NewSignature("p", id, a.Signatures[0]))
	}
}

func position(text string) wal.Position {
	n, err := strconv.ParseUint(text, 16, 64)
	if err != nil {
		panic(err)
	}
	return wal.Position(n)
}

func (n *node) BackupPoint(_ context.Context, name string) (*client.BackupPoint, error) {
	for _, o := range append([]*node{n}, n.others...) {
		if (name == "" || name == o.name) && !o.down {
			return &client.BackupPoint{
				ClusterID: o.cluster, Node: o.name, Incarnation: o.store.Identity().Incarnation,
				First: fmt.Sprintf("%016x", uint64(o.store.First())), End: fmt.Sprintf("%016x", uint64(o.store.End())),
				Assertions: o.store.Stats().Assertions,
			}, nil
		}
	}
	return nil, errors.New("no such node")
}

func (n *node) BackupRecords(_ context.Context, p *client.BackupPoint, from, to string) (b []byte, next string, err error) {
	for _, o := range append([]*node{n}, n.others...) {
		if p.Incarnation == o.store.Identity().Incarnation {
			at, err := o.store.Export(position(from), position(to), 10_000, func(k store.Kind, payload []byte) error {
				b = store.AppendRecord(b, k, payload)
				return nil
			})
			return b, fmt.Sprintf("%016x", uint64(at)), err
		}
	}
	return nil, "", errors.New("no such log")
}

func (n *node) Restore(_ context.Context, records []byte) (client.Restored, error) {
	items, err := store.ParseRecords(records)
	if err != nil {
		return client.Restored{}, err
	}
	fresh := n.put(items...)
	return client.Restored{Created: fresh, Existing: len(items) - fresh}, nil
}

// bucket is a remote in memory.
type bucket struct {
	mu      sync.Mutex
	objects map[string][]byte
	times   map[string]time.Time
	now     time.Time
	puts    int // until one fails; 0: none does
}

func newBucket() *bucket {
	return &bucket{objects: map[string][]byte{}, times: map[string]time.Time{}, now: time.Unix(1_800_000_000, 0)}
}

func (b *bucket) Put(_ context.Context, name string, content []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.puts--; b.puts == 0 {
		b.objects[name], b.times[name] = content[:len(content)/2], b.now
		return errors.New("connection reset")
	}
	b.objects[name], b.times[name] = content, b.now
	return nil
}

func (b *bucket) Get(_ context.Context, name string) ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	content, ok := b.objects[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return content, nil
}

func (b *bucket) List(_ context.Context, prefix string) (all []Object, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for name, content := range b.objects {
		if strings.HasPrefix(name, prefix) {
			all = append(all, Object{name, int64(len(content)), b.times[name]})
		}
	}
	return all, nil
}

func (b *bucket) Delete(_ context.Context, name string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.objects, name)
	return nil
}

func (b *bucket) count(prefix string) int {
	all, _ := b.List(context.Background(), prefix)
	return len(all)
}

// take makes a backup a minute after the one before, with chunks of 50 kB.
func (b *bucket) take(t testing.TB, n *node) *Taken {
	t.Helper()
	b.now = b.now.Add(time.Minute)
	taken, err := Take(t.Context(), n, b, Options{Now: b.now, ChunkBytes: 50_000})
	require.NoError(t, err)
	return taken
}

// requireRestored restores a backup into an empty node and compares it with the one that
// it is from.
func (b *bucket) requireRestored(t testing.TB, m *Manifest, from *node) {
	t.Helper()
	into := newNode(t, "other")
	_, err := Restore(t.Context(), into, b, m, func(int64) {})
	require.NoError(t, err)
	var digests [2]*[256]store.Digest
	for i, n := range []*node{from, into} {
		n.store.SetDigestKey([32]byte{1})
		digests[i], err = n.store.BucketDigests(t.Context(), nil)
		require.NoError(t, err)
	}
	require.Equal(t, digests[0], digests[1])
}

func TestABackupIsIncrementalAndHoldsEverything(t *testing.T) {
	n, b := newNode(t, "n0"), newBucket()
	n.write(300)
	first := b.take(t, n)
	require.True(t, first.Full)
	require.Greater(t, first.Copied, 3)
	b.requireRestored(t, first.Manifest, n)

	n.write(3)
	second := b.take(t, n)
	require.False(t, second.Full, second.Why)
	require.Equal(t, 1, second.Copied)
	require.Less(t, second.Bytes, first.Bytes/20)
	b.requireRestored(t, second.Manifest, n)

	third := b.take(t, n)
	require.Zero(t, third.Copied, "nothing is new")
	require.Equal(t, second.Manifest.Chunks, third.Manifest.Chunks)
	checked, err := Verify(t.Context(), b, third.Manifest, func(int64) {})
	require.NoError(t, err)
	require.Equal(t, &Checked{Records: 606}, checked)
}

// A backup is interrupted at each of its writes in turn. The next one uses the complete
// chunks that it left, and no half one.
func TestAnInterruptedBackupIsContinued(t *testing.T) {
	n := newNode(t, "n0")
	n.write(300)
	whole := newBucket().take(t, n)
	for at := 1; at <= whole.Copied+1; at++ {
		b := newBucket()
		b.puts = at
		_, err := Take(t.Context(), n, b, Options{Now: b.now, ChunkBytes: 50_000})
		require.ErrorContains(t, err, "connection reset")
		again := b.take(t, n)
		require.LessOrEqual(t, again.Copied, whole.Copied-at+2, "write %d", at)
		b.requireRestored(t, again.Manifest, n)
	}
}

// A chunk that an interrupted backup left long ago is copied again: a pruning may remove
// the old one at any moment.
func TestAnOldLeftoverIsNotUsed(t *testing.T) {
	n, b := newNode(t, "n0"), newBucket()
	n.write(300)
	b.puts = 3
	_, err := Take(t.Context(), n, b, Options{Now: b.now, ChunkBytes: 50_000})
	require.Error(t, err)
	late, err := Take(t.Context(), n, b, Options{Now: b.now.Add(grace - time.Minute), ChunkBytes: 50_000})
	require.NoError(t, err)
	require.Equal(t, len(late.Manifest.Chunks), late.Copied)
}

// A thousand backups, each with a little new data, do not leave a thousand chunks.
func TestManySmallBackupsLeaveFewChunks(t *testing.T) {
	n, b := newNode(t, "n0"), newBucket()
	var last *Taken
	copied := int64(0)
	for range 1000 {
		n.write(1)
		last = b.take(t, n)
		copied += last.Bytes
	}
	require.Less(t, len(last.Manifest.Chunks), smallRun+1000*1000/25_000)
	require.Less(t, copied, 3*last.Manifest.Bytes(), "bytes copied in all, of %d", last.Manifest.Bytes())
	b.requireRestored(t, last.Manifest, n)
}

// Each object of a backup is damaged or missing in turn. Verify names it, and Restore
// stops at it without restoring anything of it.
func TestADamagedObjectIsNamed(t *testing.T) {
	n, b := newNode(t, "n0"), newBucket()
	n.write(200)
	m := b.take(t, n).Manifest
	r := rand.New(rand.NewPCG(1, 1))
	for i := range m.Chunks {
		name := m.Chunks[i].Name()
		intact := b.objects[name]
		flipped := slices.Clone(intact)
		flipped[r.IntN(len(flipped))] ^= 1 << r.IntN(8)
		for _, damage := range [][]byte{flipped, intact[:len(intact)-1], nil} {
			if b.objects[name] = damage; damage == nil {
				delete(b.objects, name)
			}
			checked, err := Verify(t.Context(), b, m, func(int64) {})
			require.NoError(t, err)
			require.Len(t, checked.Damaged, 1)
			require.Equal(t, name, checked.Damaged[0].Name)
			_, err = Restore(t.Context(), newNode(t, "other"), b, m, func(int64) {})
			var d *DamageError
			require.ErrorAs(t, err, &d)
			require.Equal(t, name, d.Name)
		}
		b.objects[name] = intact
	}
	b.objects[m.name] = append(slices.Clone(b.objects[m.name]), ' ')
	_, err := Find(t.Context(), b, Latest)
	var d *DamageError
	require.ErrorAs(t, err, &d)
	require.Equal(t, m.name, d.Name)
}

// The node of the newest backup is away, or has new volumes: the backup is a full one of
// another node, and says why. When the node is back, its log is continued.
func TestABackupOfAnotherNodeIsAFullOne(t *testing.T) {
	a, b, remote := newNode(t, "a"), newNode(t, "b"), newBucket()
	a.others = []*node{b}
	a.write(100)
	b.write(100)
	remote.take(t, a)
	a.down = true
	other := remote.take(t, a)
	require.True(t, other.Full)
	require.Contains(t, other.Why, "cannot be asked")
	require.Equal(t, "b", other.Manifest.Point.Node)
	remote.requireRestored(t, other.Manifest, b)

	b.down, a.down = true, false
	back := remote.take(t, a)
	require.False(t, back.Full)
	require.Zero(t, back.Copied)

	fresh := newNode(t, "a")
	fresh.write(10)
	emptied := remote.take(t, fresh)
	require.True(t, emptied.Full)
	require.Contains(t, emptied.Why, "volumes of node a were replaced")

	fresh.cluster = "another"
	_, err := Take(t.Context(), fresh, remote, Options{Now: remote.now})
	require.ErrorContains(t, err, "back it up into another folder")
}

// Prune removes backups and the chunks that only they need. Chunks that may belong to a
// backup in progress stay, and all of them while a manifest cannot be read.
func TestPruningBreaksNoKeptBackup(t *testing.T) {
	n, b := newNode(t, "n0"), newBucket()
	var all []*Manifest
	for range 70 { // the small chunks are merged once
		n.write(2)
		all = append(all, b.take(t, n).Manifest)
	}
	before := b.count(chunks)
	done, err := Prune(t.Context(), b, Retention{Last: 3}, b.now)
	require.NoError(t, err)
	require.Equal(t, 67, done.Manifests)
	require.Zero(t, done.Chunks, "they are younger than a day")
	require.Equal(t, before, b.count(chunks))

	late := b.now.Add(48 * time.Hour)
	intact := b.objects[all[69].name]
	b.objects[all[69].name] = []byte("{}")
	done, err = Prune(t.Context(), b, Retention{Last: 3}, late)
	require.NoError(t, err)
	require.Zero(t, done.Chunks, "a manifest that cannot be read may need them")
	b.objects[all[69].name] = intact

	done, err = Prune(t.Context(), b, Retention{Within: 48*time.Hour + 90*time.Second}, late)
	require.NoError(t, err)
	require.Equal(t, 1, done.Manifests, "one is older")
	require.Positive(t, done.Chunks)
	require.Less(t, b.count(chunks), before)
	checked, err := Verify(t.Context(), b, all[68], func(int64) {})
	require.NoError(t, err)
	require.Empty(t, checked.Damaged)
	_, err = Prune(t.Context(), b, Retention{}, late.Add(time.Hour))
	require.NoError(t, err)
	require.Equal(t, 1, b.count(manifests), "the newest is always kept")
	b.requireRestored(t, all[69], n)
}

// Backups in the same second are in their order.
func TestTheNewestOfTwoBackupsInASecondIsTheLatest(t *testing.T) {
	n, b := newNode(t, "n0"), newBucket()
	var last *Taken
	for i := range 10 {
		n.write(1)
		taken, err := Take(t.Context(), n, b, Options{Now: b.now.Add(time.Duration(i) * time.Millisecond)})
		require.NoError(t, err)
		last = taken
	}
	latest, err := Find(t.Context(), b, Latest)
	require.NoError(t, err)
	require.Equal(t, last.Manifest.ID(), latest.ID())
}

// A second backup runs while the first one does, and so does a pruning.
func TestBackupsAtTheSameTimeAreSafe(t *testing.T) {
	n, b := newNode(t, "n0"), newBucket()
	n.write(100)
	var work sync.WaitGroup
	results := make([]*Taken, 4)
	for i := range results {
		work.Go(func() {
			taken, err := Take(t.Context(), n, b, Options{Now: b.now.Add(time.Duration(i) * time.Second), ChunkBytes: 50_000})
			if err == nil {
				results[i] = taken
			}
			_, _ = Prune(t.Context(), b, Retention{Last: 10}, b.now)
		})
	}
	work.Wait()
	for _, taken := range results {
		require.NotNil(t, taken)
		b.requireRestored(t, taken.Manifest, n)
	}
}
