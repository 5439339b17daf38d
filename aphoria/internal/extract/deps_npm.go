package extract

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/stemedb/stemedb/aphoria/internal/source"
)

// readPackageJSON reads the dependencies token by token, which keeps their
// lines.
func readPackageJSON(f *source.File) ([]dependency, error) {
	scopes := map[string]string{
		"dependencies": "runtime", "devDependencies": "dev",
		"peerDependencies": "peer", "optionalDependencies": "optional",
	}
	dec := jsontext.NewDecoder(bytes.NewReader(f.Text), jsontext.AllowDuplicateNames(true))
	if dec.PeekKind() != '{' {
		return nil, errors.New("is not a JSON object")
	}
	if _, err := dec.ReadToken(); err != nil {
		return nil, fmt.Errorf("is not valid JSON: %w", err)
	}
	var deps []dependency
	for dec.PeekKind() == '"' {
		name, err := dec.ReadToken()
		if err != nil {
			return deps, fmt.Errorf("is not valid JSON: %w", err)
		}
		scope, ok := scopes[name.String()]
		if !ok || dec.PeekKind() != '{' {
			err = dec.SkipValue()
		} else {
			deps, err = readJSONSection(f, dec, scope, deps)
		}
		if err != nil {
			return deps, fmt.Errorf("is not valid JSON: %w", err)
		}
	}
	if _, err := dec.ReadToken(); err != nil && !errors.Is(err, io.EOF) {
		return deps, fmt.Errorf("is not valid JSON: %w", err)
	}
	return deps, nil
}

func readJSONSection(f *source.File, dec *jsontext.Decoder, scope string, deps []dependency) ([]dependency, error) {
	if _, err := dec.ReadToken(); err != nil {
		return deps, err
	}
	for dec.PeekKind() == '"' {
		token, err := dec.ReadToken()
		if err != nil {
			return deps, err
		}
		// Tokens last only until the next read.
		d := dependency{name: token.String(), scope: scope, line: f.Line(int(dec.InputOffset()) - 1)}
		if dec.PeekKind() != '"' {
			// npm would not accept this version: skip it.
			if err := dec.SkipValue(); err != nil {
				return deps, err
			}
			continue
		}
		value, err := dec.ReadToken()
		if err != nil {
			return deps, err
		}
		d.version = value.String()
		deps = append(deps, d)
	}
	_, err := dec.ReadToken()
	return deps, err
}
