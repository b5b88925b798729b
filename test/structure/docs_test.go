package structure

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/internal/config"
	"berth/libcontainer"
	"berth/libcontainer/caps"
)

var update = flag.Bool("update", false, "write the generated parts of documents instead of comparing them")

// generated compares what stands between two marker lines of a document with
// want, or puts it there with -update.
func generated(t *testing.T, document, name, want string) {
	t.Helper()
	file := filepath.Join(root, document)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	begin, end := []byte("<!-- begin generated: "+name+" -->\n"), []byte("<!-- end generated: "+name+" -->\n")
	head, rest, ok := bytes.Cut(text, begin)
	if !ok {
		t.Fatalf("%s has no line %s", document, begin)
	}
	have, tail, ok := bytes.Cut(rest, end)
	if !ok {
		t.Fatalf("%s has no line %s", document, end)
	}
	if string(have) == want {
		return
	}
	if *update {
		if err := os.WriteFile(file, slices.Concat(head, begin, []byte(want), end, tail), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Errorf("%s: the generated part %q is out of date; run: make docs\nwant:\n%s", document, name, want)
}

// TestConfigurationDocs: docs/configuration.md lists every key that package
// config knows, with its default and the comment of its field.
func TestConfigurationDocs(t *testing.T) {
	comments := fieldComments(t, filepath.Join(root, "internal/config/config.go"))
	c := reflect.ValueOf(*config.Default())
	var out strings.Builder
	section := func(title string, v reflect.Value) {
		fmt.Fprintf(&out, "### %s\n\n| key | default | meaning |\n|---|---|---|\n", title)
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if f.Type.Kind() == reflect.Struct {
				continue // a section of its own
			}
			comment := comments[v.Type().Name()+"."+f.Name]
			if comment == "" {
				t.Errorf("%s.%s has no comment", v.Type().Name(), f.Name)
			}
			daemon, _, _ := strings.Cut(strings.Trim(title, "`[]"), ".")
			if !readBy(t, daemon, f.Name) {
				comment += " (**not obeyed yet**)"
			}
			fmt.Fprintf(&out, "| `%s` | %s | %s |\n", f.Tag.Get("toml"), defaultText(v.Field(i)), strings.ReplaceAll(comment, "|", "\\|"))
		}
		out.WriteString("\n")
	}
	section("At the top", c)
	for i := range c.NumField() {
		if f := c.Type().Field(i); f.Type.Kind() == reflect.Struct {
			section("`["+f.Tag.Get("toml")+"]`", c.Field(i))
			for j := range f.Type.NumField() {
				if sub := f.Type.Field(j); sub.Type.Kind() == reflect.Struct {
					section("`["+f.Tag.Get("toml")+"."+sub.Tag.Get("toml")+"]`", c.Field(i).Field(j))
				}
			}
		}
	}
	generated(t, "docs/configuration.md", "keys", out.String())
}

// readBy reports whether a daemon's code mentions a field of its section. Keys at
// the top, which have no daemon's folder, are read by package daemon.
func readBy(t *testing.T, daemon, field string) bool {
	t.Helper()
	folder := filepath.Join("services", daemon)
	if _, err := os.Stat(filepath.Join(root, folder)); err != nil {
		return true
	}
	mention := regexp.MustCompile(`\.` + field + `\b`)
	for _, p := range tree(t) {
		if !under(p.path(), folder) {
			continue
		}
		for _, name := range p.GoFiles {
			source, err := os.ReadFile(filepath.Join(p.Dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if mention.Match(source) {
				return true
			}
		}
	}
	return false
}

// fieldComments are the comments of the struct fields in a file, by
// "Type.Field", without the field's name at the beginning.
func fieldComments(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	comments := map[string]string{}
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		s, ok := spec.Type.(*ast.StructType)
		if !ok {
			return true
		}
		for _, field := range s.Fields.List {
			for _, name := range field.Names {
				text := strings.Join(strings.Fields(field.Doc.Text()), " ")
				comments[spec.Name.Name+"."+name.Name] = sentence(strings.TrimPrefix(text, name.Name+" "))
			}
		}
		return true
	})
	return comments
}

// sentence makes "is the size of x." into "the size of x".
func sentence(s string) string {
	for _, verb := range []string{"is ", "are "} {
		if rest, ok := strings.CutPrefix(s, verb); ok {
			s = rest
			break
		}
	}
	return strings.TrimSuffix(s, ".")
}

func defaultText(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case config.Duration:
		return "`\"" + shortDuration(time.Duration(x)) + "\"`"
	case config.Size:
		return "`\"" + binary(int64(x)) + "\"`"
	case string:
		return "`\"" + x + "\"`"
	}
	switch v.Kind() {
	case reflect.Slice:
		if v.Len() == 0 {
			return "`[]`"
		}
	case reflect.Map:
		if v.Len() == 0 {
			return "none"
		}
	}
	return fmt.Sprintf("`%v`", v.Interface())
}

// shortDuration is "30m", not "30m0s".
func shortDuration(d time.Duration) string {
	s := d.String()
	if rest, ok := strings.CutSuffix(s, "m0s"); ok {
		s = rest + "m"
	}
	if rest, ok := strings.CutSuffix(s, "h0m"); ok {
		s = rest + "h"
	}
	return s
}

// binary is n with the largest unit that divides it.
func binary(n int64) string {
	units := []string{"", "KiB", "MiB", "GiB", "TiB"}
	i := 0
	for i < len(units)-1 && n != 0 && n%1024 == 0 {
		n, i = n/1024, i+1
	}
	return fmt.Sprintf("%d%s", n, units[i])
}

var rowTest = regexp.MustCompile(`(?m)^func Test([SF])(\d{2})\w*\(`)

// TestRowsInContributing: CONTRIBUTING.md lists which rows of the security and
// fault tables have a test, and in which packages. The tests' own names are left
// to grep: a list of them would have to change with every test.
func TestRowsInContributing(t *testing.T) {
	where := map[string]map[string]bool{}
	for _, p := range tree(t) {
		for _, name := range p.files() {
			if !strings.HasSuffix(name, "_test.go") {
				continue
			}
			source, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range rowTest.FindAllStringSubmatch(string(source), -1) {
				row := m[1] + "-" + m[2]
				if where[row] == nil {
					where[row] = map[string]bool{}
				}
				where[row][p.path()] = true
			}
		}
	}
	if len(where) == 0 {
		t.Fatal("no test is named after a row")
	}
	var out strings.Builder
	out.WriteString("| row | tested in |\n|---|---|\n")
	rows := slices.SortedFunc(maps.Keys(where), func(a, b string) int { // S before F
		if a[0] != b[0] {
			return int(b[0]) - int(a[0])
		}
		return strings.Compare(a, b)
	})
	for _, row := range rows {
		fmt.Fprintf(&out, "| %s | %s |\n", row, strings.Join(slices.Sorted(maps.Keys(where[row])), ", "))
	}
	generated(t, "CONTRIBUTING.md", "rows", out.String())
}

// TestExampleInDocs: the program that docs/libcontainer.md shows is the one that
// is compiled and run by its own test.
func TestExampleInDocs(t *testing.T) {
	source, err := os.ReadFile(filepath.Join(root, "docs/examples/box/main.go"))
	if err != nil {
		t.Fatal(err)
	}
	generated(t, "docs/libcontainer.md", "example", "```go\n"+string(source)+"```\n")
}

var mdLink = regexp.MustCompile(`\]\(([^)\s]+)\)`)

// TestLinks: every link from a document to a file of the repository leads to
// one, and every picture is shown somewhere.
func TestLinks(t *testing.T) {
	shown := map[string]bool{}
	for _, doc := range documents(t) {
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range mdLink.FindAllStringSubmatch(string(text), -1) {
			target, _, _ := strings.Cut(m[1], "#")
			if target == "" || strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			file := filepath.Join(filepath.Dir(doc), target)
			if _, err := os.Stat(file); err != nil {
				t.Errorf("%s: link to %s: %v", doc, target, err)
			}
			shown[file] = true
		}
	}
	pictures, err := filepath.Glob(filepath.Join(root, "docs/img/*.svg"))
	if err != nil || len(pictures) == 0 {
		t.Fatalf("no pictures: %v", err)
	}
	for _, p := range pictures {
		if !shown[p] {
			t.Errorf("%s is shown in no document", p)
		}
	}
}

// documents are the Markdown files at the top and in docs/.
func documents(t *testing.T) []string {
	t.Helper()
	top, err := filepath.Glob(filepath.Join(root, "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	docs, err := filepath.Glob(filepath.Join(root, "docs/*.md"))
	if err != nil || len(docs) == 0 {
		t.Fatalf("no documents: %v", err)
	}
	return append(top, docs...)
}

var commandUse = regexp.MustCompile(`Use:\s+"([a-z]+)`)

// TestCommandsInDocs: docs/cli.md names every command that the CLI has.
func TestCommandsInDocs(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "docs/cli.md"))
	if err != nil {
		t.Fatal(err)
	}
	sources, err := filepath.Glob(filepath.Join(root, "cli/*.go"))
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, name := range sources {
		source, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range commandUse.FindAllStringSubmatch(string(source), -1) {
			found++
			if !regexp.MustCompile("`[^`\n]*\\b" + m[1] + "\\b[^`\n]*`").Match(text) {
				t.Errorf("docs/cli.md does not name the command %q of %s", m[1], filepath.Base(name))
			}
		}
	}
	if found < 20 {
		t.Fatalf("only %d commands found in cli/", found)
	}
}

// TestPrivilegesInDocs: docs/security.md says what containers and daemons may
// do; this compares it with what they may.
func TestPrivilegesInDocs(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "docs/security.md"))
	if err != nil {
		t.Fatal(err)
	}
	row := func(first string) string {
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "| "+first+" |") {
				return line
			}
		}
		t.Fatalf("docs/security.md has no row %q", first)
		return ""
	}
	names := caps.Default.Names()
	line := row("capabilities")
	for _, n := range names {
		if !strings.Contains(line, strings.TrimPrefix(n, "CAP_")) {
			t.Errorf("docs/security.md does not list the capability %s of containers", n)
		}
	}
	if !strings.Contains(line, fmt.Sprintf(" %d: ", len(names))) {
		t.Errorf("docs/security.md does not say that containers have %d capabilities", len(names))
	}
	for _, p := range libcontainer.DefaultReadOnly() {
		if last := p[strings.LastIndex(p, "/")+1:]; !strings.Contains(row("read-only"), last) {
			t.Errorf("docs/security.md does not list %s as read-only", p)
		}
	}
	for _, p := range libcontainer.DefaultMasked() {
		if last := p[strings.LastIndex(p, "/")+1:]; strings.HasPrefix(p, "/proc/") && !strings.Contains(row("hidden"), last) {
			t.Errorf("docs/security.md does not list %s as hidden", p)
		}
	}
	for _, daemon := range []string{"imaged", "netd"} {
		for _, c := range keptCapabilities(t, daemon) {
			if !strings.Contains(row(daemon), c) {
				t.Errorf("docs/security.md does not say that %s keeps %s", daemon, c)
			}
		}
	}
	if lost := keptCapabilities(t, "execd"); !strings.Contains(row("execd"), fmt.Sprintf("without %d capabilities", len(lost))) {
		t.Errorf("docs/security.md does not say that execd gives up %d capabilities", len(lost))
	}
}

var capabilityList = regexp.MustCompile(`(?s)(?:Keep|Lose):\s+\[\]string\{(.*?)\}`)

// keptCapabilities are those in the Spec of a daemon: what it keeps,
// or what it gives up if it runs as root.
func keptCapabilities(t *testing.T, daemon string) []string {
	t.Helper()
	path := filepath.Join(root, "services", daemon, daemon+".go")
	if daemon == "imaged" { // a program of its own
		path = filepath.Join(root, "services", daemon, "main.go")
	}
	source, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	m := capabilityList.FindSubmatch(source)
	if m == nil {
		t.Fatalf("%s names no capabilities", path)
	}
	var list []string
	for _, quoted := range regexp.MustCompile(`"([A-Z_]+)"`).FindAllSubmatch(m[1], -1) {
		list = append(list, string(quoted[1]))
	}
	return list
}
