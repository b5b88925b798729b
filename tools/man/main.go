// Man writes manual pages from what a command line says about itself with --help, one for the program and one for each
// command, so that the pages never say anything else than the program. A command with two names, such as `berth run`
// and `berth container run`, gets one page, to which the second name points.
//
//	man -o DIRECTORY PROGRAM
//
// It reads the help text that cobra's default template prints.
package main

import (
	"bytes"
	_ "embed"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// What no help text says: environment, files, exit codes. It ends the program's own page.
//
//go:embed end.roff
var end string

func main() {
	dir := flag.String("o", ".", "directory for the pages")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: man -o DIRECTORY PROGRAM")
		os.Exit(2)
	}
	w := writer{dir: *dir, program: flag.Arg(0), seen: map[string]string{}}
	if err := w.page(filepath.Base(w.program)); err != nil {
		fmt.Fprintln(os.Stderr, "man:", err)
		os.Exit(1)
	}
}

type writer struct {
	dir, program string
	seen         map[string]string // what a command is and takes, to the page that says so
}

var (
	// entry is a line of a list, "  -d, --detach   run in the background" or "  attach   Attach this terminal …".
	entry  = regexp.MustCompile(`^ {2,}(\S.*?) {2,}(\S.*)$`)
	ofHelp = regexp.MustCompile(`help for \S+`)
	// leading is a dot or an apostrophe that troff would take for a request.
	leading = regexp.MustCompile(`(?m)^[.']`)
)

// page writes the page of a command, such as "berth image", and those of its subcommands.
func (w *writer) page(words ...string) error {
	help, err := exec.Command(w.program, append(words[1:len(words):len(words)], "--help")...).Output()
	if err != nil {
		return fmt.Errorf("%s --help: %w", strings.Join(words, " "), err)
	}
	name := strings.Join(words, "-")
	about, sections, _ := strings.Cut(string(help), "\nUsage:\n")
	usage, lists, _ := strings.Cut(sections, "\n\n")

	summary, _, _ := strings.Cut(about, "\n")
	_, options, _ := strings.Cut(lists, "Flags:\n")
	same := summary + ofHelp.ReplaceAllString(options, "")
	if other := w.seen[same]; other != "" {
		return w.write(name, ".so man1/"+other+".1\n")
	}
	w.seen[same] = name

	var b bytes.Buffer
	fmt.Fprintf(&b, ".TH %s 1 \"\" Berth \"User commands\"\n", strings.ToUpper(roff(name)))
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n.SH SYNOPSIS\n.nf\n", roff(name), roff(strings.TrimSuffix(summary, ".")))
	for line := range strings.Lines(usage) {
		fmt.Fprintf(&b, ".B %s\n", roff(strings.TrimSuffix(strings.TrimSpace(line), " [flags]")))
	}
	fmt.Fprint(&b, ".fi\n.SH DESCRIPTION\n", prose(about))
	for _, list := range strings.Split(strings.TrimSpace(lists), "\n\n") {
		title, body, more := strings.Cut(list, ":\n")
		if !more {
			continue // the last line, which says how to get more help
		}
		fmt.Fprintf(&b, ".SH %s\n", strings.ToUpper(strings.Replace(title, "Flags", "Options", 1)))
		if title == "Examples" {
			b.WriteString(example(body))
			continue
		}
		if err := w.list(&b, words, body); err != nil {
			return err
		}
	}
	if len(words) == 1 {
		b.WriteString(end)
	} else {
		fmt.Fprintf(&b, ".SH SEE ALSO\n.BR %s (1)\n", words[0])
	}
	return w.write(name, b.String())
}

// list writes options or commands, and the pages of those commands.
func (w *writer) list(b *bytes.Buffer, words []string, body string) error {
	for line := range strings.Lines(body) {
		m := entry.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		switch {
		case m == nil:
			b.WriteString(roff(strings.TrimLeft(line, " ")))
		case m[1][0] == '-' || m[1] == "help" || words[len(words)-1] == "completion":
			fmt.Fprintf(b, ".TP\n\\fB%s\\fR\n%s\n", roff(m[1]), roff(m[2]))
		default:
			command := append(words[:len(words):len(words)], m[1])
			fmt.Fprintf(b, ".TP\n.BR %s (1)\n%s\n", roff(strings.Join(command, "-")), roff(m[2]))
			if err := w.page(command...); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *writer) write(name, text string) error {
	return os.WriteFile(filepath.Join(w.dir, name+".1"), []byte(text), 0o644)
}

// prose keeps paragraphs apart, and indented ones as they are.
func prose(text string) string {
	var out []string
	for _, p := range strings.Split(strings.TrimSpace(text), "\n\n") {
		if strings.ContainsAny(p[:1], " \t") {
			out = append(out, example(p))
		} else {
			out = append(out, roff(p)+"\n")
		}
	}
	return strings.Join(out, ".PP\n")
}

func example(text string) string {
	text = strings.TrimPrefix(strings.ReplaceAll("\n"+strings.TrimRight(text, "\n"), "\n  ", "\n"), "\n")
	return ".EX\n" + roff(text) + "\n.EE\n"
}

// roff escapes what troff would take for its own.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	return leading.ReplaceAllString(s, `\&$0`)
}
