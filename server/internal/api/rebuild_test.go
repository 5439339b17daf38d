package api

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
)

// A rebuild of the index may outlast any start-up window; a replay may not.
func TestStartupWhileTheIndexIsRebuilt(t *testing.T) {
	a, err := New(Options{Node: "n"})
	require.NoError(t, err)
	ask := func(path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		a.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w
	}
	a.SetProgress(Progress{Phase: "replaying the log", Done: 1, Total: 2})
	require.Equal(t, http.StatusServiceUnavailable, ask("/v1/health/startup").Code)

	a.SetProgress(Progress{Phase: "rebuilding the index", Rebuild: true, Done: 1, Total: 2})
	w := ask("/v1/health/startup")
	require.Equal(t, http.StatusOK, w.Code)
	require.JSONEq(t, `{"status":"rebuilding","progress":{"phase":"rebuilding the index","rebuild":true,"done":1,"total":2}}`, w.Body.String())
	require.Equal(t, http.StatusServiceUnavailable, ask("/v1/health/ready").Code, "a node without its index is not ready")
	require.Equal(t, http.StatusOK, ask("/v1/health/live").Code)
}
