package wal

import (
	"bytes"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// Each error and each log line of this package whose advice depends on the number
// of members: for a single node, for three members, and for an unknown number.
func TestTheAdviceFitsTheNumberOfMembers(t *testing.T) {
	remove := func(names ...string) func(*testing.T, *memfs.Disk) {
		return func(t *testing.T, d *memfs.Disk) {
			for _, name := range names {
				require.NoError(t, d.Remove(name))
			}
		}
	}
	rot := func(names ...string) func(*testing.T, *memfs.Disk) {
		return func(t *testing.T, d *memfs.Disk) {
			for _, name := range names {
				require.NoError(t, d.FlipBit(name, 40, 2))
			}
		}
	}
	for name, damage := range map[string]func(*testing.T, *memfs.Disk){
		"the WAL volume's identity rotted":  rot("wal/identity"),
		"the pack volume's identity rotted": rot("db/packs/identity"),
		"the WAL volume's identity is gone": remove("wal/identity"),
		"both identities are gone":          remove("wal/identity", "db/packs/identity"),
		"packs alone are left":              func(t *testing.T, d *memfs.Disk) { d.Wipe("wal"); remove("db/packs/identity")(t, d) },
		"the manifest is gone":              remove("wal/manifest", "wal/manifest.copy"),
		"the manifest and its copy rotted":  rot("wal/manifest", "wal/manifest.copy"),
		"the manifest is another log's":     foreign("wal/manifest"),
		"the packs are another log's":       foreign("db/packs/identity"),
		"a segment is another log's":        foreignSegment,
	} {
		t.Run(name, func(t *testing.T) {
			for _, members := range []int{0, 1, 3} {
				d, _, _ := sealedLog(t)
				damage(t, d)
				o := small(d)
				o.Members = members
				_, err := Open(o)
				require.Error(t, err)
				requireAdvice(t, members, err.Error())
				require.Regexp(t, "restore .* from a copy or a snapshot|mount the volumes of one", err.Error())
				require.Zero(t, d.OpenFiles())
			}
		})
	}
}

// requireAdvice: only a node that others can refill may be emptied.
func requireAdvice(t *testing.T, members int, text string) {
	t.Helper()
	switch members {
	case 0:
		require.Contains(t, text, "When this node is the only member, or one of two, do not empty its volumes")
		require.Contains(t, text, "When it is one of three or more")
	case 1:
		require.Contains(t, text, "do not empty the volumes")
		require.NotContains(t, text, "empty both")
		require.NotContains(t, text, "refilled by")
	default:
		require.Contains(t, text, fmt.Sprintf("the other %d of the %d members", members-1, members))
		require.Contains(t, text, "empty both volumes of this node, so that it joins as a new member")
		require.NotContains(t, text, "do not empty")
	}
}

// foreign replaces a file with that of another log of this node.
func foreign(name string) func(*testing.T, *memfs.Disk) {
	return func(t *testing.T, d *memfs.Disk) {
		other := memfs.New(7)
		o := small(other)
		o.Rand = bytes.NewReader(bytes.Repeat([]byte{7}, 1<<10))
		use(t, o)
		require.NoError(t, writeWhole(d, name, fileBytes(t, other, name)))
	}
}

func foreignSegment(t *testing.T, d *memfs.Disk) {
	t.Helper()
	numbers, err := listNumbered(d, "wal", segmentPrefix, segmentSuffix)
	require.NoError(t, err)
	require.NotEmpty(t, numbers)
	for _, seq := range numbers {
		name := filepath.Join("wal", fmt.Sprintf("%s%08d%s", segmentPrefix, seq, segmentSuffix))
		b := fileBytes(t, d, name)
		h, err := decodeHeader(b)
		require.NoError(t, err)
		h.inc[0]++
		h.encode(b)
		require.NoError(t, writeWhole(d, name, b))
	}
}

// The log lines about a loss say whether other members can repair it.
func TestALossIsLoggedWithTheAdvice(t *testing.T) {
	for members, says := range map[int]string{
		0: "when it is the only member, restore a backup, or accept the loss: stemedb cluster accept-loss node-0 --yes; do not empty the volumes",
		1: "nobody can refill it: restore a backup, or accept the loss: stemedb cluster accept-loss node-0 --yes; do not empty the volumes",
		3: "the other members refill it",
	} {
		for name, lose := range map[string]func(*testing.T, *memfs.Disk, Options){
			"a pack is gone": func(t *testing.T, d *memfs.Disk, o Options) {
				require.NoError(t, d.Remove((&Log{opts: o}).packName(2)))
				require.NoError(t, mustOpen(t, o).Close())
			},
			"the volume was restored": func(t *testing.T, _ *memfs.Disk, o Options) {
				l := mustOpen(t, o)
				require.NoError(t, l.NoteRollback(l.End()+1, "a test says so"))
				require.NoError(t, l.Close())
			},
		} {
			t.Run(fmt.Sprintf("%s, %d members", name, members), func(t *testing.T) {
				d, _, _ := sealedLog(t)
				var out bytes.Buffer
				o := small(d)
				o.Members, o.Logger = members, slog.New(slog.NewTextHandler(&out, nil))
				lose(t, d, o)
				require.Contains(t, out.String(), says)
				if members == 3 {
					require.NotContains(t, out.String(), "accept-loss")
				}
			})
		}
	}
}
