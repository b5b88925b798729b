package starter

import (
	"reflect"
	"testing"

	"berth/libcontainer"
)

// fill gives every field of v a value that is not zero, so that one that an encoding leaves out is missed.
func fill(t *testing.T, v reflect.Value) {
	t.Helper()
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i))
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(t, v.Index(0))
		fill(t, v.Index(1))
	case reflect.String:
		v.SetString("text")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int:
		v.SetInt(-3)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(200)
	default:
		t.Fatalf("no value for a %v", v.Type())
	}
}

func wholePlan(t *testing.T) *ExecPlan {
	p := new(ExecPlan)
	fill(t, reflect.ValueOf(p).Elem())
	return p
}

// TestExecPlanArrives: a monitor reads plans of its own build and of others, with every field that there is.
func TestExecPlanArrives(t *testing.T) {
	for name, same := range map[string]bool{"same build": true, "another build": false} {
		for _, p := range []*ExecPlan{wholePlan(t), {Parent: "p", Name: "n", Command: libcontainer.Command{Args: []string{"true"}}}} {
			config, filter, err := p.Encode(same)
			if err != nil {
				t.Fatal(err)
			}
			if json := config[0] == '{'; json == same {
				t.Errorf("%s: JSON is %t", name, json)
			}
			got, err := decodeExecPlan(config, filter)
			if err != nil || !reflect.DeepEqual(got, p) {
				t.Errorf("%s: %+v arrives as %+v, %v", name, p, got, err)
			}
		}
	}
}

// TestMalformedExecPlan: what is cut off is an error, wherever.
func TestMalformedExecPlan(t *testing.T) {
	for _, same := range []bool{true, false} {
		config, filter, err := wholePlan(t).Encode(same)
		if err != nil {
			t.Fatal(err)
		}
		for n := range config {
			if _, err := decodeExecPlan(config[:n], filter); err == nil {
				t.Errorf("%d bytes of %d are taken for a plan", n, len(config))
			}
		}
	}
}

func BenchmarkExecPlan(b *testing.B) {
	score := 0
	p := &ExecPlan{Parent: "berth", Name: "ready-1234-5", Command: libcontainer.Command{
		Args: []string{"/bin/true"}, Cwd: "/", Caps: 0xa80425fb, OOMScoreAdj: &score, Seccomp: make([]byte, 2400),
		Env:     []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=3fe4210cad91"},
		Rlimits: []libcontainer.Rlimit{{Resource: 7, Soft: 1 << 20, Hard: 1 << 20}, {Resource: 4}},
	}}
	for name, same := range map[string]bool{"binary": true, "json": false} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				config, filter, err := p.Encode(same)
				if err == nil {
					_, err = decodeExecPlan(config, filter)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
