package structure

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"testing"
)

// TestPackageComments: a package's comment says what it is for, in the form that
// go doc expects.
func TestPackageComments(t *testing.T) {
	for _, p := range tree(t) {
		doc := p.Doc
		if len(p.GoFiles) == 0 { // tests only; go list has no Doc for them
			doc = testPackageDoc(t, p)
		}
		want := []string{"Package " + p.Name + " "}
		if p.Name == "main" {
			base := p.path()[strings.LastIndex(p.path(), "/")+1:]
			// The command line's program has another name than its folder.
			want = []string{"Command " + base + " ", strings.ToUpper(base[:1]) + base[1:] + " ", "Berth is "}
		}
		if under(p.path(), "proto") {
			continue // generated; the .proto files are what is documented
		}
		if !startsWithOne(doc, want) {
			t.Errorf("%s: package comment %q does not start with %q", p.path(), doc, want[0])
		}
	}
}

func startsWithOne(s string, prefixes []string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}

func testPackageDoc(t *testing.T, p *pkg) string {
	for _, name := range p.files() {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments|parser.PackageClauseOnly)
		if err != nil {
			t.Fatal(err)
		}
		if f.Doc != nil {
			return f.Doc.Text()
		}
	}
	return ""
}

// TestSkipsSayWhy: a test that is skipped for no stated reason reads as one that
// passed.
func TestSkipsSayWhy(t *testing.T) {
	for _, p := range tree(t) {
		for _, name := range p.files() {
			if !strings.HasSuffix(name, "_test.go") && !under(p.path(), "test", "services/imaged/graph/graphtest") {
				continue
			}
			set := token.NewFileSet()
			f, err := parser.ParseFile(set, name, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				method, ok := call.Fun.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				switch method.Sel.Name {
				case "SkipNow":
					t.Errorf("%s: SkipNow cannot say why: use Skip", set.Position(call.Pos()))
				case "Skip", "Skipf":
					if receiver, ok := method.X.(*ast.Ident); ok && (receiver.Name == "t" || receiver.Name == "tb" || receiver.Name == "b" || receiver.Name == "f") && !hasReason(call) {
						t.Errorf("%s: skips without a reason", set.Position(call.Pos()))
					}
				}
				return true
			})
		}
	}
}

// hasReason is for literal text of at least two words; what is computed passes.
func hasReason(call *ast.CallExpr) bool {
	if len(call.Args) == 0 {
		return false
	}
	text, ok := call.Args[0].(*ast.BasicLit)
	return !ok || len(strings.Fields(text.Value)) >= 2
}
