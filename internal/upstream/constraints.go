package upstream

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/restrict"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// extAssociatedCerts is a constraint of smart cards only.
const extAssociatedCerts = "associated-certs-v00@openssh.com"

// WithLifetime returns a copy of a request to add something with a constraint on
// the lifetime, and with its message number changed to constrained. It returns nil
// if lifetime is 0, or limits, the constraints in the request, have one already.
func WithLifetime(request, limits []byte, lifetime time.Duration, constrained byte) []byte {
	if lifetime <= 0 || hasLifetime(limits) {
		return nil
	}
	limited := slices.Concat(request, binary.BigEndian.AppendUint32([]byte{restrict.ConstrainLifetime}, uint32(lifetime/time.Second)))
	limited[0] = constrained
	return limited
}

// hasLifetime looks for a lifetime among constraints, some of which may be
// unknown: the content of an extension is one string, except for one.
func hasLifetime(b []byte) bool {
	w := &wire.Parser{Rest: b}
	for !w.Done() {
		switch w.Byte() {
		case restrict.ConstrainLifetime:
			return true
		case restrict.ConstrainConfirm:
		case restrict.ConstrainExtension:
			if w.Text() == extAssociatedCerts {
				w.Byte() // only the certificates
			}
			w.Bytes()
		default:
			return false
		}
	}
	return false
}

// NamesProvider reports whether a request may name a FIDO provider other than the
// one that is built into the agent that it is for.
func NamesProvider(request []byte) bool {
	return slices.ContainsFunc(mentions(request, restrict.ExtProvider), func(rest []byte) bool {
		w := &wire.Parser{Rest: rest}
		return !strings.EqualFold(w.Text(), "internal") || w.Err != nil
	})
}

// NamesDestinations reports whether a request may have destinations among its
// constraints.
func NamesDestinations(request []byte) bool {
	return len(mentions(request, restrict.ExtRestrictDestination)) > 0
}

// mentions returns what follows each place in a request at which a constraint
// extension of this name may begin, up to the next such place. The request's fields
// are unknown, so a place may be inside one of them, and the first need not be the
// real one. The name may end in a NUL byte, as OpenSSH allows.
func mentions(request []byte, extension string) (all [][]byte) {
	for _, name := range []string{extension, extension + "\x00"} {
		begin := wire.AppendString([]byte{restrict.ConstrainExtension}, name)
		all = append(all, bytes.Split(request, begin)[1:]...)
	}
	return all
}
