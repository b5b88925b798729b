package seccomp

import (
	"errors"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// deny answers what is no question of the profile: calls of architectures it
// does not name.
var deny = Errno(unix.EPERM)

// Compile turns the profile into a program for package filter to load.
func (p *Profile) Compile(t Target) ([]byte, error) {
	if _, ok := family[t.Arch]; !ok {
		return nil, errors.New("no seccomp programs for architecture " + t.Arch.String())
	}
	for i := range p.Rules {
		if err := p.Rules[i].check(); err != nil {
			return nil, err
		}
	}
	has := func(arch Arch) bool { return slices.Contains(p.Arches[t.Arch], arch) }
	a := newAssembler()
	entry := a.ret(deny)
	second := map[Arch]Arch{AMD64: I386, ARM64: ARM}[t.Arch]
	if has(second) {
		entry = a.onArch(second, a.load(offsetNumber, p.compileArch(a, t, second)), entry)
	}
	native := p.compileArch(a, t, t.Arch)
	if t.Arch == AMD64 {
		x32 := a.ret(deny)
		switch {
		case has(X32) && t.NoX32:
			x32 = a.ret(Errno(unix.ENOSYS))
		case has(X32):
			x32 = p.compileArch(a, t, X32)
		}
		native = a.jump(unix.BPF_JGE, x32Bit, x32, native)
	}
	a.load(offsetArch, a.onArch(t.Arch, a.load(offsetNumber, native), entry))
	return a.program()
}

// onArch goes to yes for calls of arch, expecting the architecture loaded.
func (a *assembler) onArch(arch Arch, yes, no label) label {
	return a.jump(unix.BPF_JEQ, archInfo[arch].audit, yes, no)
}

func (r *Rule) check() error {
	for _, arg := range r.Args {
		if arg.Index < 0 || arg.Index > 5 || arg.Op < Equal || arg.Op > MaskedEqual {
			return errors.New("seccomp rule for " + strings.Join(r.Names, ", ") + ": malformed argument " + strconv.Itoa(arg.Index))
		}
	}
	return nil
}

// verdict is all that the profile says about one call.
type verdict struct {
	conditional []*Rule // in order
	otherwise   Action
}

// equal reports whether two verdicts are the same, by the rules' identity.
func (v verdict) equal(w verdict) bool {
	return v.otherwise == w.otherwise && slices.Equal(v.conditional, w.conditional)
}

// span is the numbers from first up to the next span's first.
type span struct {
	first uint32
	verdict
}

// compileArch writes the search for one architecture; it expects the number
// loaded.
func (p *Profile) compileArch(a *assembler, t Target, arch Arch) label {
	spans := p.spans(t, arch)
	var base uint32
	if arch == X32 {
		base = x32Bit
	}
	return a.search(spans, base)
}

// search finds the span of the loaded number by halves.
func (a *assembler) search(spans []span, base uint32) label {
	if len(spans) == 1 {
		return a.decide(spans[0].verdict)
	}
	middle := len(spans) / 2
	high := a.search(spans[middle:], base)
	low := a.search(spans[:middle], base)
	return a.jump(unix.BPF_JGE, base+spans[middle].first, high, low)
}

func (a *assembler) decide(v verdict) label {
	next := a.ret(v.otherwise)
	for _, r := range slices.Backward(v.conditional) {
		match := a.ret(r.Action)
		for _, arg := range slices.Backward(r.Args) {
			match = a.compare(arg, match, next)
		}
		next = match
	}
	return next
}

// compare looks at one argument. BPF knows words of 32 bits, so the upper half
// is compared first, and the lower only if that does not decide.
func (a *assembler) compare(arg Arg, yes, no label) label {
	value, mask := arg.Value, ^uint64(0)
	test := uint16(unix.BPF_JEQ)
	switch arg.Op {
	case NotEqual:
		yes, no = no, yes
	case MaskedEqual:
		mask = arg.Mask
	case GreaterOrEqual:
		test = unix.BPF_JGE
	case Less:
		test, yes, no = unix.BPF_JGE, no, yes
	case Greater:
		test = unix.BPF_JGT
	case LessOrEqual:
		test, yes, no = unix.BPF_JGT, no, yes
	}
	// Little-endian, as all architectures here are.
	low := uint32(offsetArgs + 8*arg.Index)
	high := low + 4
	next := a.load(low, a.and(uint32(mask), a.jump(test, uint32(value), yes, no)))
	if mask>>32 == 0 && value>>32 == 0 {
		return next // the upper half does not count
	}
	equal := a.jump(unix.BPF_JEQ, uint32(value>>32), next, no)
	if test != unix.BPF_JEQ {
		equal = a.jump(unix.BPF_JGT, uint32(value>>32), yes, equal)
	}
	return a.load(high, a.and(uint32(mask>>32), equal))
}

// spans cuts the numbers of arch into ranges of equal verdict.
func (p *Profile) spans(t Target, arch Arch) []span {
	verdicts := p.verdicts(t, arch)
	newest := p.newest(arch)
	var spans []span
	add := func(first uint32, v verdict) {
		if n := len(spans); n == 0 || !spans[n-1].equal(v) {
			spans = append(spans, span{first, v})
		}
	}
	next := uint32(0)
	for _, nr := range sortedKeys(verdicts) {
		p.addGap(next, nr, newest, add)
		add(nr, verdicts[nr])
		next = nr + 1
	}
	p.addGap(next, ^uint32(0), newest, add)
	return spans
}

// addGap covers numbers that are no call here: from up to, not including, to.
func (p *Profile) addGap(from, to, newest uint32, add func(uint32, verdict)) {
	if from < to && from <= newest {
		add(from, verdict{otherwise: p.Fallback})
	}
	if from = max(from, newest+1); from < to {
		add(from, verdict{otherwise: p.future()})
	}
}

// future answers calls that did not exist when the profile was written.
func (p *Profile) future() Action {
	if p.Fallback.permits() {
		return p.Fallback
	}
	return Errno(unix.ENOSYS)
}

// newest is the highest number that the profile names, conditions aside.
func (p *Profile) newest(arch Arch) uint32 {
	newest := uint32(0)
	for _, r := range p.Rules {
		for _, name := range r.Names {
			if nr, ok := number(name, arch); ok && nr < archInfo[arch].private {
				newest = max(newest, nr)
			}
		}
	}
	return newest
}

// verdicts returns what the profile says about each call of arch, by number.
func (p *Profile) verdicts(t Target, arch Arch) map[uint32]verdict {
	byName := make(map[string][]*Rule)
	for i := range p.Rules {
		r := &p.Rules[i]
		if !r.applies(t) {
			continue
		}
		for _, name := range r.Names {
			byName[name] = append(byName[name], r)
		}
	}
	newest := p.newest(arch)
	verdicts := make(map[uint32]verdict)
	for _, s := range syscalls {
		nr := uint32(s.numbers[arch])
		if s.numbers[arch] < 0 || nr > newest && nr < archInfo[arch].private {
			continue // left to the gap, with other calls that are too new
		}
		if old, twice := verdicts[nr]; twice && !old.equal(verdict{otherwise: p.Fallback}) {
			continue // a second name for the same number
		}
		verdicts[nr] = p.decide(byName[s.name])
	}
	return verdicts
}

// decide sums up the rules about one call.
func (p *Profile) decide(rules []*Rule) verdict {
	v := verdict{otherwise: p.Fallback}
	decided := false
	for _, r := range rules {
		switch {
		case len(r.Args) > 0:
			v.conditional = append(v.conditional, r)
		case !decided:
			v.otherwise, decided = r.Action, true
		}
	}
	if !slices.ContainsFunc(v.conditional, func(r *Rule) bool { return r.Action != v.otherwise }) {
		v.conditional = nil // they say nothing else
	}
	return v
}

func sortedKeys(m map[uint32]verdict) []uint32 {
	keys := make([]uint32, 0, len(m))
	for nr := range m {
		keys = append(keys, nr)
	}
	slices.Sort(keys)
	return keys
}
