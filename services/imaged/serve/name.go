package serve

import (
	"regexp"
	"strings"

	"berth/internal/names"
)

// The grammar of the distribution specification, of which nothing can be a path with "..", a digest or a header.
var (
	pathForm = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	portForm = regexp.MustCompile(`^(.+)_([0-9]{1,5})$`)
)

const maxPath = 255

func validPath(path string) bool { return len(path) <= maxPath && pathForm.MatchString(path) }

// validTag is by hand, as package names is: [a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}.
func validTag(tag string) bool {
	return names.Valid(tag) || tag[:min(1, len(tag))] == "_" && (tag == "_" || names.Valid("a"+tag[1:]))
}

// A path in a request means, in this order,
//
//	team/app                  what was pushed as team/app
//	docker.io/library/debian  the image of this name, from whatever registry; for one with a port, "host_5000/app"
//	library/debian            docker.io/library/debian, so that this is a mirror of it
//
// Only the first can be pushed to: a pusher must not be able to replace the images this host runs.

// others are the names of images that path may mean beside what was pushed.
func others(path string) []string {
	all := []string{"docker.io/" + path}
	if domain, rest, ok := foreign(path); ok {
		all = append(all, domain+"/"+rest)
	}
	return all
}

// foreign splits a path that begins with the name of a registry.
func foreign(path string) (domain, rest string, ok bool) {
	first, rest, ok := strings.Cut(path, "/")
	if !ok {
		return "", "", false
	}
	if m := portForm.FindStringSubmatch(first); m != nil {
		return m[1] + ":" + m[2], rest, true
	}
	return first, rest, first == "localhost" || strings.Contains(first, ".")
}

// pathOf is the path under which images of a repository are served; own is this registry's name. Names that the grammar
// has no path for are not served.
func pathOf(repo, own string) (string, bool) {
	if path, ok := strings.CutPrefix(repo, own+"/"); ok {
		return path, validPath(path)
	}
	domain, rest, _ := strings.Cut(repo, "/")
	path := strings.ReplaceAll(domain, ":", "_") + "/" + rest
	return path, validPath(path)
}
