package fault_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"

	"berth/internal/fault"
)

func TestKindSurvivesWrapping(t *testing.T) {
	inner := fault.NotFound.Errorf("IMAGE_NOT_FOUND", "no such image: %s", "web").
		With("image", "web").Hint("pull it with: berth pull %s", "web")
	err := fmt.Errorf("run: %w", inner)

	if !errors.Is(err, fault.NotFound) || errors.Is(err, fault.Internal) {
		t.Errorf("errors.Is by kind is wrong for %v", err)
	}
	if got, want := err.Error(), "run: no such image: web"; got != want {
		t.Errorf("text = %q, want %q", got, want)
	}
	if got := fault.HintOf(err); got != "pull it with: berth pull web" {
		t.Errorf("hint = %q", got)
	}
	if got := fault.ReasonOf(err); got != "IMAGE_NOT_FOUND" {
		t.Errorf("reason = %q", got)
	}
	if got := fault.MetadataOf(err)["image"]; got != "web" {
		t.Errorf("metadata image = %q", got)
	}
}

func TestOutermostKindWinsInnerHintStays(t *testing.T) {
	inner := fault.Unavailable.Errorf("REGISTRY_AWAY", "registry away").Hint("try later")
	outer := fault.FailedPrecondition.Errorf("NO_IMAGE", "create: %w", inner)
	if got := fault.KindOf(outer); got != fault.FailedPrecondition {
		t.Errorf("kind = %v", got)
	}
	if got := fault.HintOf(outer); got != "try later" {
		t.Errorf("hint = %q", got)
	}
}

func TestKindOfForeignErrors(t *testing.T) {
	for _, c := range []struct {
		err  error
		want fault.Kind
	}{
		{nil, fault.None},
		{errors.New("x"), fault.Internal},
		{context.Canceled, fault.Cancelled},
		{fmt.Errorf("wait: %w", context.DeadlineExceeded), fault.DeadlineExceeded},
		{&os.PathError{Op: "write", Path: "/x", Err: syscall.ENOSPC}, fault.ResourceExhausted},
		{syscall.EMFILE, fault.ResourceExhausted},
		{fault.Aborted, fault.Aborted},
	} {
		if got := fault.KindOf(c.err); got != c.want {
			t.Errorf("KindOf(%v) = %v, want %v", c.err, got, c.want)
		}
	}
}

func TestWithDoesNotChangeTheOriginal(t *testing.T) {
	base := fault.Internal.Errorf("X", "x").With("a", "1")
	_ = base.With("a", "2").Hint("h")
	if base.Metadata()["a"] != "1" || fault.HintOf(base) != "" {
		t.Errorf("original changed: %v %q", base.Metadata(), fault.HintOf(base))
	}
}
