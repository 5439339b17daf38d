// Package target is the server that a command calls: its flags and variables, and the
// client that they configure.
package target

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/stemedb/stemedb/client"
)

// Target is a server. Errors of its methods name the flag or the variable that is invalid.
type Target struct {
	URL      string
	keyFile  string
	caFile   string
	insecure bool
}

// Flags registers the flags; preset is the URL without STEMEDB_URL.
func (t *Target) Flags(fs *pflag.FlagSet, preset string, withKey bool) {
	if env := os.Getenv("STEMEDB_URL"); env != "" {
		preset = env
	}
	fs.StringVar(&t.URL, "url", preset, "the server's URL (STEMEDB_URL)")
	fs.StringVar(&t.caFile, "ca-file", "", "certificates (PEM) to trust besides the system's")
	fs.BoolVar(&t.insecure, "insecure-skip-verify", false, "do not check the server's certificate; for a probe on the same machine")
	if withKey {
		fs.StringVar(&t.keyFile, "api-key-file", "", "file with the API key (STEMEDB_API_KEY, STEMEDB_API_KEY_FILE)")
	}
}

// Client makes a client with the API key that is configured.
func (t *Target) Client(opts ...client.Option) (*client.Client, error) {
	key, err := t.APIKey()
	if err != nil {
		return nil, err
	}
	return t.ClientWith(key, opts...)
}

// ClientWith makes a client with the given API key.
func (t *Target) ClientWith(key string, opts ...client.Option) (*client.Client, error) {
	config, err := t.tlsConfig()
	if err != nil {
		return nil, err
	}
	c, err := client.New(t.URL, key, append([]client.Option{client.WithTLS(config)}, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("--url: %w", err)
	}
	return c, nil
}

// tlsConfig determines the accepted certificates of the server.
func (t *Target) tlsConfig() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: t.insecure} // asked for by name
	if t.caFile != "" {
		pem, err := os.ReadFile(t.caFile)
		if err != nil {
			return nil, fmt.Errorf("--ca-file: %w", err)
		}
		if config.RootCAs, err = x509.SystemCertPool(); err != nil {
			config.RootCAs = x509.NewCertPool()
		}
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("--ca-file: %s holds no certificate", t.caFile)
		}
	}
	return config, nil
}

// APIKey finds the key: the flag's file, then the variables.
func (t *Target) APIKey() (string, error) {
	file, named, value := t.keyFile, "--api-key-file", os.Getenv("STEMEDB_API_KEY")
	if file == "" {
		file, named = os.Getenv("STEMEDB_API_KEY_FILE"), "STEMEDB_API_KEY_FILE"
		if file != "" && value != "" {
			return "", errors.New("STEMEDB_API_KEY and STEMEDB_API_KEY_FILE are both set; keep one")
		}
	}
	if file == "" {
		return value, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("read the API key (%s): %w", named, err)
	}
	return strings.TrimSpace(string(b)), nil
}
