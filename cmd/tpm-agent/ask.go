package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/tpm-agent/tpm-agent/internal/prompt"
)

// maxPIN is the longest PIN that is taken from standard input, in octets.
const maxPIN = 1024

// asker asks the questions of keygen: on the terminal when standard input is
// one, else the answers are lines of standard input.
type asker struct {
	sys      system
	input    *bufio.Reader
	terminal bool
}

func newAsker(sys system) *asker {
	return &asker{sys: sys, input: bufio.NewReaderSize(sys.stdin, 4096), terminal: isTerminal(sys.stdin)}
}

// file asks where to save the key.
func (a *asker) file(ctx context.Context, preset string) (string, error) {
	line, err := a.line(ctx, fmt.Sprintf("Enter file in which to save the key (%s): ", plain(preset)))
	if err != nil {
		return "", withHint(fmt.Errorf("asking where to save the key: %w", err), "say it with -f FILE")
	}
	name := strings.TrimSpace(string(line))
	if rest, ok := strings.CutPrefix(name, "~/"); ok {
		home, err := a.sys.home()
		if err != nil {
			return "", err
		}
		name = filepath.Join(home, rest)
	}
	if name == "" {
		return preset, nil
	}
	return name, nil
}

// newPIN asks twice, until the answers are the same.
func (a *asker) newPIN(ctx context.Context) ([]byte, error) {
	return a.twice(ctx, "Enter PIN (empty for no PIN): ")
}

// twice asks for a new PIN until two answers are the same.
func (a *asker) twice(ctx context.Context, question string) ([]byte, error) {
	for {
		first, err := a.pin(ctx, question)
		if err != nil {
			return nil, err
		}
		second, err := a.pin(ctx, "Enter same PIN again: ")
		if err != nil {
			clear(first)
			return nil, err
		}
		same := bytes.Equal(first, second)
		clear(second)
		if same {
			return first, nil
		}
		clear(first)
		fmt.Fprintln(a.sys.stderr, "PINs do not match.  Try again.")
	}
}

// pin asks for a PIN, without echo where there is a terminal.
func (a *asker) pin(ctx context.Context, question string) ([]byte, error) {
	return a.secret(ctx, "PIN", question, "-N PIN gives it, -N '' asks for none")
}

// secret asks for a PIN or a passphrase. hint is what to do where nobody can
// answer.
func (a *asker) secret(ctx context.Context, what, question, hint string) (secret []byte, err error) {
	if a.terminal {
		secret, err = prompt.ReadPIN(ctx, "/dev/tty", question)
	} else {
		secret, err = a.line(ctx, question)
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	} else if err == nil {
		err = checkPIN(secret)
	}
	if err != nil {
		clear(secret)
		return nil, withHint(fmt.Errorf("asking for a %s: %w", what, err), "%s", hint)
	}
	return secret, nil
}

// checkPIN refuses what cannot be typed as a PIN.
func checkPIN(pin []byte) error {
	switch {
	case bytes.IndexByte(pin, 0) >= 0:
		return errors.New("it has a NUL octet in it, which a PIN cannot have")
	case len(pin) > maxPIN:
		return fmt.Errorf("it is longer than %d octets", maxPIN)
	}
	return nil
}

// choice asks for one of some words, of which the first letter is enough, and
// nothing at all for the first one.
func (a *asker) choice(ctx context.Context, question string, words ...string) (string, error) {
	question = fmt.Sprintf("%s (%s) [%s]: ", question, strings.Join(words, "/"), words[0])
	for {
		line, err := a.line(ctx, question)
		if err != nil {
			return "", err
		}
		answer := strings.ToLower(strings.TrimSpace(string(line)))
		for _, word := range words {
			if strings.HasPrefix(word, answer) {
				return word, nil
			}
		}
		fmt.Fprintf(a.sys.stderr, "Please answer %s.\n", strings.Join(words, ", "))
	}
}

// line prints a question and reads a line. The read cannot be called back, but
// an interrupted program does not wait for it.
func (a *asker) line(ctx context.Context, question string) ([]byte, error) {
	fmt.Fprint(a.sys.stderr, question)
	type answer struct {
		line []byte
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		line, err := readLine(a.input)
		got <- answer{line, err}
	}()
	select {
	case <-ctx.Done():
		fmt.Fprintln(a.sys.stderr)
		return nil, context.Cause(ctx)
	case read := <-got:
		if !a.terminal {
			fmt.Fprintln(a.sys.stderr)
		}
		return read.line, read.err
	}
}

// readLine reads a line, which may end with the input; an input that is over
// is no answer.
func readLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, errors.New("the line is too long")
	case errors.Is(err, io.EOF) && len(line) == 0:
		return nil, errors.New("standard input has ended")
	case err != nil && !errors.Is(err, io.EOF):
		return nil, err
	}
	own := bytes.Clone(bytes.TrimRight(line, "\r\n"))
	clear(line)
	return own, nil
}
