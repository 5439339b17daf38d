package api

import (
	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/keys"
)

// route is one row of the table of routes.
type route struct {
	method  string
	pattern string // httprouter's syntax; also the label of metrics
	class   keys.Class
	handle  func(*call) error

	// params are the query parameters that the route knows.
	params []string
	// media are the accepted media types of the body; none: no body is read.
	media []string
	limit int64 // of the body, in bytes
	// retry reports whether the gateway may send the request to another node after
	// one that may already have executed it; nil: it may.
	retry func(*call) bool
	// here: the gateway answers for its own node only.
	here bool
	// named: the parameter "node" names the node that has to answer.
	named bool
	// early: served before records and keys are available.
	early bool
}

const (
	maxBody      = record.MaxRecordBytes
	maxBatchBody = record.MaxBatchBytes
	maxAdminBody = 16 << 10
)

// never is the retry rule of requests that must not be repeated, because the
// answer holds a key that is shown once.
func never(*call) bool { return false }

// routes is every route that the server has. docs/api-keys.md shows the rights
// for each, docs/api.md the inputs and answers, openapi.yaml both in
// machine-readable form; tests keep them in step.
func routes() []route {
	oneRecord := []string{record.MediaJSON, record.MediaCBOR}
	batch := []string{record.MediaJSON, record.MediaNDJSON, record.MediaCBOR, record.MediaCBORSeq}
	admin := []string{record.MediaJSON}
	claims := []string{"subject", "predicate", "lifecycle", "as_of", "min_confidence", "source_class", "scope", "consistency"}
	with := func(more ...string) []string { return append(append([]string(nil), claims...), more...) }

	return []route{
		{method: "POST", pattern: "/v1/assert", class: keys.Write, handle: (*call).assert, media: oneRecord, limit: maxBody},
		{method: "POST", pattern: "/v1/assert/batch", class: keys.Write, handle: (*call).assertBatch, media: batch, limit: maxBatchBody},
		{method: "POST", pattern: "/v1/vote", class: keys.Write, handle: (*call).vote, media: oneRecord, limit: maxBody},

		{method: "GET", pattern: "/v1/assertions/:hash", class: keys.Read, handle: (*call).getAssertion, params: []string{"consistency", "scope"}},
		{method: "GET", pattern: "/v1/query", class: keys.Read, handle: withoutDamage((*call).runQuery), params: with("lens", "limit", "cursor")},
		{method: "GET", pattern: "/v1/skeptic", class: keys.Read, handle: withoutDamage((*call).skeptic), params: with("limit")},
		{method: "GET", pattern: "/v1/layered", class: keys.Read, handle: withoutDamage((*call).layered), params: claims},
		{method: "GET", pattern: "/v1/subjects", class: keys.Read, handle: (*call).subjects, params: []string{"prefix", "cursor", "limit", "scope", "consistency"}},

		{method: "GET", pattern: "/v1/whoami", class: keys.Identity, handle: (*call).whoami},

		{method: "GET", pattern: "/v1/health", class: keys.Public, handle: (*call).health, early: true, here: true},
		{method: "GET", pattern: "/v1/health/live", class: keys.Public, handle: (*call).live, early: true, here: true},
		{method: "GET", pattern: "/v1/health/ready", class: keys.Public, handle: (*call).ready, early: true, here: true},
		{method: "GET", pattern: "/v1/health/startup", class: keys.Public, handle: (*call).startup, early: true, here: true},
		{method: "GET", pattern: "/v1/cluster/status", class: keys.Public, handle: (*call).clusterStatus},

		{method: "POST", pattern: "/v1/admin/api-keys", class: keys.Administer, handle: (*call).createKey, media: admin, limit: maxAdminBody, retry: registersByHash},
		{method: "GET", pattern: "/v1/admin/api-keys", class: keys.Administer, handle: (*call).listKeys, params: []string{"project", "cursor", "limit"}},
		{method: "GET", pattern: "/v1/admin/api-keys/:hash", class: keys.Administer, handle: (*call).getKey},
		{method: "PATCH", pattern: "/v1/admin/api-keys/:hash", class: keys.Administer, handle: (*call).patchKey, media: admin, limit: maxAdminBody, retry: never},
		{method: "DELETE", pattern: "/v1/admin/api-keys/:hash", class: keys.Administer, handle: (*call).revokeKey},
		{method: "POST", pattern: "/v1/admin/api-keys/:hash/rotate", class: keys.Administer, handle: (*call).rotateKey, media: admin, limit: maxAdminBody, retry: never},

		{method: "POST", pattern: "/v1/admin/members/:name/accept-loss", class: keys.Administer, handle: (*call).acceptLoss},
		{method: "DELETE", pattern: "/v1/admin/change", class: keys.Administer, handle: (*call).cancelChange, params: []string{"id"}},

		{method: "GET", pattern: "/v1/admin/backup", class: keys.BackupRestore, handle: (*call).backup, params: []string{"node"}, named: true},
		{method: "GET", pattern: "/v1/admin/backup/records", class: keys.BackupRestore, handle: (*call).backupRecords, params: []string{"node", "incarnation", "from", "to"}, named: true},
		{method: "POST", pattern: "/v1/admin/restore", class: keys.BackupRestore, handle: (*call).restore, media: []string{mediaRecords}, limit: maxRestoreBody},

		{method: "GET", pattern: "/metrics", class: keys.Public, handle: (*call).metrics, early: true, here: true},
		{method: "GET", pattern: "/openapi.json", class: keys.Public, handle: (*call).openapi, early: true, here: true},
	}
}

// unmatched represents requests without a route, in metrics and in calls.
func unmatched() *route {
	return &route{pattern: "unmatched", class: keys.Public, early: true, here: true}
}
