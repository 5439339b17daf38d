// Package agentkey keeps an agent's Ed25519 key in a file or a variable, as 64
// hex digits: the seed. It promises that only its owner can read a key file,
// that no key is ever replaced, and that no error contains a key.
package agentkey

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
)

// Variable is the environment variable that holds a key when there is no file,
// as in CI.
const Variable = "STEME_PRIVATE_KEY"

// Parse reads 64 hex digits. Its error is worded to follow the name of the file
// or variable.
func Parse(s string) (ed25519.PrivateKey, error) {
	seed, err := hex.DecodeString(s)
	if err != nil || len(seed) != ed25519.SeedSize {
		return nil, errors.New("does not hold 64 hex digits, the seed of an Ed25519 key")
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

// Load reads a key file and refuses one that others can read. The error is
// fs.ErrNotExist when there is no such file.
func Load(file string) (ed25519.PrivateKey, error) {
	info, err := os.Stat(file)
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
	key, err := Parse(strings.TrimSpace(string(raw)))
	if err != nil {
		return nil, fmt.Errorf("%s %w", file, err)
	}
	return key, nil
}

// Create makes a new key and writes it to a file that must not exist yet.
func Create(file string) (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make an agent key: %w", err)
	}
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
		// The next run must not find an incomplete key.
		return nil, errors.Join(fmt.Errorf("write the agent key: %w", err), os.Remove(file))
	}
	return key, nil
}
