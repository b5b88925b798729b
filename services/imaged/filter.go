package main

import (
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth/internal/fault"
	"berth/services/imaged/images"

	"github.com/distribution/reference"
)

// matcher decides whether an image is wanted.
type matcher func(images.Info) bool

// filter makes one matcher of filters "key=value". As with Docker, values of
// the same key are alternatives, except labels, and different keys must all
// hold.
func filter(filters []string, make func(key, value string) (matcher, error)) (matcher, error) {
	byKey := map[string][]matcher{}
	for _, f := range filters {
		key, value, ok := strings.Cut(f, "=")
		if !ok || value == "" {
			return nil, badFilter(f)
		}
		negated := strings.HasSuffix(key, "!") // label!=x
		m, err := make(strings.TrimSuffix(key, "!"), value)
		if err != nil {
			return nil, err
		}
		if m == nil || negated && !strings.HasPrefix(key, "label") {
			return nil, badFilter(f)
		}
		if negated {
			positive := m
			m = func(i images.Info) bool { return !positive(i) }
		}
		group := key
		if strings.HasPrefix(key, "label") {
			group = f
		}
		byKey[group] = append(byKey[group], m)
	}
	return func(i images.Info) bool {
		for _, any := range byKey {
			if !slices.ContainsFunc(any, func(m matcher) bool { return m(i) }) {
				return false
			}
		}
		return true
	}, nil
}

func badFilter(f string) error {
	return fault.InvalidArgument.Errorf("BAD_FILTER", "filter %q is not understood", f).With("filter", f)
}

// listFilter makes the matcher of image list: dangling, label, before, since,
// reference.
func (s *server) listFilter(filters []string) (matcher, error) {
	return filter(filters, func(key, value string) (matcher, error) {
		switch key {
		case "before", "since":
			than, err := s.inspect(value)
			return func(i images.Info) bool {
				if key == "before" {
					return i.Created.Before(than.Created)
				}
				return i.Created.After(than.Created)
			}, err
		case "reference":
			if _, err := path.Match(value, ""); err != nil {
				return nil, badFilter("reference=" + value)
			}
			return func(i images.Info) bool {
				return slices.ContainsFunc(slices.Concat(i.Tags, i.Digests), func(n string) bool { return nameMatches(value, n) })
			}, nil
		}
		return commonFilter(key, value), nil
	})
}

// pruneFilter makes the matcher of image prune: until, label, dangling.
func pruneFilter(filters []string) (matcher, error) {
	return filter(filters, func(key, value string) (matcher, error) {
		if key != "until" {
			return commonFilter(key, value), nil
		}
		until, err := moment(value)
		return func(i images.Info) bool { return i.Created.Before(until) }, err
	})
}

// moment reads a time, or how long ago it was.
func moment(text string) (time.Time, error) {
	if d, err := time.ParseDuration(text); err == nil {
		return time.Now().Add(-d), nil
	}
	if seconds, err := strconv.ParseInt(text, 10, 64); err == nil {
		return time.Unix(seconds, 0), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, badFilter("until=" + text)
}

func commonFilter(key, value string) matcher {
	switch key {
	case "dangling":
		want, err := strconv.ParseBool(value)
		if err != nil {
			return nil
		}
		return func(i images.Info) bool { return (len(i.Tags) == 0) == want }
	case "label":
		k, v, hasValue := strings.Cut(value, "=")
		return func(i images.Info) bool {
			have, ok := i.Labels[k]
			return ok && (!hasValue || have == v)
		}
	}
	return nil
}

// nameMatches matches a pattern with a familiar name, with or without its tag.
func nameMatches(pattern, name string) bool {
	if ok, _ := path.Match(pattern, name); ok {
		return true
	}
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return false
	}
	ok, _ := path.Match(pattern, reference.FamiliarName(named))
	return ok
}

// pageOf cuts the page after the element whose key is token out of all. A size
// of 0 is everything.
func pageOf[T any](all []T, size int32, token string, key func(T) string) (page []T, next string) {
	if token != "" {
		at := slices.IndexFunc(all, func(e T) bool { return key(e) == token })
		all = all[at+1:] // from the start if it is gone
	}
	if size <= 0 || int(size) >= len(all) {
		return all, ""
	}
	return all[:size], key(all[size-1])
}
