package extract

import (
	"go/ast"
	"go/token"
)

// maxConstants bounds the constants that refer to each other.
const maxConstants = 100

// declaration finds the name's declaration in the same file, nil for none. The
// parser's own resolution is enough here: package types needs the whole package
// and its imports.
func declaration(name *ast.Ident) any {
	if name.Obj == nil {
		return nil
	}
	return name.Obj.Decl
}

// isConversion recognises conversions to a type that is written out, to error
// or bool, and to a type that the file declares.
func isConversion(call *ast.CallExpr) bool {
	if len(call.Args) != 1 {
		return false
	}
	switch to := ast.Unparen(call.Fun).(type) {
	case *ast.FuncType:
		return true
	case *ast.Ident:
		declared := declaration(to)
		if declared == nil {
			return to.Name == "error" || to.Name == "bool"
		}
		_, ok := declared.(*ast.TypeSpec)
		return ok
	default:
		return false
	}
}

// constant returns the value of a constant that the file declares, nil for
// another name.
func (g *goFinder) constant(name *ast.Ident) ast.Expr {
	spec, ok := declaration(name).(*ast.ValueSpec)
	if !ok {
		return nil
	}
	values := g.constants[spec]
	for i, n := range spec.Names {
		if n.Name == name.Name && i < len(values) {
			return values[i]
		}
	}
	return nil
}

// constantsOf finds the values of the constants. A declaration without values
// repeats those above it.
func constantsOf(file *ast.File) map[*ast.ValueSpec][]ast.Expr {
	all := make(map[*ast.ValueSpec][]ast.Expr)
	ast.Inspect(file, func(n ast.Node) bool {
		decl, ok := n.(*ast.GenDecl)
		if !ok || decl.Tok != token.CONST {
			return true
		}
		var values []ast.Expr
		for _, s := range decl.Specs {
			if spec, ok := s.(*ast.ValueSpec); ok {
				if len(spec.Values) > 0 {
					values = spec.Values
				}
				all[spec] = values
			}
		}
		return false
	})
	return all
}
