package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// interrupting is the context of commands that end at the first Ctrl-C, after
// having cleaned up. serve has rules of its own.
func interrupting(cmd *cobra.Command) (context.Context, func()) {
	return interruptible(cmd.Context(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
}

// interruptible returns a context that ends with the first of the signals; the
// second one then has its usual effect. Its cause is an *interruptedError.
func interruptible(parent context.Context, signals ...os.Signal) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, signals...)
	go func() {
		select {
		case s := <-caught:
			signal.Stop(caught)
			cancel(&interruptedError{s.(syscall.Signal)})
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(caught)
		cancel(nil)
	}
}

// interruptedError is the cause of a context that a signal ended.
type interruptedError struct{ signal syscall.Signal }

func (e *interruptedError) Error() string { return "interrupted (" + e.signal.String() + ")" }

// orInterrupted is err, or the interruption that brought it about: what the TPM
// says to somebody who stops in the middle is of no interest.
func orInterrupted(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
