package config

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// The two volumes are refused when they are the same folder or one is inside the
// other, in any spelling and whether or not they exist.
func TestOneFolderForBothVolumes(t *testing.T) {
	for _, exists := range []bool{false, true} {
		for _, row := range []struct {
			name     string
			wal, db  string
			link, to string
			same     bool
		}{
			{name: "two folders", wal: "wal", db: "db"},
			{name: "one in the other", wal: "data", db: "data/db", same: true},
			{name: "the other way round, deeper", wal: "data/db/sub/wal", db: "data", same: true},
			{name: "in the other through a link", wal: "a/wal", db: "b/wal/db", link: "b", to: "a", same: true},
			{name: "names that begin alike", wal: "data", db: "data2"},
			{name: "a slash at the end", wal: "data", db: "data/", same: true},
			{name: "through the parent", wal: "data", db: "data/../data/.", same: true},
			{name: "a link to the other", wal: "wal", db: "db", link: "db", to: "wal", same: true},
			{name: "the other way round", wal: "wal", db: "db", link: "wal", to: "db", same: true},
			{name: "a link among the parents", wal: "a/data", db: "b/data", link: "b", to: "a", same: true},
			{name: "a link to another folder", wal: "wal", db: "db", link: "db", to: "elsewhere"},
			{name: "a link to itself", wal: "wal", db: "db", link: "db", to: "db"},
		} {
			t.Run(row.name, func(t *testing.T) {
				root := t.TempDir()
				wal, db := filepath.Join(root, row.wal), root+"/"+row.db
				if row.link != "" {
					require.NoError(t, os.Symlink(row.to, filepath.Join(root, row.link)))
				}
				if exists && row.link != row.to {
					for _, target := range []string{"a", "wal", "db", "data", "elsewhere"} {
						if target != row.link {
							require.NoError(t, os.MkdirAll(filepath.Join(root, target), 0o750))
						}
					}
					require.NoError(t, os.MkdirAll(wal, 0o750))
					require.NoError(t, os.MkdirAll(db, 0o750))
				}
				_, err := Load(nil, Source{Environ: []string{"STEMEDB_NODE_NAME=n", "STEMEDB_WAL_DIR=" + wal, "STEMEDB_DB_DIR=" + db}})
				if !row.same {
					require.NoError(t, err)
					return
				}
				var p *Problem
				require.ErrorAs(t, err, &p)
				require.Equal(t, "STEMEDB_DB_DIR", p.Setting)
				require.Contains(t, p.Error(), "each its own")
			})
		}
	}
}
