package control

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"
)

// writeLog creates a storage with some entries, and a snapshot with that many
// members.
func writeLog(t *testing.T, members int) (dir, path string) {
	t.Helper()
	dir = t.TempDir()
	storage, err := OpenStorage(dir)
	require.NoError(t, err)
	entries := make([]*raft.Log, 200)
	for i := range entries {
		entries[i] = &raft.Log{Index: uint64(i) + 1, Term: 1, Data: bytes.Repeat([]byte{byte(i)}, 500)}
	}
	require.NoError(t, storage.Logs().StoreLogs(entries))
	if members > 0 {
		var servers raft.Configuration
		for i := range members {
			id := fmt.Sprintf("n%d/a", i)
			servers.Servers = append(servers.Servers, raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(id + "|x:1")})
		}
		_, transport := raft.NewInmemTransport("")
		sink, err := storage.Snapshots().Create(raft.SnapshotVersionMax, 200, 1, servers, 1, transport)
		require.NoError(t, err)
		require.NoError(t, sink.Close())
	}
	require.NoError(t, storage.Close())
	return dir, filepath.Join(dir, "control.db")
}

// Any damage to the log is found at the start. The error names the file and a
// remedy that fits the number of members, and never advises to empty the volumes
// of a node that nobody could refill.
func TestDamagedLogSaysWhatToDo(t *testing.T) {
	page := os.Getpagesize()
	for name, damage := range map[string]func([]byte) []byte{
		"the first pages are zero": func(b []byte) []byte { clear(b[:2*page]); return b },
		"the first pages are noise": func(b []byte) []byte {
			copy(b, bytes.Repeat([]byte{0xa5}, 2*page))
			return b
		},
		"it is text":                   func([]byte) []byte { return bytes.Repeat([]byte("text\n"), 10_000) },
		"it has a byte":                func([]byte) []byte { return []byte{1} },
		"it was cut within a page":     func(b []byte) []byte { return b[:page+100] },
		"it was cut behind its header": func(b []byte) []byte { return b[:2*page] },
		"the pages behind are zero":    func(b []byte) []byte { clear(b[2*page:]); return b },
		"the pages behind are noise": func(b []byte) []byte {
			for i := range b[2*page:] {
				b[2*page+i] = byte(i*7 + 3)
			}
			return b
		},
	} {
		for members, says := range map[int]string{
			0: "is the only member, or one of two, do not empty its volumes",
			1: "the only member",
			2: "cannot admit this node as a new member",
			3: "at least 2 of them alive and whole",
			5: "at least 3 of them alive and whole",
		} {
			t.Run(fmt.Sprintf("%s, %d members", name, members), func(t *testing.T) {
				dir, path := writeLog(t, members)
				whole, err := os.ReadFile(path)
				require.NoError(t, err)
				require.NoError(t, os.WriteFile(path, damage(whole), 0o600))
				_, err = OpenStorage(dir)
				var damaged *DamagedError
				require.ErrorAs(t, err, &damaged)
				require.Equal(t, path, damaged.Path)
				require.Equal(t, members, damaged.Members)
				require.Contains(t, err.Error(), path)
				require.Contains(t, err.Error(), says)
				require.Contains(t, err.Error(), "restore the file")
				switch members {
				case 0:
				case 1, 2:
					require.NotContains(t, err.Error(), "empty both volumes")
				default:
					require.Contains(t, err.Error(), "empty both volumes of this node")
				}
			})
		}
	}
}

// A log that another process has locked is not reported as damaged, and an intact
// one opens.
func TestLogThatCannotBeOpenedIsNoDamage(t *testing.T) {
	dir, path := writeLog(t, 3)
	held, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second})
	require.NoError(t, err)
	_, err = OpenStorage(dir)
	require.ErrorContains(t, err, path)
	require.NotContains(t, err.Error(), "damaged")
	require.NoError(t, held.Close())

	storage, err := OpenStorage(dir)
	require.NoError(t, err)
	last, err := storage.Logs().LastIndex()
	require.NoError(t, err)
	require.EqualValues(t, 200, last)
	require.NoError(t, storage.Close())
}

// Each advice of this package that depends on the number of members, for one and
// for three of them: only volumes that others can refill may be emptied.
func TestNoAdviceEmptiesTheVolumesOfASingleNode(t *testing.T) {
	control := func(members int) *Control {
		c := &Control{cfg: Config{Name: "n0", PeerAddr: "n0:1", Join: []string{"n0:1", "n1:1", "n2:1"}[:members]}, table: newTable(new(broadcast))}
		require.Equal(t, members, c.members())
		return c
	}
	for name, text := range map[string]func(members int) string{
		"a damaged log": func(n int) string {
			return (&DamagedError{Path: "control.db", Members: n, Err: errInconsistent}).Error()
		},
		"a log that is gone":             func(n int) string { return control(n).remedy(putLogBack) },
		"a damaged vote":                 func(n int) string { return voteDamaged(errDamaged, control(n).expected()).Error() },
		"nobody to fetch the table from": func(n int) string { return noTable(control(n).members()) },
	} {
		t.Run(name, func(t *testing.T) {
			one, three := text(1), text(3)
			require.Contains(t, one, "do not empty the volumes, nobody could refill them")
			require.Contains(t, one, "restore the ")
			require.NotContains(t, one, "empty both")
			require.NotContains(t, one, "refilled by")
			require.NotContains(t, three, "only member")
			require.NotContains(t, three, "do not empty")
		})
	}
}

// The number of members is the table's, or, without a table, that of the join
// list, which need not name this node.
func TestExpectedMembersAreThoseOfTheJoinList(t *testing.T) {
	for _, row := range []struct {
		join []string
		want int
	}{
		{nil, 1}, {[]string{"n0:1"}, 1}, {[]string{"n0.svc:2"}, 1}, {[]string{"n0:1", "n1:1", "n2:1"}, 3}, {[]string{"n1:1", "n2:1"}, 3}, {[]string{"n1:1"}, 2},
	} {
		require.Equal(t, row.want, Expected(row.join, "n0", "n0:1"), row.join)
	}
}
