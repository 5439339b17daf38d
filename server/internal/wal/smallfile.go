package wal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/stemedb/stemedb/server/internal/vfs"
)

// The small files (identity, manifest) are JSON, readable for people, with a
// last line "crc32c XXXXXXXX", the checksum of everything before it. They are
// replaced as a whole: temporary name, sync, rename, directory sync.

var errNotChecked = errors.New("the checksum at its end does not match")

func saveSmall(fsys vfs.FS, name string, v any) error {
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	b = append(b, '\n')
	b = fmt.Appendf(b, "crc32c %08x\n", crc32.Checksum(b, castagnoli))
	tmp := name + ".tmp"
	if err := writeWhole(fsys, tmp, b); err != nil {
		return fmt.Errorf("write %s: %w", tmp, err)
	}
	if err := fsys.Rename(tmp, name); err != nil {
		return fmt.Errorf("replace %s: %w", name, err)
	}
	if err := fsys.SyncDir(filepath.Dir(name)); err != nil {
		return fmt.Errorf("replace %s: %w", name, err)
	}
	return nil
}

// writeWhole writes a new file and syncs it. The caller syncs its directory.
func writeWhole(fsys vfs.FS, name string, b []byte) (err error) {
	f, err := fsys.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	if _, err := f.WriteAt(b, 0); err != nil {
		return err
	}
	return f.Sync()
}

// loadSmall reads a file that saveSmall wrote. found is false if there is no file.
func loadSmall(fsys vfs.FS, name string, v any) (found bool, err error) {
	b, err := readWhole(fsys, name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read %s: %w", name, err)
	}
	cut := bytes.LastIndexByte(bytes.TrimSuffix(b, []byte("\n")), '\n') + 1
	want := fmt.Sprintf("crc32c %08x\n", crc32.Checksum(b[:cut], castagnoli))
	if string(b[cut:]) != want {
		return true, fmt.Errorf("%s: %w", name, errNotChecked)
	}
	if err := json.Unmarshal(b[:cut], v); err != nil {
		return true, fmt.Errorf("decode %s: %w", name, err)
	}
	return true, nil
}

// maxSmall bounds a small file: a manifest of 100,000 packs has 20 MiB.
const maxSmall = 256 << 20

func readWhole(fsys vfs.FS, name string) ([]byte, error) {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > maxSmall {
		return nil, fmt.Errorf("%s has %d bytes, more than any file of its kind", name, size)
	}
	b := make([]byte, size)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return b[:n], nil
}
