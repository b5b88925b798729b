// Package orders is what the bench says to a process that launches containers for it and stays: a client that is
// connected already, a program that holds a launcher. Such a process has a control group of its own, so that its CPU
// time counts for its contender and not for the bench; and it takes the times itself, so that asking it is not measured.
//
// Orders and results are lines of JSON on its standard input and output, one result for each order, in order.
package orders

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// Order asks for Count runs of an operation by Workers at once.
type Order struct {
	Op        string          `json:"op"`
	Spec      json.RawMessage `json:"spec,omitempty"`      // of new containers; its form is the operation's
	Container string          `json:"container,omitempty"` // one that is there
	Steps     bool            `json:"steps,omitempty"`     // ask for them
	Count     int             `json:"count"`
	Workers   int             `json:"workers"`
}

// Result is what came of an order.
type Result struct {
	Walls     []time.Duration `json:"walls,omitempty"` // of each run that succeeded; of one worker, in order
	Elapsed   time.Duration   `json:"elapsed"`         // from the first begin to the last end
	Steps     []Step          `json:"steps,omitempty"` // what each run was made of, by operations that tell
	Made      []string        `json:"made,omitempty"`  // ids of containers that were left
	Failed    int             `json:"failed,omitempty"`
	Complaint string          `json:"complaint,omitempty"` // why the first one failed
}

// Step is a stage of one run.
type Step struct {
	Name string        `json:"name"`
	Took time.Duration `json:"took"`
}

// Outcome is what an operation did in one run.
type Outcome struct {
	Wall  time.Duration // the time that counts
	Made  string        // the id of what it leaves behind, if anything
	Steps []Step
}

// Operation does something once, as one of an order's workers.
type Operation func(ctx context.Context, o *Order, worker int) (Outcome, error)

// Serve obeys orders from r until it ends.
func Serve(ctx context.Context, r io.Reader, w io.Writer, operations map[string]Operation) error {
	in, out := json.NewDecoder(r), json.NewEncoder(w)
	for {
		var o Order
		if err := in.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read an order: %w", err)
		}
		result := Result{Failed: o.Count, Complaint: "unknown operation " + o.Op}
		if op := operations[o.Op]; op != nil {
			result = obey(ctx, &o, op)
		}
		if err := out.Encode(result); err != nil {
			return fmt.Errorf("write a result: %w", err)
		}
	}
}

func obey(ctx context.Context, o *Order, op Operation) (r Result) {
	var (
		mu   sync.Mutex
		wg   sync.WaitGroup
		left atomic.Int64
	)
	left.Store(int64(o.Count))
	began := time.Now()
	for worker := range max(o.Workers, 1) {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				done, err := op(ctx, o, worker)
				mu.Lock()
				if err == nil {
					r.Walls = append(r.Walls, done.Wall)
				} else if r.Failed++; r.Failed == 1 {
					r.Complaint = err.Error()
				}
				r.Steps = append(r.Steps, done.Steps...)
				if done.Made != "" {
					r.Made = append(r.Made, done.Made)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	r.Elapsed = time.Since(began)
	return r
}
