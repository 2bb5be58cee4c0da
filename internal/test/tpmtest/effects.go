package tpmtest

import (
	"context"
	"fmt"
	"io"
)

// An Effect carries out a fault. It is called instead of c.Send, and may call it.
type Effect func(ctx context.Context, c Conn, command []byte) ([]byte, error)

// Code answers with a return code. The command does not reach the TPM.
func Code(rc uint32) Effect {
	return func(context.Context, Conn, []byte) ([]byte, error) { return NewAnswer(rc), nil }
}

// DropBefore breaks the connection before the command reaches the TPM.
func DropBefore() Effect {
	return func(_ context.Context, c Conn, _ []byte) ([]byte, error) {
		c.Close()
		return nil, fmt.Errorf("injected: dropped before the command: %w", io.ErrUnexpectedEOF)
	}
}

// DropAfter breaks the connection after the TPM has executed the command. The
// answer is lost, and with it any handle in it.
func DropAfter() Effect {
	return func(ctx context.Context, c Conn, command []byte) ([]byte, error) {
		c.Send(ctx, command)
		c.Close()
		return nil, fmt.Errorf("injected: dropped after the command: %w", io.ErrUnexpectedEOF)
	}
}

// Change lets the TPM execute the command and passes its answer through a
// function, which may shorten it, flip a bit, or replace it.
func Change(change func(answer []byte) []byte) Effect {
	return func(ctx context.Context, c Conn, command []byte) ([]byte, error) {
		answer, err := c.Send(ctx, command)
		if err != nil {
			return nil, err
		}
		return change(answer), nil
	}
}

// Short cuts the answer to its first n bytes.
func Short(n int) Effect {
	return Change(func(a []byte) []byte { return a[:min(n, len(a))] })
}

// Hold calls waiting when the command has arrived, and passes it to the TPM when
// release is closed or the context ends. With it, a test can act while the TPM
// seems to be working.
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
