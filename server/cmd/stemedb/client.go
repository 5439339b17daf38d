package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/stemedb/stemedb/client"
	"github.com/stemedb/stemedb/internal/sleep"
)

// target is the server that a client command talks to.
type target struct {
	url      string
	keyFile  string
	caFile   string
	insecure bool
}

func (t *target) flags(fs *pflag.FlagSet, preset string, withKey bool) {
	if env := os.Getenv("STEMEDB_URL"); env != "" {
		preset = env
	}
	fs.StringVar(&t.url, "url", preset, "the server's URL (STEMEDB_URL)")
	fs.StringVar(&t.caFile, "ca-file", "", "certificates (PEM) to trust besides the system's")
	fs.BoolVar(&t.insecure, "insecure-skip-verify", false, "do not check the server's certificate; for a probe on the same machine")
	if withKey {
		fs.StringVar(&t.keyFile, "api-key-file", "", "file with the API key (STEMEDB_API_KEY, STEMEDB_API_KEY_FILE)")
	}
}

// client makes a client for the server with the API key that is configured. Commands
// that need retries of their own turn those of the client off.
func (t *target) client(opts ...client.Option) (*client.Client, error) {
	key, err := t.apiKey()
	if err != nil {
		return nil, err
	}
	return t.clientWith(key, opts...)
}

// clientWith makes a client with the given API key.
func (t *target) clientWith(key string, opts ...client.Option) (*client.Client, error) {
	config, err := t.tlsConfig()
	if err != nil {
		return nil, err
	}
	c, err := client.New(t.url, key, append([]client.Option{
		client.WithTLS(config), client.WithUserAgent("stemedb/" + versionString()),
	}, opts...)...)
	if err != nil {
		return nil, fail(exitUsage, "--url: %w", err)
	}
	return c, nil
}

// tlsConfig determines the accepted certificates of the server.
func (t *target) tlsConfig() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: t.insecure} // asked for by name
	if t.caFile != "" {
		pem, err := os.ReadFile(t.caFile)
		if err != nil {
			return nil, fail(exitUsage, "--ca-file: %w", err)
		}
		if config.RootCAs, err = x509.SystemCertPool(); err != nil {
			config.RootCAs = x509.NewCertPool()
		}
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fail(exitUsage, "--ca-file: %s holds no certificate", t.caFile)
		}
	}
	return config, nil
}

// apiKey finds the key: the flag's file, then the variables.
func (t *target) apiKey() (string, error) {
	file, value := t.keyFile, os.Getenv("STEMEDB_API_KEY")
	if file == "" {
		file = os.Getenv("STEMEDB_API_KEY_FILE")
		if file != "" && value != "" {
			return "", fail(exitUsage, "STEMEDB_API_KEY and STEMEDB_API_KEY_FILE are both set; keep one")
		}
	}
	if file == "" {
		return value, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fail(exitUsage, "read the API key: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// until repeats a step until it succeeds or ctx ends. Invalid keys and invalid
// requests are not retried.
func until(ctx context.Context, step func(context.Context) error) error {
	for {
		err := step(ctx)
		if err == nil {
			return nil
		}
		var refused *client.Error
		if errors.As(err, &refused) && refused.Status/100 == 4 && refused.Status != http.StatusTooManyRequests {
			return err
		}
		if !sleep.For(ctx, time.Second) {
			return err
		}
	}
}
