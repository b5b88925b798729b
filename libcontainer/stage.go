package libcontainer

import "strings"

// Stage is what part of a launch a [Step] belongs to.
type Stage int

// The stages. Handover is the time that one process waits for another.
const (
	StageUnknown Stage = iota
	StageCgroup
	StageClone
	StageMounts
	StageSecurity
	StageExec
	StageHandover
)

// stages knows steps by how their names begin.
var stages = []struct {
	begins string
	Stage
}{
	{"make cgroup", StageCgroup},
	{"enter cgroup", StageCgroup},
	{"limit cgroup", StageCgroup},
	{"plan", StageClone},
	{"clone", StageClone},
	{"map owners", StageClone},
	{"shut off", StageClone},
	{"join ", StageClone},
	{"enter namespaces", StageClone},
	{"bring loopback up", StageClone},
	{"unshare", StageClone},
	{"set hostname", StageClone},
	{"set domain name", StageClone},
	{"set sysctl", StageClone},
	{"make root read-only", StageSecurity},
	{"make paths read-only", StageSecurity},
	{"mask paths", StageSecurity},
	{"set limits", StageSecurity},
	{"find user", StageSecurity},
	{"apply ", StageSecurity},
	{"open proc", StageMounts},
	{"open null device", StageMounts},
	{"open root", StageMounts},
	{"bind ", StageMounts},
	{"mount ", StageMounts},
	{"move ", StageMounts},
	{"make mounts private", StageMounts},
	{"make device", StageMounts},
	{"make working directory", StageMounts},
	{"pivot root", StageMounts},
	{"make console", StageExec},
	{"set up terminal", StageExec},
	{"enter working directory", StageExec},
	{"exec", StageExec},
	{"prepare resident init", StageExec},
	{"send setup", StageHandover},
	{"receive setup", StageHandover},
}

// StageOf is the stage of the step of that name.
func StageOf(step string) Stage {
	for _, s := range stages {
		if strings.HasPrefix(step, s.begins) {
			return s.Stage
		}
	}
	return StageUnknown
}
