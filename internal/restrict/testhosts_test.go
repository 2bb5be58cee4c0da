package restrict

import (
	"golang.org/x/crypto/ssh"
)

// toHost returns a hop to a host with these keys.
func toHost(user, name string, keys ...ssh.Signer) Hop {
	h := Hop{User: user, Host: name}
	for _, k := range keys {
		h.Keys = append(h.Keys, HostKey{Key: k.PublicKey()})
	}
	return h
}

// byAuthority returns a hop to a host that these authorities certify.
func byAuthority(user, name string, cas ...ssh.Signer) Hop {
	h := toHost(user, name, cas...)
	for i := range h.Keys {
		h.Keys[i].CA = true
	}
	return h
}

// direct returns a destination from this machine.
func direct(to Hop) Destination { return Destination{To: to} }

// onward returns a destination from one hop to another.
func onward(from, to Hop) Destination {
	from.User = ""
	return Destination{From: from, To: to}
}
