package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// givenPINs are PINs for which nobody is asked: --pin-from.
type givenPINs struct{ keys keyOptions[*givenPIN] }

// givenPIN is one. A file is read when the PIN is needed; what came through a
// descriptor is kept.
type givenPIN struct {
	source *pinSource

	mu   sync.Mutex
	held []byte // memory that is locked, and not Go's; nil when it is wiped
}

// cutPINSource takes KEY=SOURCE apart. Both may have a path in them, with any
// characters, so the source begins where the first of its kinds is named.
func cutPINSource(value string) (key, source string, ok bool) {
	at := len(value)
	for _, kind := range []string{"=fd:", "=file:", "=credential:"} {
		if i := strings.Index(value, kind); i >= 0 && i < at {
			at, ok = i, true
		}
	}
	if !ok {
		return "", "", false
	}
	return value[:at], value[at+1:], true
}

// parseGivenPINs reads the values of --pin-from: KEY=SOURCE.
func (s system) parseGivenPINs(values []string) (g givenPINs, err error) {
	for _, value := range values {
		if err := g.add(s, value); err != nil {
			return g, err
		}
	}
	return g, nil
}

func (g *givenPINs) add(s system, value string) error {
	key, spec, ok := cutPINSource(value)
	if !ok {
		return withHint(usage("--pin-from %s: it is not KEY=SOURCE", plain(value)), "SOURCE is %s", pinSources)
	}
	source, err := s.parsePINSource(spec)
	if err != nil {
		return fmt.Errorf("--pin-from %w", err)
	}
	o, err := parseKeyOption(key, &givenPIN{source: source})
	if err == nil {
		err = g.keys.add(o)
	}
	if err == nil && source.once() && g.descriptors(source.fd) > 1 {
		err = errors.New("a descriptor can be read once only")
	}
	if err != nil {
		return usage("--pin-from %s: %w", plain(value), err)
	}
	return nil
}

// descriptors counts the PINs that come through a descriptor, or this one.
func (g *givenPINs) descriptors(fd int) (n int) {
	for _, o := range g.keys {
		if from := o.value.source.fd; from == fd || fd < 0 && from >= 0 {
			n++
		}
	}
	return n
}

// withoutDescriptors refuses what an agent in the background cannot have.
func (g *givenPINs) withoutDescriptors() error {
	if g.descriptors(-1) > 0 {
		return withHint(usage("--pin-from fd:N cannot be used with --fork, which passes no descriptors on"), "file:PATH or credential:NAME can be")
	}
	return nil
}

// hold reads the descriptors, which nobody can do later. It is to be called
// when this process is closed to others.
func (g givenPINs) hold(ctx context.Context) error {
	for _, o := range g.keys {
		if err := o.value.hold(ctx); err != nil {
			return errors.Join(fmt.Errorf("--pin-from %s: %w", plain(o.key), err), g.wipe())
		}
	}
	return nil
}

// wipe overwrites what was held.
func (g givenPINs) wipe() (err error) {
	for _, o := range g.keys {
		err = errors.Join(err, o.value.wipe())
	}
	return err
}

func (p *givenPIN) wipe() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	held := p.held
	if p.held = nil; held == nil {
		return nil
	}
	clear(held)
	return unix.Munmap(held)
}

// of is the PIN of a key, if one is given: see agent.Config.GivenPIN.
func (g givenPINs) of(file, fingerprint string) (pin []byte, version string, err error) {
	given, ok := g.keys.find(file, fingerprint)
	switch {
	case !ok:
		return nil, "", nil
	case given.source.once():
		given.mu.Lock()
		defer given.mu.Unlock()
		return bytes.Clone(given.held), given.source.spec, nil
	}
	return given.source.read(context.Background()) // a regular file
}

// hold keeps the PIN of a descriptor where it stays out of core files, and as
// far as the user may lock memory out of swap.
func (p *givenPIN) hold(ctx context.Context) error {
	if !p.source.once() {
		return nil
	}
	pin, _, err := p.source.read(ctx)
	if err != nil {
		return err
	}
	defer clear(pin)
	held, err := unix.Mmap(-1, 0, len(pin), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return fmt.Errorf("taking memory for a PIN: %w", err)
	}
	// Neither is worth ending for: many users may lock little memory, and
	// kernels may be built without the advice.
	_ = unix.Mlock(held)
	_ = unix.Madvise(held, unix.MADV_DONTDUMP)
	copy(held, pin)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = held
	return nil
}
