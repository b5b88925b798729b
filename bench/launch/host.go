package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

func kernelRelease() string {
	b, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return strings.TrimSpace(string(b))
}

// versions is a line for each peer.
func versions(peers []*peer) (out []string) {
	for _, p := range peers {
		first, _, _ := strings.Cut(p.version, "\n")
		out = append(out, first)
	}
	return out
}

// describeHost says what the milliseconds belong to.
func describeHost() string {
	model := "unknown processor"
	b, _ := os.ReadFile("/proc/cpuinfo")
	count := 0
	for line := range strings.Lines(string(b)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			model = strings.TrimSpace(value)
			count++
		}
	}
	_, v2 := hierarchy()
	return fmt.Sprintf("%d × %s, Linux %s, cgroup v%s", count, model, kernelRelease(), strconv.Itoa(map[bool]int{false: 1, true: 2}[v2]))
}
