package restrict

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/sshkey"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// Limits of restrict-destination-v00@openssh.com, as in OpenSSH's agent.
const (
	maxDestinations = 1024
	maxUserPattern  = 256 // bytes
)

// A Destination is one hop that a key may be used for (OpenSSH's PROTOCOL.agent,
// section 2): a login from the host From to the host To. Other Destinations may
// lead on from there.
type Destination struct{ From, To Hop }

// A Hop is one end of a Destination. The zero value is the machine on which the
// agent runs; only From can be that.
type Hop struct {
	User string    // a pattern with * and ?; "" for any; always "" in From
	Host string    // the name that certificates of the host must have
	Keys []HostKey // of the host, at least one
}

// A HostKey is the key of a host, or of an authority that certifies hosts.
type HostKey struct {
	Key ssh.PublicKey
	CA  bool
}

// marshalDestinations returns the body of the constraint extension.
func marshalDestinations(ds []Destination) []byte {
	var body []byte
	for _, d := range ds {
		b := wire.AppendString(nil, d.From.marshal())
		b = wire.AppendString(b, d.To.marshal())
		body = wire.AppendString(body, wire.AppendString(b, "")) // nothing reserved
	}
	return body
}

func (h *Hop) marshal() []byte {
	b := wire.AppendString(nil, h.User)
	b = wire.AppendString(b, h.Host)
	b = wire.AppendString(b, "") // reserved
	for _, k := range h.Keys {
		b = wire.AppendString(b, k.Key.Marshal())
		if k.CA {
			b = append(b, 1)
		} else {
			b = append(b, 0)
		}
	}
	return b
}

// parseDestinations is the inverse of marshalDestinations. Like OpenSSH it takes
// an empty body, which restricts nothing.
func parseDestinations(body []byte) ([]Destination, error) {
	var ds []Destination
	for p := (&wire.Parser{Rest: body}); !p.Done(); {
		if len(ds) == maxDestinations {
			return nil, fmt.Errorf("restrict-destination: more than %d destinations", maxDestinations)
		}
		b := p.Bytes()
		if p.Err != nil {
			return nil, fmt.Errorf("restrict-destination: %w", p.Err)
		}
		d, err := parseDestination(b)
		if err != nil {
			return nil, fmt.Errorf("restrict-destination: destination %d: %w", len(ds), err)
		}
		ds = append(ds, d)
	}
	return ds, nil
}

// parseDestination ignores what follows the fields, as OpenSSH does.
func parseDestination(b []byte) (d Destination, err error) {
	p := &wire.Parser{Rest: b}
	from, to, reserved := p.Bytes(), p.Bytes(), p.Bytes()
	if p.Err != nil {
		return d, p.Err
	}
	if d.From, err = parseHop(from); err != nil {
		return d, fmt.Errorf("from: %w", err)
	}
	if d.To, err = parseHop(to); err != nil {
		return d, fmt.Errorf("to: %w", err)
	}
	switch {
	case len(reserved) > 0:
		return d, errReserved
	case (d.From.Host == "") != (len(d.From.Keys) == 0):
		return d, errors.New("from: a host without a key, or a key without a host")
	case d.From.User != "":
		return d, errors.New("from: a user")
	case d.To.Host == "" || len(d.To.Keys) == 0:
		return d, errors.New("to: no host, or no key of it")
	}
	return d, nil
}

// errReserved refuses a reserved field that is not empty: it may be a restriction.
var errReserved = errors.New("unknown extensions")

func parseHop(b []byte) (h Hop, err error) {
	p := &wire.Parser{Rest: b}
	user, host, reserved := p.Bytes(), p.Bytes(), p.Bytes()
	if p.Err != nil {
		return h, p.Err
	}
	if h.User, err = wire.CString(string(user)); err != nil {
		return h, fmt.Errorf("user: %w", err)
	}
	if h.Host, err = wire.CString(string(host)); err != nil {
		return h, fmt.Errorf("host: %w", err)
	}
	switch {
	case len(reserved) > 0:
		return h, errReserved
	case h.User != "" && len(user) > maxUserPattern:
		return h, fmt.Errorf("user: a pattern of more than %d bytes", maxUserPattern)
	}
	for !p.Done() {
		blob, ca := p.Bytes(), p.Byte() != 0
		if p.Err != nil {
			return h, p.Err
		}
		key, err := sshkey.Parse(blob)
		if err != nil {
			return h, fmt.Errorf("key %d: %w", len(h.Keys), err)
		}
		h.Keys = append(h.Keys, HostKey{key, ca})
	}
	return h, nil
}

// String returns the destination as ssh-add -h takes it: [USER@]HOST, or
// FROM>[USER@]HOST.
func (d *Destination) String() string {
	var b strings.Builder
	if d.From.Host != "" {
		b.WriteString(d.From.Host + ">")
	}
	if d.To.User != "" {
		b.WriteString(d.To.User + "@")
	}
	return b.String() + d.To.Host
}
