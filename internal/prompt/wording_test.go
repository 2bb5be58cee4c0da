package prompt

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/peer"
)

const (
	printK = "SHA256:kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk"
	printH = "SHA256:hhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhh"
)

// questionOf returns a question about a key in the home directory, from an unknown
// client.
func questionOf(use ask.Use) ask.Question {
	home, err := os.UserHomeDir()
	if err != nil {
		panic(err)
	}
	return ask.Question{
		Name: home + "/.ssh/id_ecdsa.tpm", Comment: "me@laptop", Fingerprint: printK,
		Peer: peer.Peer{PID: -1, UID: -1}, Use: use,
	}
}

// same compares texts, which begin with a newline in the tests.
func same(t *testing.T, got, want string) {
	t.Helper()
	if want = strings.TrimPrefix(want, "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

var gitHub = ask.Use{Kind: ask.UseLogin, User: "git", Host: "github.com", HostKey: printH}

func TestWording(t *testing.T) {
	t.Setenv("HOME", "/home/me")
	from := func(u ask.Use, via ...string) ask.Use {
		u.Forwarded, u.Via = true, via
		return u
	}
	for _, test := range []struct {
		prompt ask.AuthPrompt
		want   string
	}{
		{ask.AuthPrompt{Question: questionOf(gitHub), TriesLeft: 5}, `
Enter PIN for ~/.ssh/id_ecdsa.tpm (me@laptop)
SHA256:kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk
To log in as git@github.com
5 tries left before the TPM locks itself.`},
		{ask.AuthPrompt{Question: questionOf(from(gitHub, "gate.example.org")), TriesLeft: 4, Retry: true, Waiting: 3}, `
Wrong PIN. 4 tries left before the TPM locks itself.
Enter PIN for ~/.ssh/id_ecdsa.tpm (me@laptop)
SHA256:kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk
FORWARDED from gate.example.org
To log in as git@github.com
The answer also serves 3 other requests for this key.`},
		{ask.AuthPrompt{Question: questionOf(ask.Use{Kind: ask.UseSignature, Namespace: "git"}), TriesLeft: -1, Retry: true}, `
Wrong PIN.
Enter PIN for ~/.ssh/id_ecdsa.tpm (me@laptop)
SHA256:kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk
To sign a commit, tag or push (namespace git)`},
		{ask.AuthPrompt{Question: questionOf(ask.Use{}), TriesLeft: 1, Waiting: 1}, `
Enter PIN for ~/.ssh/id_ecdsa.tpm (me@laptop)
SHA256:kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk
To sign data that is neither a login nor an SSH signature
This is the last try before the TPM locks itself.
The answer also serves 1 other request for this key.`},
		{ask.AuthPrompt{Question: ask.Question{Name: "k.tpm"}}, `
Enter PIN for k.tpm
To sign data that is neither a login nor an SSH signature`},
		{ask.AuthPrompt{Question: ask.Question{Name: "k.tpm"}, Retry: true}, `
Wrong PIN. The TPM has locked itself.
Enter PIN for k.tpm
To sign data that is neither a login nor an SSH signature`},
		{ask.AuthPrompt{Question: ask.Question{
			Name: "/srv/keys/of/the/department/for/long/names/id_ecdsa_production.tpm", Comment: "deployment-key@build-17.eu-west.example.org",
			Peer: peer.Peer{PID: 1<<31 - 1},
			Use:  from(ask.Use{Kind: ask.UseLogin, User: "a-user-with-a-long-name", Host: "database-17.eu-west.production.example.org"}, "a.example", printH, ""),
		}, TriesLeft: 31}, `
Enter PIN for …ment/for/long/names/id_ecdsa_production.tpm
  (deployment-key@build-17.eu-west.example.org)
FORWARDED from an unproven host via 1 other host and
  a.example
To log in as a-user-with-a-long-name@
  database-17.eu-west.production.example.org
Forwarded by pid 2147483647
31 tries left before the TPM locks itself.`},
	} {
		same(t, enterPIN(test.prompt).Whole(), test.want)
	}
}

func TestConsent(t *testing.T) {
	t.Setenv("HOME", "/home/me")
	for _, test := range []struct {
		about ask.Question
		want  string
	}{
		{questionOf(gitHub), `
Allow use of key ~/.ssh/id_ecdsa.tpm (me@laptop)?
Key fingerprint SHA256:kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk.
To log in as git@github.com`},
		{ask.Question{Comment: "me@here", Fingerprint: "SHA256:x", Use: ask.Use{Kind: ask.UseLogin, Forwarded: true}}, `
Allow use of key me@here?
Key fingerprint SHA256:x.
Perhaps FORWARDED: the host did not prove its identity
To log in (ssh did not say to which host)`},
		{ask.Question{Fingerprint: "SHA256:x"}, `
Allow use of key without a name?
Key fingerprint SHA256:x.
To sign data that is neither a login nor an SSH signature`},
		{ask.Question{
			Name: "k\x1b[2J\n", Comment: "c?\n Key fingerprint\u202e", Fingerprint: "SHA256:x\a",
			Use: ask.Use{Kind: ask.UseLogin, User: "root\nor", Host: "\x00example.org\r"},
		}, `
Allow use of key k[2J ("c? Key fingerprint")?
Key fingerprint SHA256:x.
To log in as rootor@example.org`},
	} {
		same(t, consent(ask.ConfirmPrompt{Question: test.about}), test.want)
	}
}

func TestLastTry(t *testing.T) {
	t.Setenv("HOME", "/home/me")
	const first = "One more wrong PIN locks the TPM.\n"
	text := lastTry(ask.AuthPrompt{Question: questionOf(gitHub), TriesLeft: 1})
	same(t, lastTry(ask.AuthPrompt{Question: questionOf(gitHub), TriesLeft: 1, Retry: true}),
		"Wrong PIN. One more locks the TPM.\n"+strings.TrimPrefix(text, first))
	same(t, text, "\n"+first+`It then refuses the PINs of all keys for minutes or hours,
and those of other programs, such as disk encryption.
Try the PIN of ~/.ssh/id_ecdsa.tpm (me@laptop) anyway?
SHA256:kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk
To log in as git@github.com`)
}

func TestNotice(t *testing.T) {
	t.Setenv("HOME", "/home/me")
	now := time.Date(2026, 11, 21, 23, 50, 0, 0, time.UTC)
	for _, test := range []struct {
		notice ask.Notice
		want   string
	}{
		{ask.Notice{Question: questionOf(gitHub), Wait: 9*time.Minute + time.Second}, `
The TPM is locked: there were too many wrong PINs.
It accepts the next PIN in 10 minutes, at 23:59.
Keys without a PIN keep working. Restarting the machine
does not help. The owner of the TPM can end the lockout:
tpm2_dictionarylockout --clear-lockout
Key: ~/.ssh/id_ecdsa.tpm (me@laptop)
SHA256:kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk
To log in as git@github.com`},
	} {
		same(t, notice(test.notice, now), test.want)
	}
	for wait, want := range map[time.Duration]string{
		time.Millisecond:        "in 1 second, at 23:50.",
		99 * time.Second:        "in 99 seconds, at 23:51.",
		99*time.Second + 1:      "in 2 minutes, at 23:51.",
		10 * time.Minute:        "in 10 minutes,\n  on November 22 at 00:00.",
		24 * time.Hour:          "in 24 hours,\n  on November 22 at 23:50.",
		365 * 24 * time.Hour:    "in 365 days,\n  on November 21 at 23:50.",
		99 * time.Minute:        "in 99 minutes,\n  on November 22 at 01:29.",
		99*time.Minute + 1:      "in 2 hours, on November 22 at 01:29.",
		2*time.Hour + time.Hour: "in 3 hours, on November 22 at 02:50.",
	} {
		if got := notice(ask.Notice{Wait: wait}, now); !strings.Contains(got, want) {
			t.Errorf("%v: %s", wait, got)
		}
	}
	if got := notice(ask.Notice{}, now); strings.Contains(got, "next PIN") {
		t.Errorf("an unknown time: %s", got)
	}
}

func TestPurpose(t *testing.T) {
	for _, test := range []struct {
		use  ask.Use
		want string
	}{
		{ask.Use{Kind: ask.UseLogin, User: "u"}, "To log in as u (ssh did not say to which host)"},
		{ask.Use{Kind: ask.UseLogin, User: "u", HostKey: printH}, "To log in as u to an unknown host with the key\n  " + printH},
		{ask.Use{Kind: ask.UseLogin, Host: "[h.example]:2222", HostKey: printH}, "To log in to [h.example]:2222"},
		{ask.Use{Kind: ask.UseLogin, User: "git@github.com", Host: "evil.example"}, `To log in as "git@github.com"@evil.example`},
		{ask.Use{Kind: ask.UseLogin, User: "u (process 1)\nfor", Host: "2001:db8::1"}, `To log in as "u (process 1)for"@2001:db8::1`},
		{ask.Use{Kind: ask.UseLogin, User: "\u05d0\u05d1", Host: "10.0.0.1"}, `To log in as "??"@10.0.0.1`},
		{ask.Use{Kind: ask.UseLogin, User: strings.Repeat("u", 99), Host: strings.Repeat("h", 99) + ".example"}, "To log in as " + strings.Repeat("u", 29) + "…@\n  …" + strings.Repeat("h", 42) + ".example"},
		{ask.Use{Kind: ask.UseSignature, Namespace: "file"}, "To sign a file (namespace file)"},
		{ask.Use{Kind: ask.UseSignature, Namespace: "mail@example.org"}, `To sign data in the namespace "mail@example.org"`},
		{ask.Use{Kind: ask.UseSignature, Namespace: "git\u200b"}, "To sign data in the namespace git"},
		{ask.Use{Kind: ask.UseSignature, Namespace: "x\" (namespace git)"}, `To sign data in the namespace "x' (namespace git)"`},
		{ask.Use{Kind: ask.UseCertificate, KeyID: "alice", Principals: []string{"root", "www"}}, "To certify a user's key, for root, www (key ID alice)"},
		{ask.Use{Kind: ask.UseCertificate, Principals: []string{"a", "b", "c", "d", "e"}}, "To certify a user's key, for a, b, c, and 2 more"},
		{ask.Use{Kind: ask.UseCertificate, HostCert: true, KeyID: "h (x)"}, `To certify a host's key, for ANY name (key ID "h (x)")`},
		{ask.Use{Kind: ask.UseKind(99)}, "To sign data that is neither a login nor an SSH signature"},
	} {
		if got := purpose(test.use); got != test.want {
			t.Errorf("got\n%s\nwant\n%s", got, test.want)
		}
	}
}

func TestForwarded(t *testing.T) {
	for want, via := range map[string][]string{
		"Perhaps FORWARDED: the host did not prove its identity": nil,
		"FORWARDED from a":                                  {"a"},
		"FORWARDED from b via a":                            {"a", "b"},
		"FORWARDED from c via 1 other host and a":           {"a", "b", "c"},
		"FORWARDED from d via 2 other hosts and a":          {"a", "b", "c", "d"},
		"FORWARDED from an unproven host via a":             {"a", ""},
		"FORWARDED from\n  " + printH + " via\n  " + printH: {printH, printH},
		`FORWARDED from "ato log in as x"`:                  {"a\nto log in as x"},
	} {
		if got := forwarded(via); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	}
	if got := about(ask.Question{Use: ask.Use{Via: []string{"a"}}}); len(got) != 1 {
		t.Errorf("not forwarded: %q", got)
	}
}

// TestPrograms tests that no name can be taken for our own words.
func TestPrograms(t *testing.T) {
	for want, names := range map[string][]string{
		"Requested by pid 7":                     nil,
		"Requested by ssh (pid 7)":               {"ssh"},
		"Requested by git → ssh (pid 7)":         {"git", "ssh"},
		`Requested by "ssh (pid 1)for" (pid 7)`:  {"ssh (pid 1)\nfor"},
		`Requested by "ssh → git" → ssh (pid 7)`: {"ssh → git", "ssh"},
		`Requested by "" (pid 7)`:                {"\n\x7f\u200b"},
		`Requested by "a'b" (pid 7)`:             {`a"b`},
		`Requested by "a b" (pid 7)`:             {"a b"},
		"Requested by Jörg (pid 7)":              {"Jörg"},
		"Requested by aaaaaaaaaaaaaaa → bbbbbbbbbbbbbbb →\n  ccccccccccccccc → ddddddddddddddd → eeeeeeeeeeeeeee\n  (pid 7)": {
			"aaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbb", "ccccccccccccccc", "ddddddddddddddd", "eeeeeeeeeeeeeee",
		},
	} {
		if got := programs("Requested by", names, 7); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	}
	if got := about(ask.Question{Peer: peer.Peer{PID: -1}}); len(got) != 1 {
		t.Errorf("an unknown program: %q", got)
	}
}

// TestRequester names a real process.
func TestRequester(t *testing.T) {
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	pid := cmd.Process.Pid
	q := ask.Question{Peer: peer.Peer{PID: pid}}
	if got := about(q)[1]; !strings.HasPrefix(got, "Requested by ") || !strings.HasSuffix(strings.ReplaceAll(got, "\n ", ""), fmt.Sprintf(" → sleep (pid %d)", pid)) {
		t.Errorf("got %q", got)
	}
	q.Use = ask.Use{Forwarded: true, Via: []string{"a"}}
	if got := about(q)[2]; !strings.HasPrefix(got, "Forwarded by ") {
		t.Errorf("forwarded: %q", got)
	}
}

func TestKeyName(t *testing.T) {
	t.Setenv("HOME", "/home/me/")
	for want, key := range map[string][2]string{
		"~/.ssh/id.tpm (c)":            {"/home/me/.ssh/id.tpm", "c"},
		"~/id.tpm (work laptop, 2026)": {"/home/me/id.tpm", "work  laptop, 2026 "},
		"/home/mein/id.tpm":            {"/home/mein/id.tpm", ""},
		`"/my keys/id.tpm"`:            {"/my keys/id.tpm", "\u200b"},
		"c":                            {"", "c"},
		"id (a (not protected: (b)))":  {"id", "a (not protected: (b))"},
		`id ("a ((b)")`:                {"id", "a ((b)"},
		"without a name":               {"\n", "\x00"},
		`id ("x) SHA256:fake")`:        {"id", "x)\n SHA256:fake"},
		`"id (x)"`:                     {"id (x)", ""},
	} {
		if got := strings.Join(keyWords(key[0], key[1]), " "); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	t.Setenv("HOME", "/")
	if got := strings.Join(keyWords("/id", ""), " "); got != "/id" {
		t.Errorf("got %s", got)
	}
}

// clean checks that a text has only visible characters and newlines.
func clean(t *testing.T, text string) {
	t.Helper()
	marks := 0
	for _, r := range text {
		switch {
		case r == '\n':
		case !unicode.IsPrint(r), unicode.In(r, unicode.C, unicode.Bidi_Control, unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point):
			t.Errorf("%q has %U", text, r)
		}
		if marks++; !unicode.Is(unicode.M, r) {
			marks = 0
		}
		if marks > 3 {
			t.Errorf("%q has %d marks in a row", text, marks)
		}
	}
}

// FuzzWording tests that the texts are bounded and clean whatever is in a
// question, that lines are not too long, and that they begin with our own words.
func FuzzWording(f *testing.F) {
	f.Add("/k.tpm", "me@here", "git", "github.com", "gate", "git", uint8(1), uint8(1), 3)
	f.Add("x\nSHA256:", "x)\nSHA256:fake", "u\nfor ssh (process 1)", "h\u202e", "", "\u0301", uint8(2), uint8(1), -1)
	f.Add("𝖠", "\"", "%", "あ ", "e\u0301", " ", uint8(3), uint8(99), 1)
	f.Add("", "", "", "", "", "", uint8(4), uint8(1), 0)
	begins := []string{
		"Wrong PIN.", "Enter PIN for", "Allow use of key", "Key fingerprint ", "SHA256:", "FORWARDED from", "Perhaps FORWARDED:", "To ",
		"Requested by ", "Forwarded by ", "5 tries left", "This is the last try", "The answer also",
		"One more wrong", "It ", "and those of other programs,", "Try the PIN of",
		"The TPM ", "Keys without", "does not help", "tpm2_dictionarylockout", "Key: ", "  ",
	}
	f.Fuzz(func(t *testing.T, name, comment, user, host, via, other string, kind, times uint8, tries int) {
		for _, s := range []*string{&name, &comment, &user, &host, &via, &other} {
			*s = strings.Repeat(*s, int(times))
		}
		q := ask.Question{
			Name: name, Comment: comment, Fingerprint: printK, Peer: peer.Peer{PID: 1<<31 - 1},
			Use: ask.Use{
				Kind: ask.UseKind(kind % 6), User: user, Host: host, HostKey: printH, Namespace: other,
				Forwarded: kind&8 == 0, Via: []string{via, other}, KeyID: name, Principals: []string{user, host, via, other}, HostCert: kind&16 == 0,
			},
		}
		pin := ask.AuthPrompt{Question: q, Retry: tries < 2, TriesLeft: min(tries, 5), Waiting: 4000}
		if tries > 1 {
			pin.TriesLeft = 5
		}
		texts := []string{
			enterPIN(pin).Whole(), lastTry(pin), consent(ask.ConfirmPrompt{Question: q}),
			notice(ask.Notice{Question: q, Wait: time.Duration(tries)}, time.Now()),
		}
		// A program's name has at most 15 octets, and fuzzing does not choose that
		// of this one.
		more := len(programs("Requested by", []string{user, host, via, other, name}, 1<<31-1)) - len("Requested by pid 2147483647")
		for _, text := range texts {
			clean(t, text)
			if len(text)+more > maxText {
				t.Errorf("%d octets: %s", len(text), text)
			}
			for line := range strings.Lines(text) {
				if columns(strings.TrimSuffix(line, "\n")) > maxColumns+8 {
					t.Errorf("too long: %q", line)
				}
				known := false
				for _, begin := range begins {
					known = known || strings.HasPrefix(line, begin)
				}
				if !known {
					t.Errorf("begins with other words: %q", line)
				}
			}
		}
	})
}
