//go:build e2e

package faults

import (
	"testing"
	"os/exec"
	"time"

	"berth/test/harness"
)

func TestTmp(t *testing.T) {
	e := harness.NewWith(t, harness.Options{Bin: harness.FaultBin(t)})
	img := e.Busybox(t)
	e.Berth(t, "run", "-d", "--name", "a", "-p", "18000:80", img, "httpd", "-f", "-h", "/www")
	e.Berth(t, "run", "-d", "--name", "b",  img, "sleep", "100")
	for i := range 3 {
		e.Kill(t, "monitor")
		time.Sleep(time.Second)
		t.Log(i, e.Berth(t, "ps", "-a"))
	}
	b, _ := exec.Command("sh", "-c", "grep -v '\"call\"' "+e.Root+"/log/execd.log; cat "+e.Run+"/execd/monitor.log").CombinedOutput()
	t.Log(string(b))
	t.Fatal()
}
