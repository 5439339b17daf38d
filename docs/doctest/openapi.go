package doctest

import (
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var (
	parameter = regexp.MustCompile(`\{\w+\}`)
	// method matches the operations among the entries of a path.
	method = regexp.MustCompile(`^(get|put|post|delete|patch|head)$`)
)

// everyRoute checks that the pages show each route of the server's description with curl.
func everyRoute(t *testing.T, s Server, all []Exchange) {
	t.Helper()
	for path, operations := range describe(t, s.URL).Paths {
		pattern := regexp.MustCompile("^" + parameter.ReplaceAllString(path, "[^/]+") + "$")
		for name := range operations {
			shown := !method.MatchString(name)
			for _, e := range all {
				shown = shown || (strings.EqualFold(e.Method, name) && pattern.MatchString(e.Path) && strings.HasPrefix(e.agent, "curl/"))
			}
			if !shown {
				t.Errorf("no page shows a curl for %s %s", strings.ToUpper(name), path)
			}
		}
	}
}

// description is the part of /openapi.json that the check needs: the methods of
// each path.
type description struct {
	Paths map[string]map[string]any
}

func describe(t *testing.T, url string) (doc description) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/openapi.json", nil)
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.NoError(t, json.NewDecoder(resp.Body).Decode(&doc))
	require.NotEmpty(t, doc.Paths)
	return doc
}
