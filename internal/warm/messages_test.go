package warm

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	apiv1 "berth/proto/berth/api/v1"
	execv1 "berth/proto/berth/exec/v1"
)

func TestMessagesVisitsAll(t *testing.T) {
	seen := map[protoreflect.FullName]bool{}
	visit(new(execv1.RunRequest).ProtoReflect(), seen)
	for _, m := range []proto.Message{
		new(execv1.RunRequest_Open), // of a oneof
		new(apiv1.ContainerSpec),    // of a field of a field
		new(apiv1.PortMapping),      // of a list
		new(apiv1.Resources),        // of a field
		new(apiv1.TerminalSize),     // of another member of the oneof
		new(apiv1.RestartPolicy),
	} {
		if name := m.ProtoReflect().Descriptor().FullName(); !seen[name] {
			t.Errorf("%s was left out", name)
		}
	}
	t.Logf("%d types", len(seen))
}

// BenchmarkFirst is of a process of its own for each time: what is learnt is never forgotten.
func BenchmarkFirst(b *testing.B) {
	if os.Getenv("BERTH_WARM") != "" {
		start := time.Now()
		Messages(new(execv1.RunRequest), new(execv1.RunResponse))
		fmt.Println(time.Since(start).Nanoseconds())
		os.Exit(0)
	}
	var took float64
	for range b.N {
		c := exec.Command(os.Args[0], "-test.run=^$", "-test.bench=First", "-test.benchtime=1x")
		c.Env = append(os.Environ(), "BERTH_WARM=1")
		out, err := c.Output()
		if err != nil {
			b.Fatal(err)
		}
		lines := strings.Fields(string(out))
		ns, err := strconv.ParseFloat(lines[len(lines)-1], 64)
		if err != nil {
			b.Fatal(err)
		}
		took += ns
	}
	b.ReportMetric(took/float64(b.N), "ns/first")
}
