package rpc

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
)

// Top shows the default columns of `ps -ef`.
func (s *containerService) Top(_ context.Context, req *apiv1.TopRequest) (*apiv1.TopResponse, error) {
	c, err := s.find(req.Container)
	if err != nil {
		return nil, err
	}
	i := c.Info()
	if !i.State.Up() {
		return nil, fault.FailedPrecondition.Errorf("CONTAINER_NOT_RUNNING", "container %s does not run", i.Name)
	}
	g, err := s.life.Group(i)
	if err != nil {
		return nil, err
	}
	defer g.Close()
	pids, err := g.Procs()
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	slices.Sort(pids)
	out := &apiv1.TopResponse{Titles: []string{"UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"}}
	boot := bootTime()
	for _, pid := range pids {
		if p, ok := process(pid, boot); ok {
			out.Processes = append(out.Processes, &apiv1.TopProcess{Fields: p})
		}
	}
	return out, nil
}

// clockTicks is USER_HZ, 100 on all architectures Go has for Linux.
const clockTicks = 100

// process reads /proc/PID; false if it has ended meanwhile.
func process(pid int, boot time.Time) ([]string, bool) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		return nil, false
	}
	// The name is in parentheses and may hold any of them (proc_pid_stat(5)).
	open, shut := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || shut < open {
		return nil, false
	}
	name := string(stat[open+1 : shut])
	f := strings.Fields(string(stat[shut+1:])) // from field 3, state, on
	if len(f) < 20 {
		return nil, false
	}
	number := func(field int) int64 { n, _ := strconv.ParseInt(f[field-3], 10, 64); return n }
	used := time.Duration(number(14)+number(15)) * time.Second / clockTicks
	begun := boot.Add(time.Duration(number(22)) * time.Second / clockTicks)
	percent := int64(0)
	if age := time.Since(begun); age > time.Second {
		percent = int64(100 * used / age)
	}
	cmd, _ := os.ReadFile(dir + "cmdline")
	line := strings.TrimSpace(string(bytes.ReplaceAll(cmd, []byte{0}, []byte{' '})))
	if line == "" {
		line = "[" + name + "]"
	}
	return []string{
		owner(dir), strconv.Itoa(pid), f[1], strconv.FormatInt(percent, 10), begun.Local().Format("15:04"), terminal(number(7)),
		fmt.Sprintf("%02d:%02d:%02d", int(used.Hours()), int(used.Minutes())%60, int(used.Seconds())%60), line,
	}, true
}

// owner is the host's name for the uid, as ps on the host would say.
func owner(dir string) string {
	status, _ := os.ReadFile(dir + "status")
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "Uid:"); ok {
			uid := strings.Fields(rest)[0]
			if u, err := user.LookupId(uid); err == nil {
				return u.Username
			}
			return uid
		}
	}
	return "?"
}

// terminal names the controlling terminal by its device number.
func terminal(dev int64) string {
	const unix98 = 136 // first of eight majors of pseudo-terminals, devices.txt
	major, minor := dev>>8&0xfff, dev&0xff|dev>>12&0xfff00
	switch {
	case dev == 0:
		return "?"
	case major >= unix98 && major < unix98+8:
		return "pts/" + strconv.FormatInt((major-unix98)<<8|minor, 10)
	}
	return fmt.Sprintf("%d:%d", major, minor)
}

func bootTime() time.Time {
	b, _ := os.ReadFile("/proc/stat")
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "btime "); ok {
			if n, err := strconv.ParseInt(strings.TrimSpace(rest), 10, 64); err == nil {
				return time.Unix(n, 0)
			}
		}
	}
	return time.Time{}
}
