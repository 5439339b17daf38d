package api

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/cluster"
	"github.com/stemedb/stemedb/server/internal/keys"
)

const (
	defaultGrace   = time.Hour
	defaultKeyPage = 100
	maxKeyPage     = 1000
)

// keyBody is a key in its form for callers.
type keyBody struct {
	Hash string `json:"hash"`
	// Key is the raw key, shown once, when it was minted.
	Key        string `json:"key,omitempty"`
	Project    string `json:"project"`
	Role       string `json:"role"`
	Label      string `json:"label"`
	Status     string `json:"status"` // active, disabled, expired, revoked, rotated
	Root       bool   `json:"root,omitempty"`
	Enabled    bool   `json:"enabled"`
	CreatedAt  int64  `json:"created_at"`
	ExpiresAt  int64  `json:"expires_at,omitempty"`
	RevokedAt  int64  `json:"revoked_at,omitempty"`
	RotatedTo  string `json:"rotated_to,omitempty"`
	GraceUntil int64  `json:"grace_until,omitempty"`
	Version    uint64 `json:"version"`
}

// showKey shows a key with its status at this node's best estimate of the time.
func (c *call) showKey(k *keys.Key, raw string) keyBody {
	b := keyBody{
		Hash: k.Hash.String(), Key: raw, Project: k.Project, Role: string(k.Role), Label: k.Label,
		Status: "active", Root: k.Root, Enabled: k.Enabled, CreatedAt: k.CreatedAt, ExpiresAt: k.ExpiresAt,
		RevokedAt: k.RevokedAt, GraceUntil: k.GraceUntil, Version: k.Version,
	}
	now, _ := c.svc.keys.Now()
	if why := k.Check(now); why != keys.Usable {
		b.Status = string(why)
	}
	if k.RotatedTo != nil {
		b.RotatedTo = k.RotatedTo.String()
	}
	return b
}

// createRequest mints a key or registers one by its hash.
type createRequest struct {
	KeyHash     string `json:"key_hash"`
	Environment string `json:"environment"`
	Project     string `json:"project"`
	Role        string `json:"role"`
	Label       string `json:"label"`
	ExpiresAt   int64  `json:"expires_at"`
}

// registersByHash is the retry rule of the route: a registration may be
// repeated, a mint must not be.
func registersByHash(c *call) bool {
	var req createRequest
	return decodeJSON(c.body, &req) == nil && req.KeyHash != ""
}

func (c *call) createKey() error {
	var req createRequest
	if err := c.decode(&req); err != nil {
		return err
	}
	key, err := req.key(c.svc.keyTime())
	if err != nil {
		return err
	}
	raw := ""
	if req.KeyHash == "" {
		if raw, err = mint(req.Environment); err != nil {
			return err
		}
		key.Hash = keys.HashOf(raw)
	}
	after, created, err := c.svc.keys.CreateKey(c.ctx, key)
	if err != nil {
		return keysFailed(err)
	}
	status := http.StatusOK
	if created {
		status = http.StatusCreated
		c.header("Location", "/v1/admin/api-keys/"+after.Hash.String())
	}
	return c.json(status, c.showKey(&after, raw))
}

// mint makes a raw key for the environment, live when none is named.
func mint(environment string) (string, error) {
	if environment == "" {
		environment = keys.Live
	}
	if environment != keys.Live && environment != keys.Test {
		return "", problem(record.CodeInvalidValue, "environment", strconv.Quote(clip(environment))+" is not an environment", "use live or test")
	}
	return keys.Generate(environment, nil)
}

// key checks the request's fields. now is zero when the time is unknown.
func (req *createRequest) key(now time.Time) (keys.Key, error) {
	k := keys.Key{Project: req.Project, Label: req.Label, ExpiresAt: req.ExpiresAt, Enabled: true}
	if k.Project == "" {
		return k, problem(record.CodeMissing, "project", "the project is missing", "name the key's project")
	}
	if err := record.ValidProject(k.Project); err != nil {
		return k, err
	}
	if req.Role == "" {
		return k, problem(record.CodeMissing, "role", "the role is missing", "use read_only, write_agent, backup or admin")
	}
	var err error
	if k.Role, err = parseRole(req.Role); err != nil {
		return k, err
	}
	if err := checkShared(k.Project, k.Role); err != nil {
		return k, err
	}
	if err := checkLabel(k.Label); err != nil {
		return k, err
	}
	if err := checkExpiry(k.ExpiresAt, now); err != nil {
		return k, err
	}
	if req.KeyHash != "" {
		if req.Environment != "" {
			return k, problem(record.CodeInvalidValue, "environment", "an environment is given together with key_hash", "leave it out: the key exists already")
		}
		if k.Hash, err = keys.ParseHash(req.KeyHash); err != nil {
			return k, problem(record.CodeInvalidHex, "key_hash", err.Error(), "give the BLAKE3-256 of the key's text as 64 hex digits; \"stemedb keys hash\" prints it")
		}
	}
	return k, nil
}

func parseRole(text string) (keys.Role, error) {
	role, err := keys.ParseRole(text)
	if err != nil {
		return "", problem(record.CodeInvalidValue, "role", strconv.Quote(clip(text))+" is not a role", "use read_only, write_agent, backup or admin")
	}
	return role, nil
}

// checkShared restricts keys of the shared project, which all projects read, to
// the role admin.
func checkShared(project string, role keys.Role) error {
	if project == keys.SharedProject && role != keys.Admin {
		return problem(record.CodeInvalidValue, "role", "a key of the project shared must have the role admin", "use the role admin, or another project: every project reads the shared one")
	}
	return nil
}

func checkLabel(label string) error {
	if len(label) > keys.MaxLabel {
		return problem(record.CodeTooLong, "label", fmt.Sprintf("the label has %d bytes", len(label)), fmt.Sprintf("shorten it to at most %d bytes", keys.MaxLabel))
	}
	if err := keys.ValidateLabel(label); err != nil {
		return problem(record.CodeControlCharacter, "label", err.Error(), "use one line of visible text")
	}
	return nil
}

func checkExpiry(at int64, now time.Time) error {
	switch {
	case at == 0:
		return nil
	case at < 0 || at > record.MaxTimestamp:
		return problem(record.CodeOutOfRange, "expires_at", fmt.Sprintf("%d is not a time in unix seconds", at), "give unix seconds, not milliseconds; 0 means never")
	case now.IsZero():
		return problem(cluster.CodeClocksApart, "expires_at", "the members' clocks disagree, so no expiry can be set", "set the members' clocks (GET /v1/cluster/status shows them), or leave the expiry out").retry(retryAfterLeaderVote)
	case at <= now.Unix():
		return problem(record.CodeOutOfRange, "expires_at", "the time has passed", "give a time in the future; to stop a key use DELETE")
	}
	return nil
}

type keyList struct {
	Keys   []keyBody `json:"keys"`
	Cursor string    `json:"cursor,omitempty"` // of the next page; absent on the last one
}

// listKeys pages through the keys by hash.
func (c *call) listKeys() error {
	limit, err := c.intParam("limit", defaultKeyPage, 1, maxKeyPage)
	if err != nil {
		return err
	}
	project := c.query.Get("project")
	if project != "" {
		if err := record.ValidProject(project); err != nil {
			return err
		}
	}
	after, err := c.readCursor(len(keys.Hash{}))
	if err != nil {
		return err
	}
	all := c.svc.keys.ListKeys()
	all = slices.DeleteFunc(slices.Clone(all), func(k keys.Key) bool {
		return (project != "" && k.Project != project) || (after != nil && slices.Compare(k.Hash[:], after) <= 0)
	})
	slices.SortFunc(all, func(x, y keys.Key) int { return slices.Compare(x.Hash[:], y.Hash[:]) })
	page := keyList{Keys: []keyBody{}}
	for i := range all {
		if len(page.Keys) == limit {
			page.Cursor = c.writeCursor(all[i-1].Hash[:])
			break
		}
		page.Keys = append(page.Keys, c.showKey(&all[i], ""))
	}
	return c.json(http.StatusOK, page)
}

// keyHash reads the hash in the path.
func (c *call) keyHash() (keys.Hash, error) {
	h, err := c.hashParam("hash")
	return keys.Hash(h), err
}

func (c *call) getKey() error {
	h, err := c.keyHash()
	if err != nil {
		return err
	}
	k, held := c.svc.keys.GetKey(h)
	if !held {
		// It may have been registered through another node a moment ago.
		if k, held, err = c.svc.keys.LookupAtLeader(c.ctx, h); err != nil {
			return keysFailed(err)
		}
	}
	if !held {
		return keyProblem(keys.ErrNotFound)
	}
	return c.json(http.StatusOK, c.showKey(&k, ""))
}

type patchRequest struct {
	Version   *uint64 `json:"version"`
	Label     *string `json:"label"`
	Role      *string `json:"role"`
	Enabled   *bool   `json:"enabled"`
	ExpiresAt *int64  `json:"expires_at"`
}

func (c *call) patchKey() error {
	h, err := c.keyHash()
	if err != nil {
		return err
	}
	var req patchRequest
	if err := c.decode(&req); err != nil {
		return err
	}
	patch, err := req.patch(c.svc.keyTime())
	if err != nil {
		return err
	}
	if patch.Role != nil {
		if k, held := c.svc.keys.GetKey(h); held {
			if err := checkShared(k.Project, *patch.Role); err != nil {
				return err
			}
		}
	}
	k, err := c.svc.keys.PatchKey(c.ctx, h, patch)
	if err != nil {
		return keysFailed(err)
	}
	return c.json(http.StatusOK, c.showKey(&k, ""))
}

func (req *patchRequest) patch(now time.Time) (keys.Patch, error) {
	p := keys.Patch{Label: req.Label, Enabled: req.Enabled, ExpiresAt: req.ExpiresAt}
	if req.Version == nil {
		return p, problem(record.CodeMissing, "version", "the version is missing", "send the version that you read, so that a change made in the meantime is not lost")
	}
	p.Version = *req.Version
	if req.Label == nil && req.Role == nil && req.Enabled == nil && req.ExpiresAt == nil {
		return p, problem(record.CodeEmpty, "", "the body changes nothing", "give at least one of label, role, enabled and expires_at")
	}
	if req.Role != nil {
		role, err := parseRole(*req.Role)
		if err != nil {
			return p, err
		}
		p.Role = &role
	}
	if req.Label != nil {
		if err := checkLabel(*req.Label); err != nil {
			return p, err
		}
	}
	if req.ExpiresAt != nil {
		if err := checkExpiry(*req.ExpiresAt, now); err != nil {
			return p, err
		}
	}
	return p, nil
}

// revokeKey ends a key permanently. It is idempotent.
func (c *call) revokeKey() error {
	h, err := c.keyHash()
	if err != nil {
		return err
	}
	if _, err := c.svc.keys.RevokeKey(c.ctx, h); err != nil {
		return keysFailed(err)
	}
	c.status = http.StatusNoContent
	return nil
}

type rotateRequest struct {
	Environment string  `json:"environment"`
	Grace       *string `json:"grace"`
}

// rotateKey mints the key's successor.
func (c *call) rotateKey() error {
	h, err := c.keyHash()
	if err != nil {
		return err
	}
	var req rotateRequest
	if len(c.body) > 0 {
		if err := c.decode(&req); err != nil {
			return err
		}
	}
	grace, err := req.grace()
	if err != nil {
		return err
	}
	raw, err := mint(req.Environment)
	if err != nil {
		return err
	}
	_, fresh, err := c.svc.keys.RotateKey(c.ctx, h, keys.HashOf(raw), int64(grace/time.Second))
	if err != nil {
		return keysFailed(err)
	}
	c.header("Location", "/v1/admin/api-keys/"+fresh.Hash.String())
	return c.json(http.StatusCreated, c.showKey(&fresh, raw))
}

func (req *rotateRequest) grace() (time.Duration, error) {
	if req.Grace == nil {
		return defaultGrace, nil
	}
	d, err := time.ParseDuration(*req.Grace)
	if err != nil || d < 0 || d > keys.MaxGrace*time.Second || d%time.Second != 0 {
		return 0, problem(record.CodeOutOfRange, "grace", strconv.Quote(clip(*req.Grace))+" is not a whole number of seconds from 0s to 720h", "give a duration such as \"1h\", \"90s\" or \"0s\"")
	}
	return d, nil
}

// keysFailed is the problem for a failed change of keys: the table refused it
// or could not be reached.
func keysFailed(err error) error {
	if p := keyProblem(err); p != nil {
		return p
	}
	return problem(codeKeysUnavailable, "", "the control table did not accept the change in time; it may still take effect", "read the key or the list before you retry").
		retry(retryAfterLeaderVote).because(err)
}

// decode reads a JSON body strictly: unknown and duplicate names are errors.
func (c *call) decode(into any) error {
	if len(c.body) == 0 {
		return problem(record.CodeEmpty, "", "the body is empty", "send a JSON object")
	}
	return decodeJSON(c.body, into)
}

func decodeJSON(body []byte, into any) error {
	err := json.Unmarshal(body, into, json.RejectUnknownMembers(true))
	if err == nil {
		return nil
	}
	field := ""
	var semantic *json.SemanticError
	if errors.As(err, &semantic) {
		field = pointerName(semantic.JSONPointer)
		if errors.Is(err, json.ErrUnknownName) {
			return problem(record.CodeUnknown, field, "there is no field "+strconv.Quote(field), "correct the name or leave it out").because(err)
		}
		return problem(record.CodeWrongType, field, "the value has the wrong type", "see /openapi.json for the type of each field").because(err)
	}
	var syntax *jsontext.SyntacticError
	if errors.As(err, &syntax) {
		field = pointerName(syntax.JSONPointer)
		if errors.Is(err, jsontext.ErrDuplicateName) {
			return problem(record.CodeDuplicate, field, "the field is given twice", "give it once").because(err)
		}
	}
	return problem(record.CodeMalformed, field, "the body is not one JSON object", "send JSON as RFC 8259 defines it").because(err)
}

func pointerName(p jsontext.Pointer) string { return clip(p.LastToken()) }
