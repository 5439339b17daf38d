package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/keys"
)

// withAuth gives the process a root key.
func (p *process) withAuth() {
	raw, err := keys.Generate(keys.Test, nil)
	require.NoError(p.t, err)
	p.root = raw
}

// register registers keys of the project by their hashes.
func (p *process) register(raws []string) {
	client := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	defer client.CloseIdleConnections()
	work, failed := make(chan string), make(chan error, len(raws))
	var senders sync.WaitGroup
	for range 64 {
		senders.Go(func() {
			for raw := range work {
				failed <- p.registerOne(&client, raw)
			}
		})
	}
	for _, raw := range raws {
		work <- raw
	}
	close(work)
	senders.Wait()
	for range raws {
		require.NoError(p.t, <-failed)
	}
}

func (p *process) registerOne(client *http.Client, raw string) error {
	body := fmt.Sprintf(`{"key_hash":%q,"project":"shop","role":"read_only","label":"many"}`, keys.HashOf(raw).String())
	req, err := http.NewRequestWithContext(p.t.Context(), http.MethodPost, "http://"+p.api+"/v1/admin/api-keys", strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-API-Key", p.root)
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusCreated {
		err = fmt.Errorf("%s: %s", resp.Status, answer)
	}
	return err
}

// A member that was killed with 10,000 keys in its log becomes ready only when
// the keys can be checked: the last one works immediately.
func TestProcessThatIsReadyKnowsItsKeys(t *testing.T) {
	const count = 10_000
	p := newProcess(t)
	p.withAuth()
	p.start("")
	p.awaitReady()
	raws := make([]string, count)
	for i := range raws {
		var err error
		raws[i], err = keys.Generate(keys.Test, nil)
		require.NoError(t, err)
	}
	p.register(raws)
	p.kill()

	p.start("")
	began := time.Now()
	p.awaitReady()
	t.Logf("ready after %v", time.Since(began))
	for _, raw := range []string{raws[count-1], p.root, raws[0]} {
		status, _, body := p.call(http.MethodGet, "/v1/whoami", raw, nil)
		require.Equal(t, http.StatusOK, status, body)
	}
	unknown, err := keys.Generate(keys.Test, nil)
	require.NoError(t, err)
	status, _, body := p.call(http.MethodGet, "/v1/whoami", unknown, nil)
	require.Equal(t, http.StatusUnauthorized, status, body)
	p.requireReasons()
	p.stop()
}

// A single node that starts for the first time does not wait for others, and
// mints a key as soon as it is ready.
func TestProcessMintsAKeyAsSoonAsItIsReady(t *testing.T) {
	p := newProcess(t)
	p.withAuth()
	began := time.Now()
	p.start("")
	p.awaitReady()
	took := time.Since(began)
	status, _, body := p.call(http.MethodPost, "/v1/admin/api-keys", p.root, []byte(`{"project":"shop","role":"write_agent","label":"first"}`))
	require.Equal(t, http.StatusCreated, status, body)
	require.Less(t, took, 3*time.Second, "it waited for others; a second is usual, and tests run beside each other")
	p.stop()
}
