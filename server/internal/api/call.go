package api

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/julienschmidt/httprouter"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/keys"
)

const (
	headerRequestID = "X-Request-Id"
	headerKey       = "X-Api-Key" // canonical form of X-API-Key
	mediaJSON       = "application/json"

	// defaultProject is the project of all callers when auth is off.
	defaultProject = "default"

	// keptBuffer is the largest buffer that is kept for the next call.
	keptBuffer = 64 << 10
)

// call is one request from its first byte to its answer. Handlers never write
// to the connection: they leave their answer here, so that every answer is
// complete, has a length, and can be replaced by another node's.
type call struct {
	api    *API
	route  *route
	r      *http.Request
	w      http.ResponseWriter // only for its deadlines
	ctx    context.Context
	cancel context.CancelFunc
	limit  time.Duration // of the work; 0: the API's
	params httprouter.Params

	began      time.Time
	requestID  string
	svc        *services
	caller     caller
	key        keys.Key  // the target of caller.key
	callerHash keys.Hash // of the caller's key, once it was checked
	refused    error     // why the key was no longer valid when a write had its turn
	query      url.Values
	mediaType  string
	body       []byte // aliases the pooled buffer; must not be kept beyond the call
	// started: the handler has begun, so the request may have had an effect.
	started bool
	// received: the body was read, or the route has none.
	received bool

	status      int
	contentType string
	headers     []string // name, value, name, value, …
	out         []byte

	in       []byte // the pooled buffer behind body
	reserved int64  // bytes taken out of the API's budget of bodies
}

// caller is the sender of a request, as far as it was checked.
type caller struct {
	project string
	role    keys.Role
	key     *keys.Key // nil when auth is off and on public routes
	known   bool
}

var calls = sync.Pool{New: func() any { return new(call) }}

func newCall(a *API, rt *route, w http.ResponseWriter, r *http.Request, params httprouter.Params) *call {
	c := calls.Get().(*call)
	c.api, c.route, c.w, c.r, c.params = a, rt, w, r, params
	c.ctx, c.began = r.Context(), time.Now()
	c.svc = a.services.Load()
	c.requestID = requestID(a, r)
	return c
}

// release returns the call to the pool. It must not be used afterwards.
func (c *call) release() {
	if c.reserved > 0 {
		c.api.bodies.Release(c.reserved)
	}
	in, out, headers := c.in[:0], c.out[:0], c.headers[:0]
	if cap(in) > keptBuffer {
		in = nil
	}
	if cap(out) > keptBuffer {
		out = nil
	}
	*c = call{in: in, out: out, headers: headers}
	calls.Put(c)
}

// header sets a field of the answer; the name is in canonical form.
func (c *call) header(name, value string) {
	for i := 0; i < len(c.headers); i += 2 {
		if c.headers[i] == name {
			c.headers[i+1] = value
			return
		}
	}
	c.headers = append(c.headers, name, value)
}

// json makes v the answer.
func (c *call) json(status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode the answer of %s: %w", c.route.pattern, err)
	}
	c.status, c.contentType = status, mediaJSON
	c.out = append(append(c.out[:0], b...), '\n')
	return nil
}

// flush sends the answer.
func (c *call) flush(w http.ResponseWriter) {
	h := w.Header()
	// Direct assignment: these names are in canonical form already.
	h[headerRequestID] = []string{c.requestID}
	for i := 0; i+1 < len(c.headers); i += 2 {
		h[c.headers[i]] = []string{c.headers[i+1]}
	}
	if c.contentType != "" {
		h["Content-Type"] = []string{c.contentType}
		h["X-Content-Type-Options"] = []string{"nosniff"}
	}
	if h["Cache-Control"] == nil {
		h["Cache-Control"] = []string{"no-store"}
	}
	if h["Content-Length"] == nil && c.status != http.StatusNoContent && c.status != http.StatusNotModified {
		h["Content-Length"] = []string{strconv.Itoa(len(c.out))}
	}
	if c.api.draining.Load() {
		h["Connection"] = []string{"close"}
	}
	w.WriteHeader(c.status)
	if c.r.Method != http.MethodHead && len(c.out) > 0 {
		_, _ = w.Write(c.out) // an error means that the caller has disconnected
	}
}

// hashParam reads a path parameter of 64 hex digits.
func (c *call) hashParam(name string) (record.Hash, error) {
	h, err := record.ParseHash(c.params.ByName(name))
	if err != nil {
		return h, problem(record.CodeInvalidHex, name, "the "+name+" in the path "+err.Error(), "give the 64 hex digits of a hash")
	}
	return h, nil
}

// ids makes unique request ids: a prefix drawn at start and a counter.
type ids struct {
	prefix string
	count  atomic.Uint64
}

func newIDs() *ids {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails
	return &ids{prefix: hex.EncodeToString(b[:]) + "-"}
}

func (i *ids) next() string {
	return i.prefix + strconv.FormatUint(i.count.Add(1), 36)
}

const maxRequestID = 64

// requestID accepts the caller's id when it is safe in a log line, or makes
// one.
func requestID(a *API, r *http.Request) string {
	if given := r.Header[headerRequestID]; len(given) == 1 && plainID(given[0]) {
		return given[0]
	}
	return a.ids.next()
}

func plainID(s string) bool {
	if s == "" || len(s) > maxRequestID {
		return false
	}
	for _, b := range []byte(s) {
		switch {
		case b >= 'a' && b <= 'z', b >= 'A' && b <= 'Z', b >= '0' && b <= '9', b == '-', b == '_', b == '.', b == ':':
		default:
			return false
		}
	}
	return true
}

// retryAfter is the Retry-After of a node that cannot serve now.
func retryAfter(d time.Duration) time.Duration {
	if d <= 0 {
		return retrySoon
	}
	return d
}
