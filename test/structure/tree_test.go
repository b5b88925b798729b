package structure

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// module is the import path of the repository's root.
const module = "berth"

// root is the top of the repository, as seen from this package.
const root = "../.."

// pkg is what `go list -json` says of a package.
type pkg struct {
	ImportPath, Name, Dir, Doc         string
	GoFiles, TestGoFiles, XTestGoFiles []string
	Imports, TestImports, XTestImports []string
}

// path is the package's folder below the root: "services/apid/job".
func (p *pkg) path() string { return strings.TrimPrefix(p.ImportPath, module+"/") }

// files are all of the package's Go files, tests included, as full paths.
func (p *pkg) files() []string {
	var all []string
	for _, names := range [][]string{p.GoFiles, p.TestGoFiles, p.XTestGoFiles} {
		for _, n := range names {
			all = append(all, filepath.Join(p.Dir, n))
		}
	}
	return all
}

// ours are the packages of the repository that an import list names, by folder.
func ours(imports []string) []string {
	var paths []string
	for _, i := range imports {
		if path, ok := strings.CutPrefix(i, module+"/"); ok {
			paths = append(paths, path)
		}
	}
	return paths
}

// under reports whether path is one of the folders or below one.
func under(path string, folders ...string) bool {
	for _, f := range folders {
		if path == f || strings.HasPrefix(path, f+"/") {
			return true
		}
	}
	return false
}

// goList runs go list with the tags that some tests need and decodes it. CGO is
// off, as in every build of ours.
func goList(t testing.TB, args ...string) []*pkg {
	t.Helper()
	list := exec.Command("go", append([]string{"list", "-tags", "e2e", "-json=ImportPath,Name,Dir,Doc,GoFiles,TestGoFiles,XTestGoFiles,Imports,TestImports,XTestImports"}, args...)...)
	list.Dir = root
	list.Env = append(os.Environ(), "CGO_ENABLED=0")
	var stderr bytes.Buffer
	list.Stderr = &stderr
	out, err := list.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	var pkgs []*pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		p := new(pkg)
		err := d.Decode(p)
		if errors.Is(err, io.EOF) {
			return pkgs
		}
		if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

var (
	treeOnce sync.Once
	treePkgs []*pkg
)

// tree is every package of the repository, listed once.
func tree(t testing.TB) []*pkg {
	t.Helper()
	treeOnce.Do(func() { treePkgs = goList(t, "./...") })
	if len(treePkgs) < 20 {
		t.Fatalf("go list found %d packages: the rules below would hold of nothing", len(treePkgs))
	}
	return treePkgs
}
