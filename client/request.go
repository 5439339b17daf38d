package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/go-json-experiment/json"
)

// maxAnswer bounds the bytes read of an answer.
const maxAnswer = 64 << 20

// request is sent once per attempt.
type request struct {
	method    string
	path      string // escaped
	query     url.Values
	mediaType string
	body      []byte
	// header, unless nil, receives the header of the success.
	header *http.Header
}

const headerIncomplete = "X-Stemedb-Incomplete"

// call sends r until it succeeds, is refused or no attempts are left, and
// decodes the answer into out, unless that is nil. It returns the status of the
// success.
func (c *Client) call(ctx context.Context, r request, out any) (int, error) {
	var status int
	err := c.retry(ctx, r.method, r.path, func(ctx context.Context) (err error) {
		var body []byte
		status, body, err = c.once(ctx, r)
		if err != nil {
			return err
		}
		if out == nil {
			return nil
		}
		return decode(body, out)
	})
	return status, err
}

func decode(body []byte, out any) error {
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("the answer cannot be read; is this a StemeDB server? %w", err)
	}
	return nil
}

// retry makes attempts until one succeeds or fails for good.
func (c *Client) retry(ctx context.Context, method, path string, attempt func(context.Context) error) error {
	for n := 0; ; n++ {
		err := attempt(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return c.describe(method, path, n+1, ended(ctx.Err(), err))
		}
		wait, again := c.wait(err, n)
		if !again {
			return c.describe(method, path, n+1, err)
		}
		c.onRetry(Retry{Method: method, Path: path, Attempt: n + 1, Wait: wait, Err: err})
		if serr := c.sleep(ctx, wait); serr != nil {
			return c.describe(method, path, n+1, ended(serr, err))
		}
	}
}

// wait returns the wait after attempt n (from 0) failed with err.
func (c *Client) wait(err error, n int) (time.Duration, bool) {
	if n >= len(c.delays) || !worthRetry(err) {
		return 0, false
	}
	// Clients that failed together should not retry together, so each waits 80 to
	// 120 percent of the nominal time.
	wait := time.Duration(float64(c.delays[n]) * (0.8 + 0.4*c.jitter()))
	var e *Error
	if errors.As(err, &e) {
		if e.RetryAfter > c.maxWait {
			return 0, false
		}
		wait = max(wait, e.RetryAfter)
	}
	return wait, true
}

func (c *Client) describe(method, path string, attempts int, err error) error {
	if attempts > 1 {
		return fmt.Errorf("%s %s%s failed %d times: %w", method, c.base, path, attempts, err)
	}
	return fmt.Errorf("%s %s%s: %w", method, c.base, path, err)
}

// once makes one attempt.
func (c *Client) once(ctx context.Context, r request) (int, []byte, error) {
	attempt, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	path, err := url.PathUnescape(r.path)
	if err != nil {
		return 0, nil, fmt.Errorf("build the request: %w", err)
	}
	target := *c.base
	target.Path, target.RawPath = c.base.Path+path, c.base.EscapedPath()+r.path
	target.RawQuery = r.query.Encode()
	req, err := http.NewRequestWithContext(attempt, r.method, target.String(), bytes.NewReader(r.body))
	if err != nil {
		return 0, nil, fmt.Errorf("build the request: %w", err)
	}
	if r.mediaType != "" {
		req.Header.Set("Content-Type", r.mediaType)
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", c.userAgent)
	if c.key != "" {
		req.Header.Set("X-API-Key", c.key)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, nil, connectionError(ctx, err)
	}
	// Read to its end, so that the connection can be reused.
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return 0, nil, connectionError(ctx, fmt.Errorf("read the answer: %w", err))
	}
	if len(body) > maxAnswer {
		return 0, nil, fmt.Errorf("the answer is larger than %d bytes; ask for less", maxAnswer)
	}
	if resp.StatusCode/100 != 2 {
		return 0, nil, c.answerError(resp, body)
	}
	if r.header != nil {
		*r.header = resp.Header
	}
	return resp.StatusCode, body, nil
}
