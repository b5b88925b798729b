package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

// TestUnknownKinds: what the generator does not know ends it, instead of being left out of a message. What it does know
// is tested by what it wrote, in cli/apiv1.
func TestUnknownKinds(t *testing.T) {
	program := filepath.Join(t.TempDir(), "protoc-gen-lite")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	field := func(kind descriptorpb.FieldDescriptorProto_Type, label descriptorpb.FieldDescriptorProto_Label) string {
		request, err := proto.Marshal(&pluginpb.CodeGeneratorRequest{
			FileToGenerate: []string{"x.proto"}, Parameter: proto.String("package=x/y"),
			ProtoFile: []*descriptorpb.FileDescriptorProto{{
				Name: proto.String("x.proto"), Syntax: proto.String("proto3"), Options: &descriptorpb.FileOptions{GoPackage: proto.String("x/y")},
				MessageType: []*descriptorpb.DescriptorProto{{Name: proto.String("M"), Field: []*descriptorpb.FieldDescriptorProto{{
					Name: proto.String("f"), Number: proto.Int32(1), Type: &kind, Label: &label,
				}}}},
			}},
		})
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(program)
		cmd.Stdin, cmd.Stderr = strings.NewReader(string(request)), os.Stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		var response pluginpb.CodeGeneratorResponse
		if err := proto.Unmarshal(out, &response); err != nil {
			t.Fatal(err)
		}
		return response.GetError()
	}
	one, list := descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL, descriptorpb.FieldDescriptorProto_LABEL_REPEATED
	if text := field(descriptorpb.FieldDescriptorProto_TYPE_STRING, one); text != "" {
		t.Errorf("a string: %s", text)
	}
	for kind, label := range map[descriptorpb.FieldDescriptorProto_Type]descriptorpb.FieldDescriptorProto_Label{
		descriptorpb.FieldDescriptorProto_TYPE_SINT32: one, descriptorpb.FieldDescriptorProto_TYPE_FIXED64: one, descriptorpb.FieldDescriptorProto_TYPE_FLOAT: one,
		descriptorpb.FieldDescriptorProto_TYPE_BYTES: list, descriptorpb.FieldDescriptorProto_TYPE_BOOL: list, descriptorpb.FieldDescriptorProto_TYPE_DOUBLE: list,
	} {
		if text := field(kind, label); !strings.Contains(text, "M.f") {
			t.Errorf("%s %s: %q, want an error that names the field", label, kind, text)
		}
	}
}
