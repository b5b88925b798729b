package seccomp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"berth/libcontainer/caps"
)

// MaxJSON is the size in bytes beyond which Parse refuses a profile.
const MaxJSON = 1 << 20

// FromOption reads the value of --security-opt seccomp=VALUE, with the content
// in place of a file's name:
//
//	"", "builtin", "default"   the built-in profile
//	"unconfined"               nil: load nothing
//	"{…}"                      a profile as Parse reads it
func FromOption(value string) (*Profile, error) {
	switch trimmed := strings.TrimSpace(value); {
	case trimmed == "", trimmed == "builtin", trimmed == "default":
		return Default(), nil
	case trimmed == "unconfined":
		return nil, nil
	case trimmed[0] == '{':
		return Parse([]byte(trimmed))
	}
	return nil, fmt.Errorf("seccomp profile %.40q: want unconfined, builtin or JSON", value)
}

// Parse reads a profile in Docker's JSON format, which is the runtime
// specification's with conditions. Because it is a fence, what Parse does not
// understand is an error: unknown or repeated fields, actions, operators and
// capabilities. Names of system calls are the exception, for profiles name
// those of all architectures and kernels; see Profile.UnknownNames.
//
// SCMP_ACT_NOTIFY needs a listener, and of the flags SECCOMP_FILTER_FLAG_LOG
// and WAIT_KILLABLE_RECV need support in the loader; these are refused.
//
// As with other engines, which owe it to libseccomp, a rule with several
// comparisons of the same argument stands for one rule for each of them.
func Parse(data []byte) (*Profile, error) {
	p, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	return p, nil
}

// The document, as encoding/json sees it.
type (
	jsonProfile struct {
		DefaultAction    string        `json:"defaultAction"`
		DefaultErrnoRet  *uint16       `json:"defaultErrnoRet"`
		DefaultErrno     string        `json:"defaultErrno"` // by name, of containers/common
		Architectures    []string      `json:"architectures"`
		ArchMap          []jsonArch    `json:"archMap"`
		Flags            []string      `json:"flags"`
		ListenerPath     string        `json:"listenerPath"`
		ListenerMetadata string        `json:"listenerMetadata"`
		Syscalls         []jsonSyscall `json:"syscalls"`
	}
	jsonArch struct {
		Architecture     string   `json:"architecture"`
		SubArchitectures []string `json:"subArchitectures"`
	}
	jsonSyscall struct {
		Name     string     `json:"name"` // before there were Names
		Names    []string   `json:"names"`
		Action   string     `json:"action"`
		ErrnoRet *uint16    `json:"errnoRet"`
		Errno    string     `json:"errno"` // by name, of containers/common
		Args     []jsonArg  `json:"args"`
		Comment  string     `json:"comment"`
		Includes jsonFilter `json:"includes"`
		Excludes jsonFilter `json:"excludes"`
	}
	jsonArg struct {
		Index    int    `json:"index"`
		Value    uint64 `json:"value"`
		ValueTwo uint64 `json:"valueTwo"`
		Op       string `json:"op"`
	}
	jsonFilter struct {
		Caps      []string `json:"caps"`
		Arches    []string `json:"arches"`
		MinKernel string   `json:"minKernel"`
	}
)

func parse(data []byte) (*Profile, error) {
	if len(data) > MaxJSON {
		return nil, fmt.Errorf("larger than %d bytes", MaxJSON)
	}
	if err := checkKeys(data); err != nil {
		return nil, err
	}
	var doc jsonProfile
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&doc); err != nil {
		return nil, err
	}
	if err := doc.checkSupported(); err != nil {
		return nil, err
	}
	p := new(Profile)
	var err error
	if p.Fallback, err = parseAction(doc.DefaultAction, doc.DefaultErrnoRet, doc.DefaultErrno); err != nil {
		return nil, fmt.Errorf("defaultAction: %w", err)
	}
	if p.Arches, err = doc.arches(); err != nil {
		return nil, err
	}
	for i, call := range doc.Syscalls {
		rules, err := call.rules()
		if err != nil {
			return nil, fmt.Errorf("syscalls[%d]: %w", i, err)
		}
		p.Rules = append(p.Rules, rules...)
	}
	return p, nil
}

// maxDepth is the deepest nesting of a profile; the format itself needs five.
const maxDepth = 16

// checkKeys refuses documents of which two readers might see two meanings: a
// key twice in an object, or something after the end.
func checkKeys(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	if err := checkValue(dec, 0); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("something follows the profile")
	}
	return nil
}

func checkValue(dec *json.Decoder, depth int) error {
	if depth > maxDepth {
		return errors.New("nested too deeply")
	}
	token, err := dec.Token()
	if err != nil {
		return err
	}
	delim, ok := token.(json.Delim)
	if !ok {
		return nil
	}
	seen := make(map[string]bool)
	for dec.More() {
		if delim == '{' {
			key, err := dec.Token()
			if err != nil {
				return err
			}
			// encoding/json matches fields in either case.
			name := strings.ToLower(key.(string))
			if seen[name] {
				return fmt.Errorf("field %q appears twice", key)
			}
			seen[name] = true
		}
		if err := checkValue(dec, depth+1); err != nil {
			return err
		}
	}
	_, err = dec.Token() // the end of it
	return err
}

func (doc *jsonProfile) checkSupported() error {
	if doc.ListenerPath != "" || doc.ListenerMetadata != "" {
		return errors.New("listeners are not supported")
	}
	for _, flag := range doc.Flags {
		// One thread is filtered, so there is none to synchronise with, and
		// the other is what the loader asks for anyway.
		if flag != "SECCOMP_FILTER_FLAG_TSYNC" && flag != "SECCOMP_FILTER_FLAG_SPEC_ALLOW" {
			return fmt.Errorf("flag %q is not supported", flag)
		}
	}
	return nil
}

// arches merges the two ways of naming architectures. Those of other machines
// are ignored.
func (doc *jsonProfile) arches() (map[Arch][]Arch, error) {
	if len(doc.Architectures) > 0 && len(doc.ArchMap) > 0 {
		return nil, errors.New("architectures and archMap exclude each other")
	}
	result := make(map[Arch][]Arch)
	for native := range family {
		names := doc.Architectures
		for _, m := range doc.ArchMap {
			if m.Architecture == archInfo[native].scmp {
				names = m.SubArchitectures
			}
		}
		for _, sub := range family[native] {
			if slices.Contains(names, archInfo[sub].scmp) {
				result[native] = append(result[native], sub)
			}
		}
	}
	return result, nil
}

func (call *jsonSyscall) rules() ([]Rule, error) {
	rule := Rule{Names: call.Names}
	if call.Name != "" {
		if len(call.Names) > 0 {
			return nil, errors.New("name and names exclude each other")
		}
		rule.Names = []string{call.Name}
	}
	var err error
	if rule.Action, err = parseAction(call.Action, call.ErrnoRet, call.Errno); err != nil {
		return nil, err
	}
	set, version, err := call.Includes.parse()
	if err != nil {
		return nil, fmt.Errorf("includes: %w", err)
	}
	rule.If = If{Caps: set, Arches: call.Includes.Arches, Kernel: version}
	if set, version, err = call.Excludes.parse(); err != nil {
		return nil, fmt.Errorf("excludes: %w", err)
	}
	rule.Unless = Unless{Caps: set, Arches: call.Excludes.Arches, Kernel: version}
	args, err := parseArgs(call.Args)
	if err != nil {
		return nil, err
	}
	return alternatives(rule, args), nil
}

// alternatives applies the reading of repeated arguments that Parse explains.
func alternatives(rule Rule, args []Arg) []Rule {
	var seen [6]bool
	for _, arg := range args {
		if seen[arg.Index] {
			var rules []Rule
			for _, arg := range args {
				r := rule
				r.Args = []Arg{arg}
				rules = append(rules, r)
			}
			return rules
		}
		seen[arg.Index] = true
	}
	rule.Args = args
	return []Rule{rule}
}

func (f *jsonFilter) parse() (caps.Set, Version, error) {
	set, err := caps.ParseSet(f.Caps)
	if err != nil || f.MinKernel == "" {
		return set, Version{}, err
	}
	v, err := ParseVersion(f.MinKernel)
	if err == nil && v == (Version{}) {
		err = errors.New("minKernel 0.0")
	}
	return set, v, err
}

var operators = map[string]Op{
	"SCMP_CMP_EQ": Equal, "SCMP_CMP_NE": NotEqual, "SCMP_CMP_LT": Less, "SCMP_CMP_LE": LessOrEqual,
	"SCMP_CMP_GT": Greater, "SCMP_CMP_GE": GreaterOrEqual, "SCMP_CMP_MASKED_EQ": MaskedEqual,
}

func parseArgs(list []jsonArg) ([]Arg, error) {
	var args []Arg
	for _, a := range list {
		op, ok := operators[a.Op]
		if !ok || a.Index < 0 || a.Index > 5 {
			return nil, fmt.Errorf("argument %d with operator %q", a.Index, a.Op)
		}
		arg := Arg{Index: a.Index, Op: op, Value: a.Value}
		if op == MaskedEqual { // value is the mask there, and valueTwo the value
			arg.Mask, arg.Value = a.Value, a.ValueTwo
		}
		args = append(args, arg)
	}
	return args, nil
}

// parseAction reads an action with its error number, given as a number or by
// name; EPERM if neither.
func parseAction(name string, number *uint16, errnoName string) (Action, error) {
	data := uint16(unix.EPERM)
	switch {
	case number != nil:
		data = *number
	case errnoName != "":
		e, ok := errnoByName(errnoName)
		if !ok {
			return 0, fmt.Errorf("unknown error %q", errnoName)
		}
		data = uint16(e)
	}
	switch name {
	case "SCMP_ACT_ALLOW":
		return Allow, nil
	case "SCMP_ACT_ERRNO":
		if data > maxErrno {
			return 0, fmt.Errorf("error number %d is above %d", data, maxErrno)
		}
		return Errno(unix.Errno(data)), nil
	case "SCMP_ACT_LOG":
		return Log, nil
	case "SCMP_ACT_TRAP":
		return Trap, nil
	case "SCMP_ACT_TRACE":
		return Trace(data), nil
	case "SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD":
		return KillThread, nil
	case "SCMP_ACT_KILL_PROCESS":
		return KillProcess, nil
	case "SCMP_ACT_NOTIFY":
		return 0, errors.New("SCMP_ACT_NOTIFY is not supported")
	}
	return 0, fmt.Errorf("unknown action %q", name)
}

// maxErrno is the kernel's MAX_ERRNO; it would silently lower what is above.
const maxErrno = 4095

func errnoByName(name string) (unix.Errno, bool) {
	for e := unix.Errno(1); e < 134; e++ { // EHWPOISON is the last, 133
		if unix.ErrnoName(e) == name {
			return e, true
		}
	}
	return 0, false
}
