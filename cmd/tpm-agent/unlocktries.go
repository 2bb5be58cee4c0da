package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/tpm-agent/tpm-agent/agent"
	"github.com/tpm-agent/tpm-agent/internal/prompt"
)

// unlockTries is how often a person is asked for the PIN of one key.
const unlockTries = 3

// pinTries is the dialog about one key.
type pinTries struct {
	*unlocking
	name  string
	blob  []byte
	left  int      // tries before the lockout; -1: not known
	wrong [][]byte // not to be tried again
}

func (t *pinTries) run(ctx context.Context) error {
	if t.given != nil {
		if t.left == 1 {
			return withHint(errors.New("one try is left before the TPM locks itself, and that is not spent unasked"),
				"without --pin-from you are asked: tpm-agent unlock %s", shQuote(t.name))
		}
		return t.give(ctx, t.blob, t.given)
	}
	if t.left != 1 { // or more is said about it
		fmt.Fprintln(t.sys.stderr, triesWords(t.left))
	}
	for n := 1; ; n++ {
		err := t.try(ctx)
		var wrong *agent.WrongPINError
		if !errors.As(err, &wrong) || n == unlockTries || wrong.TriesLeft == 0 {
			return err
		}
		t.left = wrong.TriesLeft
		fmt.Fprintf(t.sys.stderr, "Wrong PIN. %s\n", triesWords(t.left))
	}
}

// try asks once, and gives what was typed to the agent if that makes sense.
func (t *pinTries) try(ctx context.Context) error {
	if t.left == 1 {
		if err := t.lastTry(ctx); err != nil {
			return err
		}
	}
	pin, err := t.ask(ctx)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(t.wrong, func(w []byte) bool { return bytes.Equal(w, pin) }) {
		clear(pin)
		return &agent.WrongPINError{TriesLeft: t.left} // and is still
	}
	t.wrong = append(t.wrong, pin) // if it is right it is forgotten with the others
	return t.give(ctx, t.blob, pin)
}

func (t *pinTries) wipe() {
	for _, w := range t.wrong {
		clear(w)
	}
}

func (t *pinTries) ask(ctx context.Context) ([]byte, error) {
	for {
		pin, err := prompt.ReadPIN(ctx, terminal, fmt.Sprintf("Enter PIN for %s: ", plain(t.name)))
		if err != nil {
			return nil, noTerminal(err)
		}
		if len(pin) > 0 {
			return pin, nil
		}
		fmt.Fprintln(t.sys.stderr, "The key has a PIN, and none was typed. Ctrl-C ends this.")
	}
}

// lastTry asks whether the TPM may be locked by a mistake.
func (t *pinTries) lastTry(ctx context.Context) error {
	fmt.Fprint(t.sys.stderr, lastTryWords)
	answer, err := readTerminal(ctx, "Type yes to try all the same: ")
	switch {
	case err != nil:
		return noTerminal(err)
	case string(bytes.TrimSpace(answer)) != "yes":
		return fmt.Errorf("the last try is left: %w", agent.ErrRefused)
	}
	return nil
}

const lastTryWords = `This is the last try before the TPM locks itself. After one more wrong PIN it takes
none for some time, not even right ones, for any key. Keys without a PIN go on.
`

// triesWords says how often one may still be wrong.
func triesWords(left int) string {
	switch {
	case left < 0:
		return "Every wrong PIN counts towards the TPM's lockout."
	case left == 1:
		return "1 try left before the TPM locks itself."
	}
	return fmt.Sprintf("%d tries left before the TPM locks itself.", left)
}
