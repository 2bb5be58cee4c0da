package restrict

import (
	"bytes"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// hopWith encodes a hop with any reserved field and keys.
func hopWith(user, host, reserved string, keys []byte) []byte {
	return ssh.Marshal(struct {
		User, Host, Reserved string
		Keys                 []byte `ssh:"rest"`
	}{user, host, reserved, keys})
}

// constraint encodes one destination.
func constraint(from, to []byte, reserved, rest string) []byte {
	return wire.AppendString(nil, ssh.Marshal(struct {
		From, To []byte
		Reserved string
		Rest     []byte `ssh:"rest"`
	}{from, to, reserved, []byte(rest)}))
}

// destinationBodies are encoded constraints, right and wrong. The same table is
// tried on OpenSSH's agent.
func destinationBodies() map[string]struct {
	body []byte
	want string // the error; "" for none
} {
	keyOf := func(k ssh.PublicKey, ca byte) []byte {
		return append(wire.AppendString(nil, k.Marshal()), ca)
	}
	key := keyOf(sshtest.HostA().PublicKey(), 0)
	origin, toA := hopWith("", "", "", nil), hopWith("", "a", "", key)
	good := constraint(origin, toA, "", "")
	to := func(hop []byte) []byte { return constraint(origin, hop, "", "") }
	from := func(hop []byte) []byte { return constraint(hop, toA, "", "") }
	cert := sshtest.Certify(sshtest.HostA(), sshtest.HostCA(), []string{"a"}, nil).PublicKey()
	long := strings.Repeat("u", maxUserPattern)
	type body = struct {
		body []byte
		want string
	}
	return map[string]body{
		"none":                 {nil, ""},
		"one":                  {good, ""},
		"onward":               {from(hopWith("", "b", "", keyOf(sshtest.HostB().PublicKey(), 0))), ""},
		"1024":                 {bytes.Repeat(good, maxDestinations), ""},
		"1025":                 {bytes.Repeat(good, maxDestinations+1), "more than 1024"},
		"rest":                 {constraint(origin, toA, "", "rest"), ""},
		"authority":            {to(hopWith("", "a", "", keyOf(sshtest.HostCA().PublicKey(), 1))), ""},
		"authority of 255":     {to(hopWith("", "a", "", keyOf(sshtest.HostCA().PublicKey(), 255))), ""},
		"all types of keys":    {to(hopWith("", "a", "", bytes.Join([][]byte{key, keyOf(sshtest.HostB().PublicKey(), 0), keyOf(sshtest.HostC().PublicKey(), 1)}, nil))), ""},
		"certificate as key":   {to(hopWith("", "a", "", keyOf(cert, 0))), ""},
		"false certificate":    {to(hopWith("", "a", "", append(wire.AppendString(nil, flipped(cert.Marshal())), 0))), "false signature"},
		"user":                 {to(hopWith("us?r*", "a", "", key)), ""},
		"user of NUL":          {to(hopWith("\x00", "a", "", key)), ""},
		"user with NUL at end": {to(hopWith("user\x00", "a", "", key)), ""},
		"user with NUL inside": {to(hopWith("us\x00er", "a", "", key)), "NUL"},
		"user with two NULs":   {to(hopWith("\x00\x00", "a", "", key)), "NUL"},
		"user of 256":          {to(hopWith(long, "a", "", key)), ""},
		"user of 257":          {to(hopWith(long+"u", "a", "", key)), "more than 256"},
		"user of 256 and NUL":  {to(hopWith(long+"\x00", "a", "", key)), "more than 256"},
		"host with NUL inside": {to(hopWith("", "a\x00b", "", key)), "NUL"},
		"host with NUL at end": {to(hopWith("", "a\x00", "", key)), ""},
		"to no host":           {to(origin), "to: no host"},
		"to a key":             {to(hopWith("", "", "", key)), "to: no host"},
		"to a host of NUL":     {to(hopWith("", "\x00", "", key)), "to: no host"},
		"to a name":            {to(hopWith("", "a", "", nil)), "no key of it"},
		"from a name":          {from(hopWith("", "a", "", nil)), "without a key"},
		"from a key":           {from(hopWith("", "", "", key)), "without a host"},
		"from a user":          {from(hopWith("u", "a", "", key)), "from: a user"},
		"from a user here":     {from(hopWith("u", "", "", nil)), "from: a user"},
		"from a user of NUL":   {from(hopWith("\x00", "a", "", key)), ""},
		"reserved":             {constraint(origin, toA, "x", ""), "unknown extensions"},
		"reserved in from":     {from(hopWith("", "a", "x", key)), "unknown extensions"},
		"reserved in to":       {to(hopWith("", "a", "x", key)), "unknown extensions"},
		"key without flag":     {to(hopWith("", "a", "", key[:len(key)-1])), "to: "},
		"junk as key":          {to(hopWith("", "a", "", []byte("junk"))), "to: "},
		"unknown key":          {to(hopWith("", "a", "", append(wire.AppendString(nil, wire.AppendString(nil, []byte("x"))), 0))), `type "x"`},
		"short rsa key":        {to(hopWith("", "a", "", append(wire.AppendString(nil, rsaBlob(512, 3)), 0))), "512 bits"},
		"junk":                 {[]byte("junk"), "restrict-destination"},
		"junk behind":          {append(bytes.Clone(good), 1, 2, 3), "restrict-destination"},
		"empty destination":    {make([]byte, 4), "destination 0"},
		"empty hops":           {constraint(nil, nil, "", ""), "from: "},
		"bad second":           {append(bytes.Clone(good), to(origin)...), "destination 1"},
	}
}

func TestParseDestinations(t *testing.T) {
	t.Parallel()
	for name, tt := range destinationBodies() {
		t.Run(name, func(t *testing.T) {
			ds, err := parseDestinations(tt.body)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			if err != nil && ds != nil {
				t.Error("both destinations and an error")
			}
		})
	}
}

func TestDestinationsTruncated(t *testing.T) {
	t.Parallel()
	body := marshalDestinations([]Destination{onward(toHost("", "a", sshtest.HostA(), sshtest.HostB()), toHost("u", "b", sshtest.HostC()))})
	for n := 1; n < len(body); n++ {
		if _, err := parseDestinations(body[:n]); err == nil {
			t.Fatalf("%d bytes of %d are accepted", n, len(body))
		}
	}
}

// TestDestinationsRoundTrip overwrites the request after it was parsed.
func TestDestinationsRoundTrip(t *testing.T) {
	t.Parallel()
	body := marshalDestinations([]Destination{
		direct(toHost("root", "a.example", sshtest.HostA(), sshtest.HostB())),
		onward(toHost("", "a.example", sshtest.HostA()), byAuthority("*", "*.example", sshtest.HostCA())),
	})
	sent := bytes.Clone(body)
	ds, err := parseDestinations(sent)
	if err != nil {
		t.Fatal(err)
	}
	clear(sent)
	if !bytes.Equal(marshalDestinations(ds), body) {
		t.Errorf("%+v is not what was sent", ds)
	}
	to := ds[1].To
	if to.User != "*" || to.Host != "*.example" || len(to.Keys) != 1 || !to.Keys[0].CA || ds[1].From.Host != "a.example" {
		t.Errorf("got %+v", ds[1])
	}
	if ds[0].From.Host != "" || ds[0].From.Keys != nil || len(ds[0].To.Keys) != 2 || ds[0].To.Keys[1].CA {
		t.Errorf("got %+v", ds[0])
	}
}

// FuzzDestinations checks that accepted destinations survive a round trip and
// have what verdicts rely on.
func FuzzDestinations(f *testing.F) {
	for _, b := range destinationBodies() {
		if len(b.body) < 1<<12 {
			f.Add(b.body)
		}
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		ds, err := parseDestinations(body)
		if err != nil {
			return
		}
		for _, d := range ds {
			if d.To.Host == "" || len(d.To.Keys) == 0 || len(d.To.User) > maxUserPattern || d.From.User != "" {
				t.Fatalf("accepted %+v", d)
			}
		}
		sent := marshalDestinations(ds)
		again, err := parseDestinations(sent)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(marshalDestinations(again), sent) {
			t.Fatalf("%x became %x", sent, marshalDestinations(again))
		}
	})
}
