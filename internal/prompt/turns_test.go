package prompt

import (
	"context"
	"errors"
	"sync"
	"testing"
)

// One at a time on one terminal, in whatever order; who waits may leave.
func TestTurns(t *testing.T) {
	var (
		turns turns
		inUse int
		wait  sync.WaitGroup
	)
	for range 50 {
		wait.Go(func() {
			leave, err := turns.take(t.Context(), 7)
			if err != nil {
				t.Error(err)
				return
			}
			inUse++ // the race detector sees two at a time
			if inUse != 1 {
				t.Errorf("%d at a time", inUse)
			}
			inUse--
			leave()
		})
	}
	wait.Wait()
	if len(turns.taken) != 0 {
		t.Errorf("%d terminals are still taken", len(turns.taken))
	}
}

func TestTurnsOfOthers(t *testing.T) {
	var turns turns
	leave, err := turns.take(t.Context(), 7)
	if err != nil {
		t.Fatal(err)
	}
	other, err := turns.take(t.Context(), 8) // does not wait
	if err != nil {
		t.Fatal(err)
	}
	other()
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	done := make(chan error, 1)
	go func() {
		_, err := turns.take(ctx, 7)
		done <- err
	}()
	cancel(gone)
	if err := <-done; !errors.Is(err, gone) {
		t.Errorf("got %v", err)
	}
	leave()
	if again, err := turns.take(t.Context(), 7); err != nil {
		t.Error(err)
	} else {
		again()
	}
}
