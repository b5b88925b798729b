package machine

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// KernelRelease is what uname -r prints.
func KernelRelease() string {
	b, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return strings.TrimSpace(string(b))
}

// Describe says what the milliseconds belong to.
func Describe() string {
	model := "unknown processor"
	b, _ := os.ReadFile("/proc/cpuinfo")
	count := 0
	for line := range strings.Lines(string(b)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			model = strings.TrimSpace(value)
			count++
		}
	}
	_, v2 := Hierarchy()
	return fmt.Sprintf("%d × %s, Linux %s, cgroup v%s", count, model, KernelRelease(), strconv.Itoa(map[bool]int{false: 1, true: 2}[v2]))
}

// Load is the load averages over 1, 5 and 15 minutes: what else ran before a benchmark, which its figures suffer from.
func Load() string {
	b, _ := os.ReadFile("/proc/loadavg")
	if f := strings.Fields(string(b)); len(f) >= 3 {
		return strings.Join(f[:3], ", ")
	}
	return "unknown"
}
