package cgroup

import (
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"berth/libcontainer/cgroup/devices"
)

// setting is one write to one file of a group.
type setting struct {
	tree  *tree
	file  string
	value string
	field string // of Resources, for errors

	optional bool               // the file may be missing from this kernel
	instead  string             // another name of the file, tried first and passed over when missing
	first    string             // its value
	apply    func(*Group) error // does it instead, where one write is not all
}

// plan turns limits into the writes that this host needs, in order. It asks for a controller only if a limit
// needs it.
func (p *Parent) plan(r *Resources, create bool) ([]setting, error) {
	if err := r.Check(); err != nil {
		return nil, err
	}
	b := planner{parent: p, create: create}
	b.memory(&r.Memory)
	b.cpu(&r.CPU)
	b.cpuset(&r.CPU)
	b.pids(r.Pids)
	b.io(&r.IO)
	b.hugePages(r.HugePages)
	b.devices(r.Devices)
	return b.settings, b.err
}

// planner collects settings, and keeps the first error.
type planner struct {
	parent   *Parent
	create   bool
	settings []setting
	err      error
}

// need finds the controller for a field.
func (b *planner) need(controller, field string) *tree {
	if b.err != nil {
		return nil
	}
	t, err := b.parent.find(controller, field)
	b.err = err
	return t
}

func (b *planner) add(s ...setting) { b.settings = append(b.settings, s...) }

func (b *planner) memory(m *Memory) {
	if m.Limit == 0 && m.Reservation == 0 && m.Swappiness == nil && !m.OOMKillDisable {
		return
	}
	t := b.need("memory", "memory.limit")
	if t == nil {
		return
	}
	if t.V2 {
		b.memoryV2(t, m)
	} else {
		b.memoryV1(t, m)
	}
}

func (b *planner) memoryV1(t *tree, m *Memory) {
	if m.Limit != 0 {
		swap, asked := m.swap()
		b.add(setting{tree: t, field: "memory.limit", value: itoa(m.Limit), apply: func(g *Group) error {
			return t.setMemory(g.name, m.Limit, swap, asked)
		}})
	}
	if m.Reservation != 0 {
		b.add(setting{tree: t, file: "memory.soft_limit_in_bytes", value: itoa(m.Reservation), field: "memory.reservation"})
	}
	if m.Swappiness != nil {
		b.add(setting{tree: t, file: "memory.swappiness", value: strconv.FormatUint(*m.Swappiness, 10), field: "memory.swappiness"})
	}
	if m.OOMKillDisable {
		b.add(setting{tree: t, file: "memory.oom_control", value: "1", field: "memory.oom-kill-disable"})
	}
}

// setMemory writes the two limits of v1. The kernel refuses (EINVAL) any moment in which memory alone would be
// allowed more than memory and swap together, so that the order depends on which way they move.
func (t *tree) setMemory(name string, limit, swap int64, asked bool) error {
	setLimit := func() error { return t.write(name+"/memory.limit_in_bytes", itoa(limit)) }
	setSwap := func() error {
		err := t.write(name+"/memory.memsw.limit_in_bytes", itoa(swap))
		if errors.Is(err, unix.ENOENT) {
			if asked && swap != limit {
				return &NotAvailableError{"memory", "memory.swap", "the kernel does not count swap; boot it with swapaccount=1"}
			}
			return nil
		}
		return err
	}
	err := setLimit()
	if errors.Is(err, unix.EINVAL) {
		if err = setSwap(); err == nil {
			return setLimit()
		}
		return err
	}
	if err == nil {
		err = setSwap()
	}
	return err
}

func (b *planner) memoryV2(t *tree, m *Memory) {
	if m.Swappiness != nil {
		b.err = &NotAvailableError{"memory", "memory.swappiness", "cgroup v2 has no such setting; set vm.swappiness for the host"}
		return
	}
	if m.OOMKillDisable {
		b.err = &NotAvailableError{"memory", "memory.oom-kill-disable", "cgroup v2 has no such setting; leave it out"}
		return
	}
	if m.Limit != 0 {
		if !b.create && m.Limit > 0 {
			b.add(setting{tree: t, field: "memory.limit", apply: func(g *Group) error { return t.fits(g.name, m.Limit) }})
		}
		swap, asked := m.swap()
		if swap > 0 {
			swap -= m.Limit // v2 counts swap alone
		}
		b.add(setting{tree: t, file: "memory.max", value: limitOrMax(m.Limit), field: "memory.limit"},
			setting{tree: t, file: "memory.swap.max", value: limitOrMax(swap), field: "memory.swap", optional: !asked || swap == 0})
	}
	if m.Reservation != 0 {
		b.add(setting{tree: t, file: "memory.low", value: limitOrMax(m.Reservation), field: "memory.reservation"})
	}
}

// fits refuses a v2 limit below what is in use: the kernel would take it, and kill until it fits. v1 refuses
// by itself.
func (t *tree) fits(name string, limit int64) error {
	text, err := t.readText(name + "/memory.current")
	if err != nil {
		return err
	}
	if used, err := strconv.ParseInt(text, 10, 64); err == nil && used > limit {
		return &wrapped{kind: ErrBusy, what: fmt.Sprintf("memory.limit %d: the group uses %d", limit, used)}
	}
	return nil
}

func (b *planner) cpu(c *CPU) {
	if c.Shares == 0 && c.Quota == 0 && c.Period == 0 {
		return
	}
	field := "cpu.shares"
	if c.Shares == 0 {
		field = "cpu.quota"
	}
	t := b.need("cpu", field)
	if t == nil {
		return
	}
	period := strconv.FormatUint(c.period(), 10)
	if t.V2 {
		if c.Shares != 0 {
			b.add(setting{tree: t, file: "cpu.weight", value: strconv.FormatUint(weight(c.Shares), 10), field: "cpu.shares"})
		}
		if c.Quota != 0 {
			b.add(setting{tree: t, file: "cpu.max", value: limitOrMax(c.Quota) + " " + period, field: "cpu.quota"})
		} else if c.Period != 0 {
			b.add(setting{tree: t, field: "cpu.period", value: period, apply: func(g *Group) error { return t.setPeriod(g.name, period) }})
		}
		return
	}
	if c.Shares != 0 {
		b.add(setting{tree: t, file: "cpu.shares", value: strconv.FormatUint(c.Shares, 10), field: "cpu.shares"})
	}
	if c.Period != 0 || c.Quota > 0 && !b.create { // a new group has the default period
		b.add(setting{tree: t, file: "cpu.cfs_period_us", value: period, field: "cpu.period"})
	}
	if c.Quota != 0 {
		b.add(setting{tree: t, file: "cpu.cfs_quota_us", value: itoa(c.Quota), field: "cpu.quota"})
	}
}

// setPeriod changes the second number of cpu.max and keeps the first.
func (t *tree) setPeriod(name, period string) error {
	text, err := t.readText(name + "/cpu.max")
	if err != nil {
		return err
	}
	var quota string
	if _, err := fmt.Sscan(text, &quota); err != nil {
		return err
	}
	return t.write(name+"/cpu.max", quota+" "+period)
}

func (b *planner) cpuset(c *CPU) {
	for _, s := range []struct{ file, value, what string }{
		{"cpuset.cpus", c.Cpus, "processors"},
		{"cpuset.mems", c.Mems, "memory nodes"},
	} {
		if s.value == "" {
			continue
		}
		t := b.need("cpuset", s.file)
		if t == nil {
			return
		}
		if err := t.offers(s.file, s.value, s.what); err != nil {
			b.err = err
			return
		}
		b.add(setting{tree: t, file: s.file, value: s.value, field: s.file})
	}
}

// offers compares a list with what the parent has. v1 would say EACCES or EINVAL, and v2 would say nothing and
// use whatever it likes.
func (t *tree) offers(file, value, what string) error {
	have := file + ".effective"
	if !t.V2 {
		have = file
	}
	text, err := t.readText(have)
	if err != nil {
		return err
	}
	want, _ := parseList(value)
	offered, ok := parseList(text)
	if ok && !want.within(offered) {
		return &FieldError{file, value, "not all of these " + what + " are there; there are " + text}
	}
	return nil
}

func (b *planner) pids(limit int64) {
	if limit == 0 {
		return
	}
	if t := b.need("pids", "pids.limit"); t != nil {
		b.add(setting{tree: t, file: "pids.max", value: limitOrMax(limit), field: "pids.limit"})
	}
}

func (b *planner) io(io *IO) {
	if io.Weight != 0 {
		if t := b.need("io", "io.weight"); t != nil {
			w := strconv.Itoa(int(io.Weight))
			s := setting{tree: t, field: "io.weight", instead: "blkio.bfq.weight", first: w, file: "blkio.weight", value: w}
			if t.V2 {
				s.instead, s.file, s.value = "io.bfq.weight", "io.weight", "default "+strconv.FormatUint(ioWeight(io.Weight), 10)
			}
			b.add(s)
		}
	}
	for i := range io.Throttles {
		b.throttle(&io.Throttles[i])
	}
}

func (b *planner) throttle(d *Throttle) {
	v2 := d.device()
	for _, rate := range d.rates() {
		if *rate.value == 0 {
			continue
		}
		t := b.need("io", "io."+rate.v2)
		if t == nil {
			return
		}
		if t.V2 {
			v2 += " " + rate.v2 + "=" + limitOrMax(*rate.value)
			continue
		}
		b.add(setting{tree: t, file: rate.v1, value: d.device() + " " + itoa(max(*rate.value, 0)), field: "io." + rate.v2})
	}
	if v2 != d.device() {
		b.add(setting{tree: b.need("io", "io.max"), file: "io.max", value: v2, field: "io.max"})
	}
}

func (b *planner) hugePages(limits []HugePages) {
	for _, h := range limits {
		t := b.need("hugetlb", "hugetlb."+h.Size)
		if t == nil {
			return
		}
		if t.V2 {
			b.add(setting{tree: t, file: "hugetlb." + h.Size + ".max", value: limitOrMax(h.Limit), field: "hugetlb." + h.Size},
				setting{tree: t, file: "hugetlb." + h.Size + ".rsvd.max", value: limitOrMax(h.Limit), field: "hugetlb." + h.Size, optional: true})
			continue
		}
		b.add(setting{tree: t, file: "hugetlb." + h.Size + ".limit_in_bytes", value: itoa(h.Limit), field: "hugetlb." + h.Size},
			setting{tree: t, file: "hugetlb." + h.Size + ".rsvd.limit_in_bytes", value: itoa(h.Limit), field: "hugetlb." + h.Size, optional: true})
	}
}

// devices goes to the v1 controller if it is mounted, and to an eBPF program on the v2 tree otherwise.
func (b *planner) devices(asked *devices.Policy) {
	if asked == nil && !b.create || b.err != nil {
		return
	}
	policy := devices.Default()
	if asked != nil {
		policy = *asked
	}
	if policy.AllowAll && b.create {
		return // a new group allows what its parent does
	}
	if t, err := b.parent.find("devices", "devices"); err == nil {
		b.add(setting{tree: t, field: "devices", apply: func(g *Group) error { return t.setDevices(g.name, policy) }})
		return
	}
	t := b.parent.unified()
	if t == nil {
		_, b.err = b.parent.find("devices", "devices")
		return
	}
	b.add(setting{tree: t, field: "devices", apply: func(g *Group) error { return g.setFilter(policy, b.create) }})
}

// setDevices writes a policy to the v1 controller: first a line that denies all and forgets every exception,
// then each exception in a write of its own.
func (t *tree) setDevices(name string, policy devices.Policy) error {
	deny, allow := policy.Lines()
	if deny != "" {
		if err := t.write(name+"/devices.deny", deny); err != nil {
			return err
		}
	}
	file := name + "/devices.allow"
	fd, err := t.open(file, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, line := range allow {
		if err := retry(func() error { _, err := unix.Write(fd, []byte(line)); return err }); err != nil {
			return t.fail("write "+line+" to", file, err)
		}
	}
	return nil
}

// setFilter attaches the policy's program to the v2 group.
func (g *Group) setFilter(policy devices.Policy, create bool) error {
	fd, err := g.directory()
	if err != nil {
		return err
	}
	filter, done, err := g.parent.filter(policy)
	if errors.Is(err, errors.ErrUnsupported) {
		return &NotAvailableError{"devices", "devices", "cgroup v2 needs a kernel with CONFIG_CGROUP_BPF, 4.15 or later (" + err.Error() + "); allow all devices explicitly to go without"}
	}
	if err != nil {
		return err
	}
	defer done()
	if create {
		return filter.AttachFirst(fd)
	}
	return filter.Attach(fd)
}

// maxFilters bounds the programs kept for reuse. Nearly all groups have the default policy, or one of a few.
const maxFilters = 64

// filter returns the policy's program, loaded at most once for all groups of the Parent; done is to be called
// after use.
func (p *Parent) filter(policy devices.Policy) (f *devices.Program, done func(), err error) {
	key := fmt.Sprint(policy)
	p.mu.Lock()
	defer p.mu.Unlock()
	if f, ok := p.filters[key]; ok {
		return f, func() {}, nil
	}
	if f, err = devices.Load(policy); err != nil {
		return nil, nil, err
	}
	if len(p.filters) >= maxFilters {
		return f, func() { f.Close() }, nil
	}
	p.filters[key] = f
	return f, func() {}, nil
}

// apply does the writes.
func (g *Group) apply(settings []setting) error {
	for _, s := range settings {
		err := g.applyOne(s)
		if errors.Is(err, unix.ENOENT) && !s.tree.exists(g.name) {
			return &wrapped{ErrNotFound, "set " + s.field, err}
		}
		if err != nil {
			return s.explain(err)
		}
	}
	return nil
}

func (g *Group) applyOne(s setting) error {
	if s.apply != nil {
		return s.apply(g)
	}
	if s.instead != "" {
		err := s.tree.write(g.name+"/"+s.instead, s.first)
		if !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	err := s.tree.write(g.name+"/"+s.file, s.value)
	if s.optional && errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// explain gives a refused write its kind.
func (s *setting) explain(err error) error {
	var named *NotAvailableError
	switch {
	case errors.As(err, &named), errors.Is(err, ErrBusy):
		return err
	case errors.Is(err, unix.ENOENT):
		return &NotAvailableError{s.tree.String(), s.field, "this kernel has no " + s.file + " (" + err.Error() + "); leave the limit out"}
	case errors.Is(err, unix.EBUSY):
		return &wrapped{ErrBusy, s.field + ": the group uses more than that", err}
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE), errors.Is(err, unix.ENODEV):
		return &FieldError{s.field, s.value, "the kernel refuses it: " + err.Error()}
	}
	return fmt.Errorf("set %s: %w", s.field, err)
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// limitOrMax is a limit as v2 files, and pids.max of v1, take it.
func limitOrMax(n int64) string {
	if n == Unlimited {
		return "max"
	}
	return itoa(n)
}
