package rpc

import (
	"context"
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
	"berth/services/execd/container"
)

// maxPage is the most containers in one answer: some 2 KiB each keep it well
// below the 4 MiB of a message.
const maxPage = 1000

func (s *containerService) List(_ context.Context, req *apiv1.ListRequest) (*apiv1.ListResponse, error) {
	f, err := s.listFilter(req.Filters)
	if err != nil {
		return nil, err
	}
	after, err := decodeToken(req.PageToken)
	if err != nil {
		return nil, err
	}
	page := int(req.PageSize)
	if page <= 0 || page > maxPage {
		page = maxPage
	}
	now := time.Now()
	var out apiv1.ListResponse
	seen := int32(0)
	for _, c := range s.life.Containers.All() {
		i := c.Info()
		if !req.All && req.Last == 0 && !f.states && !i.State.Active() {
			continue
		}
		if !f.match(i) {
			continue
		}
		if seen++; req.Last > 0 && seen > req.Last {
			break
		}
		if !after.before(i) {
			continue
		}
		if len(out.Containers) == page {
			last := out.Containers[page-1]
			out.NextPageToken = encodeToken(last.CreatedAt.AsTime(), last.Id)
			break
		}
		out.Containers = append(out.Containers, summary(i, now))
	}
	return &out, nil
}

// token is a place in the list: behind a container, which may be gone by now.
type token struct {
	at time.Time
	id string
}

func encodeToken(at time.Time, id string) string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d %s", at.UnixNano(), id))
}

func decodeToken(s string) (token, error) {
	if s == "" {
		return token{}, nil
	}
	var nano int64
	var t token
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err == nil {
		_, err = fmt.Sscanf(string(b), "%d %s", &nano, &t.id)
	}
	if err != nil {
		return t, fault.InvalidArgument.Errorf("PAGE_TOKEN", "page token %.80q is not one of ours", s)
	}
	t.at = time.Unix(0, nano)
	return t, nil
}

// before reports whether i comes after the place, newest first.
func (t token) before(i *container.Info) bool {
	if t.id == "" {
		return true
	}
	if d := i.CreatedAt.Compare(t.at); d != 0 {
		return d < 0
	}
	return i.ID > t.id
}

func summary(i *container.Info, now time.Time) *apiv1.ContainerSummary {
	out := &apiv1.ContainerSummary{
		Id: i.ID, Name: i.Name, Image: i.Spec.GetImage(), ImageId: i.ImageID, Command: strings.Join(i.Command, " "),
		CreatedAt: timestamppb.New(i.CreatedAt), State: i.State.API(), Status: status(i, now), Labels: labels(i),
		Mounts: i.Mounts, Networks: networks(i), Exit: exitStatus(i.Exit),
	}
	if i.State.Active() {
		for _, e := range i.Endpoints {
			out.Ports = append(out.Ports, e.Ports...)
		}
	}
	if !i.StartedAt.IsZero() {
		out.StartedAt = timestamppb.New(i.StartedAt)
	}
	return out
}

func networks(i *container.Info) []string {
	var out []string
	for _, e := range i.Endpoints {
		out = append(out, e.Network)
	}
	if mode := i.Spec.GetNetwork().GetMode(); len(out) == 0 && mode != "" {
		out = append(out, mode)
	}
	return out
}

// status is the text of the column, as Docker has it.
func status(i *container.Info, now time.Time) string {
	switch i.State {
	case container.Created, container.Starting:
		return "Created"
	case container.Running:
		return "Up " + ago(now.Sub(i.StartedAt))
	case container.Paused:
		return "Up " + ago(now.Sub(i.StartedAt)) + " (Paused)"
	case container.Restarting:
		return fmt.Sprintf("Restarting (%d) %s ago", code(i), ago(since(i, now)))
	case container.Exited:
		return fmt.Sprintf("Exited (%d) %s ago", code(i), ago(since(i, now)))
	case container.Dead:
		return "Dead"
	}
	return "Removal In Progress"
}

func code(i *container.Info) int32 {
	if i.Exit == nil {
		return 0
	}
	return i.Exit.Code
}

func since(i *container.Info, now time.Time) time.Duration {
	if i.Exit == nil {
		return 0
	}
	return now.Sub(i.Exit.At)
}

// ago says a time roughly.
func ago(d time.Duration) string {
	const day = 24 * time.Hour
	plural := func(n int64, unit string) string {
		if n == 1 {
			if unit == "hour" {
				return "About an hour"
			}
			return "1 " + unit
		}
		return fmt.Sprintf("%d %ss", n, unit)
	}
	switch {
	case d < time.Second:
		return "Less than a second"
	case d < time.Minute:
		return plural(int64(d/time.Second), "second")
	case d < 2*time.Minute:
		return "About a minute"
	case d < time.Hour:
		return plural(int64(d/time.Minute), "minute")
	case d < 2*day:
		return plural(int64(d/time.Hour), "hour")
	case d < 14*day:
		return plural(int64(d/day), "day")
	case d < 60*day:
		return plural(int64(d/(7*day)), "week")
	case d < 730*day:
		return plural(int64(d/(30*day)), "month")
	}
	return plural(int64(d/(365*day)), "year")
}
