package image

import (
	"errors"
	"os"

	"github.com/stemedb/stemedb/ci/progress"
)

// The image of StemeDB. The Dockerfile builds the same one for users of docker;
// a test compares the two.

const (
	// Repository is the name of the image without its tag.
	Repository = "docker.io/stemedb/stemedb"
	// NonRoot is the user and group of every image here, in numbers.
	NonRoot = "65532:65532"
	// CertificatesPath is the file of certificate authorities in the image.
	CertificatesPath = "/etc/ssl/certs/ca-certificates.crt"
)

// StemeDBPrograms are the binaries of the release.
func StemeDBPrograms() []Program {
	return []Program{
		{Module: ".", Package: "./server/cmd/stemedb", Path: "/usr/local/bin/stemedb"},
		{Module: "server/cmd/stemedb-k8s", Package: "./.", Path: "/usr/local/bin/stemedb-k8s"},
		{Module: "server/cmd/stemedb-backup", Package: "./.", Path: "/usr/local/bin/stemedb-backup"},
	}
}

// StemeDB is the release's image: binaries are the compiled StemeDBPrograms,
// certificates a file with certificate authorities in PEM form.
func StemeDB(tag, version string, binaries []File, certificates string) Spec {
	return Spec{
		Reference: Repository + ":" + tag,
		Files: append(binaries,
			File{Path: CertificatesPath, Source: certificates, Mode: 0o644},
			File{Path: "/etc/passwd", Content: []byte("nonroot:x:65532:65532:nonroot:/:/sbin/nologin\n"), Mode: 0o644},
			File{Path: "/etc/group", Content: []byte("nonroot:x:65532:\n"), Mode: 0o644},
		),
		Entrypoint: []string{"/usr/local/bin/stemedb"},
		Cmd:        []string{"serve"},
		User:       NonRoot,
		WorkingDir: "/",
		Ports:      []string{"18180/tcp", "18181/tcp", "18182/tcp", "18183/tcp", "18183/udp"},
		Labels: map[string]string{
			"org.opencontainers.image.title":       "StemeDB",
			"org.opencontainers.image.description": "A replicated store of signed, immutable assertions",
			"org.opencontainers.image.licenses":    "Apache-2.0",
			"org.opencontainers.image.version":     version,
		},
	}
}

// Certificates finds this machine's certificate authorities.
func Certificates() (string, error) {
	for _, path := range []string{CertificatesPath, "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"} {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", progress.WithHint(errors.New("this machine has no file with certificate authorities for the image"), "apt-get install ca-certificates")
}
