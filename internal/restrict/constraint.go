// Package restrict decides from constraints and bindings what a key may sign: the
// constraints that the key was added with, and the SSH connections that its
// client comes from.
package restrict

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// Key constraints: those of RFC 9987, section 5.2.6, OpenSSH's extensions, and
// our own, which says how long the PIN of a key file is remembered. Its body is
// a uint32 of seconds; 0 is not at all, the largest number is [Forever].
const (
	ConstrainLifetime  = 1
	ConstrainConfirm   = 2
	ConstrainExtension = 255

	ExtRestrictDestination = "restrict-destination-v00@openssh.com"
	ExtProvider            = "sk-provider@openssh.com"
	extPINLife             = "pin-life@tpm-agent.github.io"
)

// Constraints limit the use of an added key. They never change; adding the key
// again replaces them.
type Constraints struct {
	Lifetime     *uint32 // seconds from being added; 0: over at once; nil: none
	Confirm      bool
	Destinations []Destination  // none: anywhere
	PINLife      *time.Duration // how long the PIN is remembered; nil: the agent's default
}

// ParseConstraints parses what follows the comment in a request to add a key. It
// refuses unknown constraints, as RFC 9987 demands, and, like OpenSSH, repeated
// ones.
func ParseConstraints(b []byte) (*Constraints, error) {
	c, p := new(Constraints), &wire.Parser{Rest: b}
	for !p.Done() {
		if err := c.parseNext(p); err != nil {
			return nil, fmt.Errorf("key constraints: %w", err)
		}
	}
	return c, nil
}

func (c *Constraints) parseNext(p *wire.Parser) error {
	switch number := p.Byte(); number {
	case ConstrainLifetime:
		if c.Lifetime != nil {
			return errors.New("two lifetimes")
		}
		seconds := p.Uint32()
		c.Lifetime = &seconds
	case ConstrainConfirm:
		if c.Confirm {
			return errors.New("confirmation is asked for twice")
		}
		c.Confirm = true
	case ConstrainExtension:
		name, body := p.Text(), p.Bytes()
		if p.Err == nil {
			return c.parseExtension(name, body)
		}
	default:
		return fmt.Errorf("unknown constraint %d", number)
	}
	return p.Err
}

func (c *Constraints) parseExtension(name string, body []byte) (err error) {
	switch name {
	case ExtRestrictDestination:
		if c.Destinations != nil {
			return errors.New("destinations are given twice")
		}
		c.Destinations, err = parseDestinations(body)
		return err
	case extPINLife:
		if c.PINLife != nil {
			return errors.New("two lives of the PIN")
		}
		if len(body) != 4 {
			return fmt.Errorf("%s: %d bytes", extPINLife, len(body))
		}
		life := fromSeconds(binary.BigEndian.Uint32(body))
		c.PINLife = &life
		return nil
	}
	return fmt.Errorf("constraint %q is unknown, or not for this key", name)
}

// Marshal is the inverse of ParseConstraints.
func (c *Constraints) Marshal() []byte {
	var b []byte
	if c.Lifetime != nil {
		b = binary.BigEndian.AppendUint32(append(b, ConstrainLifetime), *c.Lifetime)
	}
	if c.Confirm {
		b = append(b, ConstrainConfirm)
	}
	if len(c.Destinations) > 0 {
		b = wire.AppendString(append(b, ConstrainExtension), ExtRestrictDestination)
		b = wire.AppendString(b, marshalDestinations(c.Destinations))
	}
	if c.PINLife != nil {
		b = wire.AppendString(append(b, ConstrainExtension), extPINLife)
		b = wire.AppendString(b, binary.BigEndian.AppendUint32(nil, inSeconds(*c.PINLife)))
	}
	return b
}

// LogValue returns a group of the constraints that there are.
func (c *Constraints) LogValue() slog.Value {
	var attrs []slog.Attr
	if c.Lifetime != nil {
		attrs = append(attrs, slog.Duration("lifetime", time.Duration(*c.Lifetime)*time.Second))
	}
	if c.Confirm {
		attrs = append(attrs, slog.Bool("confirm", true))
	}
	if len(c.Destinations) > 0 {
		attrs = append(attrs, slog.Int("destinations", len(c.Destinations)))
	}
	if c.PINLife != nil {
		attrs = append(attrs, slog.String("PIN", LifeText(*c.PINLife)))
	}
	return slog.GroupValue(attrs...)
}

// Forever is the life of a PIN that is remembered until PINs are forgotten.
const Forever = time.Duration(math.MaxInt64)

// LifeText returns the life of a PIN as users write it.
func LifeText(life time.Duration) string {
	switch life {
	case Forever:
		return "session"
	case 0:
		return "off"
	}
	return life.String()
}

func fromSeconds(n uint32) time.Duration {
	if n == math.MaxUint32 {
		return Forever
	}
	return time.Duration(n) * time.Second
}

// inSeconds rounds up, so that only 0 becomes 0.
func inSeconds(d time.Duration) uint32 {
	if d <= 0 {
		return 0
	}
	return uint32(min((d-1)/time.Second+1, math.MaxUint32))
}
