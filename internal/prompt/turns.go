package prompt

import (
	"context"
	"sync"
)

// turns keeps dialogs on one terminal from mixing: each waits for the one
// before it. Terminals are told apart by their device numbers.
type turns struct {
	mu    sync.Mutex
	taken map[uint64]chan struct{} // closed when the terminal is free again
}

// take waits for a terminal. leave gives it to the next.
func (t *turns) take(ctx context.Context, device uint64) (leave func(), err error) {
	for {
		busy, leave := t.tryTake(device)
		if busy == nil {
			return leave, nil
		}
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// tryTake takes a terminal that is free, or returns what tells when it is.
func (t *turns) tryTake(device uint64) (busy chan struct{}, leave func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if busy := t.taken[device]; busy != nil {
		return busy, nil
	}
	if t.taken == nil {
		t.taken = make(map[uint64]chan struct{})
	}
	mine := make(chan struct{})
	t.taken[device] = mine
	return nil, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.taken, device)
		close(mine)
	}
}
