package api

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/stemedb/stemedb/server/internal/cluster"
	"github.com/stemedb/stemedb/server/internal/keys"
)

const (
	// The leader is asked once about an unknown key. The key is then refused from
	// memory for this long, so that a flood of invalid keys costs the leader
	// little. A key registered in the meantime is found in the copy, which is
	// checked first.
	unknownFor = 2 * time.Second
	// unknownKept bounds that memory.
	unknownKept = 4096
	// leaderQuestions bounds the number of callers that wait for the leader
	// concurrently.
	leaderQuestions = 32
	leaderPatience  = 2 * time.Second
)

// authorize decides whether the call may proceed. The copy of the table of keys
// must be trusted until by. authorize fills caller. Every check of a key is a
// look-up of its hash in an immutable table, so the time that a refusal takes
// reveals nothing about a key.
func (c *call) authorize(by time.Time) error {
	if !c.api.opts.Auth {
		c.caller = caller{project: defaultProject, role: keys.Admin, known: true}
		return nil
	}
	if c.route.class == keys.Public {
		return nil
	}
	if err := c.identify(by); err != nil {
		return err
	}
	if !c.caller.role.Allows(c.route.class) {
		return problem(codeForbidden, headerName, "a key with the role "+string(c.caller.role)+" may not use "+c.route.method+" "+c.route.pattern, remedyAskAdministrator)
	}
	if c.caller.project == keys.SharedProject && c.route.class == keys.Write && c.caller.role != keys.Admin {
		return problem(codeForbidden, headerName, "only admin keys write to the project shared", remedyAskAdministrator)
	}
	return nil
}

// headerName is the documentation's spelling of the key's header.
const headerName = "X-API-Key"

// givenKey is the text of the caller's key, if it is well-formed. Any node can
// check that. checkHeader has refused repeated headers.
func (c *call) givenKey() (string, error) {
	given := c.r.Header[headerKey]
	if len(given) == 0 || given[0] == "" {
		return "", problem(codeKeyMissing, headerName, "the request has no API key", "send the project's key in the header X-API-Key")
	}
	if !keys.WellFormed(given[0]) {
		return "", problem(codeKeyInvalid, headerName, "the text is not an API key", "send the key as it was given: steme_live_ or steme_test_ and 48 lower-case hex digits")
	}
	return given[0], nil
}

// identify checks the caller's key. As far as a copy of the table can show, the
// key must be valid until by, which is within 30 s of a moment at which the
// copy was current.
func (c *call) identify(by time.Time) error {
	if c.callerHash == (keys.Hash{}) {
		raw, err := c.givenKey()
		if err != nil {
			return err
		}
		c.callerHash = keys.HashOf(raw)
	}
	if c.svc == nil {
		return c.api.startingProblem()
	}
	// Asked before the key is looked up, so that the copy is at least as new.
	if !by.Before(c.svc.keys.ConfirmedUntil()) {
		return keysUnconfirmed()
	}
	key, held := c.svc.keys.GetKey(c.callerHash)
	if !held {
		var err error
		if key, held, err = c.api.unknown.ask(c.ctx, c.svc.keys, c.callerHash); err != nil {
			return err
		}
	}
	if !held {
		return problem(codeKeyInvalid, headerName, "no project has this key", "check that the key belongs to this StemeDB")
	}
	c.key = key
	if err := usable(&c.key, c.svc.keyTime()); err != nil {
		return err
	}
	c.caller = caller{project: key.Project, role: key.Role, key: &c.key, known: true}
	return nil
}

func keysUnconfirmed() *Problem {
	return problem(codeKeysUnconfirmed, headerName, "the leader of the control table has not confirmed this node's copy of the keys recently enough, so this node cannot determine whether the key is still valid", "send the request again, or through another node").retry(retryAfterLeaderVote)
}

func usable(k *keys.Key, now time.Time) error {
	switch k.Check(now) {
	case keys.Usable:
		return nil
	case keys.Undecided:
		return problem(cluster.CodeClocksApart, headerName, "the key has an expiry or is in its grace period, and this node does not know the time: no majority of the members' clocks agree", "send the request again, or through another node; an administrator sees the clocks in GET /v1/cluster/status").retry(retryAfterLeaderVote)
	case keys.Revoked:
		return problem(codeKeyRevoked, headerName, "the key was revoked", remedyAskAdministrator)
	case keys.Rotated:
		return problem(codeKeyRotated, headerName, "the key was replaced by another one and its grace period is over", "use the new key")
	case keys.Expired:
		return problem(codeKeyExpired, headerName, "the key expired", remedyAskAdministrator)
	default:
		return problem(codeKeyDisabled, headerName, "the key is disabled", remedyAskAdministrator)
	}
}

// unknownKeys asks the leader about keys that this node's copy lacks, and
// remembers for a short time which ones the leader did not know either.
type unknownKeys struct {
	slots chan struct{}

	mu   sync.Mutex
	seen map[keys.Hash]time.Time // when the leader reported the key as unknown
}

func newUnknownKeys() *unknownKeys {
	return &unknownKeys{slots: make(chan struct{}, leaderQuestions), seen: map[keys.Hash]time.Time{}}
}

func (u *unknownKeys) ask(ctx context.Context, table Keys, h keys.Hash) (keys.Key, bool, error) {
	if u.recent(h, time.Now()) {
		return keys.Key{}, false, nil
	}
	select {
	case u.slots <- struct{}{}:
		defer func() { <-u.slots }()
	default:
		return keys.Key{}, false, problem(codeOverloadedKeys, headerName, "too many unknown keys are being looked up", remedyRetry).retry(retrySoon)
	}
	ctx, cancel := context.WithTimeout(ctx, leaderPatience)
	defer cancel()
	key, held, err := table.LookupAtLeader(ctx, h)
	if err != nil {
		return key, false, problem(codeKeysUnconfirmed, headerName, "this node does not know the key and the leader of the control table cannot be asked", "send the request again, or through another node").
			retry(retryAfterLeaderVote).because(err)
	}
	if !held {
		u.remember(h, time.Now())
	}
	return key, held, nil
}

func (u *unknownKeys) recent(h keys.Hash, now time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	at, ok := u.seen[h]
	return ok && now.Sub(at) < unknownFor
}

func (u *unknownKeys) remember(h keys.Hash, now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.seen) >= unknownKept {
		for other, at := range u.seen {
			if now.Sub(at) >= unknownFor {
				delete(u.seen, other)
			}
		}
		if len(u.seen) >= unknownKept {
			clear(u.seen)
		}
	}
	u.seen[h] = now
}

// maybeIdentify fills caller when the request carries a valid key, for routes
// that show more to identified callers. Its error says why the key was not
// accepted.
func (c *call) maybeIdentify() (why string) {
	if c.caller.known {
		return ""
	}
	err := c.identify(time.Now())
	var p *Problem
	if errors.As(err, &p) {
		return p.Code
	}
	return ""
}

// cors applies the rule for browsers: listed origins are allowed; without a
// list, none with auth and any without.
func (a *API) cors(h http.Header, r *http.Request) {
	origins := r.Header["Origin"]
	if len(origins) != 1 {
		return
	}
	allowed := a.originAllowed(origins[0])
	if allowed == "" {
		return
	}
	h.Set("Access-Control-Allow-Origin", allowed)
	h.Set("Access-Control-Expose-Headers", "X-Request-Id, Retry-After")
	if allowed != "*" {
		h.Add("Vary", "Origin")
	}
}

func (a *API) originAllowed(origin string) string {
	if len(a.opts.AllowedOrigins) == 0 {
		if a.opts.Auth {
			return ""
		}
		return "*"
	}
	for _, o := range a.opts.AllowedOrigins {
		if o == "*" {
			return "*"
		}
		if o == origin {
			return origin
		}
	}
	return ""
}
