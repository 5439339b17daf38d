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
// call, other languages by rules.
func TLSVerify() (Extractor, error) {
	javascript := []source.Language{source.JavaScript}
	rules, err := Declare("tls_verify",
		Rule{
			Languages: []source.Language{source.Python},
			Word:      "ssl._create_unverified_context", After: `\W|$`,
			finding: verificationOff(0.95, "an unverified context accepts any certificate"),
		},
		Rule{
			// !1 is how minifiers write false.
			Languages: javascript,
			Word:      "rejectUnauthorized", After: "['\"`]?\\s*\\]?\\s*(?::|=)\\s*(?:false\\b|!1\\b)",
			finding: verificationOff(0.95, "rejectUnauthorized: false accepts any certificate"),
		},
		Rule{
			Languages: javascript,
			Word:      "process.env", After: "(?:\\.NODE_TLS_REJECT_UNAUTHORIZED|\\[\\s*['\"`]NODE_TLS_REJECT_UNAUTHORIZED['\"`]\\s*\\])\\s*=\\s*(?:['\"`]0['\"`]|0\\b)",
			finding: verificationOff(0.95, "NODE_TLS_REJECT_UNAUTHORIZED=0 accepts any certificate in the whole process"),
		},
		Rule{
			// In scripts of package.json, where everything is a string.
			Files: []string{"package.json"}, InStrings: true,
			Word: "NODE_TLS_REJECT_UNAUTHORIZED", After: `=(?:\\?['"])?0\b`,
			finding: verificationOff(0.95, "NODE_TLS_REJECT_UNAUTHORIZED=0 accepts any certificate in the whole process"),
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
	return isSource(f) && f.Language == source.Go || e.rules.Wants(f)
}

func (e tlsVerify) Extract(ctx context.Context, f *source.File, m *Modules) ([]Observation, error) {
	if f.Language == source.Go {
		return goTLS(ctx, f, m)
	}
	found, err := e.rules.Extract(ctx, f, m)
	if f.Language == source.Python && err == nil {
		found = append(found, pythonTLS(ctx, f, m)...)
		err = ctx.Err()
	}
	return found, err
}
