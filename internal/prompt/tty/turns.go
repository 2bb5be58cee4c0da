package tty

import (
	"context"
	"sync"
)

// turns keeps questions on one terminal apart: each waits for the one before it.
// Terminals are told apart by their device numbers.
type turns struct {
	places sync.Map // channels with room for the one whose turn it is
}

// take waits for a terminal. leave gives it to the next one who waits.
func (t *turns) take(ctx context.Context, device uint32) (leave func(), err error) {
	place, _ := t.places.LoadOrStore(device, make(chan struct{}, 1))
	turn := place.(chan struct{})
	select {
	case turn <- struct{}{}:
		return func() { <-turn }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
