package client

import (
	"context"
	"fmt"
	"net/http"

	"github.com/stemedb/stemedb/record"
)

// batchRecord is one record of a batch on its way.
type batchRecord struct {
	index int // in the caller's slice
	id    record.Hash
	body  []byte
}

type batchAnswer struct {
	Results []struct {
		Index int `json:"index"`
		writeAnswer
		Error *Error `json:"error"`
	} `json:"results"`
}

// AssertBatch sends many assertions and returns one result for each, in order.
// It makes as many requests as the server's limits require (1,000 records, 8
// MiB). Records that the server could not accept at the moment are retried like
// a failed request. An assertion without signatures is signed with the client's
// agent key, in place.
//
// The error is that of the first request that failed as a whole. The results
// then show which records were written (those without Err); the others carry
// this error.
func (c *Client) AssertBatch(ctx context.Context, as []*record.Assertion) ([]BatchResult, error) {
	results := make([]BatchResult, len(as))
	records := make([]batchRecord, 0, len(as))
	for i, a := range as {
		if err := c.prepare(a); err != nil {
			results[i].Err = err
			continue
		}
		records = append(records, batchRecord{i, a.ID(), a.AppendCBOR(nil)})
	}
	for len(records) > 0 {
		n := batchPrefix(records)
		if err := c.sendBatch(ctx, records[:n], results); err != nil {
			for _, r := range records {
				if res := &results[r.index]; res.Err == nil && res.ID == (record.Hash{}) {
					res.Err = err
				}
			}
			return results, err
		}
		records = records[n:]
	}
	return results, nil
}

// batchPrefix is the number of records that fit into one request.
func batchPrefix(records []batchRecord) int {
	size := 0
	for i, r := range records {
		if size += len(r.body); i == record.MaxBatchItems || size > record.MaxBatchBytes {
			return max(i, 1)
		}
	}
	return len(records)
}

// sendBatch sends records until each is written or refused, or there are no
// attempts left.
func (c *Client) sendBatch(ctx context.Context, records []batchRecord, results []BatchResult) error {
	const path = "/v1/assert/batch"
	left := records
	answered := false // the last attempt had an answer for each record
	err := c.retry(ctx, http.MethodPost, path, func(ctx context.Context) error {
		answered = false
		var body []byte
		for _, r := range left {
			body = append(body, r.body...)
		}
		_, raw, err := c.once(ctx, request{
			method: http.MethodPost, path: path,
			mediaType: record.MediaCBORSeq, body: body,
		})
		if err != nil {
			return err
		}
		var again *Error
		left, again, err = noteResults(left, raw, results)
		if err != nil {
			return err
		}
		answered = true
		if again != nil {
			return again
		}
		return nil
	})
	if answered {
		// The remaining records have their own errors in results.
		return nil
	}
	return err
}

// noteResults records the server's answers and returns the records that the
// server could not accept at the moment, with the error of the first of them.
func noteResults(sent []batchRecord, raw []byte, results []BatchResult) (left []batchRecord, again *Error, err error) {
	var answer batchAnswer
	if err := decode(raw, &answer); err != nil {
		return nil, nil, err
	}
	if len(answer.Results) != len(sent) {
		return nil, nil, fmt.Errorf("the server returned %d results for %d records", len(answer.Results), len(sent))
	}
	for i := range answer.Results {
		got := &answer.Results[i]
		if got.Index != i {
			return nil, nil, fmt.Errorf("the server's result %d is for record %d", i, got.Index)
		}
		out := &results[sent[i].index]
		if got.Error == nil {
			out.Result, out.Err = got.result(sent[i].id)
			continue
		}
		out.Err = got.Error
		if got.Error.passesSoon() {
			left = append(left, sent[i])
			if again == nil {
				again = got.Error
			}
		}
	}
	return left, again, nil
}
