package wal

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

func TestAppendReadScanReopen(t *testing.T) {
	d := memfs.New(1)
	l := mustOpen(t, small(d))
	var want []string
	at := map[string]Position{}
	for i := range 300 {
		p := fmt.Sprintf("%04d-%s", i, text(i%700, ""))
		want = append(want, p)
		at[p] = mustPut(t, l, p)[0]
		if i%50 == 0 {
			l.SetApplied(l.End())
		}
	}
	check := func() {
		t.Helper()
		for _, limit := range []int{0, 1, 1000} {
			es, gaps, err := scanAll(l, limit)
			require.NoError(t, err)
			require.Empty(t, gaps)
			require.Equal(t, want, payloads(es))
		}
		for p, pos := range at {
			e, err := l.Read(pos)
			require.NoError(t, err)
			require.Equal(t, p, string(e.Payload))
		}
	}
	check()
	require.NoError(t, l.Close())
	require.Zero(t, d.OpenFiles())
	for range 3 {
		l = mustOpen(t, small(d))
		require.True(t, l.Whole())
		require.Empty(t, l.Damage())
		check()
		want = append(want, "more")
		at["more"] = mustPut(t, l, "more")[0]
		require.NoError(t, l.Close())
		require.Zero(t, d.OpenFiles())
		want = want[:len(want):len(want)]
	}
}
