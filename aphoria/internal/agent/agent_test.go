package agent

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCreateAndLoad(t *testing.T) {
	dir := t.TempDir()
	none := func(string) string { return "" }
	_, err := Load(dir, none)
	require.ErrorIs(t, err, ErrNoKey)
	key, err := Create(dir)
	require.NoError(t, err)
	got, err := Load(dir, none)
	require.NoError(t, err)
	require.Equal(t, key, got)
	info, err := os.Stat(filepath.Join(dir, KeyFile))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	_, err = Create(dir)
	require.ErrorIs(t, err, os.ErrExist)

	seed := strings.Repeat("07", 32)
	got, err = Load(dir, func(name string) string {
		require.Equal(t, EnvKey, name)
		return seed
	})
	require.NoError(t, err)
	require.Equal(t, seed, hex.EncodeToString(got.Seed()))
}

func TestLoadRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, KeyFile)
	none := func(string) string { return "" }
	secret := strings.Repeat("zz", 32)
	_, err := Load(dir, func(string) string { return secret })
	require.ErrorContains(t, err, EnvKey)
	require.NotContains(t, err.Error(), "zz")
	require.NoError(t, os.WriteFile(file, []byte("short\n"), 0o600))
	_, err = Load(dir, none)
	require.ErrorContains(t, err, "64 hex digits")
	require.NoError(t, os.Chmod(file, 0o640))
	_, err = Load(dir, none)
	require.ErrorContains(t, err, "chmod 600")
}
