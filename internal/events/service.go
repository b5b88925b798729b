package events

import (
	"slices"
	"strings"

	"google.golang.org/grpc"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
)

// Register serves EventService from the ring.
func Register(g *grpc.Server, ring *Ring) {
	apiv1.RegisterEventServiceServer(g, &service{ring: ring})
}

type service struct {
	apiv1.UnimplementedEventServiceServer
	ring *Ring
}

// Watch is EventService.Watch.
func (s *service) Watch(req *apiv1.EventServiceWatchRequest, stream grpc.ServerStreamingServer[apiv1.EventServiceWatchResponse]) error {
	match, err := filter(req.GetFilters())
	if err != nil {
		return err
	}
	q := Query{After: req.GetSinceSequence(), Match: match}
	if req.Since != nil {
		q.Since = req.Since.AsTime()
	}
	if req.Until != nil {
		q.Until = req.Until.AsTime()
	}
	// The header tells the client that it misses nothing from here on.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	return s.ring.Watch(stream.Context(), q, func(e *apiv1.Event) error {
		return stream.Send(&apiv1.EventServiceWatchResponse{Event: e})
	})
}

// objects are the filters that name one object of a type, by id, id prefix or
// name.
var objects = []string{"container", "image", "network", "volume"}

var keys = append([]string{"type", "event", "label", "daemon", "scope"}, objects...)

// CheckFilters returns the error that a watch with these filters gets.
func CheckFilters(list []string) error {
	_, err := filter(list)
	return err
}

// filter makes a predicate of "key=value" filters: those of one key are
// alternatives, keys must all hold; labels must all be there.
func filter(list []string) (func(*apiv1.Event) bool, error) {
	want := map[string][]string{}
	for _, s := range list {
		key, value, ok := strings.Cut(s, "=")
		if !ok || !slices.Contains(keys, key) {
			return nil, fault.InvalidArgument.Errorf("FILTER", "filter %q is not known", s).
				Hint("filters are: %s", strings.Join(keys, ", "))
		}
		want[key] = append(want[key], value)
	}
	any := func(key string, ok func(string) bool) bool {
		return len(want[key]) == 0 || slices.ContainsFunc(want[key], ok)
	}
	return func(e *apiv1.Event) bool {
		for _, label := range want["label"] {
			if !has(e.GetAttributes(), label) {
				return false
			}
		}
		for _, object := range objects {
			if !any(object, func(v string) bool { return about(e, object, v) }) {
				return false
			}
		}
		return any("type", func(v string) bool { return v == e.GetType() }) &&
			any("event", func(v string) bool { return v == e.GetAction() }) &&
			any("daemon", func(v string) bool { return v == e.GetDaemon() })
	}, nil
}

// about reports whether an event concerns the object that a filter names. Events
// of containers tell their image and are found by it.
func about(e *apiv1.Event, object, name string) bool {
	if name == "" {
		return false
	}
	if e.GetType() != object {
		return e.GetAttributes()[object] == name
	}
	_, bare, _ := strings.Cut(e.GetId(), ":") // "sha256:0123…"
	return e.GetAttributes()["name"] == name || strings.HasPrefix(e.GetId(), name) || bare != "" && strings.HasPrefix(bare, name)
}

// has is Docker's label filter: "key" or "key=value".
func has(labels map[string]string, want string) bool {
	key, value, valued := strings.Cut(want, "=")
	got, ok := labels[key]
	return ok && (!valued || got == value)
}
