package extract

import (
	"github.com/stemedb/stemedb/aphoria/source"
	"github.com/stemedb/stemedb/server/record"
)

// TLSVerify observes code that does not verify the certificates of those that
// it talks to.
func TLSVerify() (Extractor, error) {
	off := func(r Rule) Rule {
		r.Aspect, r.Predicate, r.Object = "tls/cert_verification", "enabled", record.Boolean(false)
		r.Verdict = Block
		return r
	}
	goLang := []source.Language{source.Go}
	python := []source.Language{source.Python}
	javascript := []source.Language{source.JavaScript}
	return Declare("tls_verify",
		off(Rule{
			Languages: goLang, Confidence: 0.95,
			Pattern: `\bInsecureSkipVerify\s*(?::|=)\s*true\b`,
			// Whoever verifies by other rules than the library's must switch
			// the library's off.
			SofterNear: `\bVerify(?:PeerCertificate|Connection)\b`,
			Message:    "InsecureSkipVerify accepts any certificate",
		}),
		off(Rule{
			// verify is an ordinary name too: not where it is declared, and not
			// where a token is decoded.
			Languages: python, Confidence: 0.85,
			Pattern: `\bverify\s*=\s*False\b`,
			Unless:  `^\s*(?:async\s+)?def\b|\bjwt\.|\bdecode\(`,
			Message: "verify=False accepts any certificate",
		}),
		off(Rule{
			Languages: python, Confidence: 0.95,
			Pattern: `\bssl\._create_unverified_context\b`,
			Message: "an unverified context accepts any certificate",
		}),
		off(Rule{
			Languages: python, Confidence: 0.9,
			Pattern: `\b(?:verify_mode|cert_reqs)\s*=\s*(?:[\w.]+\.)?['"]?(?:VerifyMode\.)?CERT_NONE\b`,
			Message: "CERT_NONE asks for no certificate",
		}),
		off(Rule{
			Languages: javascript, Confidence: 0.95,
			Pattern: `\brejectUnauthorized['"]?\s*(?::|=)\s*false\b`,
			Message: "rejectUnauthorized: false accepts any certificate",
		}),
		off(Rule{
			Languages: javascript, Confidence: 0.95,
			Pattern: "\\bprocess\\.env(?:\\.NODE_TLS_REJECT_UNAUTHORIZED|\\[\\s*['\"`]NODE_TLS_REJECT_UNAUTHORIZED['\"`]\\s*\\])\\s*=\\s*(?:['\"`]0['\"`]|0\\b)",
			Message: "NODE_TLS_REJECT_UNAUTHORIZED=0 accepts any certificate in the whole process",
		}),
		off(Rule{
			// In scripts of package.json, where everything is a string.
			Files: []string{"package.json"}, InStrings: true, Confidence: 0.95,
			Pattern: `\bNODE_TLS_REJECT_UNAUTHORIZED=(?:\\?['"])?0\b`,
			Message: "NODE_TLS_REJECT_UNAUTHORIZED=0 accepts any certificate in the whole process",
		}),
	)
}
