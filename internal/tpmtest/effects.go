package tpmtest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"time"
)

// Effect is what a fault does: it is called instead of c.Send, and may call it.
type Effect func(ctx context.Context, c Conn, command []byte) ([]byte, error)

// Code answers with a return code; the command does not reach the TPM.
func Code(rc uint32) Effect {
	return func(context.Context, Conn, []byte) ([]byte, error) { return NewAnswer(rc), nil }
}

// Answer answers with these octets, right or wrong; the command does not reach
// the TPM.
func Answer(octets []byte) Effect {
	return func(context.Context, Conn, []byte) ([]byte, error) { return bytes.Clone(octets), nil }
}

// DropBefore breaks the connection before the command reaches the TPM.
func DropBefore() Effect {
	return func(_ context.Context, c Conn, _ []byte) ([]byte, error) {
		c.Close()
		return nil, fmt.Errorf("injected: dropped before the command: %w", io.ErrUnexpectedEOF)
	}
}

// DropAfter breaks the connection when the TPM has carried the command out: the
// answer is lost, and with it the handle that may be in it.
func DropAfter() Effect {
	return func(ctx context.Context, c Conn, command []byte) ([]byte, error) {
		c.Send(ctx, command)
		c.Close()
		return nil, fmt.Errorf("injected: dropped after the command: %w", io.ErrUnexpectedEOF)
	}
}

// Change lets the TPM carry the command out, and change alter its answer: cut
// it short, flip a bit of a signature, turn it into garbage.
func Change(change func(answer []byte) []byte) Effect {
	return func(ctx context.Context, c Conn, command []byte) ([]byte, error) {
		answer, err := c.Send(ctx, command)
		if err != nil {
			return nil, err
		}
		return change(answer), nil
	}
}

// Short cuts the answer to its first n octets.
func Short(n int) Effect {
	return Change(func(a []byte) []byte { return a[:min(n, len(a))] })
}

// Late gives the answer only after the context of the command is over: the
// connection is broken, the TPM has carried the command out.
func Late() Effect {
	return func(ctx context.Context, c Conn, command []byte) ([]byte, error) {
		c.Send(context.WithoutCancel(ctx), command)
		c.Close()
		<-ctx.Done()
		return nil, fmt.Errorf("injected: late answer: %w", ctx.Err())
	}
}

// Delay holds the command back for d, or until its context is over, before it
// goes to the TPM.
func Delay(d time.Duration) Effect {
	return func(ctx context.Context, c Conn, command []byte) ([]byte, error) {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		return c.Send(ctx, command)
	}
}

// Hold calls waiting when the command has arrived, and lets it go on to the TPM
// when release is closed, or its context is over. With it a test can look at the
// world while the TPM works, without sleeping.
func Hold(waiting func(), release <-chan struct{}) Effect {
	return func(ctx context.Context, c Conn, command []byte) ([]byte, error) {
		waiting()
		select {
		case <-release:
		case <-ctx.Done():
		}
		return c.Send(ctx, command)
	}
}
