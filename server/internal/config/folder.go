package config

import (
	"os"
	"path/filepath"
)

// sameFolder reports whether two names denote the same folder, or will once it
// exists: by spelling, through symbolic links, or because one volume is mounted
// twice.
func sameFolder(a, b string) bool {
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	if errA == nil && errB == nil {
		return os.SameFile(infoA, infoB)
	}
	return realFolder(a, maxLinks) == realFolder(b, maxLinks)
}

// inside reports whether a folder is below another one, or will be once both
// exist.
func inside(folder, other string) bool {
	for at := realFolder(folder, maxLinks); at != filepath.Dir(at); at = filepath.Dir(at) {
		if sameFolder(filepath.Dir(at), other) {
			return true
		}
	}
	return false
}

// maxLinks bounds the links that are followed, as in the kernel.
const maxLinks = 40

// realFolder resolves the symbolic links in the name of a folder. Neither the
// folder nor the target of a link needs to exist yet.
func realFolder(name string, links int) string {
	if abs, err := filepath.Abs(name); err == nil {
		name = abs
	}
	if found, err := filepath.EvalSymlinks(name); err == nil {
		return found
	}
	if target, err := os.Readlink(name); err == nil && links > 0 {
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(name), target)
		}
		return realFolder(target, links-1)
	}
	parent := filepath.Dir(name)
	if parent == name {
		return name
	}
	return filepath.Join(realFolder(parent, links), filepath.Base(name))
}
