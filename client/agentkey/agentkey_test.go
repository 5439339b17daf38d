package agentkey

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAKeyIsMadeOnceAndReadBack(t *testing.T) {
	file := filepath.Join(t.TempDir(), "agent.key")
	_, err := Load(file)
	require.ErrorIs(t, err, fs.ErrNotExist)
	made, err := Create(file)
	require.NoError(t, err)
	read, err := Load(file)
	require.NoError(t, err)
	require.Equal(t, made, read)
	info, err := os.Stat(file)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	_, err = Create(file)
	require.ErrorIs(t, err, fs.ErrExist)
	read, err = Load(file)
	require.NoError(t, err)
	require.Equal(t, made, read, "the key that was there stays")
}

func TestWhatIsNoKeyIsRefusedAndNotShown(t *testing.T) {
	file := filepath.Join(t.TempDir(), "agent.key")
	for _, text := range []string{"", "short", strings.Repeat("zz", 32), strings.Repeat("07", 33)} {
		require.NoError(t, os.WriteFile(file, []byte(text+"\n"), 0o600))
		_, err := Load(file)
		require.ErrorContains(t, err, "64 hex digits")
		if text != "" {
			require.NotContains(t, err.Error(), text)
		}
	}
	require.NoError(t, os.Chmod(file, 0o640))
	_, err := Load(file)
	require.ErrorContains(t, err, "chmod 600")
}
