package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

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
	left  int // tries before the lockout; -1: not known
	wrong wrongPINs
}

// wrongPINs are PINs of a key that are not to be tried again.
type wrongPINs [][]byte

func (w wrongPINs) has(pin []byte) bool {
	return slices.ContainsFunc(w, func(wrong []byte) bool { return bytes.Equal(wrong, pin) })
}

func (w wrongPINs) wipe() {
	for _, pin := range w {
		clear(pin)
	}
}

func (t *pinTries) run(ctx context.Context) error {
	if t.given != nil {
		if t.left == 1 {
			return withHint(errors.New("one try is left before the TPM locks itself, and that is not spent unasked"),
				"without --pin-from you are asked: tpm-agent unlock %s", shQuote(t.name))
		}
		return t.give(ctx, t.blob, t.given)
	}
	for n := 1; ; n++ {
		err := t.try(ctx, n > 1)
		var wrong *agent.WrongPINError
		if !errors.As(err, &wrong) || n == unlockTries || wrong.TriesLeft == 0 {
			return err
		}
		t.left = wrong.TriesLeft
	}
}

// try asks once, and gives what was typed to the agent if that makes sense.
func (t *pinTries) try(ctx context.Context, again bool) error {
	if t.left == 1 {
		if err := t.lastTry(ctx, again); err != nil {
			return err
		}
	} else if words := triesWords(t.left, again); words != "" {
		fmt.Fprintln(t.sys.stderr, words)
	}
	pin, err := t.ask(ctx)
	if err != nil {
		return err
	}
	if t.wrong.has(pin) {
		clear(pin)
		return &agent.WrongPINError{TriesLeft: t.left} // and is still
	}
	t.wrong = append(t.wrong, pin) // if it is right it is forgotten with the others
	return t.give(ctx, t.blob, pin)
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
func (t *pinTries) lastTry(ctx context.Context, wrong bool) error {
	answer, err := readTerminal(ctx, prompt.LastTry(t.name, wrong))
	defer clear(answer)
	switch {
	case err != nil:
		return noTerminal(err)
	case !prompt.SaysYes(answer):
		return errLastTryLeft
	}
	return nil
}

// errLastTryLeft is what comes of a no to the question about the last try.
var errLastTryLeft = fmt.Errorf("the last try is left: %w", agent.ErrRefused)

// triesWords says how often one may still be wrong, if that is known, and
// whether it has just been so.
func triesWords(left int, wrong bool) string {
	words := prompt.TriesLeft(left)
	if wrong {
		words = strings.TrimSpace("Wrong PIN. " + words)
	}
	return words
}
