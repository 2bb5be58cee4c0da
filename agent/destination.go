package agent

import (
	"errors"
	"fmt"

	"golang.org/x/crypto/ssh"
)

// Limits of restrict-destination-v00@openssh.com, those of OpenSSH's agent.
const (
	maxDestinations = 1024
	maxUserPattern  = 256 // bytes
)

// Destination is one hop that a key may be used for, OpenSSH's PROTOCOL.agent,
// section 2: who has come as far as From may log in to To, and if there is a
// Destination that begins there, go on.
type Destination struct{ From, To Hop }

// Hop is one end of a Destination. The zero value is the origin, the machine
// on which the agent runs; only a From can be that.
type Hop struct {
	User string    // a pattern with * and ?, empty for any; always empty in a From
	Host string    // its name, which certificates of hosts must have
	Keys []HostKey // how the host proves who it is, at least one
}

// HostKey is the key of a host, or of an authority that certifies the keys of
// hosts.
type HostKey struct {
	Key ssh.PublicKey
	CA  bool
}

type wireDestination struct {
	From, To []byte
	Reserved []byte
	Rest     []byte `ssh:"rest"` // OpenSSH looks no further
}

type wireHop struct {
	User, Host string
	Reserved   []byte
	Keys       []byte `ssh:"rest"`
}

type wireHostKey struct {
	Blob []byte
	CA   bool
	Rest []byte `ssh:"rest"`
}

type wireString struct {
	S    []byte
	Rest []byte `ssh:"rest"`
}

// marshalDestinations makes the body of the constraint extension
// restrict-destination-v00@openssh.com: what stands inside of the string that
// follows the extension's name.
func marshalDestinations(ds []Destination) []byte {
	var body []byte
	for _, d := range ds {
		w := ssh.Marshal(wireDestination{From: d.From.marshal(), To: d.To.marshal()})
		body = append(body, ssh.Marshal(wireString{S: w})...)
	}
	return body
}

func (h *Hop) marshal() []byte {
	w := wireHop{User: h.User, Host: h.Host}
	for _, k := range h.Keys {
		w.Keys = append(w.Keys, ssh.Marshal(wireHostKey{Blob: k.Key.Marshal(), CA: k.CA})...)
	}
	return ssh.Marshal(w)
}

// parseDestinations takes the body apart that marshalDestinations makes. No
// destination at all, which is an empty body, restricts nothing; OpenSSH has
// it so.
func parseDestinations(body []byte) ([]Destination, error) {
	var ds []Destination
	for len(body) > 0 {
		if len(ds) == maxDestinations {
			return nil, fmt.Errorf("restrict-destination: more than %d destinations", maxDestinations)
		}
		var s wireString
		if err := ssh.Unmarshal(body, &s); err != nil {
			return nil, fmt.Errorf("restrict-destination: %w", err)
		}
		d, err := parseDestination(s.S)
		if err != nil {
			return nil, fmt.Errorf("restrict-destination: destination %d: %w", len(ds), err)
		}
		ds, body = append(ds, d), s.Rest
	}
	return ds, nil
}

func parseDestination(b []byte) (d Destination, err error) {
	var w wireDestination
	if err := ssh.Unmarshal(b, &w); err != nil {
		return d, err
	}
	if d.From, err = parseHop(w.From); err != nil {
		return d, fmt.Errorf("from: %w", err)
	}
	if d.To, err = parseHop(w.To); err != nil {
		return d, fmt.Errorf("to: %w", err)
	}
	return d, d.check(len(w.Reserved))
}

func (d *Destination) check(reserved int) error {
	switch {
	case reserved > 0:
		return errReserved
	case (d.From.Host == "") != (len(d.From.Keys) == 0):
		return errors.New("from: a host without a key, or a key without a host")
	case d.From.User != "":
		return errors.New("from: a user")
	case d.To.Host == "" || len(d.To.Keys) == 0:
		return errors.New("to: no host, or no key of it")
	}
	return nil
}

// errReserved: what is in a reserved field may be a restriction.
var errReserved = errors.New("extensions that are not known")

func parseHop(b []byte) (h Hop, err error) {
	var w wireHop
	if err := ssh.Unmarshal(b, &w); err != nil {
		return h, err
	}
	if h.User, err = cString(w.User); err != nil {
		return h, fmt.Errorf("user: %w", err)
	}
	if h.Host, err = cString(w.Host); err != nil {
		return h, fmt.Errorf("host: %w", err)
	}
	switch {
	case len(w.Reserved) > 0:
		return h, errReserved
	case h.User != "" && len(w.User) > maxUserPattern:
		return h, fmt.Errorf("user: a pattern of more than %d bytes", maxUserPattern)
	}
	h.Keys, err = parseHostKeys(w.Keys)
	return h, err
}

func parseHostKeys(b []byte) (keys []HostKey, err error) {
	for len(b) > 0 {
		var w wireHostKey
		if err := ssh.Unmarshal(b, &w); err != nil {
			return nil, err
		}
		key, err := parseWireKey(w.Blob)
		if err != nil {
			return nil, fmt.Errorf("key %d: %w", len(keys), err)
		}
		keys, b = append(keys, HostKey{key, w.CA}), w.Rest
	}
	return keys, nil
}
