package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/stemedb/stemedb/server/internal/clock"
)

// certificateEvery is the interval between checks of the certificate's files.
const certificateEvery = 5 * time.Second

// Certificates holds the server's certificate and loads a new one soon after
// its files hold a valid pair. Files that are half-written or do not match are
// only logged.
type Certificates struct {
	certPath, keyPath string
	clock             clock.Clock
	log               *slog.Logger

	mu       sync.Mutex
	current  *tls.Certificate
	certText []byte
	keyText  []byte
	reported string // the last reported error, not to be repeated
}

// LoadCertificates reads certificate chain and key (PEM) for the first time;
// they must match. wall decides whether another member's certificate is valid.
func LoadCertificates(certPath, keyPath string, wall clock.Clock, log *slog.Logger) (*Certificates, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	c := &Certificates{certPath: certPath, keyPath: keyPath, clock: wall, log: log}
	return c, c.load()
}

// Watch looks for a new certificate until ctx ends.
func (c *Certificates) Watch(ctx context.Context) {
	tick := time.NewTicker(certificateEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			c.Reload()
		}
	}
}

// Reload looks for a new certificate now.
func (c *Certificates) Reload() {
	err := c.load()
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		c.reported = ""
	case err.Error() != c.reported:
		c.reported = err.Error()
		c.log.Error("the new TLS certificate cannot be used; the old one stays in use", "error", err)
	}
}

// load uses the contents of the files if they are new and match.
func (c *Certificates) load() error {
	certText, err := os.ReadFile(c.certPath) //nolint:forbidigo // certificates are mounted beside the volumes
	if err != nil {
		return fmt.Errorf("read the TLS certificate: %w", err)
	}
	keyText, err := os.ReadFile(c.keyPath) //nolint:forbidigo // as above
	if err != nil {
		return fmt.Errorf("read the TLS certificate's key: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if bytes.Equal(certText, c.certText) && bytes.Equal(keyText, c.keyText) {
		return nil
	}
	pair, err := tls.X509KeyPair(certText, keyText)
	if err != nil {
		return fmt.Errorf("the TLS certificate %s and its key %s do not match: %w", c.certPath, c.keyPath, err)
	}
	if pair.Leaf == nil {
		if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			return fmt.Errorf("parse the TLS certificate %s: %w", c.certPath, err)
		}
	}
	if c.current != nil {
		c.log.Info("the TLS certificate was replaced", "subject", pair.Leaf.Subject.String(), "expires", pair.Leaf.NotAfter)
	}
	c.current, c.certText, c.keyText = &pair, certText, keyText
	return nil
}

func (c *Certificates) get() *tls.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current
}

// Expiry is when the certificate expires.
func (c *Certificates) Expiry() time.Time { return c.get().Leaf.NotAfter }

// Config is for listeners: HTTP/1.1 over TLS 1.2 or later.
func (c *Certificates) Config() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.get(), nil },
	}
}

// PeerConfig is for connections to other members' APIs. Those are addressed by
// pods' names, which their certificates do not contain; but all members serve
// under the same public names. So a peer is accepted when it presents this
// node's certificate or, during a renewal, one for the same name from the same
// issuer.
func (c *Certificates) PeerConfig() *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		NextProtos:         []string{"http/1.1"},
		InsecureSkipVerify: true, // VerifyConnection checks more
		VerifyConnection: func(cs tls.ConnectionState) error {
			return verifyPeer(c.get(), cs.PeerCertificates, c.clock.Now())
		},
	}
}

func verifyPeer(own *tls.Certificate, chain []*x509.Certificate, now time.Time) error {
	if len(chain) == 0 {
		return errors.New("the peer presented no certificate")
	}
	if chain[0].Equal(own.Leaf) {
		return nil
	}
	if !sameName(own.Leaf, chain[0]) {
		return errors.New("the peer's certificate has a different name than this node's")
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	for _, der := range own.Certificate[1:] {
		if issuer, err := x509.ParseCertificate(der); err == nil {
			roots.AddCert(issuer)
		}
	}
	between := x509.NewCertPool()
	for _, cert := range chain[1:] {
		between.AddCert(cert)
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now}); err != nil {
		return fmt.Errorf("the peer's certificate is neither this node's nor from its issuer: %w", err)
	}
	return nil
}

func sameName(own, peer *x509.Certificate) bool {
	for _, name := range own.DNSNames {
		if peer.VerifyHostname(name) == nil {
			return true
		}
	}
	for _, ip := range own.IPAddresses {
		if peer.VerifyHostname(ip.String()) == nil {
			return true
		}
	}
	return false
}
