package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

const maxAnswer = 32 << 20

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

// client calls one server.
type client struct {
	base string
	key  string
	http *http.Client
}

func (t *target) client() (*client, error) {
	u, err := url.Parse(t.url)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, fail(exitUsage, "--url: %q is not a URL such as http://localhost:18181", t.url)
	}
	key, err := t.apiKey()
	if err != nil {
		return nil, err
	}
	config, err := t.tlsConfig()
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{TLSClientConfig: config, Proxy: http.ProxyFromEnvironment}
	return &client{base: strings.TrimSuffix(t.url, "/"), key: key, http: &http.Client{Transport: transport}}, nil
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

// answer is the server's answer.
type answer struct {
	status int
	body   []byte
}

// refusal is an unexpected answer.
type refusal struct {
	status               int
	Code, Detail, Remedy string
	RequestID            string `json:"request_id"`
}

func (r *refusal) Error() string {
	text := fmt.Sprintf("the server answered %d", r.status)
	if r.Code != "" {
		text += fmt.Sprintf(" %s: %s", r.Code, r.Detail)
	}
	if r.Remedy != "" {
		text += "; " + r.Remedy
	}
	if r.RequestID != "" {
		text += " (request " + r.RequestID + ")"
	}
	return text
}

// do sends a request once. An error means that there was no answer.
func (c *client) do(ctx context.Context, method, path string, body any) (*answer, error) {
	var reader io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
		reader = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, reader)
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.key != "" {
		req.Header.Set("X-API-Key", c.key)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("read the answer to %s %s: %w", method, path, err)
	}
	return &answer{resp.StatusCode, text}, nil
}

// refused turns an answer into an error that shows the server's problem.
func (a *answer) refused() error {
	r := &refusal{}
	_ = json.Unmarshal(a.body, r) // an answer by another server is shown by its status
	r.status = a.status
	return r
}

// get reads JSON from a path.
func (c *client) get(ctx context.Context, path string, into any) error {
	a, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	if a.status != http.StatusOK {
		return a.refused()
	}
	if err := json.Unmarshal(a.body, into); err != nil {
		return fmt.Errorf("decode the answer to GET %s: %w", path, err)
	}
	return nil
}

// until repeats a step until it succeeds or ctx ends. Invalid keys and invalid
// requests are not retried.
func until(ctx context.Context, step func(context.Context) error) error {
	for {
		err := step(ctx)
		if err == nil {
			return nil
		}
		var r *refusal
		if errors.As(err, &r) && r.status >= 400 && r.status < 500 && r.status != http.StatusTooManyRequests {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Second):
		}
	}
}
