package tty

import (
	"context"
	"errors"
	"sync"
	"testing"
)

// Only one has its turn on a terminal at a time.
func TestTurns(t *testing.T) {
	t.Parallel()
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
			inUse++ // the race detector finds two at a time
			if inUse != 1 {
				t.Errorf("%d at a time", inUse)
			}
			inUse--
			leave()
		})
	}
	wait.Wait()
}

// Terminals do not wait for each other, and one who waits may leave.
func TestTurnsOfOthers(t *testing.T) {
	t.Parallel()
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
