// Package agent holds the key that a project signs its observations with.
package agent

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/stemedb/stemedb/server/record"
)

const (
	// KeyFile lies in the state directory.
	KeyFile = "agent.key"
	// EnvKey replaces the file, for CI: 64 hex digits, the Ed25519 seed.
	EnvKey = "STEME_PRIVATE_KEY"
)

// ErrNoKey is returned when there is neither a file nor a variable.
var ErrNoKey = errors.New("there is no agent key; run `aphoria init`, or set " + EnvKey + " to 64 hex digits")

// Load gives the key of the environment when it is set, else that of dir.
func Load(dir string, getenv func(string) string) (ed25519.PrivateKey, error) {
	if v := getenv(EnvKey); v != "" {
		key, err := parse(v)
		if err != nil {
			return nil, fmt.Errorf("%s %w", EnvKey, err)
		}
		return key, nil
	}
	file := filepath.Join(dir, KeyFile)
	info, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoKey
	}
	if err != nil {
		return nil, fmt.Errorf("read the agent key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by others (mode %04o); run chmod 600 on it, and make a new key if others had access", file, info.Mode().Perm())
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the agent key: %w", err)
	}
	key, err := parse(strings.TrimSpace(string(raw)))
	if err != nil {
		return nil, fmt.Errorf("%s %w", file, err)
	}
	return key, nil
}

// Create makes a new key in dir. It never replaces one.
func Create(dir string) (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make an agent key: %w", err)
	}
	file := filepath.Join(dir, KeyFile)
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("write the agent key: %w", err)
	}
	_, err = f.WriteString(hex.EncodeToString(key.Seed()) + "\n")
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		// A key that is not whole must not be found by the next run.
		return nil, errors.Join(fmt.Errorf("write the agent key: %w", err), os.Remove(file))
	}
	return key, nil
}

// parse never shows what it was given.
func parse(s string) (ed25519.PrivateKey, error) {
	seed, err := hex.DecodeString(s)
	if err != nil || len(seed) != ed25519.SeedSize {
		return nil, errors.New("does not hold 64 hex digits, the seed of an Ed25519 key")
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

// ID is the public side of a key.
func ID(key ed25519.PrivateKey) record.AgentID { return record.AgentOf(key) }
