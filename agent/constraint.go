package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Key constraints, RFC 9987, section 5.2.6, OpenSSH's extensions of them, and our
// own: for how long the PIN of a key file is remembered, in seconds, a uint32 in a
// string; 0 is not at all, and the largest number until PINs are forgotten.
const (
	constrainLifetime  = 1
	constrainConfirm   = 2
	constrainExtension = 255

	extRestrictDestination = "restrict-destination-v00@openssh.com"
	extProvider            = "sk-provider@openssh.com"
	extPINLife             = "pin-life@tpm-agent.github.io"
)

// constraints are the conditions under which an added key may be used. Those
// of an identity never change; to add it again replaces them.
type constraints struct {
	lifetime     *uint32 // seconds from being added; 0 is over at once
	confirm      bool
	destinations []Destination // none: anywhere
	pinLife      *uint32       // as extPINLife has it; nil: as the agent was told
}

// parseConstraints reads what follows the comment of a key that is added. RFC
// 9987 wants a key refused whose constraints are not all known; like OpenSSH
// this refuses those that come twice as well.
func parseConstraints(b []byte) (*constraints, error) {
	c, w := new(constraints), &wire{rest: b}
	for !w.done() {
		if err := c.parseNext(w); err != nil {
			return nil, err
		}
	}
	if w.err != nil {
		return nil, fmt.Errorf("key constraints: %w", w.err)
	}
	return c, nil
}

func (c *constraints) parseNext(w *wire) error {
	switch number := w.byte(); number {
	case constrainLifetime:
		if c.lifetime != nil {
			return errors.New("key constraints: two lifetimes")
		}
		seconds := w.uint32()
		c.lifetime = &seconds
	case constrainConfirm:
		if c.confirm {
			return errors.New("key constraints: confirmation is asked for twice")
		}
		c.confirm = true
	case constrainExtension:
		return c.parseExtension(w)
	default:
		return fmt.Errorf("key constraint %d is not known", number)
	}
	return nil
}

func (c *constraints) parseExtension(w *wire) error {
	name := w.text()
	if w.err != nil {
		return nil // the caller reports it
	}
	parse := c.parseDestinations
	switch name {
	case extRestrictDestination:
	case extPINLife:
		parse = c.parsePINLife
	default:
		return fmt.Errorf("key constraint %q is not known, or not for this key", name)
	}
	body := w.string()
	if w.err != nil {
		return nil
	}
	return parse(body)
}

func (c *constraints) parseDestinations(body []byte) error {
	if c.destinations != nil {
		return errors.New("key constraints: destinations are given twice")
	}
	destinations, err := parseDestinations(body)
	if err != nil {
		return fmt.Errorf("key constraint %s: %w", extRestrictDestination, err)
	}
	c.destinations = destinations
	return nil
}

func (c *constraints) parsePINLife(body []byte) error {
	if c.pinLife != nil {
		return errors.New("key constraints: two lives of the PIN")
	}
	if len(body) != 4 {
		return fmt.Errorf("key constraint %s: %d octets", extPINLife, len(body))
	}
	life := binary.BigEndian.Uint32(body)
	c.pinLife = &life
	return nil
}

// marshal is the inverse of parseConstraints.
func (c *constraints) marshal() []byte {
	var b []byte
	if c.lifetime != nil {
		b = binary.BigEndian.AppendUint32(append(b, constrainLifetime), *c.lifetime)
	}
	if c.confirm {
		b = append(b, constrainConfirm)
	}
	if len(c.destinations) > 0 {
		b = appendString(append(b, constrainExtension), extRestrictDestination)
		b = appendString(b, string(marshalDestinations(c.destinations)))
	}
	if c.pinLife != nil {
		b = appendString(append(b, constrainExtension), extPINLife)
		b = appendString(b, string(binary.BigEndian.AppendUint32(nil, *c.pinLife)))
	}
	return b
}

// LogValue names the constraints that there are.
func (c *constraints) LogValue() slog.Value {
	var attrs []slog.Attr
	if c.lifetime != nil {
		attrs = append(attrs, slog.Duration("lifetime", time.Duration(*c.lifetime)*time.Second))
	}
	if c.confirm {
		attrs = append(attrs, slog.Bool("confirm", true))
	}
	if len(c.destinations) > 0 {
		attrs = append(attrs, slog.Int("destinations", len(c.destinations)))
	}
	if c.pinLife != nil {
		attrs = append(attrs, slog.String("PIN", lifeText(seconds(*c.pinLife))))
	}
	return slog.GroupValue(attrs...)
}
