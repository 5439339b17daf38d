package wal

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/vfs"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

func use(t *testing.T, o Options) Identity {
	t.Helper()
	l := mustOpen(t, o)
	mustPut(t, l, "x")
	require.NoError(t, l.Close())
	return l.Identity()
}

func TestVolumesThatDoNotBelong(t *testing.T) {
	d := memfs.New(1)
	on := func(node, wal, packs string) Options {
		o := small(d)
		o.Node, o.WALDir, o.PackDir = node, wal, packs
		return o
	}
	a := use(t, on("node-a", "a/wal", "a/packs"))
	b := use(t, on("node-a", "b/wal", "b/packs"))
	use(t, on("node-c", "c/wal", "c/packs"))
	require.NotEqual(t, a.Incarnation, b.Incarnation)
	for name, c := range map[string]struct {
		o    Options
		says []string
	}{
		"swapped":           {on("node-a", "a/packs", "a/wal"), []string{"swapped", "exchange", "a/packs", "a/wal"}},
		"two WAL volumes":   {on("node-a", "a/wal", "b/wal"), []string{"not a pack volume", "mount"}},
		"two pack volumes":  {on("node-a", "a/packs", "b/packs"), []string{"not a WAL volume", "mount"}},
		"foreign both":      {on("node-a", "c/wal", "c/packs"), []string{`"node-c"`, `"node-a"`, "mount"}},
		"foreign packs":     {on("node-a", "a/wal", "c/packs"), []string{`"node-c"`, `"node-a"`, "mount"}},
		"other incarnation": {on("node-a", "a/wal", "b/packs"), []string{a.Incarnation[:8], b.Incarnation[:8], "empty both"}},
		"same directory":    {on("node-a", "n/x", "n/x/"), []string{"both"}},
		"no node":           {on("", "n/wal", "n/packs"), []string{"Node"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Open(c.o)
			require.Error(t, err)
			for _, s := range c.says {
				require.ErrorContains(t, err, s)
			}
			require.Zero(t, d.OpenFiles())
		})
	}
	require.Equal(t, a, use(t, on("node-a", "a/wal", "a/packs")), "nothing was changed")
}

func TestClusterID(t *testing.T) {
	d := memfs.New(1)
	l := mustOpen(t, small(d))
	require.Error(t, l.SetClusterID(" "))
	require.NoError(t, l.SetClusterID("one"))
	require.NoError(t, l.SetClusterID("one"))
	require.ErrorContains(t, l.SetClusterID("two"), `"one"`)
	require.NoError(t, l.Close())
	l = mustOpen(t, small(d))
	require.Equal(t, "one", l.Identity().Cluster)
	require.NoError(t, l.Close())
	// A crash between the two volumes.
	for cut := range 12 {
		d := memfs.New(uint64(cut))
		use(t, small(d))
		l := mustOpen(t, small(d))
		d.CutPowerAfter(cut)
		_ = l.SetClusterID("one")
		_ = l.Close()
		d.Crash(memfs.LoseSome)
		l = mustOpen(t, small(d))
		require.NoError(t, l.SetClusterID("one"))
		require.NoError(t, l.Close())
	}
}

// Either volume alone shows that the cluster has had other members.
func TestVolumesRememberThatTheClusterHadOtherMembers(t *testing.T) {
	for _, wiped := range []string{"wal", "db/packs", ""} {
		t.Run("without "+wiped, func(t *testing.T) {
			d := memfs.New(1)
			use(t, small(d))
			l := mustOpen(t, small(d))
			require.NoError(t, l.SetClusterID("one"))
			require.False(t, l.Identity().Shared)
			require.NoError(t, l.SetShared())
			require.NoError(t, l.SetShared())
			require.NoError(t, l.Close())
			if wiped != "" {
				d.Wipe(wiped)
			}
			for range 2 {
				l = mustOpen(t, small(d))
				require.True(t, l.Identity().Shared)
				require.NoError(t, l.SetClusterID("one"))
				require.NoError(t, l.Close())
			}
		})
	}
	// A crash between the two volumes, and then the loss of the first one.
	for cut := range 12 {
		d := memfs.New(uint64(cut))
		use(t, small(d))
		l := mustOpen(t, small(d))
		d.CutPowerAfter(cut)
		set := l.SetShared()
		_ = l.Close()
		d.Crash(memfs.LoseSome)
		l = mustOpen(t, small(d))
		shared := l.Identity().Shared
		require.True(t, shared || set != nil)
		require.NoError(t, l.Close())
		d.Wipe("wal")
		l = mustOpen(t, small(d))
		require.Equal(t, shared, l.Identity().Shared)
		require.NoError(t, l.Close())
	}
}

func TestOtherFilesAreLeftAlone(t *testing.T) {
	d := memfs.New(1)
	for _, dir := range []string{"wal/lost+found", "db/packs/lost+found", "wal/pack-1.pack", "wal/wal-7.seg"} {
		require.NoError(t, d.MkdirAll(dir, 0o700))
	}
	for _, name := range []string{"wal/raft.db", "db/packs/README", "wal/wal-x.seg", "db/packs/pack-.pack", "db/packs/other.tmp"} {
		require.NoError(t, writeWhole(d, name, []byte("mine")))
	}
	use(t, small(d))
	use(t, small(d))
	for _, name := range []string{"wal/raft.db", "db/packs/README", "wal/wal-x.seg", "db/packs/pack-.pack", "db/packs/other.tmp"} {
		require.Equal(t, "mine", string(fileBytes(t, d, name)))
	}
}

func TestPartsOfALogWithoutTheirIdentity(t *testing.T) {
	for _, gone := range [][]string{{"wal/identity"}, {"wal/manifest", "wal/manifest.copy"}, {"wal/identity", "db/packs/identity"}} {
		d, _, _ := sealedLog(t)
		before := listDir(t, d, "db/packs")
		for _, name := range gone {
			require.NoError(t, d.Remove(name))
		}
		_, err := Open(small(d))
		require.ErrorContains(t, err, filepath.Base(gone[0]))
		require.ErrorContains(t, err, "restore the file")
		require.Subset(t, listDir(t, d, "db/packs"), slices.DeleteFunc(before, func(n string) bool { return n == identityName }))
	}
}

func TestSecondOpenIsRefused(t *testing.T) {
	for name, o := range map[string]Options{
		"memfs": small(memfs.New(1)),
		"os":    {WALDir: filepath.Join(t.TempDir(), "wal"), PackDir: filepath.Join(t.TempDir(), "packs"), Node: "n", SegmentSize: 16 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			l := mustOpen(t, o)
			_, err := Open(o)
			require.ErrorIs(t, err, vfs.ErrLocked)
			require.ErrorContains(t, err, "stop it")
			require.NoError(t, l.Close())
			require.NoError(t, mustOpen(t, o).Close())
		})
	}
}

func TestOperatingSystemFiles(t *testing.T) {
	dir := t.TempDir()
	o := Options{WALDir: filepath.Join(dir, "wal"), PackDir: filepath.Join(dir, "db", "packs"), Node: "n", SegmentSize: 64 << 10}
	reg := prometheus.NewRegistry()
	o.Registerer = reg
	l := mustOpen(t, o)
	all := fill(t, l, 0, 600)
	l.SetApplied(l.End())
	waitSealed(t, l)
	require.NoError(t, l.Close())
	o.Registerer = nil
	l = mustOpen(t, o)
	es, gaps, err := scanAll(l, 0)
	require.NoError(t, err)
	require.Empty(t, gaps)
	require.Len(t, es, len(all))
	require.NoError(t, l.Close())
	packs, err := os.ReadDir(o.PackDir)
	require.NoError(t, err)
	require.Greater(t, len(packs), 3)
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	o := small(memfs.New(1))
	o.Registerer = reg
	l := mustOpen(t, o)
	fill(t, l, 0, 100)
	waitSealed(t, l)
	for name, want := range map[string]float64{
		"stemedb_wal_writes_total":              100,
		"stemedb_wal_write_errors_total":        0,
		"stemedb_wal_recovery_attempts_total":   1,
		"stemedb_wal_recovery_duration_seconds": 1,
		"stemedb_wal_torn_tails_total":          0,
		"stemedb_wal_state":                     0,
		"stemedb_wal_damaged_ranges":            0,
		"stemedb_wal_missing_ranges":            0,
	} {
		require.Equal(t, want, metric(t, reg, name), name)
	}
	for _, name := range []string{
		"stemedb_wal_fsync_latency_seconds", "stemedb_wal_flush_latency_seconds", "stemedb_wal_batch_size",
		"stemedb_wal_bytes_written_total", "stemedb_wal_disk_usage_bytes", "stemedb_wal_segments_count", "stemedb_wal_rotations_total",
		"stemedb_wal_packs_count", "stemedb_wal_packs_bytes", "stemedb_volume_free_bytes", "stemedb_volume_size_bytes",
	} {
		require.Positive(t, metric(t, reg, name), name)
	}
	require.NoError(t, l.Close())
	require.NoError(t, mustOpen(t, o).Close(), "the registry can be used for the next opening")
}
