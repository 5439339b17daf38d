package cluster

import (
	"context"
	"fmt"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/store"
)

// Assert makes assertions durable on a majority in one write and returns one
// result for each, in order; an invalid assertion does not affect the others. It
// waits for its turn until ctx ends, and then at most Timings.WriteWait. The
// caller checks the project's name and must not modify the assertions afterwards.
func (c *Cluster) Assert(ctx context.Context, project string, as []*record.Assertion) []WriteResult {
	results := make([]WriteResult, len(as))
	b := writeBatch{results: results, spans: make([]span, len(as))}
	latest := c.latestTime()
	for i, a := range as {
		err := a.Validate()
		if err == nil {
			err = latest.check(a.Timestamp)
		}
		if err != nil {
			results[i].ID, results[i].Err = a.ID(), err
			continue
		}
		b.addAssertion(i, project, a)
	}
	c.commit(ctx, &b)
	return results
}

// Vote makes a vote durable in the same way as Assert.
func (c *Cluster) Vote(ctx context.Context, project string, v *record.Vote) WriteResult {
	results := make([]WriteResult, 1)
	b := writeBatch{results: results, spans: make([]span, 1)}
	err := v.Validate()
	if err == nil {
		err = c.latestTime().check(v.Timestamp)
	}
	if err != nil {
		results[0] = WriteResult{ID: v.ID(), Err: err}
	} else {
		b.addVote(project, v)
	}
	c.commit(ctx, &b)
	return results[0]
}

// span is the range of items and signatures of one record in a batch.
type span struct{ items, itemsEnd, sigs, sigsEnd int }

// writeBatch holds the records of one request while they are checked.
type writeBatch struct {
	results []WriteResult
	spans   []span // by record; empty for a refused one
	items   []store.Item
	sigs    []record.SignedItem
}

func (b *writeBatch) addAssertion(i int, project string, a *record.Assertion) {
	s := span{items: len(b.items), sigs: len(b.sigs)}
	if b.items == nil {
		b.items = make([]store.Item, 0, 2*len(b.spans))
		b.sigs = make([]record.SignedItem, 0, len(b.spans))
	}
	// The id is computed from the item's bytes, so the content is encoded once.
	it := store.NewContent(project, record.Hash{}, &a.Content)
	id := record.HashOf(it.Payload[1+len(project):])
	it.Key.ID = id
	b.items = append(b.items, it)
	for _, sig := range a.Signatures {
		b.items = append(b.items, store.NewSignature(project, id, sig))
	}
	b.sigs = a.AppendSigned(b.sigs, id)
	s.itemsEnd, s.sigsEnd = len(b.items), len(b.sigs)
	b.results[i].ID, b.spans[i] = id, s
}

func (b *writeBatch) addVote(project string, v *record.Vote) {
	it := store.NewVote(project, v)
	b.items = append(b.items, it)
	b.sigs = append(b.sigs, v.Signed())
	b.results[0].ID, b.spans[0] = it.Key.Vote, span{0, 1, 0, 1}
}

// refuse removes the records with an invalid signature and returns the remaining
// items; spans are adjusted.
func (b *writeBatch) refuse(valid []bool) []store.Item {
	kept := b.items[:0]
	for i := range b.spans {
		s := &b.spans[i]
		items := b.items[s.items:s.itemsEnd]
		for j, ok := range valid[s.sigs:s.sigsEnd] {
			if ok {
				continue
			}
			b.results[i].Err = &record.FieldError{
				Field:   signatureField(items[0].Kind, j),
				Code:    CodeInvalidSignature,
				Problem: "is not this agent's signature on this record's id",
				Remedy:  "sign the id of the canonical bytes with the agent's own key, with the prefix of its kind",
			}
			items = nil
			break
		}
		s.items = len(kept)
		kept = append(kept, items...)
		s.itemsEnd = len(kept)
	}
	return kept
}

func signatureField(kind store.Kind, i int) string {
	if kind == store.KindVote {
		return "signature"
	}
	return fmt.Sprintf("signatures[%d].signature", i)
}

// commit writes the valid records of a batch, fills in the results and counts
// those that failed. Every write of a caller ends here.
func (c *Cluster) commit(ctx context.Context, b *writeBatch) {
	if err := c.verifyAndWrite(ctx, b); err != nil {
		b.fail(err)
	}
	for i := range b.results {
		c.metrics.writeFailed(b.results[i].Err)
	}
}

// verifyAndWrite checks the batch's signatures and writes the valid records. The
// error concerns each record that was not refused for itself.
func (c *Cluster) verifyAndWrite(ctx context.Context, b *writeBatch) error {
	items := b.items
	if !c.skipSignatures && len(b.sigs) > 0 {
		valid, err := c.signatures.check(ctx, b.sigs)
		if err != nil {
			return unavailable(CodeOverloadedSignatures, "the signatures could not be checked in time", err)
		}
		items = b.refuse(valid)
	}
	if len(items) == 0 {
		return nil
	}
	fresh, err := c.write(ctx, items)
	if err != nil {
		return err
	}
	for i := range b.results {
		s := b.spans[i]
		for j := s.items; j < s.itemsEnd; j++ {
			// Without the local answer this is unknown; most records are new.
			if fresh == nil || fresh[j] {
				b.results[i].Created = true
				break
			}
		}
	}
	return nil
}

// fail sets err on every record that was not itself refused.
func (b *writeBatch) fail(err error) {
	for i := range b.results {
		if b.results[i].Err == nil {
			b.results[i].Err = err
		}
	}
}

// latest is the latest timestamp that a record may have now.
type latest struct {
	at   uint64
	sure bool // by the cluster's time, not only by this machine's
}

func (c *Cluster) latestTime() latest {
	at, sure := c.control.Now()
	return latest{at: uint64(max(at.Add(c.timings.FutureMargin).Unix(), 0)), sure: sure}
}

// check refuses timestamps far ahead of the cluster's time. While that is
// unknown, this machine's clock can accept a record but not refuse it
// permanently: it may be slow, and another member may know better. Only the node
// that accepts a record checks this; replication and catch-up never do.
func (l latest) check(signed uint64) error {
	switch {
	case signed <= l.at:
		return nil
	case !l.sure:
		return unavailable(CodeClocksApart, fmt.Sprintf("the record's time is %d s later than this node's clock allows, and the cluster's time is not known", signed-l.at), nil)
	}
	return &record.FieldError{
		Field:   "timestamp",
		Code:    record.CodeOutOfRange,
		Problem: fmt.Sprintf("is %d s later than the cluster's time allows", signed-l.at),
		Remedy:  "set the clock of the machine that signs; times may be in the past, not in the future",
	}
}
