package control

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"runtime/debug"
	"slices"

	"github.com/hashicorp/raft"
)

// errDamaged: stored bytes differ from the bytes written.
var errDamaged = errors.New("does not match its checksum")

// sealed adds a checksum to everything that Raft stores, because raft-boltdb has
// none and Raft trusts all data that it reads. All checksums are CRC32C, four
// bytes, big endian:
//
//	log entry      in Extensions: one over index, term, type and data; the term
//	               again (eight bytes, big endian); one over index and term
//	term and vote  behind the value, over the key and the value
//	snapshot       behind the content, over index, term, servers and the content
//
// inspect finds an entry that is missing between two others. A damaged page of
// the database that hides the end of the log is not detected here: such a log
// only looks shorter.
type sealed struct {
	RaftStorage
	expected int // number of members if there is no snapshot
}

// members is the number of members in the newest snapshot, or else the expected
// number.
func (s sealed) members() int { return cmp.Or(membersOf(s.Snapshots()), s.expected) }

func (s sealed) Logs() raft.LogStore           { return s.sealedLogs() }
func (s sealed) sealedLogs() sealedLogs        { return sealedLogs{s.RaftStorage.Logs()} }
func (s sealed) Stable() raft.StableStore      { return sealedStable{s.RaftStorage.Stable()} }
func (s sealed) Snapshots() raft.SnapshotStore { return sealedSnapshots{s.RaftStorage.Snapshots()} }

const sealSize = crc32.Size

func checksum(parts ...[]byte) []byte {
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	for _, p := range parts {
		_, _ = sum.Write(p) // never fails
	}
	return sum.Sum(nil)
}

// unseal splits content from the checksum behind it.
func unseal(what string, b []byte, context ...[]byte) ([]byte, error) {
	content, seal := b[:max(0, len(b)-sealSize)], b[max(0, len(b)-sealSize):]
	if !bytes.Equal(seal, checksum(append(context, content)...)) {
		return nil, fmt.Errorf("%s %w", what, errDamaged)
	}
	return content, nil
}

// guarded runs f, which reads or writes bbolt's mapped file: on a damaged page
// bbolt panics, or follows a page number beyond the end of the file.
func guarded(what string, f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s cannot be read (%v): it %w", what, p, errDamaged)
		}
	}()
	return f()
}

type sealedLogs struct{ raft.LogStore }

// sealOf includes a second copy of the term, so that an entry with damaged data
// can still be identified by its index and term, which are unique in a cluster.
func sealOf(e *raft.Log) []byte {
	name := binary.BigEndian.AppendUint64(nil, e.Index)
	name = binary.BigEndian.AppendUint64(name, e.Term)
	return slices.Concat(checksum(name, []byte{byte(e.Type)}, e.Data), name[8:], checksum(name))
}

// termOf returns the term of an entry that may be damaged.
func (l sealedLogs) termOf(index uint64) (term uint64, known bool) {
	var held raft.Log
	err := guarded("the log", func() error { return l.LogStore.GetLog(index, &held) })
	if err != nil || len(held.Extensions) != sealSize+8+sealSize {
		return 0, false
	}
	stored := held.Extensions[sealSize : sealSize+8]
	name := append(binary.BigEndian.AppendUint64(nil, index), stored...)
	return binary.BigEndian.Uint64(stored), bytes.Equal(held.Extensions[sealSize+8:], checksum(name))
}

// GetLog returns raft.ErrLogNotFound, or an error that is errDamaged, or an
// entry as it was stored.
func (l sealedLogs) GetLog(index uint64, e *raft.Log) error {
	what := fmt.Sprintf("entry %d of the log", index)
	var held raft.Log
	if err := guarded(what, func() error { return l.LogStore.GetLog(index, &held) }); errors.Is(err, raft.ErrLogNotFound) {
		return err
	} else if err != nil {
		return fmt.Errorf("%s cannot be decoded (%w): it %w", what, err, errDamaged)
	}
	if held.Index != index || !bytes.Equal(held.Extensions, sealOf(&held)) {
		return fmt.Errorf("%s %w", what, errDamaged)
	}
	held.Extensions = nil
	*e = held
	return nil
}

func (l sealedLogs) StoreLog(e *raft.Log) error { return l.StoreLogs([]*raft.Log{e}) }

// StoreLogs seals copies, because Raft reads the originals concurrently.
func (l sealedLogs) StoreLogs(entries []*raft.Log) error {
	copies := make([]*raft.Log, len(entries))
	for i, e := range entries {
		c := *e
		c.Extensions = sealOf(e)
		copies[i] = &c
	}
	return guarded("the log", func() error { return l.LogStore.StoreLogs(copies) })
}

func (l sealedLogs) FirstIndex() (index uint64, err error) {
	err = guarded("the log", func() (err error) {
		index, err = l.LogStore.FirstIndex()
		return err
	})
	return index, err
}

func (l sealedLogs) LastIndex() (index uint64, err error) {
	err = guarded("the log", func() (err error) {
		index, err = l.LogStore.LastIndex()
		return err
	})
	return index, err
}

func (l sealedLogs) DeleteRange(first, last uint64) error {
	return guarded("the log", func() error { return l.LogStore.DeleteRange(first, last) })
}

type sealedStable struct{ stable raft.StableStore }

func (s sealedStable) Set(key, value []byte) error {
	return guarded(string(key), func() error { return s.stable.Set(key, slices.Concat(value, checksum(key, value))) })
}

// Get returns the store's error for a missing key unchanged: Raft recognises it
// by its text.
func (s sealedStable) Get(key []byte) ([]byte, error) {
	var b []byte
	err := guarded(string(key), func() (err error) {
		b, err = s.stable.Get(key)
		return err
	})
	if err != nil {
		return nil, err
	}
	return unseal(string(key), b, key)
}

func (s sealedStable) SetUint64(key []byte, value uint64) error {
	return s.Set(key, binary.BigEndian.AppendUint64(nil, value))
}

func (s sealedStable) GetUint64(key []byte) (uint64, error) {
	b, err := s.Get(key)
	if err != nil {
		return 0, err
	}
	if len(b) != 8 {
		return 0, fmt.Errorf("%s is not a number: it %w", key, errDamaged)
	}
	return binary.BigEndian.Uint64(b), nil
}

type sealedSnapshots struct{ raft.SnapshotStore }

// metaBytes encodes the metadata of a snapshot that Raft relies on.
func metaBytes(index, term uint64, servers raft.Configuration, serversIndex uint64) []byte {
	b := binary.BigEndian.AppendUint64(nil, index)
	b = binary.BigEndian.AppendUint64(b, term)
	b = binary.BigEndian.AppendUint64(b, serversIndex)
	return append(b, raft.EncodeConfiguration(servers)...)
}

func (s sealedSnapshots) Create(version raft.SnapshotVersion, index, term uint64, servers raft.Configuration,
	serversIndex uint64, trans raft.Transport,
) (raft.SnapshotSink, error) {
	sink, err := s.SnapshotStore.Create(version, index, term, servers, serversIndex, trans)
	if err != nil {
		return nil, err
	}
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	_, _ = sum.Write(metaBytes(index, term, servers, serversIndex))
	return &sealedSink{SnapshotSink: sink, sum: sum}, nil
}

type sealedSink struct {
	raft.SnapshotSink
	sum    hash.Hash
	closed bool // Raft closes twice
}

func (k *sealedSink) Write(p []byte) (int, error) {
	n, err := k.SnapshotSink.Write(p)
	_, _ = k.sum.Write(p[:n])
	return n, err
}

func (k *sealedSink) Close() error {
	if k.closed {
		return nil
	}
	k.closed = true
	if _, err := k.SnapshotSink.Write(k.sum.Sum(nil)); err != nil {
		return errors.Join(err, k.SnapshotSink.Cancel())
	}
	return k.SnapshotSink.Close()
}

func (k *sealedSink) Cancel() error {
	k.closed = true
	return k.SnapshotSink.Cancel()
}

// Open reads the whole snapshot, which is small, and verifies it before it
// returns any part.
func (s sealedSnapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	what := "snapshot " + id
	meta, r, err := s.SnapshotStore.Open(id)
	if err != nil {
		return nil, nil, fmt.Errorf("%s cannot be opened (%w): it %w", what, err, errDamaged)
	}
	b, err := io.ReadAll(r)
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, nil, fmt.Errorf("%s cannot be read (%w): it %w", what, err, errDamaged)
	}
	content, err := unseal(what, b, metaBytes(meta.Index, meta.Term, meta.Configuration, meta.ConfigurationIndex))
	if err != nil {
		return nil, nil, err
	}
	checked := *meta
	checked.Size = int64(len(content))
	return &checked, io.NopCloser(bytes.NewReader(content)), nil
}
