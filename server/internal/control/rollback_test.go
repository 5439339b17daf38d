package control

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Each start registers its life and the lives listed on its volumes. Volumes that
// do not list the latest life are older than it.
func TestStartOnOlderVolumesIsRefusedUntilItIsNotedAsALoss(t *testing.T) {
	tb := formed(t, "a", "b", "c")
	start := func(life string, rolledBack bool, known ...string) error {
		return applied(t, tb, &live{Member: "a/1", Now: life, Known: known, RolledBack: rolledBack})[0].err()
	}
	whole := func() bool {
		m, _ := tb.state.Load().MemberByID("a/1")
		return m.Whole
	}
	require.NoError(t, start("first", false))
	require.NoError(t, start("second", false, "first"))
	require.NoError(t, start("second", false, "first"), "said again")
	require.True(t, whole())
	generation := tb.state.Load().Generation

	require.ErrorIs(t, start("third", false, "first"), errRolledBack)
	require.Equal(t, generation, tb.state.Load().Generation, "a refusal changes nothing")
	require.NoError(t, start("third", true, "first"))
	require.False(t, whole(), "it lost the records of its second life")
	require.Greater(t, tb.state.Load().Generation, generation)
}
