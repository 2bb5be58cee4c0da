package term

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/consent"
	"github.com/tpm-agent/tpm-agent/internal/prompt"
	"github.com/tpm-agent/tpm-agent/internal/prompt/tty"
)

const (
	maxPIN  = 1024       // the longest PIN that does not come from a prompt, in octets
	ttyPath = "/dev/tty" // the terminal that the program was started on
)

// An Asker asks the user. [NewAsker] asks on the terminal if standard input is
// one; otherwise it reads answers as lines from standard input. [OnTerminal] never
// reads standard input, which may be meant for something else.
type Asker struct {
	Sys      *System
	Terminal bool // the user is at a terminal, so they can correct an answer
	only     bool // ask on the terminal even if standard input is not one
	input    *bufio.Reader
}

// NewAsker returns an Asker that reads standard input.
func NewAsker(sys *System) *Asker {
	return &Asker{Sys: sys, Terminal: IsTerminal(sys.Stdin), input: bufio.NewReaderSize(sys.Stdin, 4096)}
}

// OnTerminal returns an Asker that uses only the terminal.
func OnTerminal(sys *System) *Asker { return &Asker{Sys: sys, Terminal: true, only: true} }

// Say tells the user something on standard error.
func (a *Asker) Say(format string, args ...any) { fmt.Fprintf(a.Sys.Stderr, format+"\n", args...) }

// File asks for the name of a file to save a key in.
func (a *Asker) File(ctx context.Context, preset string) (string, error) {
	line, err := a.Line(ctx, fmt.Sprintf("Enter file in which to save the key (%s): ", Plain(preset)))
	if err != nil {
		return "", Hint(fmt.Errorf("asking where to save the key: %w", err), "name the file with -f FILE")
	}
	name := strings.TrimSpace(string(line))
	if rest, ok := strings.CutPrefix(name, "~/"); ok {
		home, err := a.Sys.Home()
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

// NewPIN asks for a new PIN until two answers are the same.
func (a *Asker) NewPIN(ctx context.Context, question string) ([]byte, error) {
	const hint = "set it with -N PIN, or use -N '' for no PIN"
	for {
		first, err := a.Secret(ctx, "PIN", question, hint)
		if err != nil {
			return nil, err
		}
		second, err := a.Secret(ctx, "PIN", "Enter same PIN again: ", hint)
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
		a.Say("PINs do not match.  Try again.")
	}
}

// Secret asks for a PIN or a passphrase, without echo on a terminal. hint tells the
// user what to do if there is no way to ask.
func (a *Asker) Secret(ctx context.Context, what, question, hint string) (secret []byte, err error) {
	if a.Terminal {
		secret, err = tty.ReadPIN(ctx, ttyPath, question)
	} else {
		secret, err = a.Line(ctx, question)
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	} else if err == nil {
		err = CheckPIN(secret)
	}
	if err != nil {
		clear(secret)
		return nil, Hint(fmt.Errorf("asking for a %s: %w", what, a.orNoTerminal(err)), "%s", hint)
	}
	return secret, nil
}

// CheckPIN refuses a PIN that cannot be typed.
func CheckPIN(pin []byte) error {
	switch {
	case bytes.IndexByte(pin, 0) >= 0:
		return errors.New("it contains a NUL octet, which a PIN cannot have")
	case bytes.ContainsAny(pin, "\r\n"):
		return errors.New("it contains a line break, which cannot be typed")
	case len(pin) > maxPIN:
		return fmt.Errorf("it is longer than %d octets", maxPIN)
	}
	return nil
}

// Choice asks the user to choose one of the words. The first letter is enough. An
// empty answer means the first word.
func (a *Asker) Choice(ctx context.Context, question string, words ...string) (string, error) {
	question = fmt.Sprintf("%s (%s) [%s]: ", question, strings.Join(words, "/"), words[0])
	for {
		line, err := a.Line(ctx, question)
		if err != nil {
			return "", err
		}
		answer := strings.ToLower(strings.TrimSpace(string(line)))
		for _, word := range words {
			if strings.HasPrefix(word, answer) {
				return word, nil
			}
		}
		a.Say("Please answer %s.", strings.Join(words, ", "))
	}
}

// Line prints a question and reads a line. It returns at once when ctx ends.
func (a *Asker) Line(ctx context.Context, question string) ([]byte, error) {
	if a.only {
		line, err := readTerminal(ctx, question)
		return line, a.orNoTerminal(err)
	}
	fmt.Fprint(a.Sys.Stderr, question)
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
		a.Say("")
		return nil, context.Cause(ctx)
	case read := <-got:
		if !a.Terminal {
			a.Say("")
		}
		return read.line, read.err
	}
}

// readLine reads a line. The last line needs no line break, but the end of the
// input alone is not an answer.
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

// readTerminal asks for a line on the terminal, with echo, until ctx ends.
func readTerminal(ctx context.Context, question string) ([]byte, error) {
	f, err := os.OpenFile(ttyPath, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := io.WriteString(f, question); err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })()
	line, err := bufio.NewReader(f).ReadBytes('\n')
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(f)
		return nil, context.Cause(ctx)
	case errors.Is(err, io.EOF):
		return nil, ask.ErrRefused
	}
	return line, err
}

// orNoTerminal returns err, or a clearer error if there is no terminal.
func (a *Asker) orNoTerminal(err error) error {
	if a.only && (errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENXIO)) {
		return errors.New("there is no terminal to ask on")
	}
	return err
}

// A PINDialog asks for the PIN of a key. It implements [consent.Dialog].
type PINDialog struct {
	*Asker
	Name     string // of the key
	Question string
	Hint     string // what to do if there is no way to ask for the PIN
	Given    []byte // the PIN to try, once; nil: ask
	Unasked  error  // refuses the last try with Given; nil: ask for consent
	Left     func(ctx context.Context) (consent.Lockout, error)
	TryPIN   func(ctx context.Context, pin []byte) error

	failed error // the error of the last try, or of Left
}

// Lockout implements [consent.Dialog].
func (d *PINDialog) Lockout(ctx context.Context) (consent.Lockout, bool) {
	l, err := d.Left(ctx)
	if err != nil {
		l.Tries, d.failed, d.Given = -1, err, []byte{}
	}
	return l, err == nil
}

// over reports whether there is nothing left to try.
func (d *PINDialog) over() bool { return d.failed != nil && (d.Given != nil || !d.Terminal) }

// LastTry implements [consent.Dialog].
func (d *PINDialog) LastTry(ctx context.Context, l consent.Lockout, retry bool) error {
	switch {
	case d.over():
		return d.failed
	case d.Given != nil && d.Unasked != nil:
		return d.Unasked
	}
	answer, err := d.Line(ctx, prompt.LastTryText(d.Name, retry))
	defer clear(answer)
	if err != nil {
		err = fmt.Errorf("asking whether to use the last try: %w", err)
	} else if !prompt.SaysYes(answer) {
		err = fmt.Errorf("the last try was not used: %w", ask.ErrRefused)
	}
	if err != nil && ctx.Err() == nil && l.Wait > 0 {
		return Hint(err, "nothing was changed; wait %s until the TPM gives back a try", prompt.Duration(l.Wait))
	}
	return err
}

// Ask implements [consent.Dialog]. It shows how many tries are left. Before a last
// try, LastTry has already done so.
func (d *PINDialog) Ask(ctx context.Context, l consent.Lockout, retry bool) ([]byte, error) {
	switch {
	case d.over():
		return nil, d.failed
	case d.Given != nil:
		return bytes.Clone(d.Given), nil
	}
	words := ""
	if l.Tries != 1 {
		words = prompt.TriesLeft(l.Tries)
		if retry {
			words = strings.TrimSpace("Wrong PIN. " + words)
		}
	}
	question := strings.TrimPrefix(fmt.Sprintf("%s\n%s for %s: ", words, d.Question, Plain(d.Name)), "\n")
	for {
		pin, err := d.Secret(ctx, "PIN", question, d.Hint)
		if err != nil || len(pin) > 0 || !d.Terminal {
			return pin, err
		}
		d.Say("The key has a PIN, but you typed none. Press Ctrl-C to stop.")
	}
}

// Try implements [consent.Dialog].
func (d *PINDialog) Try(ctx context.Context, pin []byte) error {
	d.failed = d.TryPIN(ctx, pin)
	return d.failed
}
