package extract

import (
	"fmt"
	"iter"
	"slices"

	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/stemedb/stemedb/aphoria/internal/source"
	"github.com/stemedb/stemedb/record"
)

// maxTOMLDepth bounds the paths that are read: no manifest names a dependency
// deeper, and a file may nest as deep as it is long.
const maxTOMLDepth = 8

// tomlValue is one value of a manifest.
type tomlValue struct {
	path []string // including its table's; valid until the next value
	text string   // "" for all but strings and booleans
	line int
	// header is true for the line of a table, which has no value.
	header bool
}

// tomlValues yields the tables and the scalar values of a manifest, in order
// and with their lines. It parses one expression after another, because
// decoding into a value takes quadratic time for some files. An error is
// yielded last.
func tomlValues(f *source.File) iter.Seq2[tomlValue, error] {
	return func(yield func(tomlValue, error) bool) {
		var p unstable.Parser
		p.Reset(f.Text)
		w := tomlWalk{file: f, yield: yield}
		var table []string
		for p.NextExpression() {
			n := p.Expression()
			var more bool
			switch n.Kind {
			case unstable.Table, unstable.ArrayTable:
				var line int
				table, line = w.key(nil, n)
				more = yield(tomlValue{path: table, line: line, header: true}, nil)
			case unstable.KeyValue:
				more = w.pair(table, n, 0)
			default:
				continue
			}
			if !more {
				return
			}
		}
		if err := p.Error(); err != nil {
			yield(tomlValue{}, fmt.Errorf("is not valid TOML: %w", err))
		}
	}
}

type tomlWalk struct {
	file  *source.File
	yield func(tomlValue, error) bool
}

// key returns the path of a table or a pair, cut where it is too deep to
// matter.
func (w *tomlWalk) key(table []string, n *unstable.Node) (path []string, line int) {
	path = slices.Clone(table)
	for it := n.Key(); it.Next() && len(path) <= maxTOMLDepth; {
		part := it.Node()
		if line == 0 {
			line = w.file.Line(int(part.Raw.Offset))
		}
		// A name longer than any subject can make no claim, but would be compared for
		// each of its pairs.
		path = append(path, string(part.Data[:min(len(part.Data), record.MaxSubject+1)]))
	}
	return path, line
}

// pair yields the value of one pair, or the values of its inline table.
func (w *tomlWalk) pair(table []string, n *unstable.Node, line int) bool {
	path, own := w.key(table, n)
	if line == 0 {
		line = own // an inline table is where its key is
	}
	if len(path) > maxTOMLDepth {
		return true
	}
	v := n.Value()
	switch v.Kind {
	case unstable.InlineTable:
		if !w.yield(tomlValue{path: path, line: line, header: true}, nil) {
			return false
		}
		for it := v.Children(); it.Next(); {
			if !w.pair(path, it.Node(), line) {
				return false
			}
		}
		return true
	case unstable.String, unstable.Bool:
		return w.yield(tomlValue{path: path, text: string(v.Data), line: line}, nil)
	default:
		return w.yield(tomlValue{path: path, line: line}, nil)
	}
}
