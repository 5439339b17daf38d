// Package source finds the files of a project and distinguishes code from
// comments and text. It promises to read nothing outside the scanned directory:
// symbolic links are not followed, sizes are bounded, binaries are skipped.
package source

import (
	"bytes"
	"encoding/binary"
	"path"
	"strings"
	"unicode/utf16"
)

// Language is the language of a file.
type Language string

// The languages that extractors know; "" is any other.
const (
	Go         Language = "go"
	JavaScript Language = "javascript" // and TypeScript
	Python     Language = "python"
	Rust       Language = "rust"
)

// File is one file of the project.
type File struct {
	Path     string // relative to the root, with slashes
	Language Language
	Text     []byte

	kinds []Kind // of each byte of Text; made on demand
	lines []int  // offset of each line's beginning; made on demand
}

// NewFile makes a file from text. A byte order mark is removed, and UTF-16 that
// begins with one becomes UTF-8: editors and shells on Windows write both.
func NewFile(name string, text []byte) *File {
	return &File{Path: name, Language: languageOf(name), Text: decodeText(text)}
}

func decodeText(text []byte) []byte {
	var order binary.ByteOrder
	switch {
	case bytes.HasPrefix(text, []byte("\xef\xbb\xbf")):
		return text[3:]
	case bytes.HasPrefix(text, []byte("\xff\xfe")):
		order = binary.LittleEndian
	case bytes.HasPrefix(text, []byte("\xfe\xff")):
		order = binary.BigEndian
	default:
		return text
	}
	units := make([]uint16, 0, len(text)/2)
	for i := 2; i+1 < len(text); i += 2 {
		units = append(units, order.Uint16(text[i:]))
	}
	return []byte(string(utf16.Decode(units)))
}

// Base is the file's name without its directory.
func (f *File) Base() string { return path.Base(f.Path) }

// Dir is the file's directory relative to the root, "." for the root itself.
func (f *File) Dir() string { return path.Dir(f.Path) }

// Line is the number, from 1, of the line that holds the byte at offset.
func (f *File) Line(offset int) int {
	if f.lines == nil {
		f.lines = []int{0}
		for i, c := range f.Text {
			if c == '\n' {
				f.lines = append(f.lines, i+1)
			}
		}
	}
	lo, hi := 0, len(f.lines)
	for lo+1 < hi {
		if mid := (lo + hi) / 2; f.lines[mid] <= offset {
			lo = mid
		} else {
			hi = mid
		}
	}
	return lo + 1
}

// IsTest reports whether the file holds tests, by its language's conventions.
func (f *File) IsTest() bool {
	base := f.Base()
	for _, dir := range strings.Split(f.Dir(), "/") {
		switch dir {
		case "test", "tests", "testdata", "__tests__", "testing":
			return true
		}
	}
	switch f.Language {
	case Go:
		return strings.HasSuffix(base, "_test.go")
	case Python:
		return strings.HasPrefix(base, "test_") || strings.HasSuffix(base, "_test.py") || base == "conftest.py"
	case JavaScript:
		return strings.Contains(base, ".test.") || strings.Contains(base, ".spec.")
	default:
		return false
	}
}

func languageOf(name string) Language {
	switch path.Base(name) {
	case "go.mod":
		return Go
	case "package.json":
		return JavaScript
	case "pyproject.toml":
		return Python
	case "Cargo.toml":
		return Rust
	}
	if isRequirements(name) {
		return Python
	}
	switch path.Ext(name) {
	case ".go":
		return Go
	case ".js", ".mjs", ".cjs", ".jsx", ".ts", ".mts", ".cts", ".tsx":
		return JavaScript
	case ".py":
		return Python
	case ".rs":
		return Rust
	default:
		return ""
	}
}

// isRequirements recognises requirements.txt and its usual variants.
func isRequirements(name string) bool {
	base := path.Base(name)
	if path.Ext(base) != ".txt" {
		return false
	}
	return strings.HasPrefix(base, "requirements") || path.Base(path.Dir(name)) == "requirements"
}

// IsRequirements reports whether the file lists Python requirements.
func (f *File) IsRequirements() bool { return isRequirements(f.Path) }
