package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// waiting shows what a client waits for while others wait: its list over a new
// connection, and its signature with a key of its own.
func (b *bench) waiting() error {
	w, err := b.newWaiting()
	if err != nil {
		return err
	}
	defer w.stop()
	fmt.Println("Another client, meanwhile (ms)")
	fmt.Printf("%-36s %12s %10s %12s %10s\n", "while", "list, median", "longest", "sign, median", "longest")
	for _, h := range []struct {
		name string
		hold func() error
	}{
		{"nothing", func() error { return nil }},
		{"a PIN dialog is open", func() error { return w.holdDialog("pin", w.pin) }},
		{"... and one that asks for consent", func() error { return w.holdDialog("confirm", w.confirm) }},
		{"... and a client lists upstream", w.holdUpstream},
		{"... and a signature is in the TPM", w.holdTPM},
	} {
		if err := h.hold(); err != nil {
			return fmt.Errorf("%s: %w", h.name, err)
		}
		if err := w.show(h.name); err != nil {
			return fmt.Errorf("while %s: %w", h.name, err)
		}
	}
	fmt.Println()
	return nil
}

// waiting is an agent with everything that can block a request: TPM keys with and
// without a PIN, a software key that needs consent, and an upstream agent that accepts
// no connections. Its other software key needs nothing.
type waiting struct {
	b                       *bench
	tpm                     *swtpm
	daemon                  *daemon
	silent                  net.Listener
	pin, confirm, tpms, own ssh.PublicKey
	held                    []net.Conn
}

func (b *bench) newWaiting() (w *waiting, err error) {
	w = &waiting{b: b}
	if w.tpm, err = b.startTPM("waiting"); err != nil {
		return nil, err
	}
	keys := filepath.Join(b.dir, "waiting.keys")
	if w.pin, err = w.newKey(keys, "pin", []byte("1234")); err == nil {
		w.tpms, err = w.newKey(keys, "plain", nil)
	}
	if err != nil {
		return nil, errors.Join(err, w.tpm.stop())
	}
	path := filepath.Join(b.dir, "silent.sock")
	if w.silent, err = net.Listen("unix", path); err != nil {
		return nil, errors.Join(err, w.tpm.stop())
	}
	if w.daemon, err = b.startDaemon(w.tpm.address(), keys, "--upstream", path); err != nil {
		return nil, errors.Join(err, w.tpm.stop(), w.silent.Close())
	}
	return w, w.addKeys()
}

func (w *waiting) newKey(dir, name string, pin []byte) (ssh.PublicKey, error) {
	file, err := createKey(w.b.ctx, w.tpm, tpmkey.Template{Algorithm: tpmkey.ECDSAP256, Auth: pin})
	if err != nil {
		return nil, err
	}
	if err := writeKey(dir, name+".tpm", file); err != nil {
		return nil, err
	}
	return ssh.NewPublicKey(file.Public.Key)
}

func (w *waiting) addKeys() (err error) {
	if w.confirm, err = w.add(true); err == nil {
		w.own, err = w.add(false)
	}
	return err
}

func (w *waiting) add(confirm bool) (ssh.PublicKey, error) {
	client, err := w.daemon.dial()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	if err := client.Add(agent.AddedKey{PrivateKey: private, ConfirmBeforeUse: confirm}); err != nil {
		return nil, err
	}
	return ssh.NewPublicKey(public)
}

// hold sends a request whose answer will not come.
func (w *waiting) hold(request []byte) error {
	conn, err := net.Dial("unix", w.daemon.socket)
	if err != nil {
		return err
	}
	w.held = append(w.held, conn)
	_, err = conn.Write(request)
	return err
}

func (w *waiting) holdDialog(kind string, key ssh.PublicKey) error {
	if err := w.hold(signRequest(key)); err != nil {
		return err
	}
	return await("a dialog", func() bool {
		_, err := os.Stat(filepath.Join(w.b.dir, "dialog."+kind))
		return err == nil
	})
}

func (w *waiting) holdUpstream() error { return w.hold([]byte{0, 0, 0, 1, 11}) }

// holdTPM stops the TPM in its tracks.
func (w *waiting) holdTPM() error {
	if err := w.tpm.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	return w.hold(signRequest(w.tpms))
}

func (w *waiting) show(name string) error {
	var lists, signatures times
	conn, err := net.Dial("unix", w.daemon.socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	s := &signer{request: signRequest(w.own)}
	for range w.b.rounds {
		took, err := measure(func() error { _, err := w.daemon.list(); return err })
		if err != nil {
			return err
		}
		lists = append(lists, took)
		if took, err = measure(func() error { return s.sign(conn) }); err != nil {
			return err
		}
		signatures = append(signatures, took)
	}
	fmt.Printf("%-36s %12s %10s %12s %10s\n", name, ms(lists.median()), ms(slices.Max(lists)), ms(signatures.median()), ms(slices.Max(signatures)))
	return nil
}

func (w *waiting) stop() error {
	for _, conn := range w.held {
		conn.Close()
	}
	return errors.Join(w.tpm.cmd.Process.Signal(syscall.SIGCONT), w.daemon.stop(), w.tpm.stop(), w.silent.Close())
}

// writeAskpass makes an askpass program that does not answer and runs until it is
// ended.
func (b *bench) writeAskpass() error {
	script := `#!/bin/sh
: >"` + b.dir + `/dialog.${SSH_ASKPASS_PROMPT:-pin}"
exec sleep 1000
`
	return os.WriteFile(filepath.Join(b.dir, "askpass"), []byte(script), 0o700)
}
