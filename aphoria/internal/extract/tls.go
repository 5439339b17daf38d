package extract

import (
	"context"

	"github.com/stemedb/stemedb/aphoria/internal/source"
	"github.com/stemedb/stemedb/record"
)

// tlsVerify observes code that does not verify the certificates of its peers.
type tlsVerify struct {
	rules Extractor
}

// TLSVerify is that extractor. Go is read with its own parser, Python call by
// call, JavaScript and package.json by rules.
func TLSVerify() (Extractor, error) {
	javascript := []source.Language{source.JavaScript}
	rules, err := Declare("tls_verify",
		Rule{
			// !1 is how minifiers write false.
			Languages: javascript,
			Word:      "rejectUnauthorized", After: "['\"`]?\\s*\\]?\\s*(?::|=)", Value: `(?:false|!\s*1|!\s*true)\b`,
			finding: verificationOff(0.95, "rejectUnauthorized: false accepts any certificate"),
		},
		Rule{
			// In scripts of package.json, where everything is a string.
			Files: []string{"package.json"}, InStrings: true,
			Word: nodeVariable, After: `=(?:\\?['"])?0\b`,
			finding: nodeOff(),
		},
	)
	return tlsVerify{rules}, err
}

func verificationOff(confidence float64, message string) finding {
	return finding{
		Aspect: "tls/cert_verification", Predicate: "enabled", Object: record.Boolean(false),
		Confidence: confidence, Verdict: Block, Message: message,
	}
}

func (e tlsVerify) Name() string { return e.rules.Name() }

func (e tlsVerify) Wants(f *source.File) bool {
	return isSource(f) && (f.Language == source.Go || f.Language == source.Python) || e.rules.Wants(f)
}

func (e tlsVerify) Extract(ctx context.Context, f *source.File, m *Modules) ([]Observation, error) {
	switch f.Language {
	case source.Go:
		return goTLS(ctx, f, m)
	case source.Python:
		return pythonTLS(ctx, f, m), ctx.Err()
	}
	found, err := e.rules.Extract(ctx, f, m)
	if isSource(f) && err == nil {
		found = append(found, javascriptEnv(ctx, f, m)...)
		err = ctx.Err()
	}
	return found, err
}
