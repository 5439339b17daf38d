package api

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/cluster"
)

// The health summary names every reason, whether the node can serve or not.
func TestHealthNamesTheReasons(t *testing.T) {
	w := newWorld(t, nil)
	var got struct {
		Status, Code any
		Reasons      []cluster.Trouble
	}
	health := func() int {
		answer := w.do(request{method: "GET", path: "/v1/health"})
		got.Reasons = nil
		require.NoError(t, json.Unmarshal(answer.Body.Bytes(), &got))
		return answer.Code
	}
	require.Equal(t, 200, health())
	require.Equal(t, "ok", got.Status)
	require.Empty(t, got.Reasons)

	reasons := []cluster.Trouble{
		{Code: cluster.CodeStorageFailed, Detail: "a sync failed", Remedy: "restart"},
		{Code: cluster.CodeNearlyFull, Detail: "the WAL volume is nearly full", Remedy: "add space", Volume: "wal"},
	}
	w.backend.troubles = reasons[1:]
	require.Equal(t, 200, health())
	require.Equal(t, "degraded", got.Status)
	require.Equal(t, reasons[1:], got.Reasons)

	w.backend.troubles = reasons
	w.backend.failWith(&cluster.UnavailableError{Code: cluster.CodeStorageFailed, Message: "the storage failed"})
	require.Equal(t, 503, health())
	require.Equal(t, cluster.CodeStorageFailed, got.Code)
	require.Equal(t, reasons, got.Reasons)
	require.NotContains(t, w.do(request{method: "GET", path: "/v1/health/ready"}).Body.String(), "reasons", "only the summary lists reasons")
}
