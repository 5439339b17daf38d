package api

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/keys"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// Backup and restore. A backup is the log of one member, which is copied in pieces:
// GET /v1/admin/backup waits until the member holds everything that was acknowledged
// before, and gives the range of its log; GET /v1/admin/backup/records gives the
// records of a part of it. POST /v1/admin/restore takes them into any cluster.

const (
	// mediaRecords is the media type of a sequence of records; see store.AppendRecord.
	mediaRecords = "application/vnd.stemedb.records"
	// maxPiece bounds the payloads of one answer but for its last record, and
	// maxRestoreBody one body: a client may send a piece as it got it.
	maxPiece       = 2 << 20
	maxRestoreBody = maxPiece + 2*record.MaxRecordBytes

	// headerNext is the position at which the next piece begins.
	headerNext = "X-Stemedb-Next"
)

// backupBody describes a backup that can be taken now.
type backupBody struct {
	ClusterID   string `json:"cluster_id"`
	Node        string `json:"node"`
	Incarnation string `json:"incarnation"`
	// First and End are positions of the node's log, of 16 hex digits each.
	First      string    `json:"first"`
	End        string    `json:"end"`
	Assertions int64     `json:"assertions"`
	Keys       []keyBody `json:"keys"`
}

func positionText(p wal.Position) string { return fmt.Sprintf("%016x", uint64(p)) }

func (c *call) positionParam(name string) (wal.Position, error) {
	text, given := c.param(name)
	if !given {
		return 0, problem(record.CodeMissing, name, "the parameter "+name+" is missing", "give a position from GET /v1/admin/backup, or the "+headerNext+" of the piece before")
	}
	n, err := strconv.ParseUint(text, 16, 64)
	if err != nil || len(text) != 16 {
		return 0, problem(record.CodeInvalidHex, name, strconv.Quote(clip(text))+" is not a position of 16 hex digits", "give a position from GET /v1/admin/backup, or the "+headerNext+" of the piece before")
	}
	return wal.Position(n), nil
}

// backup describes a backup of this node that holds everything acknowledged so far.
func (c *call) backup() error {
	if err := c.checkNode(); err != nil {
		return err
	}
	point, err := c.svc.backend.BackupPoint(c.ctx)
	if err != nil {
		return err
	}
	body := backupBody{
		ClusterID: point.ClusterID, Node: point.Node, Incarnation: point.Incarnation,
		First: positionText(point.First), End: positionText(point.End), Assertions: point.Assertions,
		Keys: []keyBody{},
	}
	all := slices.SortedFunc(slices.Values(c.svc.keys.ListKeys()), func(x, y keys.Key) int { return slices.Compare(x.Hash[:], y.Hash[:]) })
	for i := range all {
		body.Keys = append(body.Keys, c.showKey(&all[i], ""))
	}
	return c.json(http.StatusOK, body)
}

// checkNode refuses a request that names another node and was not forwarded to it.
func (c *call) checkNode() error {
	name, given := c.param("node")
	if !given || name == c.api.opts.Node {
		return nil
	}
	return noSuchMember()
}

// backupRecords gives the records of a part of this node's log.
func (c *call) backupRecords() error {
	if err := c.checkNode(); err != nil {
		return err
	}
	from, err := c.positionParam("from")
	if err != nil {
		return err
	}
	to, err := c.positionParam("to")
	if err != nil {
		return err
	}
	incarnation, _ := c.param("incarnation")
	if own := c.svc.backend.Incarnation(); incarnation != own {
		return noSuchLog("incarnation", fmt.Sprintf("the log of this node is %s, not %q", own, clip(incarnation)))
	}
	c.out = c.out[:0]
	next, err := c.svc.backend.Export(from, to, maxPiece, func(kind store.Kind, payload []byte) error {
		c.out = store.AppendRecord(c.out, kind, payload)
		return c.ctx.Err()
	})
	if errors.Is(err, wal.ErrNoEntry) {
		return noSuchLog("from", "no record begins at this position of the node's log")
	}
	if err != nil {
		return err
	}
	c.status, c.contentType = http.StatusOK, mediaRecords
	c.header(headerNext, positionText(next))
	return nil
}

func noSuchLog(field, detail string) *Problem {
	return problem(codeNoSuchLog, field, detail, "begin with GET /v1/admin/backup; if the node's volumes were replaced, the next backup is a full one")
}

// restoreBody counts what a restore did.
type restoreBody struct {
	Created  int `json:"created"`
	Existing int `json:"existing"`
	Invalid  int `json:"invalid"`
}

// restore makes the records of a piece durable. It is idempotent.
func (c *call) restore() error {
	if err := c.needBody(); err != nil {
		return err
	}
	items, err := store.ParseRecords(c.body)
	if err != nil {
		return problem(record.CodeMalformed, "", "the body is not a sequence of records: "+err.Error(), "send a piece as GET /v1/admin/backup/records gave it")
	}
	done, err := c.svc.backend.Import(c.permitted(), items)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, restoreBody{Created: done.Created, Existing: done.Existing, Invalid: done.Invalid})
}
