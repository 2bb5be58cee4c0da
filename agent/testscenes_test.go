package agent

import (
	"fmt"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// scene is a key with destinations, what was bound, and what becomes of that.
// The table of them is put to our verdicts and to OpenSSH's agent.
type scene struct {
	id     Identity // the zero value is scenePlain
	ds     []Destination
	binds  [][]byte // the last may be refused
	hidden string   // why it is not listed; "" if it is
	logins []sceneLogin

	// older is why an OpenSSH that is older than 10.5 may see it differently,
	// "" if none does.
	older string
}

// sceneLogin is data to be signed.
type sceneLogin struct {
	data       []byte
	want       string // why it is refused; "" if it is not
	user, host string // if it is not
}

func (s *scene) identity() Identity {
	if s.id.Public == nil {
		return scenePlain()
	}
	return s.id
}

func scenePlain() Identity { return plain("scene", p256()) }

func sceneCertified() Identity { return certified(scenePlain(), 0, ssh.CertTimeInfinity) }

const noDestination, noWayOn = "no destination leads", "no destination leads on"

// scenes has all of them by name.
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
	key := scenePlain().Public
	toA := []Destination{direct(toHost("", "a", hostA()))}
	sshsig := []byte("SSHSIG\x00\x00\x00\x04file\x00\x00\x00\x00\x00\x00\x00\x06sha512\x00\x00\x00\x01x")
	login1 := login(key, "1", "u", nil)
	bad := bindRequest{Host: hostA().PublicKey().Marshal(), SessionID: []byte("1"), Signature: signedBy(hostD(), []byte("1"))}
	return map[string]scene{
		"anything goes": {logins: []sceneLogin{{data: sshsig}, {data: login1}, {data: []byte("x")}}},
		"anything goes, bound": {
			binds:  [][]byte{bindBody(hostA(), "1", true)},
			logins: []sceneLogin{{data: sshsig}, {data: login1}, {data: []byte("x")}},
		},
		"anything goes, badly bound": {
			binds:  [][]byte{ssh.Marshal(bad)},
			logins: []sceneLogin{{data: sshsig}, {data: login1}},
		},
		"not bound": {ds: toA, logins: []sceneLogin{{data: login1, want: "not bound"}, {data: sshsig, want: "not bound"}}},
		"false signature": {
			ds: toA, binds: [][]byte{ssh.Marshal(bad)}, hidden: "could not be proven",
			logins: []sceneLogin{{data: login1, want: "not bound"}}, older: "before 9.6, a bind that is refused is forgotten",
		},
		"false signature behind a good one": {
			ds: toA, binds: [][]byte{bindBody(hostA(), "1", false), ssh.Marshal(bad)},
			logins: []sceneLogin{{data: login1, user: "u", host: "a"}},
		},
		"half a bind": {
			ds: toA, binds: [][]byte{bindBody(hostA(), "1", false)[:60]}, hidden: "could not be proven",
			older: "before 9.6, a bind that is refused is forgotten",
		},
		"no login": {
			ds: toA, binds: [][]byte{bindBody(hostA(), "1", false)},
			logins: []sceneLogin{{data: sshsig, want: "no login"}, {data: []byte("x"), want: "no login"}, {data: nil, want: "no login"}},
		},
	}
}

func directScenes() map[string]scene {
	key, a, b := scenePlain().Public, hostA().PublicKey(), hostB().PublicKey()
	bound := [][]byte{bindBody(hostA(), "1", false)}
	as := func(user string) []byte { return login(key, "1", user, a) }
	two := []Destination{direct(toHost("root", "first", hostA())), direct(toHost("u*", "second", hostB(), hostA()))}
	pattern := func(user string) []Destination { return []Destination{direct(toHost(user, "a", hostA()))} }
	return map[string]scene{
		"direct": {
			ds: pattern(""), binds: bound,
			logins: []sceneLogin{
				{data: login(key, "1", "u", nil), user: "u", host: "a"},
				{data: login(key, "1", "u", a), user: "u", host: "a"},
				{data: login(key, "1", "", a), host: "a"},
				{data: login(key, "2", "u", a), want: "another session identifier"},
				{data: login(key, "2", "u", nil), want: "another session identifier"},
				{data: login(key, "11", "u", nil), want: "another session identifier"},
				{data: login(key, "1", "u", b), want: "another host key"},
				{data: login(publicOf(p384()), "1", "u", a), want: "another key"},
			},
		},
		"to another host": {
			ds: pattern(""), binds: [][]byte{bindBody(hostB(), "1", false)}, hidden: noDestination,
			logins: []sceneLogin{{data: login(key, "1", "u", b), want: noDestination}, {data: login(key, "1", "u", a), want: noDestination}},
		},
		"user": {
			ds: pattern("ro?t*"), binds: bound,
			logins: []sceneLogin{
				{data: as("root"), user: "root", host: "a"},
				{data: as("roXtX"), user: "roXtX", host: "a"},
				{data: as("rot"), want: `as "rot"`},
				{data: as("aroot"), want: `as "aroot"`},
				{data: as("Root"), want: `as "Root"`},
				{data: as(""), want: `as ""`},
			},
		},
		"user of *":   {ds: pattern("*"), binds: bound, logins: []sceneLogin{{data: as(""), host: "a"}, {data: as("u"), user: "u", host: "a"}}},
		"user of ?":   {ds: pattern("?"), binds: bound, logins: []sceneLogin{{data: as(""), want: `as ""`}, {data: as("u"), user: "u", host: "a"}, {data: as("uu"), want: `as "uu"`}}},
		"user with !": {ds: pattern("!u,v"), binds: bound, logins: []sceneLogin{{data: as("v"), want: `as "v"`}, {data: as("!u,v"), user: "!u,v", host: "a"}}},
		"two destinations": {
			ds: two, binds: bound,
			logins: []sceneLogin{{data: as("root"), user: "root", host: "first"}, {data: as("u"), user: "u", host: "second"}, {data: as("v"), want: `as "v"`}},
		},
		"authority as host": {
			ds: []Destination{direct(byAuthority("", "a", hostA()))}, binds: bound, hidden: noDestination,
			logins: []sceneLogin{{data: as("u"), want: noDestination}},
		},
		"bound twice": {
			ds: pattern(""), binds: [][]byte{bindBody(hostA(), "1", false), bindBody(hostA(), "1", false)},
			logins: []sceneLogin{{data: as("u"), user: "u", host: "a"}},
		},
		"other host behind it": {
			ds: pattern(""), binds: [][]byte{bindBody(hostA(), "1", false), bindBody(hostB(), "2", false)},
			logins: []sceneLogin{{data: as("u"), user: "u", host: "a"}, {data: login(key, "2", "u", b), want: "another session"}},
		},
		"other host, same identifier": {
			ds: pattern(""), binds: [][]byte{bindBody(hostA(), "1", false), bindBody(hostB(), "1", false)},
			logins: []sceneLogin{{data: as("u"), user: "u", host: "a"}},
		},
		"empty identifier": {
			ds: pattern(""), binds: [][]byte{bindBody(hostA(), "", false)},
			logins: []sceneLogin{{data: login(key, "", "u", a), want: "no login"}},
		},
	}
}

func forwardedScenes() map[string]scene {
	key, a, b, c := scenePlain().Public, hostA().PublicKey(), hostB().PublicKey(), hostC().PublicKey()
	atA, atB, atC := toHost("", "a", hostA()), toHost("bob", "b", hostB()), toHost("", "c", hostC())
	toA, aToB, bToC := direct(atA), onward(atA, atB), onward(atB, atC)
	viaA := bindBody(hostA(), "1", true)
	many := func(n int) (binds [][]byte) {
		for i := range n {
			binds = append(binds, bindBody(hostA(), fmt.Sprint(i), true))
		}
		return binds
	}
	atoB := [][]byte{viaA, bindBody(hostB(), "2", false)}
	toC := [][]byte{viaA, bindBody(hostB(), "2", true), bindBody(hostC(), "3", false)}
	return map[string]scene{
		"forwarded, no way on": {
			ds: []Destination{toA}, binds: [][]byte{viaA}, hidden: noWayOn,
			logins: []sceneLogin{{data: login(key, "1", "u", a), want: "bound for forwarding"}},
		},
		"forwarded": {
			ds: []Destination{toA, aToB}, binds: [][]byte{viaA},
			logins: []sceneLogin{{data: login(key, "1", "u", a), want: "bound for forwarding"}, {data: login(key, "2", "bob", b), want: "bound for forwarding"}},
		},
		"forwarded to another host": {ds: []Destination{toA, aToB}, binds: [][]byte{bindBody(hostB(), "1", true)}, hidden: noDestination},
		"two hops": {
			ds: []Destination{toA, aToB}, binds: atoB,
			logins: []sceneLogin{
				{data: login(key, "2", "bob", b), user: "bob", host: "b"},
				{data: login(key, "2", "bob", nil), want: "does not name a host key"},
				{data: login(key, "2", "bob", a), want: "another host key"},
				{data: login(key, "1", "bob", b), want: "another session identifier"},
				{data: login(key, "1", "bob", a), want: "another session identifier"},
				{data: login(key, "2", "eve", b), want: `as "eve"`},
			},
		},
		"two hops, user of the first": {
			ds:     []Destination{direct(toHost("alice", "a", hostA())), aToB},
			binds:  atoB,
			logins: []sceneLogin{{data: login(key, "2", "bob", b), user: "bob", host: "b"}, {data: login(key, "2", "alice", b), want: `as "alice"`}},
		},
		"two hops, none between": {
			ds: []Destination{toA, direct(atB)}, binds: atoB, hidden: noDestination,
			logins: []sceneLogin{{data: login(key, "2", "bob", b), want: noDestination}},
		},
		"two hops, none to the first": {
			ds: []Destination{aToB}, binds: atoB, hidden: noDestination,
			logins: []sceneLogin{{data: login(key, "2", "bob", b), want: noDestination}},
		},
		"three hops": {
			ds: []Destination{toA, aToB, bToC}, binds: toC,
			logins: []sceneLogin{
				{data: login(key, "3", "u", c), user: "u", host: "c"},
				{data: login(key, "3", "u", b), want: "another host key"},
				{data: login(key, "2", "bob", b), want: "another session"},
				{data: login(key, "3", "u", nil), want: "does not name"},
			},
		},
		"three hops, forwarded on": {ds: []Destination{toA, aToB, bToC}, binds: [][]byte{viaA, toC[1]}},
		"three hops, no way on":    {ds: []Destination{toA, aToB}, binds: [][]byte{viaA, toC[1]}, hidden: noWayOn},
		"three hops, a gap": {
			ds: []Destination{toA, bToC, onward(atA, atC)}, binds: toC, hidden: noDestination,
			logins: []sceneLogin{{data: login(key, "3", "u", c), want: noDestination}},
		},
		"back to where it was": {
			ds: []Destination{toA, onward(atA, atA)}, binds: [][]byte{viaA, bindBody(hostA(), "2", false)},
			logins: []sceneLogin{{data: login(key, "2", "u", a), user: "u", host: "a"}, {data: login(key, "1", "u", a), want: "another session"}},
		},
		"back, not allowed": {
			ds: []Destination{toA}, binds: [][]byte{viaA, bindBody(hostA(), "2", false)}, hidden: noDestination,
		},
		"forwarding behind a login": {
			ds: []Destination{toA, aToB}, binds: [][]byte{bindBody(hostA(), "1", false), bindBody(hostB(), "2", true)},
			logins: []sceneLogin{{data: login(key, "1", "u", a), user: "u", host: "a"}},
		},
		"sixteen hops": {ds: []Destination{toA, onward(atA, atA)}, binds: many(maxBindings)},
		"seventeen hops": {
			ds: []Destination{toA, onward(atA, atA)}, binds: many(maxBindings + 1),
			older: "before 10.0, one bind too many is a success, and is forgotten",
		},
		"long identifier": {
			ds: []Destination{toA}, binds: [][]byte{bindBody(hostA(), strings.Repeat("1", maxSessionID), false)},
			logins: []sceneLogin{{data: login(key, strings.Repeat("1", maxSessionID), "u", a), user: "u", host: "a"}},
		},
	}
}

func certificateScenes() map[string]scene {
	key := scenePlain().Public
	bySHA1 := withAlgorithm(hostC(), ssh.KeyAlgoRSA)
	by256 := withAlgorithm(hostC(), ssh.KeyAlgoRSASHA256)
	all := make(map[string]scene)
	add := func(name string, good bool, host ssh.Signer, to Hop) {
		s := scene{ds: []Destination{direct(to)}, binds: [][]byte{bindBody(host, "1", false)}}
		if good {
			s.logins = []sceneLogin{
				{data: login(key, "1", "u", host.PublicKey()), user: "u", host: to.Host},
				{data: login(key, "1", "u", hostA().PublicKey()), want: "another host key"},
				{data: login(key, "1", "u", nil), user: "u", host: to.Host},
			}
		} else {
			s.hidden = noDestination
			s.logins = []sceneLogin{{data: login(key, "1", "u", host.PublicKey()), want: noDestination}}
		}
		all["certificate: "+name] = s
	}
	one := func(change func(*ssh.Certificate)) ssh.Signer {
		return certify(hostA(), hostCA(), []string{"a"}, change)
	}
	named := func(principals ...string) ssh.Signer { return certify(hostA(), hostCA(), principals, nil) }
	valid := func(from, until time.Duration) ssh.Signer {
		return one(func(c *ssh.Certificate) {
			c.ValidAfter, c.ValidBefore = unixSeconds(time.Now().Add(from)), unixSeconds(time.Now().Add(until))
		})
	}
	toA := byAuthority("", "a", hostCA())
	add("good", true, named("a"), toA)
	add("second authority", true, named("a"), byAuthority("", "a", hostD(), hostCA()))
	add("second name", true, named("b", "a"), toA)
	add("ecdsa", true, certify(hostA(), hostB(), []string{"a"}, nil), byAuthority("", "a", hostB()))
	add("rsa 512", true, certify(hostA(), hostC(), []string{"a"}, nil), byAuthority("", "a", hostC()))
	add("rsa 256", true, certify(hostA(), by256, []string{"a"}, nil), byAuthority("", "a", hostC()))
	add("rsa sha1", false, certify(hostA(), bySHA1, []string{"a"}, nil), byAuthority("", "a", hostC()))
	add("other name", false, named("b"), toA)
	add("name with more", false, named("aa"), toA)
	add("no name", false, named(), toA)
	add("empty name", false, named(""), toA)
	add("wildcard", true, named("*.example"), byAuthority("", "a.example", hostCA()))
	add("wildcard ?", true, named("?.example"), byAuthority("", "a.example", hostCA()))
	add("other wildcard", false, named("*.org"), byAuthority("", "a.example", hostCA()))
	add("wildcard in host", false, named("a.example"), byAuthority("", "*.example", hostCA()))
	add("same wildcard", true, named("*.example"), byAuthority("", "*.example", hostCA()))
	add("name with NUL", true, named("a\x00"), toA)
	add("other authority", false, named("a"), byAuthority("", "a", hostD()))
	add("authority as key", false, named("a"), toHost("", "a", hostCA()))
	add("key under it", false, named("a"), toHost("", "a", hostA()))
	add("itself as key", false, named("a"), toHost("", "a", named("a")))
	add("of now", true, valid(-time.Hour, time.Hour), toA)
	add("expired", false, valid(-2*time.Hour, -time.Hour), toA)
	add("not yet", false, valid(time.Hour, 2*time.Hour), toA)
	add("user", false, one(func(c *ssh.Certificate) { c.CertType = ssh.UserCert }), toA)
	add("critical option", false, one(func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"x": "y"} }), toA)
	add("extension", true, one(func(c *ssh.Certificate) { c.Extensions = map[string]string{"x": "y", "z": ""} }), toA)
	for _, name := range []string{"no name", "wildcard", "wildcard ?", "wildcard in host"} {
		s := all["certificate: "+name]
		s.older = "before 10.3, it is the constraint that has the pattern, and no name is any"
		all["certificate: "+name] = s
	}
	onwards := []Destination{direct(toA), onward(toA, toHost("", "b", hostB()))}
	all["certificate: forwarded"] = scene{
		ds: onwards, binds: [][]byte{bindBody(named("a"), "1", true), bindBody(hostB(), "2", false)},
		logins: []sceneLogin{{data: login(key, "2", "u", hostB().PublicKey()), user: "u", host: "b"}},
	}
	all["certificate: forwarded under another name"] = scene{
		ds: onwards, binds: [][]byte{bindBody(named("b"), "1", true), bindBody(hostB(), "2", false)}, hidden: noDestination,
	}
	all["certificate: key in the data"] = scene{
		ds: onwards, binds: [][]byte{bindBody(named("a"), "1", false)},
		logins: []sceneLogin{{data: login(key, "1", "u", hostA().PublicKey()), want: "another host key"}},
	}
	return all
}

// identityScenes are of the key that signs.
func identityScenes() map[string]scene {
	id, a := sceneCertified(), hostA().PublicKey()
	toA := []Destination{direct(toHost("", "a", hostA()))}
	bound := [][]byte{bindBody(hostA(), "1", false)}
	all := map[string]scene{
		"identity is a certificate": {
			id: id, ds: toA, binds: bound,
			logins: []sceneLogin{
				{data: login(id.Public, "1", "u", a), user: "u", host: "a"},
				{data: login(scenePlain().Public, "1", "u", a), want: "another key"},
			},
		},
	}
	for name, c := range userauthCases() {
		m := userauth(scenePlain().Public, "1", "user", a)
		c.change(&m)
		try := sceneLogin{data: ssh.Marshal(m), want: c.want, user: "user", host: "a"}
		all["data: "+name] = scene{ds: toA, binds: bound, logins: []sceneLogin{try}}
	}
	return all
}
