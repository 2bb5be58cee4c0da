package agent

import (
	"crypto/ed25519"
	"crypto/rand"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// The hosts of all tests, each with another type of key, and an authority.
var (
	hostA  = sync.OnceValue(newHost)
	hostB  = sync.OnceValue(func() ssh.Signer { return must(ssh.NewSignerFromSigner(p384())) })
	hostC  = sync.OnceValue(func() ssh.Signer { return must(ssh.NewSignerFromSigner(rsa2k())) })
	hostD  = sync.OnceValue(newHost)
	hostCA = sync.OnceValue(newHost)
)

func newHost() ssh.Signer {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	return must(ssh.NewSignerFromSigner(key))
}

// fixedHost is the same in every process: those that fuzz share their inputs.
func fixedHost() ssh.Signer {
	return must(ssh.NewSignerFromSigner(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))))
}

// certify makes a host certificate that is good for ever; change makes it
// another one.
func certify(host, ca ssh.Signer, principals []string, change func(*ssh.Certificate)) ssh.Signer {
	cert := &ssh.Certificate{
		Key: host.PublicKey(), CertType: ssh.HostCert, KeyId: "host",
		ValidPrincipals: principals, ValidBefore: ssh.CertTimeInfinity,
	}
	if change != nil {
		change(cert)
	}
	if err := cert.SignCert(rand.Reader, ca); err != nil {
		panic(err)
	}
	return must(ssh.NewCertSigner(cert, host))
}

// withAlgorithm makes an RSA signer use one algorithm.
func withAlgorithm(s ssh.Signer, algorithm string) ssh.Signer {
	return must(ssh.NewSignerWithAlgorithms(s.(ssh.AlgorithmSigner), []string{algorithm}))
}

// signedBy is the signature as ssh sends it.
func signedBy(host ssh.Signer, data []byte) []byte {
	if m, ok := host.(ssh.MultiAlgorithmSigner); ok {
		return ssh.Marshal(must(m.SignWithAlgorithm(rand.Reader, data, m.Algorithms()[0])))
	}
	return ssh.Marshal(must(host.Sign(rand.Reader, data)))
}

// bindBody is what ssh sends behind the name of session-bind.
func bindBody(host ssh.Signer, sessionID string, forwarding bool) []byte {
	return ssh.Marshal(bindRequest{
		Host: host.PublicKey().Marshal(), SessionID: []byte(sessionID),
		Signature: signedBy(host, []byte(sessionID)), Forwarding: forwarding,
	})
}

// extension is a whole message.
func extension(name string, body []byte) []byte {
	return ssh.Marshal(struct {
		Name string `sshtype:"27"`
		Body []byte `ssh:"rest"`
	}{name, body})
}

// userauth makes the data of a login with the method of RFC 4252, or with the
// one that names the host if there is one.
func userauth(key ssh.PublicKey, sessionID, user string, host ssh.PublicKey) signedUserauth {
	m := signedUserauth{
		SessionID: []byte(sessionID), Number: msgUserauthRequest, User: user,
		Service: serviceConnection, Method: methodPublicKey, HasSig: 1,
		Algorithm: key.Type(), Key: key.Marshal(),
	}
	if host != nil {
		m.Method = methodHostBound
		m.Rest = ssh.Marshal(wireString{S: host.Marshal()})
	}
	return m
}

func login(key ssh.PublicKey, sessionID, user string, host ssh.PublicKey) []byte {
	return ssh.Marshal(userauth(key, sessionID, user, host))
}

// toHost is a hop to a host with these keys.
func toHost(user, name string, keys ...ssh.Signer) Hop {
	h := Hop{User: user, Host: name}
	for _, k := range keys {
		h.Keys = append(h.Keys, HostKey{Key: k.PublicKey()})
	}
	return h
}

// byAuthority is a hop to a host that these authorities certify.
func byAuthority(user, name string, cas ...ssh.Signer) Hop {
	h := toHost(user, name, cas...)
	for i := range h.Keys {
		h.Keys[i].CA = true
	}
	return h
}

// direct is from here to the hop.
func direct(to Hop) Destination { return Destination{To: to} }

// onward is from one hop to another.
func onward(from, to Hop) Destination {
	from.User = ""
	return Destination{From: from, To: to}
}

func unixSeconds(t time.Time) uint64 { return uint64(t.Unix()) }
