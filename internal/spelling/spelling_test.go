package spelling

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDistanceCountsInsertionsDeletionsAndSubstitutions(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		want int
	}{
		{"", "", 0},
		{"", "abc", 3},
		{"abc", "", 3},
		{"abc", "abc", 0},
		{"abc", "axc", 1},
		{"abc", "ac", 1},
		{"kitten", "sitting", 3},
		{"flaw", "lawn", 2},
		{"ab", "ba", 2},
	} {
		require.Equal(t, tc.want, Distance(tc.a, tc.b), "%q to %q", tc.a, tc.b)
		require.Equal(t, tc.want, Distance(tc.b, tc.a), "%q to %q", tc.b, tc.a)
	}
}

func TestNearestIsTheFirstOfEquals(t *testing.T) {
	require.Equal(t, "wal_dir", Nearest("wal_dri", []string{"db_dir", "wal_dir", "log_level"}))
	require.Equal(t, "ab", Nearest("a", []string{"ab", "ac"}))
	require.Empty(t, Nearest("a", nil))
}
