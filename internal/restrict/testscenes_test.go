package restrict

import (
	"crypto"
	"fmt"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
)

// A scene is a key with destinations, what was bound, and the expected verdicts.
// The scenes are tried on our verdicts and on OpenSSH's agent.
type scene struct {
	id     identity // the zero value is scenePlain
	ds     []Destination
	binds  [][]byte // the last may be refused
	hidden string   // why it is not listed; "" if it is
	logins []sceneLogin

	// older is why an OpenSSH before 10.5 may decide differently; "" if none
	// does.
	older string
}

// A sceneLogin is data to be signed.
type sceneLogin struct {
	data []byte
	want string // why it is refused; "" if it is not
	host string // if it is not
}

func (s *scene) identity() identity {
	if s.id.public == nil {
		return scenePlain()
	}
	return s.id
}

// An identity is a key that signs, with a certificate or without.
type identity struct {
	public ssh.PublicKey
	signer crypto.Signer
}

func scenePlain() identity {
	return identity{sshtest.PublicOf(sshtest.P256()), sshtest.P256()}
}

func sceneCertified() identity {
	return identity{sshtest.CertFor(sshtest.P256()), sshtest.P256()}
}

const noDestination, noWayOn = "no destination leads", "no destination leads on"

// scenes returns all scenes by name.
func scenes() map[string]scene {
	all := make(map[string]scene)
	for _, some := range []map[string]scene{localScenes(), directScenes(), forwardedScenes(), certificateScenes(), identityScenes()} {
		for name, s := range some {
			all[name] = s
		}
	}
	return all
}

func localScenes() map[string]scene {
	key := scenePlain().public
	toA := []Destination{direct(toHost("", "a", sshtest.HostA()))}
	sshsig := []byte("SSHSIG\x00\x00\x00\x04file\x00\x00\x00\x00\x00\x00\x00\x06sha512\x00\x00\x00\x01x")
	login1 := sshtest.Login(key, "1", "u", nil)
	bad := bindRequest{Host: sshtest.HostA().PublicKey().Marshal(), SessionID: []byte("1"), Signature: sshtest.SignedBy(sshtest.HostD(), []byte("1"))}
	return map[string]scene{
		"anything goes": {logins: []sceneLogin{{data: sshsig}, {data: login1}, {data: []byte("x")}}},
		"anything goes, bound": {
			binds:  [][]byte{sshtest.BindBody(sshtest.HostA(), "1", true)},
			logins: []sceneLogin{{data: sshsig}, {data: login1}, {data: []byte("x")}},
		},
		"anything goes, badly bound": {
			binds:  [][]byte{ssh.Marshal(bad)},
			logins: []sceneLogin{{data: sshsig}, {data: login1}},
		},
		"not bound": {ds: toA, logins: []sceneLogin{{data: login1, want: "not bound"}, {data: sshsig, want: "not bound"}}},
		"false signature": {
			ds: toA, binds: [][]byte{ssh.Marshal(bad)}, hidden: "could not be proven",
			logins: []sceneLogin{{data: login1, want: "not bound"}}, older: "before 9.6, a refused bind is forgotten",
		},
		"false signature behind a good one": {
			ds: toA, binds: [][]byte{sshtest.BindBody(sshtest.HostA(), "1", false), ssh.Marshal(bad)},
			logins: []sceneLogin{{data: login1, host: "a"}},
		},
		"half a bind": {
			ds: toA, binds: [][]byte{sshtest.BindBody(sshtest.HostA(), "1", false)[:60]}, hidden: "could not be proven",
			older: "before 9.6, a refused bind is forgotten",
		},
		"no login": {
			ds: toA, binds: [][]byte{sshtest.BindBody(sshtest.HostA(), "1", false)},
			logins: []sceneLogin{{data: sshsig, want: "no login"}, {data: []byte("x"), want: "no login"}, {data: nil, want: "no login"}},
		},
	}
}

func directScenes() map[string]scene {
	key, a, b := scenePlain().public, sshtest.HostA().PublicKey(), sshtest.HostB().PublicKey()
	bound := [][]byte{sshtest.BindBody(sshtest.HostA(), "1", false)}
	as := func(user string) []byte { return sshtest.Login(key, "1", user, a) }
	two := []Destination{direct(toHost("root", "first", sshtest.HostA())), direct(toHost("u*", "second", sshtest.HostB(), sshtest.HostA()))}
	pattern := func(user string) []Destination { return []Destination{direct(toHost(user, "a", sshtest.HostA()))} }
	return map[string]scene{
		"direct": {
			ds: pattern(""), binds: bound,
			logins: []sceneLogin{
				{data: sshtest.Login(key, "1", "u", nil), host: "a"},
				{data: sshtest.Login(key, "1", "u", a), host: "a"},
				{data: sshtest.Login(key, "1", "", a), host: "a"},
				{data: sshtest.Login(key, "2", "u", a), want: "another session identifier"},
				{data: sshtest.Login(key, "2", "u", nil), want: "another session identifier"},
				{data: sshtest.Login(key, "11", "u", nil), want: "another session identifier"},
				{data: sshtest.Login(key, "1", "u", b), want: "another host key"},
				{data: sshtest.Login(sshtest.PublicOf(sshtest.P384()), "1", "u", a), want: "another key"},
			},
		},
		"to a different host": {
			ds: pattern(""), binds: [][]byte{sshtest.BindBody(sshtest.HostB(), "1", false)}, hidden: noDestination,
			logins: []sceneLogin{{data: sshtest.Login(key, "1", "u", b), want: noDestination}, {data: sshtest.Login(key, "1", "u", a), want: noDestination}},
		},
		"user": {
			ds: pattern("ro?t*"), binds: bound,
			logins: []sceneLogin{
				{data: as("root"), host: "a"},
				{data: as("roXtX"), host: "a"},
				{data: as("rot"), want: `as "rot"`},
				{data: as("aroot"), want: `as "aroot"`},
				{data: as("Root"), want: `as "Root"`},
				{data: as(""), want: `as ""`},
			},
		},
		"user of *":   {ds: pattern("*"), binds: bound, logins: []sceneLogin{{data: as(""), host: "a"}, {data: as("u"), host: "a"}}},
		"user of ?":   {ds: pattern("?"), binds: bound, logins: []sceneLogin{{data: as(""), want: `as ""`}, {data: as("u"), host: "a"}, {data: as("uu"), want: `as "uu"`}}},
		"user with !": {ds: pattern("!u,v"), binds: bound, logins: []sceneLogin{{data: as("v"), want: `as "v"`}, {data: as("!u,v"), host: "a"}}},
		"two destinations": {
			ds: two, binds: bound,
			logins: []sceneLogin{{data: as("root"), host: "first"}, {data: as("u"), host: "second"}, {data: as("v"), want: `as "v"`}},
		},
		"authority as host": {
			ds: []Destination{direct(byAuthority("", "a", sshtest.HostA()))}, binds: bound, hidden: noDestination,
			logins: []sceneLogin{{data: as("u"), want: noDestination}},
		},
		"bound twice": {
			ds: pattern(""), binds: [][]byte{sshtest.BindBody(sshtest.HostA(), "1", false), sshtest.BindBody(sshtest.HostA(), "1", false)},
			logins: []sceneLogin{{data: as("u"), host: "a"}},
		},
		"other host behind it": {
			ds: pattern(""), binds: [][]byte{sshtest.BindBody(sshtest.HostA(), "1", false), sshtest.BindBody(sshtest.HostB(), "2", false)},
			logins: []sceneLogin{{data: as("u"), host: "a"}, {data: sshtest.Login(key, "2", "u", b), want: "another session"}},
		},
		"other host, same identifier": {
			ds: pattern(""), binds: [][]byte{sshtest.BindBody(sshtest.HostA(), "1", false), sshtest.BindBody(sshtest.HostB(), "1", false)},
			logins: []sceneLogin{{data: as("u"), host: "a"}},
		},
		"empty identifier": {
			ds: pattern(""), binds: [][]byte{sshtest.BindBody(sshtest.HostA(), "", false)},
			logins: []sceneLogin{{data: sshtest.Login(key, "", "u", a), want: "no login"}},
		},
	}
}

func forwardedScenes() map[string]scene {
	key, a, b, c := scenePlain().public, sshtest.HostA().PublicKey(), sshtest.HostB().PublicKey(), sshtest.HostC().PublicKey()
	atA, atB, atC := toHost("", "a", sshtest.HostA()), toHost("bob", "b", sshtest.HostB()), toHost("", "c", sshtest.HostC())
	toA, aToB, bToC := direct(atA), onward(atA, atB), onward(atB, atC)
	viaA := sshtest.BindBody(sshtest.HostA(), "1", true)
	many := func(n int) (binds [][]byte) {
		for i := range n {
			binds = append(binds, sshtest.BindBody(sshtest.HostA(), fmt.Sprint(i), true))
		}
		return binds
	}
	atoB := [][]byte{viaA, sshtest.BindBody(sshtest.HostB(), "2", false)}
	toC := [][]byte{viaA, sshtest.BindBody(sshtest.HostB(), "2", true), sshtest.BindBody(sshtest.HostC(), "3", false)}
	return map[string]scene{
		"forwarded, no way on": {
			ds: []Destination{toA}, binds: [][]byte{viaA}, hidden: noWayOn,
			logins: []sceneLogin{{data: sshtest.Login(key, "1", "u", a), want: "bound for forwarding"}},
		},
		"forwarded": {
			ds: []Destination{toA, aToB}, binds: [][]byte{viaA},
			logins: []sceneLogin{{data: sshtest.Login(key, "1", "u", a), want: "bound for forwarding"}, {data: sshtest.Login(key, "2", "bob", b), want: "bound for forwarding"}},
		},
		"forwarded to a different host": {ds: []Destination{toA, aToB}, binds: [][]byte{sshtest.BindBody(sshtest.HostB(), "1", true)}, hidden: noDestination},
		"two hops": {
			ds: []Destination{toA, aToB}, binds: atoB,
			logins: []sceneLogin{
				{data: sshtest.Login(key, "2", "bob", b), host: "b"},
				{data: sshtest.Login(key, "2", "bob", nil), want: "does not name a host key"},
				{data: sshtest.Login(key, "2", "bob", a), want: "another host key"},
				{data: sshtest.Login(key, "1", "bob", b), want: "another session identifier"},
				{data: sshtest.Login(key, "1", "bob", a), want: "another session identifier"},
				{data: sshtest.Login(key, "2", "eve", b), want: `as "eve"`},
			},
		},
		"two hops, user of the first": {
			ds:     []Destination{direct(toHost("alice", "a", sshtest.HostA())), aToB},
			binds:  atoB,
			logins: []sceneLogin{{data: sshtest.Login(key, "2", "bob", b), host: "b"}, {data: sshtest.Login(key, "2", "alice", b), want: `as "alice"`}},
		},
		"two hops, none between": {
			ds: []Destination{toA, direct(atB)}, binds: atoB, hidden: noDestination,
			logins: []sceneLogin{{data: sshtest.Login(key, "2", "bob", b), want: noDestination}},
		},
		"two hops, none to the first": {
			ds: []Destination{aToB}, binds: atoB, hidden: noDestination,
			logins: []sceneLogin{{data: sshtest.Login(key, "2", "bob", b), want: noDestination}},
		},
		"three hops": {
			ds: []Destination{toA, aToB, bToC}, binds: toC,
			logins: []sceneLogin{
				{data: sshtest.Login(key, "3", "u", c), host: "c"},
				{data: sshtest.Login(key, "3", "u", b), want: "another host key"},
				{data: sshtest.Login(key, "2", "bob", b), want: "another session"},
				{data: sshtest.Login(key, "3", "u", nil), want: "does not name"},
			},
		},
		"three hops, forwarded on": {ds: []Destination{toA, aToB, bToC}, binds: [][]byte{viaA, toC[1]}},
		"three hops, no way on":    {ds: []Destination{toA, aToB}, binds: [][]byte{viaA, toC[1]}, hidden: noWayOn},
		"three hops, a gap": {
			ds: []Destination{toA, bToC, onward(atA, atC)}, binds: toC, hidden: noDestination,
			logins: []sceneLogin{{data: sshtest.Login(key, "3", "u", c), want: noDestination}},
		},
		"back to where it was": {
			ds: []Destination{toA, onward(atA, atA)}, binds: [][]byte{viaA, sshtest.BindBody(sshtest.HostA(), "2", false)},
			logins: []sceneLogin{{data: sshtest.Login(key, "2", "u", a), host: "a"}, {data: sshtest.Login(key, "1", "u", a), want: "another session"}},
		},
		"back, not allowed": {
			ds: []Destination{toA}, binds: [][]byte{viaA, sshtest.BindBody(sshtest.HostA(), "2", false)}, hidden: noDestination,
		},
		"forwarding behind a login": {
			ds: []Destination{toA, aToB}, binds: [][]byte{sshtest.BindBody(sshtest.HostA(), "1", false), sshtest.BindBody(sshtest.HostB(), "2", true)},
			logins: []sceneLogin{{data: sshtest.Login(key, "1", "u", a), host: "a"}},
		},
		"sixteen hops": {ds: []Destination{toA, onward(atA, atA)}, binds: many(maxBindings)},
		"seventeen hops": {
			ds: []Destination{toA, onward(atA, atA)}, binds: many(maxBindings + 1),
			older: "before 10.0, one bind too many is a success, and is forgotten",
		},
		"long identifier": {
			ds: []Destination{toA}, binds: [][]byte{sshtest.BindBody(sshtest.HostA(), strings.Repeat("1", maxSessionID), false)},
			logins: []sceneLogin{{data: sshtest.Login(key, strings.Repeat("1", maxSessionID), "u", a), host: "a"}},
		},
	}
}

func certificateScenes() map[string]scene {
	key := scenePlain().public
	bySHA1 := sshtest.WithAlgorithm(sshtest.HostC(), ssh.KeyAlgoRSA)
	by256 := sshtest.WithAlgorithm(sshtest.HostC(), ssh.KeyAlgoRSASHA256)
	all := make(map[string]scene)
	add := func(name string, good bool, host ssh.Signer, to Hop) {
		s := scene{ds: []Destination{direct(to)}, binds: [][]byte{sshtest.BindBody(host, "1", false)}}
		if good {
			s.logins = []sceneLogin{
				{data: sshtest.Login(key, "1", "u", host.PublicKey()), host: to.Host},
				{data: sshtest.Login(key, "1", "u", sshtest.HostA().PublicKey()), want: "another host key"},
				{data: sshtest.Login(key, "1", "u", nil), host: to.Host},
			}
		} else {
			s.hidden = noDestination
			s.logins = []sceneLogin{{data: sshtest.Login(key, "1", "u", host.PublicKey()), want: noDestination}}
		}
		all["certificate: "+name] = s
	}
	one := func(change func(*ssh.Certificate)) ssh.Signer {
		return sshtest.Certify(sshtest.HostA(), sshtest.HostCA(), []string{"a"}, change)
	}
	named := func(principals ...string) ssh.Signer {
		return sshtest.Certify(sshtest.HostA(), sshtest.HostCA(), principals, nil)
	}
	valid := func(from, until time.Duration) ssh.Signer {
		return one(func(c *ssh.Certificate) {
			c.ValidAfter, c.ValidBefore = sshtest.UnixSeconds(time.Now().Add(from)), sshtest.UnixSeconds(time.Now().Add(until))
		})
	}
	toA := byAuthority("", "a", sshtest.HostCA())
	add("good", true, named("a"), toA)
	add("second authority", true, named("a"), byAuthority("", "a", sshtest.HostD(), sshtest.HostCA()))
	add("second name", true, named("b", "a"), toA)
	add("ecdsa", true, sshtest.Certify(sshtest.HostA(), sshtest.HostB(), []string{"a"}, nil), byAuthority("", "a", sshtest.HostB()))
	add("rsa 512", true, sshtest.Certify(sshtest.HostA(), sshtest.HostC(), []string{"a"}, nil), byAuthority("", "a", sshtest.HostC()))
	add("rsa 256", true, sshtest.Certify(sshtest.HostA(), by256, []string{"a"}, nil), byAuthority("", "a", sshtest.HostC()))
	add("rsa sha1", false, sshtest.Certify(sshtest.HostA(), bySHA1, []string{"a"}, nil), byAuthority("", "a", sshtest.HostC()))
	add("other name", false, named("b"), toA)
	add("name with more", false, named("aa"), toA)
	add("no name", false, named(), toA)
	add("empty name", false, named(""), toA)
	add("wildcard", true, named("*.example"), byAuthority("", "a.example", sshtest.HostCA()))
	add("wildcard ?", true, named("?.example"), byAuthority("", "a.example", sshtest.HostCA()))
	add("other wildcard", false, named("*.org"), byAuthority("", "a.example", sshtest.HostCA()))
	add("wildcard in host", false, named("a.example"), byAuthority("", "*.example", sshtest.HostCA()))
	add("same wildcard", true, named("*.example"), byAuthority("", "*.example", sshtest.HostCA()))
	add("name with NUL", true, named("a\x00"), toA)
	add("other authority", false, named("a"), byAuthority("", "a", sshtest.HostD()))
	add("authority as key", false, named("a"), toHost("", "a", sshtest.HostCA()))
	add("key under it", false, named("a"), toHost("", "a", sshtest.HostA()))
	add("itself as key", false, named("a"), toHost("", "a", named("a")))
	add("of now", true, valid(-time.Hour, time.Hour), toA)
	add("expired", false, valid(-2*time.Hour, -time.Hour), toA)
	add("not yet", false, valid(time.Hour, 2*time.Hour), toA)
	add("user", false, one(func(c *ssh.Certificate) { c.CertType = ssh.UserCert }), toA)
	add("critical option", false, one(func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"x": "y"} }), toA)
	add("extension", true, one(func(c *ssh.Certificate) { c.Extensions = map[string]string{"x": "y", "z": ""} }), toA)
	for _, name := range []string{"no name", "wildcard", "wildcard ?", "wildcard in host"} {
		s := all["certificate: "+name]
		s.older = "before 10.3, the constraint has the pattern, and no name means any"
		all["certificate: "+name] = s
	}
	onwards := []Destination{direct(toA), onward(toA, toHost("", "b", sshtest.HostB()))}
	all["certificate: forwarded"] = scene{
		ds: onwards, binds: [][]byte{sshtest.BindBody(named("a"), "1", true), sshtest.BindBody(sshtest.HostB(), "2", false)},
		logins: []sceneLogin{{data: sshtest.Login(key, "2", "u", sshtest.HostB().PublicKey()), host: "b"}},
	}
	all["certificate: forwarded under another name"] = scene{
		ds: onwards, binds: [][]byte{sshtest.BindBody(named("b"), "1", true), sshtest.BindBody(sshtest.HostB(), "2", false)}, hidden: noDestination,
	}
	all["certificate: key in the data"] = scene{
		ds: onwards, binds: [][]byte{sshtest.BindBody(named("a"), "1", false)},
		logins: []sceneLogin{{data: sshtest.Login(key, "1", "u", sshtest.HostA().PublicKey()), want: "another host key"}},
	}
	return all
}

// identityScenes vary the key that signs.
func identityScenes() map[string]scene {
	id, a := sceneCertified(), sshtest.HostA().PublicKey()
	toA := []Destination{direct(toHost("", "a", sshtest.HostA()))}
	bound := [][]byte{sshtest.BindBody(sshtest.HostA(), "1", false)}
	all := map[string]scene{
		"identity is a certificate": {
			id: id, ds: toA, binds: bound,
			logins: []sceneLogin{
				{data: sshtest.Login(id.public, "1", "u", a), host: "a"},
				{data: sshtest.Login(scenePlain().public, "1", "u", a), want: "another key"},
			},
		},
	}
	for name, c := range userauthCases() {
		m := sshtest.Userauth(scenePlain().public, "1", "user", a)
		c.change(&m)
		try := sceneLogin{data: ssh.Marshal(m), want: c.want, host: "a"}
		if c.want != "" {
			try.host = ""
		}
		all["data: "+name] = scene{ds: toA, binds: bound, logins: []sceneLogin{try}}
	}
	return all
}
