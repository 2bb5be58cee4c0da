package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"golang.org/x/crypto/ssh/agent"
)

// warmSignature connects, lists the keys and signs, after the same key has
// signed before. The key has no PIN.
func (r *rig) warmSignature(ctx context.Context) (route, error) {
	return r.signature(ctx, "", 3)
}

// firstSignature connects, lists the keys and signs for the first time since
// the agent started. The key's PIN comes from askpass.
func (r *rig) firstSignature(ctx context.Context) (route, error) {
	return r.signature(ctx, pin, 0)
}

// keygen creates a key that has no PIN, from the start of the process to its
// end.
func (r *rig) keygen(ctx context.Context) (route, error) {
	counters, err := r.newDir("counters")
	if err != nil {
		return nil, err
	}
	if err := r.command(ctx, counters, "keygen", "-q", "-N", ""); err != nil { // saves it in ~/.ssh
		return nil, err
	}
	return r.entered(ctx, counters)
}

// signature starts an agent that has one key, lets it sign a few times, and
// returns the functions that the next login enters.
func (r *rig) signature(ctx context.Context, pin string, before int) (found route, err error) {
	unused, err := r.newDir("counters")
	if err != nil {
		return nil, err
	}
	keys, err := r.newDir("keys")
	if err != nil {
		return nil, err
	}
	if err := r.command(ctx, unused, "keygen", "-q", "-N", pin, "-f", filepath.Join(keys, "id_ecdsa")); err != nil {
		return nil, err
	}
	d, err := r.serve(ctx, unused, keys)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	for range before {
		if err := d.login(); err != nil {
			return nil, fmt.Errorf("%w; the agent's log: %s", err, d.log.String())
		}
	}
	return r.next(ctx, d)
}

// next returns the functions that one login enters. The agent closes a TPM that
// it has not used for two seconds; a machine that is so slow is asked again.
func (r *rig) next(ctx context.Context, d *daemon) (route, error) {
	for range 10 {
		dir, err := r.newDir("counters")
		if err != nil {
			return nil, err
		}
		time.Sleep(pause)
		start := time.Now()
		if err := errors.Join(d.ask(""), d.login()); err != nil {
			return nil, fmt.Errorf("%w; the agent's log: %s", err, d.log.String())
		}
		time.Sleep(pause)
		if err := d.ask(dir); err != nil {
			return nil, err
		}
		if time.Since(start) < time.Second {
			return r.entered(ctx, dir)
		}
	}
	return nil, errors.New("this machine is too slow now: a signature takes more than a second")
}

// pause is how long the agent has to finish what follows an answer: its log,
// and the end of the connection.
const pause = 200 * time.Millisecond

// login does what ssh does to log in: it connects, lists the keys and has the
// only one sign.
func (d *daemon) login() error {
	conn, err := net.Dial("unix", d.socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	client := agent.NewClient(conn)
	keys, err := client.List()
	if err != nil {
		return err
	}
	if len(keys) != 1 {
		return fmt.Errorf("the agent lists %d keys, want 1", len(keys))
	}
	data := []byte("what the key signs")
	signature, err := client.Sign(keys[0], data)
	if err != nil {
		return err
	}
	return keys[0].Verify(data, signature)
}
