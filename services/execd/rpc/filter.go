package rpc

import (
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
	"berth/services/execd/container"
)

// filters are conditions by key. Values of one key are alternatives, keys all
// have to hold; labels all have to hold too, as in Docker.
type filters map[string][]string

func parseFilters(list []string, known ...string) (filters, error) {
	f := make(filters)
	for _, s := range list {
		key, value, ok := strings.Cut(s, "=")
		if !ok || !slices.Contains(known, key) {
			return nil, fault.InvalidArgument.Errorf("FILTER", "filter %q is not known", s).
				Hint("filters are: %s", strings.Join(known, ", "))
		}
		f[key] = append(f[key], value)
	}
	return f, nil
}

// any reports whether ok holds for one of key's values, or there are none.
func (f filters) any(key string, ok func(string) bool) bool {
	return len(f[key]) == 0 || slices.ContainsFunc(f[key], ok)
}

// label is "key" or "key=value".
func hasLabel(labels map[string]string, want string) bool {
	key, value, valued := strings.Cut(want, "=")
	got, ok := labels[key]
	return ok && (!valued || got == value)
}

// listFilter is a request's filters, with what they name looked up.
type listFilter struct {
	filters
	names  []*regexp.Regexp
	states bool // some filter is about states of containers that do not run
	before *container.Info
	since  *container.Info
}

func (s *containerService) listFilter(list []string) (*listFilter, error) {
	f, err := parseFilters(list, "name", "id", "status", "label", "ancestor", "exited", "network", "publish", "expose", "volume", "before", "since")
	if err != nil {
		return nil, err
	}
	l := &listFilter{filters: f, states: len(f["status"])+len(f["exited"]) > 0}
	for _, name := range f["name"] {
		re, err := regexp.Compile(name)
		if err != nil {
			return nil, fault.InvalidArgument.Errorf("FILTER", "filter name=%s: %w", name, err)
		}
		l.names = append(l.names, re)
	}
	for _, st := range f["status"] {
		if !slices.Contains([]string{"created", "running", "paused", "restarting", "removing", "exited", "dead"}, st) {
			return nil, fault.InvalidArgument.Errorf("FILTER", "filter status=%s: no such state", st)
		}
	}
	for _, code := range f["exited"] {
		if _, err := strconv.Atoi(code); err != nil {
			return nil, fault.InvalidArgument.Errorf("FILTER", "filter exited=%s: not a number", code)
		}
	}
	for key, to := range map[string]**container.Info{"before": &l.before, "since": &l.since} {
		for _, ref := range f[key] {
			c, err := s.find(ref)
			if err != nil {
				return nil, err
			}
			*to = c.Info()
		}
	}
	return l, nil
}

func (l *listFilter) match(i *container.Info) bool {
	own := labels(i)
	for _, want := range l.filters["label"] {
		if !hasLabel(own, want) {
			return false
		}
	}
	if len(l.names) > 0 && !slices.ContainsFunc(l.names, func(re *regexp.Regexp) bool {
		return re.MatchString(i.Name) || re.MatchString("/"+i.Name)
	}) {
		return false
	}
	if l.before != nil && !i.CreatedAt.Before(l.before.CreatedAt) || l.since != nil && !i.CreatedAt.After(l.since.CreatedAt) {
		return false
	}
	return l.any("id", func(v string) bool { return strings.HasPrefix(i.ID, v) }) &&
		l.any("status", func(v string) bool { return stateWord(i.State) == v }) &&
		l.any("exited", func(v string) bool { return i.State == container.Exited && strconv.Itoa(int(code(i))) == v }) &&
		l.any("ancestor", func(v string) bool { return isImage(i, v) }) &&
		l.any("network", func(v string) bool { return inNetwork(i, v) }) &&
		l.any("publish", func(v string) bool { return publishes(i, v) }) &&
		l.any("expose", func(v string) bool { return exposes(i, v) }) &&
		l.any("volume", func(v string) bool { return mounts(i, v) })
}

func stateWord(s container.State) string {
	if s == container.Starting {
		return "created"
	}
	return string(s)
}

// isImage takes a reference as the user wrote it, with or without tag, or an id.
func isImage(i *container.Info, v string) bool {
	image := i.Spec.GetImage()
	repo, _, _ := strings.Cut(image, "@")
	if base := path.Base(repo); strings.Contains(base, ":") {
		repo = repo[:strings.LastIndex(repo, ":")]
	}
	_, hex, _ := strings.Cut(i.ImageID, ":")
	id := len(v) >= 4 && strings.HasPrefix(hex, v) || len(v) >= len("sha256:0123") && strings.HasPrefix(i.ImageID, v)
	return v == image || v == repo || v == repo+":latest" && image == repo || id
}

func inNetwork(i *container.Info, v string) bool {
	for _, e := range i.Endpoints {
		if e.Network == v || e.NetworkId == v {
			return true
		}
	}
	return i.Spec.GetNetwork().GetMode() == v
}

// publishes takes "80", "80/tcp" of the host's or the container's side.
func publishes(i *container.Info, v string) bool {
	port, proto, hasProto := strings.Cut(v, "/")
	for _, e := range i.Endpoints {
		for _, p := range e.Ports {
			if hasProto && protocol(p) != proto {
				continue
			}
			if port == strconv.Itoa(int(p.HostPort)) || port == strconv.Itoa(int(p.ContainerPort)) {
				return true
			}
		}
	}
	return false
}

func exposes(i *container.Info, v string) bool {
	if !strings.Contains(v, "/") {
		v += "/tcp"
	}
	return slices.Contains(i.Image.GetExposedPorts(), v) || slices.Contains(i.Spec.GetNetwork().GetExpose(), v) || publishes(i, v)
}

func protocol(p *apiv1.PortMapping) string {
	if p.Protocol == "" {
		return "tcp"
	}
	return p.Protocol
}

func mounts(i *container.Info, v string) bool {
	return slices.ContainsFunc(i.Mounts, func(m *apiv1.MountPoint) bool {
		return m.Name == v || m.Source == v || m.Target == v
	})
}
