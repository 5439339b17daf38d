package peertls

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"os"
	"time"
)

// identity is the certificate that this node presents and the authorities that
// it trusts at one moment.
type identity struct {
	leaf tls.Certificate
	cas  *x509.CertPool
	// hostnames: the operator issued the leaves, which name the host under which a
	// peer is reached. Derived leaves prove only knowledge of the secret, and any
	// of them may answer at any address.
	hostnames bool
	// expires is when the leaf expires.
	expires time.Time
}

// The validity period of derived certificates has no meaning: a new secret ends
// them. It spans all time so that no clock can lock a node out.
var (
	epoch   = time.Unix(0, 0).UTC()
	forever = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
)

// derive makes an identity from the secrets: an authority for each, and a leaf
// with a new key signed by the first.
func derive(name string, secrets []string) (*identity, error) {
	if len(secrets) == 0 {
		return nil, errors.New("no cluster secret is given")
	}
	id := &identity{cas: x509.NewCertPool(), expires: forever}
	for i, secret := range secrets {
		key, ca, err := authority(secret)
		if err != nil {
			return nil, fmt.Errorf("derive the certificate authority of secret %d: %w", i+1, err)
		}
		id.cas.AddCert(ca)
		if i > 0 {
			continue
		}
		if id.leaf, err = issue(name, key, ca); err != nil {
			return nil, fmt.Errorf("issue the certificate of node %s: %w", name, err)
		}
	}
	return id, nil
}

// authority derives the key and the certificate of a secret's authority. Every
// node derives the same one: HKDF-SHA256 of the secret seeds an Ed25519 key,
// whose signatures are deterministic. The subject contains a digest of the
// public key, which distinguishes the authorities of two secrets.
func authority(secret string) (ed25519.PrivateKey, *x509.Certificate, error) {
	seed, err := hkdf.Key(sha256.New, []byte(secret), nil, "stemedb peer authority v1", ed25519.SeedSize)
	if err != nil {
		return nil, nil, err
	}
	key := ed25519.NewKeyFromSeed(seed)
	digest := sha256.Sum256(key.Public().(ed25519.PublicKey))
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: fmt.Sprintf("stemedb peers %x", digest[:8])},
		SubjectKeyId:          digest[:20],
		NotBefore:             epoch,
		NotAfter:              forever,
		IsCA:                  true,
		MaxPathLenZero:        true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return key, cert, err
}

func issue(name string, caKey ed25519.PrivateKey, ca *x509.Certificate) (tls.Certificate, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    epoch,
		NotAfter:     forever,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, public, caKey)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private, Leaf: leaf}, err
}

// files names the three files of the operator's certificate.
type files struct{ cert, key, ca string }

// read returns the contents of the files, for load and to detect a change.
func (f files) read() ([3][]byte, error) {
	var out [3][]byte
	for i, name := range []string{f.cert, f.key, f.ca} {
		b, err := os.ReadFile(name) //nolint:forbidigo // certificates are mounted beside the volumes
		if err != nil {
			return out, fmt.Errorf("read the peer certificate's files: %w", err)
		}
		out[i] = b
	}
	return out, nil
}

// load makes an identity of the contents of the three files.
func (f files) load(pem [3][]byte) (*identity, error) {
	leaf, err := tls.X509KeyPair(pem[0], pem[1])
	if err != nil {
		return nil, fmt.Errorf("peer certificate %s with key %s: %w", f.cert, f.key, err)
	}
	cas := x509.NewCertPool()
	if !cas.AppendCertsFromPEM(pem[2]) {
		return nil, fmt.Errorf("peer authority %s holds no PEM certificate", f.ca)
	}
	return &identity{leaf: leaf, cas: cas, hostnames: true, expires: leaf.Leaf.NotAfter}, nil
}

func equalPEM(a, b [3][]byte) bool {
	for i := range a {
		if !bytes.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}

// verify checks the chain that a peer presented. It is the only check: the
// standard one is switched off because it requires a host name, which derived
// leaves do not have.
func (id *identity) verify(cs tls.ConnectionState, host string, usage x509.ExtKeyUsage, now time.Time) error {
	if len(cs.PeerCertificates) == 0 {
		return fmt.Errorf("%w: it presented no certificate", ErrNotMember)
	}
	options := x509.VerifyOptions{
		Roots:         id.cas,
		Intermediates: x509.NewCertPool(),
		KeyUsages:     []x509.ExtKeyUsage{usage},
		CurrentTime:   now,
	}
	if id.hostnames {
		options.DNSName = host
	}
	for _, c := range cs.PeerCertificates[1:] {
		options.Intermediates.AddCert(c)
	}
	if _, err := cs.PeerCertificates[0].Verify(options); err != nil {
		return fmt.Errorf("%w: %w", ErrNotMember, err)
	}
	return nil
}
