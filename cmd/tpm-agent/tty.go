package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/agent"
)

// terminal is the one that the program was started on. What is a matter of
// life and death for the TPM is asked there: a standard input that is no
// terminal is meant for something else.
const terminal = "/dev/tty"

// readTerminal asks for a line on the terminal, where it can be seen while it
// is typed. The end of ctx ends it.
func readTerminal(ctx context.Context, question string) ([]byte, error) {
	tty, err := os.OpenFile(terminal, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer tty.Close()
	if _, err := io.WriteString(tty, question); err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = tty.SetReadDeadline(time.Unix(1, 0)) })()
	line, err := bufio.NewReader(tty).ReadBytes('\n')
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(tty)
		return nil, context.Cause(ctx)
	case errors.Is(err, io.EOF):
		return nil, agent.ErrRefused
	}
	return line, err
}

// noTerminal says how a PIN can be given where there is no terminal.
func noTerminal(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENXIO) {
		return withHint(errors.New("there is no terminal to ask on"),
			"--pin-from fd:0 takes the PIN from standard input, --pin-from file:PATH from a file")
	}
	return err
}
