package tpmkey

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// headerSize is the length of a command or response header: tag, size, and
// command code or response code (TPM 2.0 Part 1, 18).
const headerSize = 10

// link is the connection as one turn sees it. It implements go-tpm's
// transport.TPM, and is the one place where commands get their deadlines, where
// the TPM's "not now" is retried, and where a connection is found to be broken.
type link struct {
	ctx      context.Context // of the one who has the turn
	conn     Conn
	answered int   // commands that got a response
	broken   error // why conn is of no more use
	// What may be in the TPM because of this turn.
	held    []heldName
	unnamed []unnamed
	boot    bootCount // as last read by making
}

// heldName is the Name of an object in the TPM.
type heldName string

// Send implements transport.TPM.
func (l *link) Send(command []byte) ([]byte, error) {
	if l.broken != nil {
		return nil, l.broken
	}
	if len(command) < headerSize {
		return nil, fmt.Errorf("TPM command of %d octets", len(command))
	}
	code := tpm2.TPMCC(binary.BigEndian.Uint32(command[6:]))
	var back backoff
	for {
		response, err := l.exchange(code, command)
		if err != nil {
			return nil, err
		}
		rc := tpm2.TPMRC(binary.BigEndian.Uint32(response[6:]))
		if rc == tpm2.TPMRCInitialize && code != tpm2.TPMCCStartup && !back.started {
			// A TPM without firmware or kernel in front of it (a software
			// TPM that was just restarted) is not started up by anybody.
			back.started = true
			if err := l.startup(); err != nil {
				return nil, err
			}
			continue
		}
		if !passing(rc) || !back.wait(l.patience(code)) {
			return response, nil
		}
	}
}

// exchange sends one command and checks the frame of the response. Response
// codes lose the layer bits that a resource manager sets (TSS 2.0 Overview,
// 2.4): a caller branches on the TPM's own numbers.
func (l *link) exchange(code tpm2.TPMCC, command []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(l.ctx), deadline(code))
	defer cancel()
	response, err := l.conn.Send(ctx, command)
	if err != nil {
		l.broken = err
		return nil, err
	}
	if len(response) < headerSize || int(binary.BigEndian.Uint32(response[2:])) != len(response) {
		return nil, l.fail(fmt.Errorf("response of %d octets is damaged", len(response)))
	}
	l.answered++
	if rc := binary.BigEndian.Uint32(response[6:]); rc > 0xFFF {
		binary.BigEndian.PutUint32(response[6:], rc&0xFFF)
	}
	return response, nil
}

// startup sends TPM2_Startup(CLEAR).
func (l *link) startup() error {
	_, err := tpm2.Startup{StartupType: tpm2.TPMSUClear}.Execute(l)
	if err != nil && !errors.Is(err, tpm2.TPMRCInitialize) {
		return l.command("TPM2_Startup", err)
	}
	return nil
}

// command gives err, as go-tpm's Execute returned it, the command's name. What
// is neither a response code nor a broken connection is a response that could
// not be understood or authenticated: nothing more from that connection can be
// trusted.
func (l *link) command(name string, err error) error {
	if err == nil {
		return nil
	}
	var rc tpm2.TPMRC
	if errors.As(err, &rc) {
		return &CommandError{Command: name, RC: rc}
	}
	if l.broken == nil {
		l.broken = err
	}
	return fmt.Errorf("%s: %w", name, err)
}

func (l *link) fail(err error) error {
	l.broken = err
	return err
}

// alive returns an error when nobody waits for this turn's result any more.
func (l *link) alive() error {
	if l.ctx.Err() != nil {
		return context.Cause(l.ctx)
	}
	return nil
}

// patience is the context that bounds retries of a command. Cleaning up goes on
// when the client has gone.
func (l *link) patience(code tpm2.TPMCC) context.Context {
	if code == tpm2.TPMCCFlushContext {
		return context.WithoutCancel(l.ctx)
	}
	return l.ctx
}

// deadline is how long a command may take. The kernel's driver gives up on a
// mute chip after 2 minutes, after 5 for the commands that generate keys
// (drivers/char/tpm/tpm2-cmd.c); a chip that is not mute needs a few seconds at
// most for what is not key generation.
func deadline(code tpm2.TPMCC) time.Duration {
	switch code {
	case tpm2.TPMCCCreate, tpm2.TPMCCCreatePrimary:
		return 5 * time.Minute
	default:
		return time.Minute
	}
}

// passing reports whether rc means "not now": the TPM tests itself, or all its
// slots are taken by others (TPM 2.0 Part 2, 6.6.3, warnings).
func passing(rc tpm2.TPMRC) bool {
	switch rc {
	case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting,
		tpm2.TPMRCObjectMemory, tpm2.TPMRCObjectHandles,
		tpm2.TPMRCSessionMemory, tpm2.TPMRCSessionHandles:
		return true
	default:
		return false
	}
}

// The bounds of [backoff].
const (
	retryFirst = time.Millisecond
	retryMost  = 200 * time.Millisecond
	retryTotal = 10 * time.Second
)

// backoff counts the waits between tries of one command.
type backoff struct {
	started bool // TPM2_Startup was sent
	next    time.Duration
	spent   time.Duration
}

// wait waits until the next try is due, and reports whether there is to be one.
func (b *backoff) wait(ctx context.Context) bool {
	b.next = min(max(2*b.next, retryFirst), retryMost)
	b.spent += b.next
	if b.spent > retryTotal {
		return false
	}
	t := time.NewTimer(b.next)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
