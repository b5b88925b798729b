package main

import (
	"fmt"
	"math"
)

// bar is a promise about speed or size.
type bar struct {
	group string // without which it cannot be judged
	text  string
	limit string
	judge func(all []finding) judgement
}

// judgement says how a bar fared: by where the 95 % interval of what was measured lies.
type judgement struct {
	verdict verdict
	got     string
}

type verdict string

const (
	met         verdict = "met"          // all of the interval is within the bar
	missed      verdict = "MISSED"       // all of it is beyond
	open        verdict = "open"         // the bar is inside the interval: this run is too noisy to tell
	notMeasured verdict = "not measured" // something that it takes did not run
)

// atMost judges an estimate against an upper limit.
func (e estimate) atMost(limit float64, format string) judgement {
	return e.against(e.high <= limit, e.low > limit, format)
}

// atLeast judges it against a lower one.
func (e estimate) atLeast(limit float64, format string) judgement {
	return e.against(e.low >= limit, e.high < limit, format)
}

func (e estimate) against(within, beyond bool, format string) judgement {
	v := open
	switch {
	case math.IsNaN(e.value):
		return judgement{notMeasured, "–"}
	case within:
		v = met
	case beyond:
		v = missed
	}
	if math.IsInf(e.low, 0) {
		return judgement{v, fmt.Sprintf(format+", of too few runs", e.value)}
	}
	return judgement{v, fmt.Sprintf(format+" ("+format+" to "+format+")", e.value, e.low, e.high)}
}

// ratioBar: the median of a is at most times that of b, which took turns with it.
func ratioBar(group, text, a, b string, times float64) bar {
	return bar{group, text, fmt.Sprintf("≤ %g × %s", times, b), func(all []finding) judgement {
		return estimateRatio(find(all, group, a), find(all, group, b), true).atMost(times, "%.2f")
	}}
}

// apartBar is ratioBar for what was measured at different times.
func apartBar(group, text, a, b string, times float64) bar {
	return bar{group, text, fmt.Sprintf("≤ %g × %s", times, b), func(all []finding) judgement {
		return estimateRatio(find(all, group, a), find(all, group, b), false).atMost(times, "%.2f")
	}}
}

// levelBar: the median is at most limit, in the row's unit.
func levelBar(group, text, name string, limit float64, unit string) bar {
	return bar{group, text, fmt.Sprintf("≤ %g %s", limit, unit), func(all []finding) judgement {
		return estimateMedian(find(all, group, name)).atMost(limit, "%.2f")
	}}
}

// floorBar is levelBar for milliseconds: where the floor, a row that took turns with it, takes then of them, it is at
// most limit, and elsewhere it is at most the same multiple of the floor.
func floorBar(group, text, name string, limit float64, floor string, then float64) bar {
	says := fmt.Sprintf("≤ %g ms where %s takes %g: ≤ %.2f × that", limit, floor, then, limit/then)
	return bar{group, text, says, func(all []finding) judgement {
		j := estimateRatio(find(all, group, name), find(all, group, floor), true).atMost(limit/then, "%.2f")
		plain := estimateMedian(find(all, group, name)).atMost(limit, "%.2f")
		j.got += fmt.Sprintf("; %s ms, against %g itself: %s", plain.got, limit, plain.verdict)
		return j
	}}
}

// rateBar: the median is at least limit.
func rateBar(group, text, name string, limit float64, unit string) bar {
	return bar{group, text, fmt.Sprintf("≥ %g %s", limit, unit), func(all []finding) judgement {
		return estimateMedian(find(all, group, name)).atLeast(limit, "%.1f")
	}}
}

// tailBar: no more than one run in a hundred takes longer than limit gives, of its median.
func tailBar(group, text, name, says string, limit func(median float64) float64) bar {
	return bar{group, text, says, func(all []finding) judgement {
		samples := good(find(all, group, name))
		if len(samples) == 0 {
			return judgement{notMeasured, "–"}
		}
		mid := median(samples)
		j := share(samples, limit(mid)).atMost(0.01, "%.3f")
		j.got = fmt.Sprintf("p99 %.2f, p50 %.2f; share above %s", quantile(samples, 0.99), mid, j.got)
		return j
	}}
}

// timesBar: the median of a is at least times that of b, which took turns with it.
func timesBar(group, text, a, b string, times float64) bar {
	return bar{group, text, fmt.Sprintf("≥ %g × %s", times, b), func(all []finding) judgement {
		return estimateRatio(find(all, group, a), find(all, group, b), true).atLeast(times, "%.1f")
	}}
}

// bars are what the engine promises of a launch.
var bars = []bar{
	ratioBar("run", "run --rm, bridge, limits, seccomp, CLI", cliLimits, crunBare, 0.8),
	timesBar("run", "docker run --rm, bridge, takes", "docker run, bridge", cliLimits, 35),
	tailBar("tail", "the same, p99", cliLimits, "≤ 3 × p50", func(m float64) float64 { return 3 * m }),
	floorBar("run", "the same, one gRPC call, p50", grpcLimits, 4, kernelRun, 2.9),
	tailBar("tail", "the same, one gRPC call, p99", grpcLimits, "≤ 10 ms", func(float64) float64 { return 10 }),
	levelBar("detach", "run -d with a published port, gRPC, p50", "berth gRPC", 6, "ms"),
	ratioBar("run", "libcontainer alone, with its pool", "libcontainer", crunBare, 0.5),
	floorBar("exec", "exec, CLI, p50", "berth exec", 5, nsenter, 1.8),
	floorBar("exec", "exec, gRPC, p50", "berth gRPC", 2, nsenter, 1.8),
	rateBar("sustained", "sustained, 8 clients, gRPC", "berth gRPC, bridge", 150, "containers/s"),
	timesBar("sustained", "the same", "berth gRPC, bridge", "docker run, bridge", 18),
	levelBar("sustained-cpu", "the same, CPU per container", "berth gRPC, bridge", 12, "ms"),
	apartBar("density", "the next start with 500 containers", "run --rm, gRPC, with 500", "run --rm, gRPC, with none", 1.2),
	ratioBar("cold", "cold: user namespace", "user namespace", "warm: bridge", 2),
	ratioBar("cold", "cold: host network", "host network", "warm: bridge", 2),
	ratioBar("cold", "cold: empty pools", "empty pools", "warm: bridge", 2),
	ratioBar("boot", "cold: first start after the engine's", firstStart, startsAfter, 2),
	ratioBar("layers", "image with 40 layers", "berth gRPC, layers: 40", "berth gRPC, layers: 1", 1.2),
	levelBar("memory", "memory per idle container", "engine, per idle container", 0.3, "MB"),
	levelBar("memory", "memory of the idle engine", "engine, idle", 60, "MB"),
	levelBar("idle", "wake-ups of the idle engine", "engine, idle", 2, "/s"),
	floorBar("client", "berth --version", "berth --version", 2.5, emptyGo, 1.2),
	floorBar("client", "berth ps", "berth ps", 4, emptyGo, 1.2),
}

// Names of rows that bars are about.
const (
	crunBare   = "crun, bare bundle"
	cliLimits  = "berth run, bridge, limits"
	grpcLimits = "berth gRPC, bridge, limits"
	kernelRun  = "kernel: namespaces, fork, exec"
	nsenter    = "kernel: nsenter"
	emptyGo    = "an empty Go program"

	firstStart  = "berth run, the first"
	startsAfter = "berth run, those after it"
)
