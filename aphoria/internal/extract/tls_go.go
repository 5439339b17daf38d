package extract

import (
	"bytes"
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/scanner"
	"go/token"
	"go/types"

	"github.com/stemedb/stemedb/aphoria/internal/source"
)

const skipVerify = "InsecureSkipVerify"

// goTLS finds where InsecureSkipVerify becomes true. Code that verifies by
// rules other than the library's must switch the library's off: where the same
// literal, or the same variable in the same block, gets such a function, the
// observation is a FLAG.
func goTLS(ctx context.Context, f *source.File, m *Modules) ([]Observation, error) {
	if !bytes.Contains(f.Text, []byte(skipVerify)) {
		return nil, nil
	}
	files := token.NewFileSet()
	parsed, err := parser.ParseFile(files, "", f.Text, 0)
	if err != nil {
		// This compiler accepts no such file, but a later one may.
		return goTokens(ctx, f, m), fmt.Errorf("cannot be parsed, so every %s = true in it counts: %w", skipVerify, err)
	}
	g := goFinder{ctx: ctx, file: f, modules: m, files: files, constants: constantsOf(parsed), verifies: make(map[*ast.AssignStmt]map[string]bool)}
	ast.Inspect(parsed, g.visit)
	return g.found, ctx.Err()
}

func skipsVerification() finding {
	return verificationOff(0.95, "InsecureSkipVerify accepts any certificate")
}

type goFinder struct {
	ctx     context.Context
	file    *source.File
	modules *Modules
	files   *token.FileSet
	found   []Observation
	// constants are the values of each constant declaration of the file.
	constants map[*ast.ValueSpec][]ast.Expr
	// verifies are the variables that get a verifier in the block of a statement.
	verifies map[*ast.AssignStmt]map[string]bool
}

func (g *goFinder) visit(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.CompositeLit:
		g.literal(n)
	case *ast.BlockStmt:
		g.block(n.List)
	case *ast.CaseClause:
		g.block(n.Body)
	case *ast.CommClause:
		g.block(n.Body)
	case *ast.AssignStmt:
		g.assignment(n)
	}
	return g.ctx.Err() == nil
}

func (g *goFinder) add(at token.Pos, softer bool) {
	r := skipsVerification()
	if softer {
		r = r.softer()
	}
	g.found = append(g.found, r.observe(g.file, g.modules, g.files.File(at).Offset(at)))
}

// literal checks one composite literal by itself.
func (g *goFinder) literal(lit *ast.CompositeLit) {
	verifies := false
	for _, e := range lit.Elts {
		if kv, ok := e.(*ast.KeyValueExpr); ok {
			verifies = verifies || isVerifier(fieldName(kv.Key)) && setsVerifier(kv.Value)
		}
	}
	for _, e := range lit.Elts {
		if kv, ok := e.(*ast.KeyValueExpr); ok && fieldName(kv.Key) == skipVerify && g.isTrue(kv.Value) {
			g.add(kv.Pos(), verifies)
		}
	}
}

// block records the variables that get a verifier in the statements of one
// block.
func (g *goFinder) block(list []ast.Stmt) {
	verifies := make(map[string]bool)
	for _, stmt := range list {
		if labeled, ok := stmt.(*ast.LabeledStmt); ok {
			stmt = labeled.Stmt
		}
		s, ok := stmt.(*ast.AssignStmt)
		if !ok || len(s.Lhs) != len(s.Rhs) {
			continue
		}
		g.verifies[s] = verifies
		for i, to := range s.Lhs {
			if field, ok := ast.Unparen(to).(*ast.SelectorExpr); ok && isVerifier(field.Sel.Name) {
				verifies[variable(field.X)] = setsVerifier(s.Rhs[i])
			}
		}
	}
}

func (g *goFinder) assignment(s *ast.AssignStmt) {
	if len(s.Lhs) != len(s.Rhs) {
		return
	}
	for i, to := range s.Lhs {
		if field, ok := ast.Unparen(to).(*ast.SelectorExpr); ok && field.Sel.Name == skipVerify && g.isTrue(s.Rhs[i]) {
			g.add(field.Sel.Pos(), g.verifies[s][variable(field.X)])
		}
	}
}

// variable names the variable whose field is set: c, (c) and (*c) are the same.
func variable(x ast.Expr) string {
	for {
		switch v := ast.Unparen(x).(type) {
		case *ast.StarExpr:
			x = v.X
		default:
			return types.ExprString(v)
		}
	}
}

func fieldName(key ast.Expr) string {
	if id, ok := key.(*ast.Ident); ok {
		return id.Name
	}
	return ""
}

func isVerifier(field string) bool {
	return field == "VerifyConnection" || field == "VerifyPeerCertificate"
}

// setsVerifier reports whether the value is a function that may refuse a
// certificate: not nil, and not one that only returns nil.
func setsVerifier(value ast.Expr) bool {
	switch v := ast.Unparen(value).(type) {
	case *ast.Ident:
		if declared, ok := declaration(v).(*ast.FuncDecl); ok && declared.Body != nil {
			return mayRefuse(declared.Body)
		}
		return v.Name != "nil"
	case *ast.FuncLit:
		return mayRefuse(v.Body)
	case *ast.CallExpr:
		return !isConversion(v) || setsVerifier(v.Args[0])
	default:
		return true
	}
}

// mayRefuse reports whether a function's body does more than return nil.
func mayRefuse(body *ast.BlockStmt) bool {
	if len(body.List) != 1 {
		return len(body.List) > 0
	}
	ret, ok := body.List[0].(*ast.ReturnStmt)
	return !ok || len(ret.Results) != 1 || !isNil(ret.Results[0])
}

// isNil recognises nil, also in conversions and parentheses.
func isNil(value ast.Expr) bool {
	switch v := ast.Unparen(value).(type) {
	case *ast.Ident:
		return v.Name == "nil"
	case *ast.CallExpr:
		return isConversion(v) && isNil(v.Args[0])
	default:
		return false
	}
}

// isTrue recognises true, !false, constants of the file with such a value, and
// all of them in conversions and parentheses.
func (g *goFinder) isTrue(value ast.Expr) bool { return g.boolean(value, "true", maxConstants) }

var negation = map[string]string{"true": "false", "false": "true"}

func (g *goFinder) boolean(value ast.Expr, want string, left int) bool {
	switch v := ast.Unparen(value).(type) {
	case *ast.Ident:
		if declared := g.constant(v); declared != nil {
			return left > 0 && g.boolean(declared, want, left-1)
		}
		return v.Name == want
	case *ast.UnaryExpr:
		return v.Op == token.NOT && g.boolean(v.X, negation[want], left)
	case *ast.CallExpr:
		return isConversion(v) && g.boolean(v.Args[0], want, left)
	default:
		return false
	}
}

// goTokens finds the field, a colon or an equals sign, and true, perhaps negated
// or in parentheses, in a file that has no syntax tree.
func goTokens(ctx context.Context, f *source.File, m *Modules) []Observation {
	var s scanner.Scanner
	files := token.NewFileSet()
	file := files.AddFile(f.Path, -1, len(f.Text))
	s.Init(file, f.Text, nil, 0) // a broken token is skipped
	var found []Observation
	fits, at := 0, 0 // the number of the three tokens seen, and the offset of the first
	want := "true"
	for ctx.Err() == nil {
		pos, tok, text := s.Scan()
		switch {
		case tok == token.EOF:
			return found
		case tok == token.IDENT && text == skipVerify:
			fits, at, want = 1, file.Offset(pos), "true"
		case fits == 1 && (tok == token.COLON || tok == token.ASSIGN):
			fits = 2
		case fits == 2 && tok == token.LPAREN:
		case fits == 2 && tok == token.NOT:
			want = negation[want]
		default:
			if fits == 2 && tok == token.IDENT && text == want {
				r := skipsVerification()
				found = append(found, r.observe(f, m, at))
			}
			fits = 0
		}
	}
	return found
}
