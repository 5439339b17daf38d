package cluster

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/cluster/peerpb"
	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/wal"
)

func FuzzItems(f *testing.F) {
	a := claim("s", 1)
	content, sig := store.NewContent("p", a.ID(), &a.Content), store.NewSignature("p", a.ID(), a.Signatures[0])
	cursor := store.NewCursor("x", 3)
	f.Add(store.AppendRecord(store.AppendRecord(nil, content.Kind, content.Payload), sig.Kind, sig.Payload))
	f.Add(store.AppendRecord(nil, cursor.Kind, cursor.Payload))
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		items, err := store.ParseRecords(b)
		if err != nil {
			return
		}
		var again []byte
		for i := range items {
			require.True(t, items[i].Kind.Record())
			again = store.AppendRecord(again, items[i].Kind, items[i].Payload)
		}
		back, err := store.ParseRecords(again)
		require.NoError(t, err)
		require.Equal(t, len(items), len(back))
		for i := range back {
			require.Equal(t, items[i].Key, back[i].Key)
		}
	})
}

func FuzzKeys(f *testing.F) {
	id := claim("s", 1).ID()
	for _, k := range []store.Key{
		{Kind: store.KindContent, Project: "p", ID: id},
		{Kind: store.KindVote, Project: "p", ID: id, Agent: record.AgentID{1}, Vote: id},
		store.CursorKey("x"),
	} {
		b, err := k.AppendBinary(nil)
		require.NoError(f, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		keys, err := parseKeys(b)
		if err != nil {
			return
		}
		again, err := appendKeys(nil, keys...)
		require.NoError(t, err)
		require.True(t, bytes.Equal(b, again))
	})
}

// memStore keeps items in memory, durable at once. Methods that it does not
// implement are not called.
type memStore struct {
	Store
	items map[store.Key]store.Item
}

func (s *memStore) Put(items []store.Item, done func(store.PutResult)) error {
	for _, it := range items {
		s.items[it.Key] = it
	}
	done(store.PutResult{New: make([]bool, len(items))})
	return nil
}

func (s *memStore) Has(keys []store.Key) ([]bool, error) {
	has := make([]bool, len(keys))
	for i, k := range keys {
		_, has[i] = s.items[k]
	}
	return has, nil
}

func (s *memStore) Identity() wal.Identity            { return wal.Identity{Node: "a", Incarnation: "1"} }
func (s *memStore) Cursors() map[string]wal.Position  { return nil }
func (s *memStore) Witnesses() map[string]wal.Witness { return nil }

func (s *memStore) Whole() bool { return true }

func fuzzed(t *testing.T) (*Cluster, *memStore) {
	t.Helper()
	s := &memStore{items: map[store.Key]store.Item{}}
	c, err := New(Config{Store: s, Control: &table{id: "a/1", state: stateOf("ab")}, Progress: NewProgress(s)})
	require.NoError(t, err)
	return c, s
}

// script is a stream with predefined messages.
type script struct {
	grpc.ServerStream
	messages []*peerpb.ReplicateRequest
	acked    uint64
}

func (s *script) Context() context.Context { return context.Background() }

func (s *script) Recv() (*peerpb.ReplicateRequest, error) {
	if len(s.messages) == 0 {
		return nil, io.EOF
	}
	m := s.messages[0]
	s.messages = s.messages[1:]
	return m, nil
}

func (s *script) Send(r *peerpb.ReplicateResponse) error {
	s.acked = r.Seq
	return nil
}

// FuzzReplicate sends arbitrary messages: u16 length | message, repeated. The
// stream ends, nothing panics, and acknowledged records are held.
func FuzzReplicate(f *testing.F) {
	frame := func(messages ...*peerpb.ReplicateRequest) []byte {
		var b []byte
		for _, m := range messages {
			body, err := proto.Marshal(m)
			require.NoError(f, err)
			b = append(binary.BigEndian.AppendUint16(b, uint16(len(body))), body...)
		}
		return b
	}
	a := claim("s", 1)
	content := store.NewContent("p", a.ID(), &a.Content)
	items := store.AppendRecord(nil, content.Kind, content.Payload)
	f.Add(frame(&peerpb.ReplicateRequest{}, &peerpb.ReplicateRequest{Seq: 1, Items: items}, &peerpb.ReplicateRequest{Seq: 2, Items: items}))
	f.Add(frame(&peerpb.ReplicateRequest{}, &peerpb.ReplicateRequest{Seq: 1, Items: items[:9]}))
	f.Add(frame(&peerpb.ReplicateRequest{}, &peerpb.ReplicateRequest{Seq: 7, Generation: 1, Items: items}))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &script{}
		for len(b) >= 2 {
			n := min(int(binary.BigEndian.Uint16(b)), len(b)-2)
			m := &peerpb.ReplicateRequest{}
			if proto.Unmarshal(b[2:2+n], m) == nil {
				s.messages = append(s.messages, m)
			}
			b = b[2+n:]
		}
		sent := slices.Clone(s.messages)
		c, held := fuzzed(t)
		_ = (&service{c: c}).Replicate(s)
		c.serving.Wait()
		require.LessOrEqual(t, s.acked, uint64(len(sent)))
		for i, m := range sent {
			if i == 0 || uint64(i) > s.acked {
				continue // the hello, or not acknowledged
			}
			got, err := store.ParseRecords(m.Items)
			require.NoError(t, err)
			for _, it := range got {
				require.Contains(t, held.items, it.Key)
			}
		}
	})
}

// fetcher gives the same answer to every Fetch.
type fetcher struct {
	peerpb.PeerClient
	answer *peerpb.FetchResponse
	calls  int
}

func (f *fetcher) Fetch(context.Context, *peerpb.FetchRequest, ...grpc.CallOption) (*peerpb.FetchResponse, error) {
	if f.calls++; f.calls > 100 {
		return nil, io.ErrUnexpectedEOF
	}
	return f.answer, nil
}

// FuzzPulled answers a puller with arbitrary messages: nothing panics, and no
// record is accepted that the member did not list.
func FuzzPulled(f *testing.F) {
	a := claim("s", 1)
	content := store.NewContent("p", a.ID(), &a.Content)
	keys, err := appendKeys(nil, content.Key)
	require.NoError(f, err)
	add := func(pulled *peerpb.PullResponse, fetched *peerpb.FetchResponse) {
		p, err := proto.Marshal(pulled)
		require.NoError(f, err)
		q, err := proto.Marshal(fetched)
		require.NoError(f, err)
		f.Add(p, q)
	}
	items := store.AppendRecord(nil, content.Kind, content.Payload)
	good := &peerpb.PullResponse{Keys: keys, Positions: []uint64{1}, Sizes: []uint32{9}, Next: 2, End: 2}
	add(good, &peerpb.FetchResponse{Items: items, LookedAt: 1})
	add(good, &peerpb.FetchResponse{LookedAt: 1})
	add(good, &peerpb.FetchResponse{Items: append(items, items...), LookedAt: 1})
	add(&peerpb.PullResponse{Keys: keys, Next: 2, End: 1}, &peerpb.FetchResponse{})
	f.Fuzz(func(t *testing.T, pulled, fetched []byte) {
		res, answer := &peerpb.PullResponse{}, &peerpb.FetchResponse{}
		if proto.Unmarshal(pulled, res) != nil || proto.Unmarshal(fetched, answer) != nil {
			return
		}
		c, held := fuzzed(t)
		p := newPuller(c, control.Member{Name: "b", Incarnation: "1"})
		p.notedAt = time.Now()
		_, err := p.take(context.Background(), &fetcher{answer: answer}, res)
		listed, listErr := parseKeys(res.Keys)
		if listErr != nil {
			require.Error(t, err)
		}
		for k := range held.items {
			if k.Kind.Record() {
				require.Contains(t, listed, k)
			}
		}
	})
}
