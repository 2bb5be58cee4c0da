package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/tpm-agent/tpm-agent/agent"
)

// pinLives says for how long PINs are remembered: --pin-ttl.
type pinLives struct {
	keys keyOptions[time.Duration]
	rest time.Duration // of all other keys; 0: not at all
}

// parsePINLives reads the values of --pin-ttl: [KEY=]TTL.
func parsePINLives(values []string) (l pinLives, err error) {
	for _, value := range values {
		if err := l.add(value); err != nil {
			return l, usage("--pin-ttl %s: %w", plain(value), err)
		}
	}
	return l, nil
}

func (l *pinLives) add(value string) error {
	i := strings.LastIndexByte(value, '=') // no time has one, but a path may
	if i < 0 {
		life, err := parsePINLife(value)
		if err == nil && l.rest != 0 {
			err = errors.New("it is given twice for all keys")
		}
		l.rest = life
		return err
	}
	life, err := parseKeyPINLife(value[i+1:])
	if err != nil {
		return err
	}
	o, err := parseKeyOption(value[:i], life)
	if err != nil {
		return err
	}
	return l.keys.add(o)
}

// parsePINLife reads a time, or "session", which is until something makes the
// agent forget.
func parsePINLife(s string) (time.Duration, error) {
	if s == "session" {
		return agent.Forever, nil
	}
	life, err := parseLifetime(s)
	switch {
	case err != nil:
		return 0, fmt.Errorf("%w, or session", err)
	case life == 0:
		return 0, errors.New("a PIN that is remembered for no time is not remembered: leave it out")
	}
	return life, nil
}

// parseKeyPINLife reads the time for one key: that of its PIN may be none.
func parseKeyPINLife(s string) (time.Duration, error) {
	if s == "off" {
		return 0, nil
	}
	return parsePINLife(s)
}

// of is the life of the PIN of one key.
func (l pinLives) of(file, fingerprint string) time.Duration {
	if life, ok := l.keys.find(file, fingerprint); ok {
		return life
	}
	return l.rest
}

// pinLifeWords says a life as one reads it.
func pinLifeWords(life time.Duration) string {
	switch life {
	case agent.Forever:
		return "until it is told to forget"
	case 0:
		return "not at all"
	}
	return "for " + duration(life)
}
