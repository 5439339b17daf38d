package source

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// pki is the folder with the cluster's certificates. Existing certificates are
// kept, so that a second Up changes none.
type pki struct{ dir string }

func (p pki) cert(name string) string { return filepath.Join(p.dir, name+".crt") }
func (p pki) key(name string) string  { return filepath.Join(p.dir, name+".key") }

// identity is a certificate to be issued: a client when user is set, and a
// server when hosts are given.
type identity struct {
	name   string // file name without ending
	user   string // common name
	groups []string
	hosts  []string // DNS names and IP addresses
}

// issue creates the two authorities, the service accounts' key and every
// certificate of the cluster.
func (p pki) issue(c Config) error {
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return fmt.Errorf("making the folder for certificates: %w", err)
	}
	for _, authority := range []string{"ca", "front-proxy-ca"} {
		if err := p.authority(authority); err != nil {
			return err
		}
	}
	if !exists(p.key("service-accounts")) {
		key, err := newKey()
		if err != nil {
			return err
		}
		if err := writeKey(p.key("service-accounts"), key); err != nil {
			return err
		}
	}
	if err := p.signed("front-proxy-ca", identity{name: "front-proxy", user: "front-proxy-client"}); err != nil {
		return err
	}
	for _, id := range identities(c) {
		if err := p.signed("ca", id); err != nil {
			return err
		}
	}
	return nil
}

// identities lists the certificates that the cluster's own authority signs.
func identities(c Config) []identity {
	list := []identity{
		{name: "apiserver", user: "kube-apiserver", hosts: []string{
			"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost",
			c.controlAddress(), c.apiServiceIP(), "127.0.0.1",
		}},
		{name: "apiserver-kubelet", user: "kube-apiserver-kubelet-client", groups: []string{"system:masters"}},
		{name: "admin", user: "admin", groups: []string{"system:masters"}},
		{name: "controller-manager", user: "system:kube-controller-manager"},
		{name: "scheduler", user: "system:kube-scheduler"},
		{name: "proxy", user: "system:kube-proxy"},
	}
	for _, n := range c.nodes() {
		list = append(list, identity{
			name: n.name(), user: "system:node:" + n.name(), groups: []string{"system:nodes"},
			hosts: []string{n.name(), n.address(), "127.0.0.1"},
		})
	}
	return list
}

func (p pki) authority(name string) error {
	if exists(p.cert(name)) && exists(p.key(name)) {
		return nil
	}
	key, err := newKey()
	if err != nil {
		return err
	}
	template, err := newTemplate("stemedb "+name, nil)
	if err != nil {
		return err
	}
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	return p.write(name, template, template, key, key)
}

func (p pki) signed(authority string, id identity) error {
	if exists(p.cert(id.name)) && exists(p.key(id.name)) {
		return nil
	}
	issuer, issuerKey, err := p.read(authority)
	if err != nil {
		return err
	}
	key, err := newKey()
	if err != nil {
		return err
	}
	template, err := newTemplate(id.user, id.groups)
	if err != nil {
		return err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if len(id.hosts) > 0 {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, h := range id.hosts {
		if addr := net.ParseIP(h); addr != nil {
			template.IPAddresses = append(template.IPAddresses, addr)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	return p.write(id.name, template, issuer, key, issuerKey)
}

func (p pki) write(name string, template, issuer *x509.Certificate, key *ecdsa.PrivateKey, issuerKey crypto.Signer) error {
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), issuerKey)
	if err != nil {
		return fmt.Errorf("signing certificate %s: %w", name, err)
	}
	if err := writeKey(p.key(name), key); err != nil {
		return err
	}
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(p.cert(name), block, 0o600); err != nil {
		return fmt.Errorf("writing certificate %s: %w", name, err)
	}
	return nil
}

func (p pki) read(name string) (*x509.Certificate, crypto.Signer, error) {
	certBlock, err := readPEM(p.cert(name))
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(certBlock)
	if err != nil {
		return nil, nil, fmt.Errorf("reading certificate %s: %w", name, err)
	}
	keyBlock, err := readPEM(p.key(name))
	if err != nil {
		return nil, nil, err
	}
	key, err := x509.ParseECPrivateKey(keyBlock)
	if err != nil {
		return nil, nil, fmt.Errorf("reading key %s: %w", name, err)
	}
	return cert, key, nil
}

func readPEM(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s is not PEM", path)
	}
	return block.Bytes, nil
}

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	return key, nil
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("encoding a key: %w", err)
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		return fmt.Errorf("writing a key: %w", err)
	}
	return nil
}

func newTemplate(name string, groups []string) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("making a serial number: %w", err)
	}
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name, Organization: groups},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(5, 0, 0),
	}, nil
}

// kubeconfig is a kubeconfig file that carries its certificates inside.
func (p pki) kubeconfig(c Config, user string) ([]byte, error) {
	data := map[string]string{"server": c.apiURL()}
	for field, path := range map[string]string{"ca": p.cert("ca"), "cert": p.cert(user), "key": p.key(user)} {
		content, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("writing the kubeconfig of %s: %w", user, err)
		}
		data[field] = base64.StdEncoding.EncodeToString(content)
	}
	return render("kubeconfig.yaml", data)
}
