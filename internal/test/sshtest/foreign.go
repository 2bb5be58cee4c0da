package sshtest

import "github.com/tpm-agent/tpm-agent/internal/wire"

// ForeignKeys returns requests to add keys of types that only other agents hold,
// without constraints, by type.
func ForeignKeys() map[string][]byte {
	all := map[string][]byte{}
	add := func(typ string, fields ...any) {
		fields = append(append([]any{typ}, fields...), "me@here")
		all[typ] = Message(wire.MsgAddIDConstrained, fields...)
	}
	with := func(head ...any) []any { return append(head, sk...) }
	add("sk-ssh-ed25519@openssh.com", with(make([]byte, 32))...)
	add("sk-ssh-ed25519-cert-v01@openssh.com", with("certificate", make([]byte, 32))...)
	add("sk-ecdsa-sha2-nistp256@openssh.com", with("nistp256", make([]byte, 65))...)
	add("sk-ecdsa-sha2-nistp256-cert-v01@openssh.com", with("certificate")...)
	add("ssh-dss", "p", "q", "g", "y", "x")
	add("ssh-dss-cert-v01@openssh.com", "certificate", "x")
	add("ssh-ed448", make([]byte, 57), make([]byte, 114))
	add("ssh-mldsa44-ed25519@openssh.com", "public", "private")
	add("ssh-mldsa44-ed25519-cert-v01@openssh.com", "certificate", "private")
	return all
}

// sk has the fields of a security key that follow its public key: application,
// flags, key handle and a reserved one.
var sk = []any{"ssh:", byte(1), "handle", ""}
