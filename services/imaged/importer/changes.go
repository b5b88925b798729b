package importer

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"berth/internal/fault"
	"berth/services/imaged/manifest"
)

// apply applies one Dockerfile instruction to p: CMD, ENTRYPOINT, ENV, EXPOSE,
// LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR, each as in a Dockerfile without
// variables.
func apply(p *manifest.Process, change string) error {
	word, rest, _ := strings.Cut(strings.TrimSpace(change), " ")
	rest = strings.TrimSpace(rest)
	f := instructions[strings.ToUpper(word)]
	if f == nil {
		return badChange(change, "is none of "+strings.Join(slices.Sorted(maps.Keys(instructions)), ", "))
	}
	if rest == "" {
		return badChange(change, "lacks a value")
	}
	if !f(p, rest) {
		return badChange(change, "is malformed")
	}
	return nil
}

func badChange(change, why string) error {
	return fault.InvalidArgument.Errorf("BAD_CHANGE", "change %q %s", change, why).With("change", change)
}

// instructions apply the rest of the line and report whether they understood it.
var instructions = map[string]func(p *manifest.Process, rest string) bool{
	"CMD": func(p *manifest.Process, rest string) (ok bool) {
		p.Cmd, ok = command(rest)
		return ok
	},
	"ENTRYPOINT": func(p *manifest.Process, rest string) (ok bool) {
		p.Entrypoint, ok = command(rest)
		return ok
	},
	"ENV": func(p *manifest.Process, rest string) bool {
		return pairs(rest, func(k, v string) {
			p.Env = slices.DeleteFunc(p.Env, func(e string) bool { return strings.HasPrefix(e, k+"=") })
			p.Env = append(p.Env, k+"="+v)
		})
	},
	"LABEL": func(p *manifest.Process, rest string) bool {
		if p.Labels == nil {
			p.Labels = map[string]string{}
		}
		return pairs(rest, func(k, v string) { p.Labels[k] = v })
	},
	"EXPOSE": func(p *manifest.Process, rest string) bool {
		p.ExposedPorts = add(p.ExposedPorts, strings.Fields(rest), func(port string) string {
			if !strings.Contains(port, "/") {
				port += "/tcp"
			}
			return port
		})
		return true
	},
	"VOLUME": func(p *manifest.Process, rest string) bool {
		paths, ok := list(rest)
		if !ok {
			paths = strings.Fields(rest)
		}
		p.Volumes = add(p.Volumes, paths, func(path string) string { return path })
		return true
	},
	"STOPSIGNAL": func(p *manifest.Process, rest string) bool { p.StopSignal = rest; return true },
	"USER":       func(p *manifest.Process, rest string) bool { p.User = rest; return true },
	"WORKDIR":    func(p *manifest.Process, rest string) bool { p.WorkingDir = rest; return true },
}

// command is the exec form (a JSON list) or the shell form.
func command(text string) ([]string, bool) {
	if args, ok := list(text); ok {
		return args, true
	}
	return []string{"/bin/sh", "-c", text}, true
}

func list(text string) (all []string, ok bool) {
	return all, strings.HasPrefix(text, "[") && json.Unmarshal([]byte(text), &all) == nil
}

func add(set map[string]struct{}, words []string, f func(string) string) map[string]struct{} {
	if set == nil {
		set = map[string]struct{}{}
	}
	for _, w := range words {
		set[f(w)] = struct{}{}
	}
	return set
}

// pairs reads "a=b c='d e'", or the old form "a b", which is one pair.
func pairs(text string, f func(k, v string)) bool {
	words, ok := split(text)
	if !ok {
		return false
	}
	if !strings.Contains(words[0], "=") {
		k, v, ok := strings.Cut(text, " ")
		if ok {
			f(k, strings.TrimSpace(v))
		}
		return ok
	}
	for _, w := range words {
		k, v, ok := strings.Cut(w, "=")
		if !ok || k == "" {
			return false
		}
		f(k, v)
	}
	return true
}

// split splits text at blanks outside of quotes, and takes quotes and
// backslashes away.
func split(text string) (words []string, ok bool) {
	var word strings.Builder
	var quote byte
	inWord := false
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c == '\\' && quote != '\'' && i+1 < len(text):
			i++
			word.WriteByte(text[i])
			inWord = true
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote, inWord = c, true
		case quote == 0 && (c == ' ' || c == '\t'):
			if inWord {
				words = append(words, word.String())
				word.Reset()
				inWord = false
			}
		default:
			word.WriteByte(c)
			inWord = true
		}
	}
	if inWord {
		words = append(words, word.String())
	}
	return words, quote == 0 && len(words) > 0
}
