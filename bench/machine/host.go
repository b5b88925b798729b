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
