// Package agent holds the key with which a project signs its observations.
package agent

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/stemedb/stemedb/client/agentkey"
	"github.com/stemedb/stemedb/record"
)

const (
	// KeyFile is in the state directory.
	KeyFile = "agent.key"
	// EnvKey replaces the file, for CI: 64 hex digits, the Ed25519 seed.
	EnvKey = agentkey.Variable
)

// ErrNoKey is returned when there is neither a file nor a variable.
var ErrNoKey = errors.New("there is no agent key; run `aphoria init`, or set " + EnvKey + " to 64 hex digits")

// Load returns the key from the environment when it is set, otherwise the key
// in dir.
func Load(dir string, getenv func(string) string) (ed25519.PrivateKey, error) {
	if v := getenv(EnvKey); v != "" {
		key, err := agentkey.Parse(v)
		if err != nil {
			return nil, fmt.Errorf("%s %w", EnvKey, err)
		}
		return key, nil
	}
	key, err := agentkey.Load(filepath.Join(dir, KeyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoKey
	}
	return key, err
}

// Create makes a new key in dir. It never replaces one.
func Create(dir string) (ed25519.PrivateKey, error) {
	return agentkey.Create(filepath.Join(dir, KeyFile))
}

// ID is the public part of a key.
func ID(key ed25519.PrivateKey) record.AgentID { return record.AgentOf(key) }
