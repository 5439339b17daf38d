package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
	lerrors "github.com/syndtr/goleveldb/leveldb/errors"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"

	"github.com/stemedb/stemedb/internal/sleep"
	"github.com/stemedb/stemedb/server/internal/vfs"
	"github.com/stemedb/stemedb/server/internal/vfs/leveldbfs"
	"github.com/stemedb/stemedb/server/internal/wal"
)

const (
	packDir     = "packs"
	indexDir    = "index"
	rebuildName = "index-must-be-rebuilt"
)

// Store is an open store. All methods are safe for concurrent use.
type Store struct {
	opts      Options
	logger    *slog.Logger
	log       *wal.Log
	files     *leveldbfs.Storage
	db        *leveldb.DB
	digestKey atomic.Pointer[[32]byte]
	// orphans counts the orphan marks in goleveldb: while there are none, nothing
	// looks for them. Only the applier changes it.
	orphans atomic.Int64
	// unjoined: some orphans have a content that could not be read.
	unjoined atomic.Bool
	// subjects holds those put into the dictionary since the start (applier only).
	subjects map[string]struct{}
	// barrierKey is the key of the last barrier (mark only).
	barrierKey []byte

	mu sync.Mutex
	// active receives durable entries; frozen is being written to goleveldb (nil
	// if nothing is). Together they are the overlay.
	active, frozen *layer
	// flight maps the items being written to the log to their Puts.
	flight map[Key]*putOp
	// pending counts the bytes in flight or in the overlay; Options.ApplyBytes bounds it.
	pending int64
	cursors map[string]wal.Position
	// witnesses holds the witnesses of the peers' logs, by incarnation.
	witnesses map[string]wal.Witness
	// applied: all entries up to and including this one are in goleveldb. marker:
	// the same, durably.
	applied, marker wal.Position
	// replayedFrom is the marker found by the start.
	replayedFrom wal.Position
	// assertions counts the contents up to applied.
	assertions      int64
	failure         error // of the index; sticky
	closing, closed bool
	failed          chan struct{} // closed with the first failure

	reset resetDue

	// synced holds the commits that the log has finished, in log order.
	syncedMu sync.Mutex
	synced   []syncedOp
	syncedC  chan struct{}
	work     chan struct{} // the active layer is not empty

	underWay               sync.WaitGroup // Puts
	goroutines             sync.WaitGroup
	stopPublish, stopApply chan struct{}
}

func (o *Options) setDefaults() error {
	if o.NodeName == "" || o.WALDir == "" || o.DBDir == "" {
		return errors.New("a store needs a node name, a WAL directory and a DB directory")
	}
	if o.FS == nil {
		o.FS = vfs.OS()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Progress == nil {
		o.Progress = func(Progress) {}
	}
	setDefault(&o.SegmentSize, 64<<20)
	setDefault(&o.ApplyBytes, 32<<20)
	setDefault(&o.MarkerBytes, 64<<20)
	setDefault(&o.MarkerInterval, 30*time.Second)
	setDefault(&o.CacheBytes, 64<<20)
	setDefault(&o.WriteBuffer, 16<<20)
	setDefault(&o.ScrubRate, 200_000)
	setDefault(&o.replayChunk, 1<<20)
	return nil
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// Open opens the log, brings the index up to date and returns a store that
// serves. If the index is missing, damaged or of another log, Open rebuilds it.
// Open reports Progress meanwhile and gives up when ctx ends; the next Open
// continues from there.
func Open(ctx context.Context, o Options) (*Store, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	s := &Store{
		opts:        o,
		logger:      o.Logger,
		subjects:    make(map[string]struct{}),
		active:      newLayer(),
		flight:      make(map[Key]*putOp),
		cursors:     make(map[string]wal.Position),
		witnesses:   make(map[string]wal.Witness),
		failed:      make(chan struct{}),
		syncedC:     make(chan struct{}, 1),
		work:        make(chan struct{}, 1),
		stopPublish: make(chan struct{}),
		stopApply:   make(chan struct{}),
	}
	s.digestKey.Store(new([32]byte))
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, s.closeFiles())
	}
	if s.heldBack() {
		sleep.Wake(s.work)
	}
	s.goroutines.Add(3)
	go s.publish()
	go s.apply()
	go s.keepBallast()
	return s, nil
}

func (s *Store) openLog() (err error) {
	o := &s.opts
	s.log, err = wal.Open(wal.Options{
		FS: o.FS, WALDir: o.WALDir, PackDir: filepath.Join(o.DBDir, packDir), Node: o.NodeName, Members: o.Members,
		SegmentSize: o.SegmentSize, Reserve: o.Reserve, ReserveHigh: o.ReserveHigh,
		Rand: o.Rand, Logger: o.Logger, Registerer: o.Registerer,
	})
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	if _, err := s.log.Recheck(); err != nil {
		s.logger.Warn("the parts of the log that are readable again could not be recorded; the next start checks them again", "error", err)
	}
	return nil
}

func (s *Store) open(ctx context.Context) (err error) {
	if err := s.openLog(); err != nil {
		return err
	}
	if err := s.dropBallast(); err != nil {
		return err
	}
	err = s.bringUp(ctx)
	if damagedIndex(err) {
		// Damage in a table is found only when something reads it: here, a compaction
		// that the replay caused. The next openIndex starts over.
		if err := s.noteRebuild(); err != nil {
			return err
		}
		s.forget()
		err = s.bringUp(ctx)
	}
	if err != nil {
		return err
	}
	return s.register(s.opts.Registerer)
}

// bringUp opens the index and applies the log's entries that it lacks.
func (s *Store) bringUp(ctx context.Context) error {
	if err := s.openIndex(); err != nil {
		return err
	}
	// From here on goleveldb compacts while the replay runs.
	s.files.WaitForSpace()
	stop := context.AfterFunc(ctx, s.files.Abort)
	err := s.takeIn(ctx)
	if !stop() {
		err = errors.Join(ctx.Err(), err)
	}
	return err
}

// takeIn brings the index, in goleveldb and in memory, to the end of the log.
func (s *Store) takeIn(ctx context.Context) error {
	if err := s.loadIndex(); err != nil {
		return err
	}
	if err := s.replay(ctx); err != nil {
		return err
	}
	if s.orphans.Load() > 0 {
		if s.heldBack() || !s.ample() {
			s.unjoined.Store(true) // for the applier
		} else if err := s.joinHeld(); err != nil {
			return fmt.Errorf("write the index: %w", err)
		}
	}
	return s.noteLoss()
}

// forget drops everything in memory that was read from the index.
func (s *Store) forget() {
	clear(s.subjects)
	clear(s.cursors)
	clear(s.witnesses)
	s.marker, s.applied, s.assertions = 0, 0, 0
	s.barrierKey = nil
	s.active, s.pending = newLayer(), 0
	s.failure, s.failed = nil, make(chan struct{})
}

// openIndex opens goleveldb, or rebuilds it if it cannot be trusted.
func (s *Store) openIndex() error {
	reason := ""
	_, err := s.opts.FS.Stat(s.rebuildNote())
	switch {
	case err == nil:
		reason = "damage was found in it"
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("look for %s: %w", rebuildName, err)
	default:
		err := s.openDB()
		if err != nil && !damagedIndex(err) {
			return err
		}
		if err != nil && s.unfinished() {
			reason = reasonNew
		} else if err != nil {
			reason = err.Error()
		} else if reason, err = s.distrust(); err != nil {
			return err
		}
	}
	if reason == "" {
		return nil
	}
	if reason != reasonNew {
		s.logger.Warn(msgAnew, "reason", reason)
	}
	return s.recreate()
}

const (
	reasonNew = "there is none"
	msgAnew   = "the index is rebuilt from the log"
)

// unfinished reports whether goleveldb's files are those of an index whose
// creation, or removal, was interrupted.
func (s *Store) unfinished() bool {
	_, err := s.files.GetMeta()
	return errors.Is(err, fs.ErrNotExist)
}

// distrust returns the reason why the opened index does not fit this log, "" if
// it does.
func (s *Store) distrust() (string, error) {
	format, err := s.meta(metaFormat)
	if err != nil {
		return reasonOf(err)
	}
	if format == nil {
		return reasonNew, nil
	}
	if len(format) != 1 || format[0] != indexFormat {
		return fmt.Sprintf("it has format %x, this release writes %d", format, indexFormat), nil
	}
	identity, err := s.meta(metaIdentity)
	if err != nil {
		return reasonOf(err)
	}
	if string(identity) != s.log.Identity().Incarnation {
		return "it belongs to another log", nil
	}
	marker, _, err := s.readMarker()
	if err != nil {
		return reasonOf(err)
	}
	seen, err := s.lastSeen(marker)
	if err != nil {
		return reasonOf(err)
	}
	if seen > 0 && seen >= s.log.End() {
		return s.rolledBack(seen)
	}
	known, err := s.knownGaps()
	if err != nil {
		return reasonOf(err)
	}
	if g, found := uncovered(known, s.log.Missing()); found {
		return "it points into a part of the log that is lost: " + g.String(), nil
	}
	if g, found := uncovered(append(s.log.Missing(), s.log.Damage()...), known); found {
		return "it lacks a part of the log that was lost and is present again: " + g.String(), nil
	}
	return "", nil
}

// rolledBack records that the WAL volume is older than the index, which is
// proof of a loss, before the index is deleted. It reopens the log, so that the
// log continues after the positions that it had assigned.
func (s *Store) rolledBack(marker wal.Position) (reason string, err error) {
	reason = fmt.Sprintf("it holds entries up to %v, the log ends at %v: the WAL volume was restored to an older state, or lost its end", marker, s.log.End())
	if err := s.log.NoteRollback(marker, reason); err != nil {
		return "", err
	}
	if err := s.log.Close(); err != nil {
		return "", err
	}
	return reason, s.openLog()
}

func reasonOf(err error) (string, error) {
	if damagedIndex(err) {
		return err.Error(), nil
	}
	return "", err
}

// recreate begins an empty index, which does not cover the gaps.
func (s *Store) recreate() error {
	gaps := append(s.log.Missing(), s.log.Damage()...)
	if err := s.closeDB(); err != nil {
		s.logger.Warn("closing the old index", "err", err)
	}
	if err := leveldbfs.RemoveAll(s.opts.FS, s.indexPath()); err != nil {
		return err
	}
	if err := s.openDB(); err != nil {
		return err
	}
	err := s.putMeta(map[string][]byte{
		metaFormat:   {indexFormat},
		metaIdentity: []byte(s.log.Identity().Incarnation),
		metaGaps:     encodeGaps(gaps),
	})
	if err != nil {
		return err
	}
	if err := s.opts.FS.Remove(s.rebuildNote()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", rebuildName, err)
	}
	return s.opts.FS.SyncDir(s.opts.DBDir)
}

func (s *Store) closeFiles() error {
	err := s.closeDB()
	if s.log != nil {
		err = errors.Join(err, s.log.Close())
	}
	return err
}

func (s *Store) indexPath() string   { return filepath.Join(s.opts.DBDir, indexDir) }
func (s *Store) rebuildNote() string { return filepath.Join(s.opts.DBDir, rebuildName) }

// noteRebuild makes the next start delete the index.
func (s *Store) noteRebuild() error {
	f, err := s.opts.FS.OpenFile(s.rebuildNote(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	err = f.Sync()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return errors.Join(err, s.opts.FS.SyncDir(s.opts.DBDir))
}

// damagedIndex reports errors that only a new index can repair.
func damagedIndex(err error) bool {
	var c *lerrors.ErrCorrupted
	var sc *storage.ErrCorrupted
	return errors.As(err, &c) || errors.As(err, &sc) || errors.Is(err, errIndexEntry) || errors.Is(err, fs.ErrNotExist)
}

// meta returns nil if the name was never written.
func (s *Store) meta(name string) ([]byte, error) {
	s.mu.Lock()
	held, ok := s.overlayGet(metaKey(name))
	s.mu.Unlock()
	if ok {
		return held, nil
	}
	b, err := s.db.Get(metaKey(name), nil)
	if errors.Is(err, leveldb.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the index's %s: %w", name, err)
	}
	return b, nil
}

func (s *Store) readMarker() (pos wal.Position, assertions int64, err error) {
	b, err := s.meta(metaApplied)
	if err != nil || b == nil {
		return 0, 0, err
	}
	if len(b) != 16 {
		return 0, 0, fmt.Errorf("marker of %d bytes: %w", len(b), errIndexEntry)
	}
	return wal.Position(binary.BigEndian.Uint64(b)), int64(binary.BigEndian.Uint64(b[8:])), nil
}

// lastSeen is the position of the last entry of the log that the index knows.
// Entries enter the index only after they are durable.
func (s *Store) lastSeen(marker wal.Position) (wal.Position, error) {
	b, err := s.meta(metaSeen)
	if err != nil || b == nil {
		return marker, err
	}
	seen, err := readPosition(b)
	return max(seen, marker), err
}

// loadIndex reads the parts that are held in memory.
func (s *Store) loadIndex() error {
	marker, assertions, err := s.readMarker()
	if err != nil {
		return err
	}
	s.marker, s.applied, s.assertions = marker, marker, assertions
	if s.barrierKey, err = s.lastKey(spaceBarrier); err != nil {
		return err
	}
	it := s.db.NewIterator(util.BytesPrefix([]byte{spaceCursor}), nil)
	defer it.Release()
	for it.Next() {
		name, _, err := cutName(it.Key()[1:])
		if err != nil {
			return fmt.Errorf("read a cursor: %w", err)
		}
		pos, witness, err := readCursor(it.Value())
		if err != nil {
			return fmt.Errorf("read a cursor: %w: %w", errIndexEntry, err)
		}
		if pos > 0 {
			s.cursors[name] = pos
		}
		if witness != (wal.Witness{}) {
			s.witnesses[name] = witness
		}
	}
	if err := it.Error(); err != nil {
		return fmt.Errorf("read the cursors: %w", err)
	}
	orphans := s.db.NewIterator(util.BytesPrefix([]byte{spaceOrphan}), nil)
	defer orphans.Release()
	n := int64(0)
	for orphans.Next() {
		n++
	}
	s.orphans.Store(n)
	return orphans.Error()
}

// lastKey returns the last key of a space, nil if it is empty.
func (s *Store) lastKey(space byte) ([]byte, error) {
	it := s.db.NewIterator(util.BytesPrefix([]byte{space}), nil)
	defer it.Release()
	var key []byte
	if it.Last() {
		key = bytes.Clone(it.Key())
	}
	return key, it.Error()
}
